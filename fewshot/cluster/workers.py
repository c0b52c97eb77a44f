"""What a cluster's machines do with photos: read them where they lie, decode and embed them anywhere."""

import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from fewshot import images
from fewshot.backbones import WeightsSource, on_this_machine
from fewshot.embedder import Embedder, EmbedderChoice, open_embedder, refused, same_embeddings
from fewshot.engines import THREADS_VARIABLE
from fewshot.errors import FewshotError, ImageError
from fewshot.records import LoadedPhoto, NamedBytes

# Made on a machine of the cluster: an embedder like the one that the index is pinned to.
Opener = Callable[[EmbedderChoice, WeightsSource], Embedder]


@dataclass(frozen=True, slots=True)
class Order:
    """What every worker needs to know: whose embeddings are wanted, and how to come by its embedder.

    `megapixels` is $FEWSHOT_MAX_MEGAPIXELS where the command runs; None leaves a machine its own.
    """

    open: Opener
    choice: EmbedderChoice
    source: WeightsSource
    fingerprint: str
    keep: bool
    keep_metadata: bool
    megapixels: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a machine cannot embed at all; raised where the command runs."""

    machine: str
    message: str
    hint: str


def open_as(choice: EmbedderChoice, source: WeightsSource) -> Embedder:
    """The embedder of a backbone's name, as it is on this machine."""
    return open_embedder(choice, source=on_this_machine(source))


def photo_table(photos: list[tuple[int, Path | NamedBytes]]) -> pa.Table:
    """A block of photos to embed, with their positions in the command's list; names as bytes, which need be no text."""
    given = [photo.data if isinstance(photo, NamedBytes) else None for _, photo in photos]
    names = [os.fsencode(photo.file if isinstance(photo, NamedBytes) else photo) for _, photo in photos]
    return pa.table(
        {
            "position": pa.array([position for position, _ in photos], pa.int64()),
            "file": pa.array(names, pa.large_binary()),
            "data": pa.array(given, pa.large_binary()),
        }
    )


def read_photos(block: pa.Table) -> pa.Table:
    """Put the bytes of each file into its row; runs on the machine on which the command was given.

    A file that cannot be read gets its refusal instead, in the column `refused`.
    """
    data, problems = [], []
    for row in block.to_pylist():
        problem = None
        if row["data"] is None:
            file = os.fsdecode(row["file"])
            try:
                row["data"] = images.read_bytes(Path(file))
            except ImageError as error:
                problem = pickle.dumps(refused(error, file))
        data.append(row["data"])
        problems.append(problem)
    read = block.set_column(block.column_names.index("data"), "data", pa.array(data, pa.large_binary()))
    return read.append_column("refused", pa.array(problems, pa.large_binary()))


class Worker:
    """One process on one core: opens the embedder once, then turns blocks of photos into outcomes.

    Nothing is raised that would be retried in vain: what keeps this machine from embedding goes back as a `Failure`.
    """

    def __init__(self, order: Order) -> None:
        # One worker a core: more threads would only take the cores from the workers beside it.
        os.environ[THREADS_VARIABLE] = "1"
        if order.megapixels is not None:
            os.environ[images.MEGAPIXELS_VARIABLE] = order.megapixels
        self._order = order
        self._embedder: Embedder | None = None
        self._failure: Failure | None = None
        try:
            self._embedder = order.open(order.choice, order.source)
            self._embedder.open_for_many()
        except FewshotError as error:
            self._failure = Failure(socket.gethostname(), error.message, error.hint)
            return
        if not same_embeddings(self._embedder.fingerprint, order.fingerprint):
            self._failure = Failure(
                socket.gethostname(),
                f"it has {self._embedder.fingerprint}, and the index wants {order.fingerprint}.",
                "Install the same version of fewshot, and the same weights, on every machine.",
            )

    def __call__(self, block: pa.Table) -> pa.Table:
        """Embed a block that `read_photos` gave: columns `position` and `outcome`, a pickled record."""
        outcomes = [pickle.dumps(outcome) for outcome in self._outcomes(block)]
        return pa.table({"position": block.column("position"), "outcome": pa.array(outcomes, pa.large_binary())})

    def _outcomes(self, block: pa.Table) -> list[object]:
        if self._failure is not None or self._embedder is None:
            return [self._failure] * len(block)
        made: list[object] = []
        for row in block.to_pylist():
            if row["refused"] is not None:
                made.append(pickle.loads(row["refused"]))  # noqa: S301  # pickled by `read_photos`
                continue
            photo = NamedBytes(os.fsdecode(row["file"]), row["data"])
            keep, keep_metadata = self._order.keep, self._order.keep_metadata
            made.append(self._embedder.prepare(photo, keep=keep, keep_metadata=keep_metadata))
        loaded = [photo for photo in made if isinstance(photo, LoadedPhoto)]
        try:
            embedded = iter(self._embedder.embed_prepared(loaded) if loaded else ())
        except FewshotError as error:
            return [Failure(socket.gethostname(), error.message, error.hint)] * len(block)
        return [next(embedded) if isinstance(photo, LoadedPhoto) else photo for photo in made]
