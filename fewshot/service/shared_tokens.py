"""The tokens of an index in a database: kept there, so that every service over it knows the same ones."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict

from fewshot.errors import DatabaseUnreachableError, LabelTakenError, TokenError
from fewshot.gallery import Gallery
from fewshot.service.tokens import Token, TokenFile, Tokens, token_of

# For so long what was seen last holds without another look; who follows looks twice a second, and while the database is
# silent every 8.5 s.
FRESH_S = 10.0

log = logging.getLogger(__name__)


class TokenTable(Tokens):
    """In a table beside an index in a database.

    Args:
        gallery: the opened index.
        followed: somebody calls `look` after each change, so that a request need not wait for the database. What was
            seen last holds while it cannot be reached. When nobody has looked for `FRESH_S`, a token is known again
            only after another look.
        clock: seconds.
    """

    def __init__(
        self, gallery: Gallery, *, followed: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._gallery = gallery
        self._clock = clock
        self._looked_at = clock()
        self._unreadable: set[str] = set()
        self._followed = followed
        self.look()

    def look(self) -> None:
        """See what was changed elsewhere. A row that is no token lets nobody in, and is told in the log.

        Raises:
            DatabaseUnreachableError: the database does not answer; what was seen before holds.
        """
        started = self._clock()
        try:
            rows = self._gallery.kept_tokens()
        except DatabaseUnreachableError:
            self._looked_at = self._clock()
            raise
        found: dict[str, Token] = {}
        unreadable = set()
        for row in rows:
            try:
                token = token_of(row)
                found[token.token_id] = token
            except (ValueError, TypeError, KeyError) as error:
                what = row.get("name", row.get("token_id")) if isinstance(row, dict) else None
                unreadable.add(f"the token {str(what)[:100]!r} of the index cannot be read: {error!r}")
        for said in sorted(unreadable - self._unreadable):  # once, however often it is looked at
            log.warning("%s; it lets nobody in. `fewshot token create` makes another.", said)
        self._unreadable = unreadable
        if found != self._tokens:
            self._tokens = found
            self._proved.clear()
        self._looked_at = started

    def known(self, word: str) -> Token | None:
        """As of a file, but none while nobody looks: `check`, which may wait for the database, then looks itself."""
        if self._followed and self._clock() - self._looked_at > FRESH_S:
            return None
        return super().known(word)

    def check(self, word: str) -> Token:
        """The token that a word stands for; one that is not known yet may have been made just now, elsewhere.

        Raises:
            UnauthorizedError: it stands for none.
        """
        if self._followed and self.known(word) is None:
            try:
                self.look()
            except DatabaseUnreachableError:
                pass  # what was seen before holds
        return super().check(word)

    def _changing(self) -> AbstractContextManager[None]:
        return nullcontext()  # a change is one transaction of the database, which lets in one after the other

    def _refresh(self) -> None:
        if not self._followed:
            self.look()

    def _write(self, tokens: list[Token]) -> None:
        """Change what differs and nothing else: other machines make tokens too."""
        before = list(self._tokens.values())
        added = [asdict(token) for token in tokens if token not in before]
        try:
            self._gallery.change_tokens(added, [token.token_id for token in before if token not in tokens])
        except LabelTakenError as error:
            raise TokenError(error.message, hint="Choose another name, or revoke that one first.") from error
        self.look()


def tokens_of(gallery: Gallery, *, followed: bool = False) -> Tokens:
    """The tokens of an index, wherever it is: in a file in its folder, or in its database."""
    return TokenTable(gallery, followed=followed) if gallery.is_shared else TokenFile(gallery.folder)
