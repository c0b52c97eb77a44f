"""How a database is named: as a user writes it, as it may be shown, and under which name it is cached."""

import hashlib
import re
import shlex
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from fewshot.errors import NotAnIndexError

DRIVER = "postgresql+psycopg"
# Words of an address that hold a secret, beside the password before the host.
_SECRETS = ("password", "sslpassword", "passfile", "sslkey")
_SCHEMES = ("postgres", "postgresql", DRIVER)


def is_server(where: object) -> bool:
    """Whether this names a database and not a folder.

    >>> is_server("postgresql://host/plants"), is_server("indexes/plants")
    (True, False)
    """
    return isinstance(where, str) and "://" in where


def parsed(where: str) -> sa.URL:
    """A database's address, read.

    Raises:
        NotAnIndexError: it cannot be read, or names no database.
    """
    scheme = where.partition("://")[0]
    if scheme not in _SCHEMES:
        raise NotAnIndexError(
            f"{scheme!r} is no kind of database that can hold an index.", hint="Name a folder, or postgresql://..."
        )
    hint = "Write postgresql://USER@HOST/DATABASE; characters such as @ and / in a password are written %40 and %2F."
    try:
        where.encode()  # what is no UTF-8 in a command stands in it as surrogates, which no server can be sent
        url = sa.make_url(where).set(drivername=DRIVER)
    except (ArgumentError, ValueError):
        # The reason would quote the address, and with it a password.
        raise NotAnIndexError("the address of the database cannot be read.", hint=hint) from None
    if not url.database:
        raise NotAnIndexError(f"{shown(url)} names no database.", hint=hint)
    return url


def shown(url: sa.URL) -> str:
    """The address without its secrets.

    >>> shown(parsed("postgres://ada:secret@db.example/plants?sslmode=require&password=secret"))
    'postgresql://ada@db.example/plants?sslmode=require'
    """
    harmless = sa.URL.create(
        "postgresql",
        url.username,
        None,
        url.host,
        url.port,
        url.database,
        {name: value for name, value in url.query.items() if name not in _SECRETS},
    )
    return harmless.render_as_string(hide_password=True)


def cache_name(url: sa.URL) -> str:
    """What the caches of a database's index are called: the same whoever asks it, another for each index.

    >>> cache_name(parsed("postgresql://ada@db/plants")) == cache_name(parsed("postgresql://ben@db:5432/plants"))
    True
    """
    place = {
        "host": url.host or url.query.get("host", ""),
        "port": url.port or url.query.get("port", 5432),
        "database": url.database,
        "options": url.query.get("options", ""),  # may name the schema
    }
    digest = hashlib.sha256(repr(sorted(place.items())).encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', url.database or '')[:40]}-{digest}"


def shown_place(where: Path | str) -> str:
    """A folder or an address as it may be shown, and given again as it is shown.

    >>> shown_place(Path("plants")), shown_place(Path("indexes/plants"))
    ('./plants', 'indexes/plants')
    """
    if is_server(where):
        return shown(parsed(str(where)))
    # A folder's bare name would be taken for one under indexes/.
    return f"./{where}" if isinstance(where, Path) and len(where.parts) == 1 and not where.is_absolute() else str(where)


def doctor(where: Path | str) -> str:
    """The command that looks an index over, for a hint.

    >>> doctor(Path("my plants"))
    "`fewshot doctor --index './my plants'`"
    """
    return f"`fewshot doctor --index {shlex.quote(shown_place(where))}`"
