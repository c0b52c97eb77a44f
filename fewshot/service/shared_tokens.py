"""The tokens of an index in a database: kept there, so that every service over it knows the same ones."""

from dataclasses import asdict

from fewshot.errors import LabelTakenError, TokenError
from fewshot.gallery import Gallery
from fewshot.service.tokens import Token, TokenFile


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
        rows = self._gallery.kept_tokens()
        found = [Token(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]
        self._tokens = {token.token_id: token for token in found}

    def _refresh(self) -> None:
        if not self._followed:
            self.look()

    def _write(self, tokens: list[Token]) -> None:
        """Change what differs and nothing else: other machines make tokens too."""
        wanted = {token.token_id for token in tokens}
        added = [asdict(token) for token in tokens if token.token_id not in self._tokens]
        try:
            self._gallery.change_tokens(added, [known for known in self._tokens if known not in wanted])
        except LabelTakenError as error:
            raise TokenError(error.message, hint="Choose another name, or revoke that one first.") from error
        self.look()


def tokens_of(gallery: Gallery, *, followed: bool = False) -> TokenFile:
    """The tokens of an index, wherever it is: in a file in its folder, or in its database."""
    return TokenTable(gallery, followed=followed) if gallery.is_shared else TokenFile(gallery.folder)
