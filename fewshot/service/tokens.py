"""Tokens: words that let a program or a person read or change an index; kept hashed beside it."""

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fewshot.errors import TokenError, UnauthorizedError, did_you_mean
from fewshot.sealed import clear_leftovers, temporary_beside
from fewshot.store.schema import TOKENS_FILE, TOKENS_LOCK

SCOPES = ("read", "write")
MAX_NAME_LENGTH = 100
# The cost of a hash: 16 MB and some 40 ms, once a token and start of the service; what is known is then remembered.
SCRYPT = {"n": 2**14, "r": 8, "p": 1, "dklen": 32}
_SHAPE = re.compile(r"fewshot_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept: what it may do, and a salted hash of its secret.

    `kind` is the hash: "scrypt", or "sha256" in a file of before, whose tokens become "scrypt" at their first use.
    """

    token_id: str
    name: str
    scopes: tuple[str, ...]
    created_at: str
    salt: str
    digest: str
    kind: str = "sha256"

    def may(self, scope: str) -> bool:
        """Whether the token allows this; write includes read."""
        return scope in self.scopes or (scope == "read" and "write" in self.scopes)

    def as_dict(self) -> dict[str, object]:
        """What may be shown of it."""
        return {"id": self.token_id, "name": self.name, "scopes": list(self.scopes), "created_at": self.created_at}


class Tokens(ABC):
    """The tokens of one index.

    Secrets are kept as scrypt hashes. A word that proved right is remembered, as a keyed hash and in memory alone, so
    that only the first request with it pays for scrypt; docs/threat-model.md says what each of this is for.
    """

    def __init__(self) -> None:
        self._tokens: dict[str, Token] = {}
        self._key = secrets.token_bytes(32)
        self._proved: dict[bytes, Token] = {}  # keyed hash of a word: its token; forgotten when the tokens change
        self._one_at_a_time = threading.Lock()

    def all(self) -> list[Token]:
        """Every token, oldest first.

        Raises:
            TokenError: what is kept cannot be read or is no list of tokens.
        """
        self._refresh()
        return list(self._tokens.values())

    def create(self, name: str, scopes: tuple[str, ...]) -> tuple[Token, str]:
        """A new token and the word to hand out, which is shown this once and kept nowhere.

        Raises:
            TokenError: the name is taken, empty or too long.
        """
        name = name.strip()
        if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
            raise TokenError(
                f"{name[:20]!r} cannot be a token's name: wanted 1 to {MAX_NAME_LENGTH} visible characters.",
                hint="Name it after who will hold it, such as 'field-phone'.",
            )
        token_id, secret, salt = secrets.token_hex(4), secrets.token_urlsafe(32), secrets.token_hex(16)
        made = Token(token_id, name, scopes, datetime.now(UTC).isoformat(timespec="seconds"), salt, "", "scrypt")
        made = replace(made, digest=_digest(made, secret))
        with self._changing():
            tokens = self.all()
            if name in {token.name for token in tokens}:
                raise TokenError(
                    f"there is a token named {name!r} already.", hint="Choose another name, or revoke that one first."
                )
            self._write([*tokens, made])
        return made, f"fewshot_{token_id}_{secret}"

    def revoke(self, name_or_id: str) -> Token:
        """Take a token out; it is refused from now on.

        Raises:
            TokenError: there is none of this name or id.
        """
        with self._changing():
            tokens = self.all()
            found = [token for token in tokens if name_or_id in (token.name, token.token_id)]
            if not found:
                names = [token.name for token in tokens]
                raise TokenError(
                    f"there is no token {name_or_id!r}.",
                    hint=did_you_mean(name_or_id, names) or "`fewshot token list` shows those that there are.",
                )
            self._write([token for token in tokens if token is not found[0]])
        return found[0]

    def known(self, word: str) -> Token | None:
        """The token that a word stands for, if it has proved right before; takes microseconds."""
        self._refresh()
        proved = self._proved.get(self._hashed(word))
        return proved if proved is not None and self._tokens.get(proved.token_id) == proved else None

    def check(self, word: str) -> Token:
        """The token that a word stands for. Takes as long for a wrong secret as for a wrong id: some 40 ms.

        Raises:
            UnauthorizedError: it stands for none.
        """
        found = self.known(word)
        if found is not None:
            return found
        shape = _SHAPE.fullmatch(word)
        if shape is None:  # it tells nothing that is secret, and costs nothing
            raise UnauthorizedError(_REFUSED)
        token_id, secret = shape.groups()
        with self._one_at_a_time:  # of many words at once, each waits; memory and processor stay bounded
            token = self._tokens.get(token_id, _NOBODY)
            if not hmac.compare_digest(_digest(token, secret), token.digest) or token is _NOBODY:
                raise UnauthorizedError(_REFUSED)
            if token.kind != "scrypt":
                token = self._migrated(token, secret)
            self._proved[self._hashed(word)] = token
        return token

    def _hashed(self, word: str) -> bytes:
        return hashlib.blake2b(word.encode("utf-8", "surrogatepass"), key=self._key, digest_size=32).digest()

    def _migrated(self, token: Token, secret: str) -> Token:
        """A token of before, kept from now on as scrypt hashes it; as it was, if that cannot be written."""
        try:
            with self._changing():
                self._refresh()
                if self._tokens.get(token.token_id) != token:
                    raise UnauthorizedError(_REFUSED)  # it was revoked meanwhile
                made = replace(token, salt=secrets.token_hex(16), kind="scrypt")
                made = replace(made, digest=_digest(made, secret))
                self._write([made if each == token else each for each in self._tokens.values()])
                self._refresh()
        except TokenError as error:
            log.warning("the token %s keeps its older hash: %s", token.token_id, error.message)
            return token
        return self._tokens.get(token.token_id, made)

    def look(self) -> None:  # noqa: B027 - most need none
        """See what was changed elsewhere, where that takes a look of its own."""

    @abstractmethod
    def _changing(self) -> AbstractContextManager[None]:
        """Of two changes at once, by whatever process, none undoes the other."""

    @abstractmethod
    def _refresh(self) -> None:
        """Bring `_tokens` up to what is kept."""

    @abstractmethod
    def _write(self, tokens: list[Token]) -> None:
        """Keep these tokens and no others."""


class TokenFile(Tokens):
    """In a file of mode 0600 beside the index; a change by another process is seen at once.

    Args:
        folder: the index's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / TOKENS_FILE
        self._lock_path = folder / TOKENS_LOCK
        self._seen: tuple[int, int, int] | None = None

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._seen, self._tokens = None, {}
            self._proved.clear()
            return
        seen = (status.st_mtime_ns, status.st_ino, status.st_size)
        if seen == self._seen:
            return
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))["tokens"]
            found = [token_of(row) for row in rows]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TokenError(
                f"the tokens of the index cannot be read from {self._path}: {error}.",
                hint="Restore the file from a copy, or delete it and make new tokens.",
            ) from error
        self._seen, self._tokens = seen, {token.token_id: token for token in found}
        self._proved.clear()

    def _write(self, tokens: list[Token]) -> None:
        text = json.dumps({"tokens": [asdict(token) for token in tokens]}, indent=1)
        temporary = temporary_beside(self._path)
        try:
            clear_leftovers(self._path)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> TokenError:
        return TokenError(
            f"the tokens cannot be written to {self._path}: {error.strerror}.",
            hint="Check the permissions of the index's folder and the space on its disk.",
        )


def token_of(row: dict[str, Any]) -> Token:
    """A token as it was kept.

    Raises:
        ValueError, TypeError, KeyError: this is none.
    """
    token = Token(**{**row, "scopes": tuple(row["scopes"])})
    if token.kind not in ("scrypt", "sha256"):
        raise ValueError(f"{token.kind!r} is no hash that is known here")
    return token


def _digest(token: Token, secret: str) -> str:
    if token.kind == "sha256":
        return hashlib.sha256(f"{token.salt}:{secret}".encode()).hexdigest()
    return hashlib.scrypt(secret.encode(), salt=token.salt.encode(), **SCRYPT).hex()


_REFUSED = "the token is none of this index, or was revoked."
# What a wrong id is compared with, so that it costs what a wrong secret does.
_NOBODY = Token("", "", (), "", "0" * 32, secrets.token_hex(32), "scrypt")
