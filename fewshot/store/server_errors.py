"""What a PostgreSQL server or the way to it answers -> the error that a user can act on."""

from typing import Any

from fewshot.errors import (
    DatabaseAccessError,
    DatabaseUnreachableError,
    DiskFullError,
    FewshotError,
    IndexDamagedError,
    IndexLockedError,
    IndexMissingError,
    IndexProblem,
    IndexUnwritableError,
)

# SQLSTATE, or the beginning of it: https://www.postgresql.org/docs/current/errcodes-appendix.html
_AWAY = ("08", "57P", "53300", "57014")
_LOCKED = ("55P03", "40001", "40P01", "25P03")
_REFUSED = ("28", "42501")
_DAMAGED = ("XX001", "XX002", "42P01", "42703")
# A connection that is refused has no SQLSTATE here, only its words; these are the untranslated server's.
_REFUSED_WORDS = ("authentication failed", "no password supplied", "no pg_hba.conf entry", "permission denied")
# The psycopg errors that a connection which fails or is gone raises, if the server said nothing; by name, since without
# the extra there is no psycopg to import.
_OF_THE_CONNECTION = ("OperationalError", "InterfaceError")
_MISSING_WORDS = ('" does not exist',)


def translated(error: Any, name: str, where: str) -> FewshotError:
    """The error to show.

    Args:
        error: of psycopg.
        name: what messages call the index.
        where: its address, without secrets.
    """
    state = getattr(error, "sqlstate", None) or ""
    said = _said(error)
    if state.startswith(_LOCKED):
        return IndexLockedError(f"index {name!r} is locked: another process has been writing to it.")
    if state == "53100":
        return DiskFullError(f"the disk of the server that holds index {name!r} is full; the change was not kept.")
    if state.startswith(_REFUSED) or (not state and any(word in said for word in _REFUSED_WORDS)):
        return DatabaseAccessError(
            f"the server does not let this user use {where}: {said}.",
            hint="Check user and password. A password is best kept in ~/.pgpass or $PGPASSWORD, not in the address.",
        )
    if state == "3D000" or (not state and "database" in said and any(word in said for word in _MISSING_WORDS)):
        return IndexMissingError(
            f"the server has no database for {where}.", hint="Make it with `createdb`, or check --index."
        )
    if not state and "role" in said and any(word in said for word in _MISSING_WORDS):
        return DatabaseAccessError(f"the server knows no such user: {where}.", hint="Check the user in --index.")
    if state == "25006":
        return IndexUnwritableError(
            f"the database of index {name!r} can only be read: {said}.",
            hint="Name the primary server in --index, not a standby.",
        )
    if state.startswith(_AWAY) or (not state and _is_of_the_connection(error)):
        return DatabaseUnreachableError(f"the database of index {name!r} at {where} does not answer: {said}.")
    if state.startswith(_DAMAGED):
        return IndexDamagedError(
            f"index {name!r} is damaged: {said}.", hint=f"`fewshot doctor --index {where}` says what is sound."
        )
    if not state:
        return IndexProblem(f"what index {name!r} needed could not be asked of the server: {said}.")
    return IndexProblem(f"the server refused what index {name!r} needed: {said} (SQLSTATE {state}).")


def _is_of_the_connection(error: Any) -> bool:
    """Whether an error that the server did not name is of the way to it, and not of what was to be sent."""
    return any(kind.__name__ in _OF_THE_CONNECTION for kind in type(error).__mro__)


def _said(error: Any) -> str:
    """The server's own words, in one line; neither the statement nor its values."""
    diagnosis = getattr(error, "diag", None)
    text = (diagnosis.message_primary if diagnosis is not None else None) or str(error)
    return " ".join(text.split()).rstrip(".")
