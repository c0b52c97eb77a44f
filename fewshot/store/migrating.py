"""An index of an older format -> the same content in this program's format, in the transaction it is called in."""

from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from fewshot.errors import NewerFormatError
from fewshot.store.schema import FORMAT_VERSION, fewshot_format

VERSIONS = Path(__file__).parent / "migrations" / "versions"


def migrate(
    connection: sa.Connection, found: int, wanted: int = FORMAT_VERSION, folders: Sequence[Path] = (VERSIONS,)
) -> None:
    """Run the revisions between two formats, and note the new one. Kept or not with the caller's transaction.

    A revision is a script of Alembic, whose operations say the same to a file and to a server. Formats are noted where
    they always were, in a file's `user_version` or a server's `fewshot_format`, and not in a table of Alembic's.

    Args:
        connection: inside a transaction that may write; nothing else is writing.
        found: the index's format version.
        wanted: the one to arrive at.
        folders: where the revisions are.
    """
    if found >= wanted:
        return
    from alembic.config import Config
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(VERSIONS.parent))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(str(folder) for folder in folders))
    scripts = ScriptDirectory.from_config(config)
    steps = list(scripts.iterate_revisions(f"{wanted:04}", f"{found:04}"))
    with Operations.context(MigrationContext.configure(connection)):
        for step in reversed(steps):
            step.module.upgrade()
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version = {int(wanted)}")
    else:
        connection.execute(fewshot_format.update().values(version=wanted))


def newer_format(name: str, version: int) -> NewerFormatError:
    """The error for an index that a later version has made."""
    return NewerFormatError(
        f"index {name!r} has format version {version}; this fewshot reads up to {FORMAT_VERSION}.",
        hint="Update fewshot: `pip install -U fewshot`.",
    )
