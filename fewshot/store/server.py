"""An index in a PostgreSQL database, opened: its tables, its transactions, and word of changes made elsewhere."""

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from fewshot.errors import (
    DatabaseAccessError,
    DatabaseUnreachableError,
    FewshotError,
    IndexDamagedError,
    IndexMissingError,
    NotAnIndexError,
    PgvectorMissingError,
)
from fewshot.extras import need
from fewshot.store import addresses, migrating
from fewshot.store.schema import FORMAT_VERSION, about, copying, fewshot_format, metadata
from fewshot.store.server_errors import translated
from fewshot.store.transactions import BUSY_TIMEOUT_S, WRITES, Transactions
from fewshot.store.writing import CHANNEL, has_table

# A connection that was cut is given up after about so long, on both sides, instead of a quarter of an hour: nobody
# waits longer for a change that a machine began before it vanished.
CONNECT_TIMEOUT_S = 4
SILENCE_S = 5
LOCK_KEY = 0x46455753
POOL_SIZE, POOL_MORE = 16, 16

_SESSION = (
    ("tcp_keepalives_idle", "3"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", str(1000 * SILENCE_S)),
    ("client_connection_check_interval", "2000"),
    ("idle_in_transaction_session_timeout", "0"),
)


class ServerStore(Transactions):
    """An index in a PostgreSQL database.

    Args:
        where: `postgresql://user@host/database`, as libpq takes it; without a password that is in ~/.pgpass.
        create: make the tables where there are none.
        timeout_s: how long to wait for another process that is writing.
        unfinished: open also what an interrupted copy has left.

    Raises:
        MissingExtraError, DatabaseUnreachableError, DatabaseAccessError, PgvectorMissingError, IndexMissingError,
        NotAnIndexError, NewerFormatError, IndexDamagedError: see their messages.
    """

    def __init__(
        self, where: str, *, create: bool = False, timeout_s: float = BUSY_TIMEOUT_S, unfinished: bool = False
    ) -> None:
        url = addresses.parsed(where)
        self.place = addresses.shown(url)
        self.name = url.database or ""
        self.cache_name = addresses.cache_name(url)
        self._timeout_s = timeout_s
        self._engine = self._made_engine(url)
        try:
            self._open(create, unfinished)
        except BaseException:
            self._engine.dispose()
            raise

    # ---- word of changes

    def changes(self, stop: threading.Event, poll_s: float) -> Iterator[None]:
        """Say, until stopped, that something may have changed: at once when told so, and every `poll_s` anyway.

        A connection that is lost is made anew; the index is looked at behind each connection, since what was told
        meanwhile was not heard.
        """
        while not stop.is_set():
            try:
                with self._connect(write=False) as connection:
                    yield from self._heard(connection, stop, poll_s)
            except FewshotError:
                yield None  # whoever follows meets the same error, and says so
                stop.wait(min(1.0, poll_s))

    def _heard(self, connection: sa.Connection, stop: threading.Event, poll_s: float) -> Iterator[None]:
        listening = connection.connection.dbapi_connection
        assert listening is not None
        connection.connection.detach()  # from the pool: what listens is not lent to others
        driver: Any = listening
        with driver:
            try:
                driver.autocommit = True
                driver.execute(f"LISTEN {CHANNEL}")
                yield None
                while not stop.is_set():
                    until = time.monotonic() + poll_s
                    told = False
                    while not stop.is_set() and not told and time.monotonic() < until:
                        told = any(True for _ in driver.notifies(timeout=min(0.2, poll_s), stop_after=1))
                    driver.execute("SELECT 1")  # a connection that was cut is noticed here
                    yield None
            except self._driver.Error as error:
                raise translated(error, self.name, str(self.place)) from error

    # ---- opening

    def _made_engine(self, url: sa.URL) -> sa.Engine:
        need("postgres", f"{self.place} is a database, which")
        import psycopg

        self._driver = psycopg
        given = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "fewshot",
            "keepalives_idle": 3,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 1000 * SILENCE_S,
        }
        engine = sa.create_engine(
            url,
            connect_args={name: value for name, value in given.items() if name not in url.query},
            pool_size=POOL_SIZE,
            max_overflow=POOL_MORE,
            pool_timeout=BUSY_TIMEOUT_S,
            pool_pre_ping=True,  # after a restart of the server no request pays for a dead connection
            hide_parameters=True,
        )
        event.listen(engine, "connect", self._set_up_connection)
        event.listen(engine, "begin", self._begin)
        event.listen(engine, "handle_error", self._translate)
        return engine

    def _open(self, create: bool, unfinished: bool) -> None:
        with self._connect(write=False) as connection, connection.begin():
            schema = _absent_schema(connection)
            version = _version(connection) if schema is None else None
            foreign = (schema, version) == (None, None) and any(has_table(connection, name) for name in metadata.tables)
        if schema is not None and not create:
            raise IndexMissingError(
                f"the database {self.place} has no schema {schema!r} for this user, so it holds no index there.",
                hint="Enroll a class to make both (`fewshot enroll LABEL FOLDER`), or check the search_path.",
            )
        if foreign:
            raise NotAnIndexError(
                f"{self.place} holds tables of another program under the names of an index's.",
                hint="Name an empty database, or a schema of its own: ?options=-csearch_path%3DNAME",
            )
        if version is None:
            if not create:
                raise IndexMissingError(
                    f"the database {self.place} holds no index.",
                    hint="Enroll a class to make it (`fewshot enroll LABEL FOLDER`), or check --index.",
                )
            self._create(schema)
        elif version > FORMAT_VERSION:
            raise migrating.newer_format(self.name, version)
        elif version < FORMAT_VERSION:
            with self._connect(write=True) as connection, connection.begin():
                migrating.migrate(connection, _version(connection) or version)
        elif not unfinished:
            self._check_finished()

    def _create(self, schema: str | None) -> None:
        self._prepare(schema)
        with self.write() as writer:
            writer.create_tables()

    def _prepare(self, schema: str | None) -> None:
        """Make sure that the database knows vectors, then that it has this schema, if one is given.

        Raises:
            PgvectorMissingError: the server has no pgvector, or this user may not add it to the database.
            DatabaseAccessError: this user may neither use the schema nor make it.
        """
        with self._connect(write=True) as connection, connection.begin():
            available = connection.exec_driver_sql(
                "SELECT installed_version FROM pg_available_extensions WHERE name = 'vector'"
            ).one_or_none()
            if available is None:
                raise PgvectorMissingError(
                    f"the server of {self.place} has no pgvector.",
                    hint="Install it on the server (Debian: postgresql-NN-pgvector), then try again.",
                )
            if available[0] is None:
                try:
                    connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS vector")
                except FewshotError as error:
                    raise PgvectorMissingError(
                        f"pgvector cannot be added to {self.place}: {error.message}",
                        hint="Have an administrator run `CREATE EXTENSION vector` in that database.",
                    ) from error
            if connection.exec_driver_sql("SELECT to_regtype('vector')").scalar_one() is None:
                raise PgvectorMissingError(
                    f"pgvector is in a schema of {self.place} that the search_path leaves out.",
                    hint="Name its schema too, behind the index's own: ?options=-csearch_path%3DNAME,public",
                )
            if schema is not None:  # behind pgvector, which would otherwise go into it, out of other indexes' reach
                self._create_schema(connection, schema)
        self._engine.dispose()  # connections learn what a vector is when they are made

    def _create_schema(self, connection: sa.Connection, schema: str) -> None:
        user = connection.exec_driver_sql("SELECT current_user").scalar_one()
        # The lock of the schema's writers: of two processes that make it, the second finds it made.
        locked = sa.text("SELECT pg_advisory_xact_lock(:key, hashtext(:name))")
        connection.execute(locked, {"key": LOCK_KEY, "name": schema})
        try:
            connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
            usable = sa.text("SELECT has_schema_privilege(:name, 'USAGE')")
            if connection.execute(usable, {"name": schema}).scalar_one():
                return
            said = f"permission denied for schema {schema}"
        except DatabaseAccessError as error:
            said = error.message
        raise DatabaseAccessError(
            f"the schema {schema!r} of {self.place} cannot be made or used by this user: {said}",
            hint=f'Have an administrator run `CREATE SCHEMA "{schema}" AUTHORIZATION "{user}"` in that database.',
        )

    def _check_finished(self) -> None:
        with self._connect(write=False) as connection, connection.begin():
            if connection.execute(sa.select(about.c.one)).scalar() is not None:
                return
            unfinished = connection.execute(sa.select(copying.c.source)).scalar()
        if unfinished is None:
            raise IndexDamagedError(f"index {self.name!r} is damaged: its own facts are missing.")
        raise IndexMissingError(
            f"the copy of {unfinished} to {self.place} was never finished.",
            hint="Run the same `fewshot copy` again; it goes on where it stopped.",
        )

    # ---- connections

    def _connect(self, *, write: bool) -> sa.Connection:
        try:
            connection = self._engine.connect()
        except sa.exc.TimeoutError as error:
            raise DatabaseUnreachableError(
                f"all {POOL_SIZE + POOL_MORE} connections to the database of index {self.name!r} have been in use for "
                f"{BUSY_TIMEOUT_S:.0f} s.",
                hint="Ask again, or fewer at a time.",
            ) from error
        except self._driver.Error as error:  # while a connection is set up, before SQLAlchemy's own handling
            raise translated(error, self.name, str(self.place)) from error
        if write:  # sees, behind the lock, what the change before has left
            return connection.execution_options(**{WRITES: True}, isolation_level="READ COMMITTED")
        return connection.execution_options(
            **{WRITES: False}, isolation_level="REPEATABLE READ", postgresql_readonly=True
        )

    def _set_up_connection(self, driver: Any, _record: object) -> None:
        from pgvector.psycopg import register_vector

        driver.autocommit = True
        settings = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _SESSION)
        driver.execute(f"SELECT {settings}")
        # An acknowledged change must outlive a power cut; a stricter setting of the server is left as it is.
        driver.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        if driver.execute("SELECT to_regtype('vector')").fetchone()[0] is not None:
            register_vector(driver)
        driver.autocommit = False

    def _begin(self, connection: sa.Connection) -> None:
        if connection.get_execution_options().get(WRITES, False):
            # One writer at a time, as in a file: a change never fails half-way because another came first.
            timeout_ms = max(1, round(1000 * self._timeout_s))
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {timeout_ms}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_KEY}, hashtext(current_schema()))")

    def _translate(self, context: sa.engine.ExceptionContext) -> None:
        error = context.original_exception
        if context.is_pre_ping or isinstance(error, self._driver.IntegrityError):
            return  # a dead connection of the pool is replaced; a broken rule is our own mistake
        if isinstance(error, self._driver.Error):
            raise translated(error, self.name, str(self.place)) from error


