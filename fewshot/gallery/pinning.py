"""The embedder that an index is pinned to: opened once, opened anew when the index got another, and checked."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from fewshot import search
from fewshot.backbones import WeightsSource, on_this_machine
from fewshot.embedder import Embedder, EmbedderChoice, open_embedder, same_embeddings
from fewshot.errors import FewshotError
from fewshot.gallery.mismatch import check_choice, check_embedder
from fewshot.store import About, Reader, Transactions

log = logging.getLogger(__name__)


class PinnedEmbedder:
    """The embedder of one index: opened at its first use, and anew where another process has reindexed the index.

    Several threads may ask at once: it is opened for the first of them, and the others wait.

    Args:
        choice: backbone, precision, engine and quality; what it leaves open is the index's own, and of a new index
            the default.
        given: used instead of `choice`, and never exchanged for another.
        on_notice: told, in a sentence, of one-time work that takes seconds.
    """

    def __init__(
        self, choice: EmbedderChoice, given: Embedder | None = None, on_notice: Callable[[str], None] | None = None
    ) -> None:
        self._choice = choice
        self._embedder = given
        self._is_given = given is not None
        self._on_notice = on_notice
        self._opening = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether there is an embedder already, given or opened."""
        return self._embedder is not None

    def open_for_new_index(self) -> None:
        """Open what was chosen while there is no index that could say more.

        Raises:
            BackboneError, EngineError: it cannot be opened here.
        """
        self._embedder = open_embedder(self._choice, on_notice=self._on_notice)

    def of(self, store: Transactions) -> Embedder:
        """The embedder of the index, opened at its first use.

        Raises:
            MixedEmbeddingsError: the chosen one makes other embeddings than those that the index holds.
            BackboneError, EngineError: it cannot be opened here.
        """
        about = _about(store)
        with self._opening:
            if self._embedder is None:
                check_choice(store.name, about, self._choice)
            if self._embedder is None or self._is_repinned(about, self._embedder):
                choice, source = self._own(about)
                self._embedder = open_embedder(choice, source=source, on_notice=self._on_notice)
            embedder = self._embedder
        check_embedder(store.name, about, embedder, self._choice)
        return embedder

    def check(self, view: Reader, embedder: Embedder) -> None:
        """Hold an embedder against the one that the index is pinned to in a view of it.

        Raises:
            MixedEmbeddingsError: it makes other embeddings than those that the index holds.
        """
        check_embedder(view.index_name, view.about(), embedder, self._choice)

    def for_reindex(self, store: Transactions) -> Embedder:
        """The embedder to embed the index's photos anew with; it may differ from the index's, see `Gallery.reindex`.

        Raises:
            BackboneError, EngineError: it cannot be opened here.
        """
        if self._embedder is not None and self._is_given:
            return self._embedder
        about, choice, source = _about(store), self._choice, None
        partly = choice.backbone is None and (choice.quality, choice.precision) != (None, None)
        if partly and about.source is not None:
            choice, source = self._own(about)
        return open_embedder(choice, source=source, on_notice=self._on_notice)

    def open_ahead(self, store: Transactions) -> None:
        """Begin to open the embedder, and to load what a search needs, in the background."""

        def open_now() -> None:
            try:
                self.of(store).open_for_many()
                search.load_ahead()
            except FewshotError as error:  # who needs it meets the same error and tells it
                log.info("not opened ahead: %s", error.message)

        threading.Thread(target=open_now, name="open-ahead", daemon=True).start()

    def _own(self, about: About) -> tuple[EmbedderChoice, WeightsSource | None]:
        """The choice with the index's own precision and weights where it leaves these open."""
        choice = replace(self._choice, precision=self._choice.precision or about.precision)
        own = about.source if choice.backbone is None else None
        return choice, on_this_machine(WeightsSource(**own)) if own is not None else None

    def _is_repinned(self, about: About, embedder: Embedder) -> bool:
        """Whether another process has given the index another backbone, and none was chosen here."""
        other = about.fingerprint is not None and not same_embeddings(about.fingerprint, embedder.fingerprint)
        chosen = (self._choice.backbone, self._choice.precision, self._choice.quality)
        return other and not self._is_given and chosen == (None, None, None)


def _about(store: Transactions) -> About:
    with store.read() as reader:
        return reader.about()
