"""Tokens: words that let a program or a person read or change an index; kept hashed beside it."""

import hashlib
import hmac
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fewshot.errors import TokenError, UnauthorizedError, did_you_mean

FILE_NAME = "tokens.json"
SCOPES = ("read", "write")
MAX_NAME_LENGTH = 100
_SHAPE = re.compile(r"fewshot_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept: what it may do, and a salted hash of its secret."""

    token_id: str
    name: str
    scopes: tuple[str, ...]
    created_at: str
    salt: str
    digest: str

    def may(self, scope: str) -> bool:
        """Whether the token allows this; write includes read."""
        return scope in self.scopes or (scope == "read" and "write" in self.scopes)

    def as_dict(self) -> dict[str, object]:
        """What may be shown of it."""
        return {"id": self.token_id, "name": self.name, "scopes": list(self.scopes), "created_at": self.created_at}


class TokenFile:
    """The tokens of one index, in a file of mode 0600 beside it; a change by another process is seen at once.

    The secret is 256 random bits, which nobody guesses however fast the hash is; a slow one (scrypt) would only let
    strangers make the service busy. Of the file alone no secret can be had.

    Args:
        folder: the index's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._seen: tuple[int, int, int] | None = None
        self._tokens: dict[str, Token] = {}

    def all(self) -> list[Token]:
        """Every token, oldest first.

        Raises:
            TokenError: the file cannot be read or is no list of tokens.
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
        tokens = self.all()
        if name in {token.name for token in tokens}:
            raise TokenError(
                f"there is a token named {name!r} already.", hint="Choose another name, or revoke that one first."
            )
        token_id, secret, salt = secrets.token_hex(4), secrets.token_urlsafe(32), secrets.token_hex(16)
        made = Token(token_id, name, scopes, datetime.now(UTC).isoformat(timespec="seconds"), salt, "")
        made = replace(made, digest=_digest(salt, secret))
        self._write([*tokens, made])
        return made, f"fewshot_{token_id}_{secret}"

    def revoke(self, name_or_id: str) -> Token:
        """Take a token out; it is refused from now on.

        Raises:
            TokenError: there is none of this name or id.
        """
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

    def check(self, word: str) -> Token:
        """The token that a word stands for. Takes as long for a wrong secret as for a wrong id.

        Raises:
            UnauthorizedError: it stands for none.
        """
        self._refresh()
        shape = _SHAPE.fullmatch(word)
        token_id, secret = shape.groups() if shape else ("", "")
        token = self._tokens.get(token_id, _NOBODY)
        if not hmac.compare_digest(_digest(token.salt, secret), token.digest) or token is _NOBODY:
            raise UnauthorizedError("the token is none of this index, or was revoked.")
        return token

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._seen, self._tokens = None, {}
            return
        seen = (status.st_mtime_ns, status.st_ino, status.st_size)
        if seen == self._seen:
            return
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))["tokens"]
            found = [Token(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TokenError(
                f"the tokens of the index cannot be read from {self._path}: {error}.",
                hint="Restore the file from a copy, or delete it and make new tokens.",
            ) from error
        self._seen, self._tokens = seen, {token.token_id: token for token in found}

    def _write(self, tokens: list[Token]) -> None:
        text = json.dumps({"tokens": [asdict(token) for token in tokens]}, indent=1)
        temporary = self._path.with_name(f".{FILE_NAME}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise TokenError(
                f"the tokens cannot be written to {self._path}: {error.strerror}.",
                hint="Check the permissions of the index's folder and the space on its disk.",
            ) from error


def _digest(salt: str, secret: str) -> str:
    return hashlib.sha256(f"{salt}:{secret}".encode()).hexdigest()


# What a wrong id is compared with, so that it costs what a wrong secret does.
_NOBODY = Token("", "", (), "", "0" * 32, _digest("0" * 32, secrets.token_hex(32)))