def _absent_schema(connection: sa.Connection) -> str | None:
    """The schema that the search_path names first, where tables would go into another, since there is none of it."""
    row = connection.exec_driver_sql("SELECT current_setting('search_path'), current_schema(), current_user").one()
    wanted = _first_schema(*row)
    return None if wanted == row[1] else wanted


def _first_schema(path: str, current: str | None, user: str) -> str | None:
    """The first schema of a search_path; the user's own, as `$user`, counts where there is one.

    >>> _first_schema('"$user", public', "public", "ada"), _first_schema('"$user", public', "ada", "ada")
    ('public', 'ada')
    >>> _first_schema('Maize,public', "public", "ada"), _first_schema('"Sweet, white" , public', None, "ada")
    ('maize', 'Sweet, white')
    """
    for quoted, plain in re.findall(r'\s*(?:"((?:[^"]|"")*)"|([^",]+))\s*(?:,|$)', path):
        # As the server reads it: no more than 63 bytes, and of what is not quoted only A to Z made small.
        read = quoted.replace('""', '"').encode() if quoted else plain.strip().encode().lower()
        name = str(read[:63].decode(errors="ignore"))
        if name == "$user" and current == user:
            return user
        if name not in ("", "$user", "pg_temp"):
            return name
    return None


def _version(connection: sa.Connection) -> int | None:
    """The format of the index that is there, None where there is none."""
    if not has_table(connection, fewshot_format.name):
        return None
    found = connection.execute(sa.select(fewshot_format.c.version)).scalar()
    return None if found is None else int(found)
