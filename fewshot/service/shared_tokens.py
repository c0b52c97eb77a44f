"""The tokens of an index in a database: kept there, so that every service over it knows the same ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from fewshot.errors import DatabaseUnreachableError, LabelTakenError, TokenError
from fewshot.gallery import Gallery
from fewshot.service.tokens import Token, TokenFile, token_of


class TokenTable(TokenFile):
    """The tokens of one index, in a table beside it.

    Args:
        gallery: the opened index.
        followed: somebody calls `look` after each change, so that a request need not wait for the database. What was
            seen last holds while it cannot be reached.
    """

    def __init__(self, gallery: Gallery, *, followed: bool = False) -> None:
        super().__init__(gallery.folder)
        self._gallery = gallery
        self._followed = False
        self._refresh()
        self._followed = followed

    def look(self) -> None:
        """See what was changed elsewhere.

        Raises:
            DatabaseUnreachableError: the database does not answer; what was seen before holds.
        """
        found = {token.token_id: token for token in map(token_of, self._gallery.kept_tokens())}
        if found != self._tokens:
            self._tokens = found
            self._proved.clear()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """A change is one transaction of the database, which lets in one after the other."""
        yield

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


def tokens_of(gallery: Gallery, *, followed: bool = False) -> TokenFile:
    """The tokens of an index, wherever it is: in a file in its folder, or in its database."""
    return TokenTable(gallery, followed=followed) if gallery.is_shared else TokenFile(gallery.folder)
