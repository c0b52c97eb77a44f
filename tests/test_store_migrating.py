"""Formats: a file and a server's tables are brought on by the same revisions, whole or not at all."""

from contextlib import closing

import pgvector.sqlalchemy  # noqa: F401  names the type of its columns to what reads tables back
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from test_store import add_class, content

from fewshot.store import Store, migrating, open_store
from fewshot.store.schema import FORMAT_VERSION, GUARDS, fewshot_format, metadata, server_metadata

NEXT = """
import pgvector.sqlalchemy  # noqa: F401  names the type of its columns to what reads tables back
import pytest
import sqlalchemy as sa
from alembic import op

revision = "{to:04}"
down_revision = "{from_:04}"

def upgrade():
    op.add_column("supports", sa.Column("grower", sa.String))
    op.execute("UPDATE supports SET grower = 'ada'")
"""


@pytest.fixture
def store(place):
    with closing(open_store(place, create=True)) as opened:
        add_class(opened, "rust", "a.png", "b.png")
        yield opened


@pytest.fixture
def folders(tmp_path):
    """The program's revisions, and one of the future."""
    (tmp_path / "revisions").mkdir()
    script = NEXT.format(to=FORMAT_VERSION + 1, from_=FORMAT_VERSION)
    (tmp_path / "revisions" / "next.py").write_text(script)
    return [migrating.VERSIONS, tmp_path / "revisions"]


def version(connection):
    if connection.dialect.name == "sqlite":
        return connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    return connection.execute(sa.select(fewshot_format.c.version)).scalar_one()


def growers(store):
    with store.read() as reader:
        return reader.connection.execute(sa.text("SELECT grower FROM supports")).scalars().all()


def test_the_last_revision_is_the_programs_format():
    newest = max(migrating.VERSIONS.glob("format_*.py")).stem
    assert newest == f"format_{FORMAT_VERSION:04}"


def test_what_is_laid_out_is_what_the_tables_say(store):
    tables = sa.MetaData()
    for table in (*metadata.tables.values(), *(() if isinstance(store, Store) else server_metadata.tables.values())):
        table.to_metadata(tables)
    with store.read() as reader:
        context = MigrationContext.configure(reader.connection, opts={"include_name": _ours})
        assert compare_metadata(context, tables) == []


def _ours(name, kind, _parents):
    if kind == "index":  # the second copies for a repair are no part of the tables
        return name not in GUARDS
    return kind != "table" or name in metadata.tables or name in server_metadata.tables


def test_an_older_index_is_brought_on_with_its_content(store, folders):
    before = content(store)
    with store.write() as writer:
        migrating.migrate(writer.connection, FORMAT_VERSION, FORMAT_VERSION + 1, folders)
    assert growers(store) == ["ada", "ada"]
    assert content(store) == before
    with store.read() as reader:
        assert version(reader.connection) == FORMAT_VERSION + 1


def test_a_migration_that_fails_leaves_the_index_as_it_was(store, folders):
    before = content(store)
    (folders[1] / "next.py").write_text(
        NEXT.format(to=FORMAT_VERSION + 1, from_=FORMAT_VERSION) + "    raise KeyboardInterrupt\n"
    )

    def interrupted():
        with store.write() as writer:
            migrating.migrate(writer.connection, FORMAT_VERSION, FORMAT_VERSION + 1, folders)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert content(store) == before
    with store.read() as reader:
        assert version(reader.connection) == FORMAT_VERSION
        assert "grower" not in {column["name"] for column in sa.inspect(reader.connection).get_columns("supports")}


def test_opening_brings_an_older_index_on(store, folders, monkeypatch):
    """As the program of the next format does it: told that its format is one further, with one revision more."""
    place = store.place
    store.close()
    for module in ("connection", "server"):
        monkeypatch.setattr(f"fewshot.store.{module}.FORMAT_VERSION", FORMAT_VERSION + 1)
    monkeypatch.setattr(migrating.migrate, "__defaults__", (FORMAT_VERSION + 1, folders))
    for _ in range(2):  # and finds it done the second time
        with closing(open_store(place)) as opened:
            assert growers(opened) == ["ada", "ada"]
