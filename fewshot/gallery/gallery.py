"""An opened index: enroll, query, remove, rename, inspect, reindex; what every interface calls."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewshot import images, search
from fewshot.backup import Backup, back_up
from fewshot.datasets import ClassFolder, checked_label
from fewshot.decoding.cutting import cut_photo
from fewshot.decoding.guard import Guard
from fewshot.embedder import Embedder, EmbedderChoice, Outcome, cache_folder
from fewshot.errors import EmptyIndexError, IndexDamagedError, IndexMissingError
from fewshot.gallery import answering, inspection
from fewshot.gallery.calibrations import Calibrations
from fewshot.gallery.enrolling import check_strict, enroll_class, outcomes_by_class, remove_support, replace_class
from fewshot.gallery.keeping_up import keep_up
from fewshot.gallery.neighbours import Neighbours, most_in_memory
from fewshot.gallery.pinning import PinnedEmbedder
from fewshot.gallery.reindexing import embed_anew
from fewshot.gallery.repair import found_problems
from fewshot.records import (
    ClassInspection,
    ClassSummary,
    ClassView,
    EmbeddedPhoto,
    EnrollReport,
    Float32s,
    NamedBytes,
    Prediction,
    Question,
    Support,
)
from fewshot.store import (
    FILE_NAME,
    About,
    Measured,
    ServerStore,
    Transactions,
    copy_to_folder,
    is_server,
    open_store,
)

if TYPE_CHECKING:
    from fewshot.cluster.spreading import Cluster

QUERY_CHUNK = 32


class Gallery:
    """One index, open for questions and changes, from several threads and processes at the same time.

    Args:
        place: the index's folder, or the address of its database (`postgresql://user@host/database`).
        create: make the index if there is none.
        choice: backbone, precision, engine and quality; by default those of the index.
        embedder: used instead of `choice`, for embedders that do not come from a backbone's name.
        on_notice: told, in a sentence, of one-time work that takes seconds.
        guard: decodes the photos, in processes that a hostile one cannot leave; closed with the index. None: they are
            decoded here.

    Raises:
        IndexProblem: the index cannot be opened; the subclass says why.
    """

    def __init__(
        self,
        place: Path | str,
        *,
        create: bool = False,
        choice: EmbedderChoice | None = None,
        embedder: Embedder | None = None,
        on_notice: Callable[[str], None] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard
        self._cutter = guard.cut_photo if guard is not None else cut_photo
        self._pinned = PinnedEmbedder(choice or EmbedderChoice(), embedder, on_notice)
        self._store = self._opened(place, create)
        if self._store.cache_name is None:
            self.folder = Path(place)
            cache = self.folder / "cache"
        else:  # a database's caches are this machine's own
            self.folder = cache = cache_folder() / "indexes" / self._store.cache_name
        self._calibration_file = cache / "calibration"
        self._neighbours = Neighbours(cache, most_in_memory=most_in_memory(), on_notice=on_notice)
        self._calibrations = Calibrations(self._neighbours, self._calibration_file)
        self._size_of: tuple[tuple[int, str | None], tuple[int, int]] | None = None

    def _opened(self, place: Path | str, create: bool) -> Transactions:
        if not create or self._pinned.is_open:
            return open_store(place, create=create)
        # A backbone that cannot be had is told before a folder or tables are made for it.
        if is_server(place):
            try:
                return open_store(place)
            except IndexMissingError:
                pass
        if is_server(place) or not (Path(place) / FILE_NAME).exists():
            self._pinned.open_for_new_index()
        return open_store(place, create=True)

    @property
    def name(self) -> str:
        """The index's name: its folder's or its database's."""
        return self._store.name

    @property
    def place(self) -> Path | str:
        """The index's folder, or the address of its database without a password."""
        return self._store.place

    @property
    def is_shared(self) -> bool:
        """Whether the index is in a database, where other machines may change it."""
        return isinstance(self._store, ServerStore)

    def close(self) -> None:
        """Close the index's files, and end the guarded processes."""
        self._store.close()
        if self._guard is not None:
            self._guard.close()

    def gps_tags(self, data: bytes) -> dict[int, Any]:
        """A photo's GPS tags, read where this index decodes photos; see `images.gps_tags`."""
        return images.gps_tags(data) if self._guard is None else self._guard.gps_tags(data)

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def about(self) -> About:
        """The index's own facts: generation, and the embedder it is pinned to."""
        with self._store.read() as reader:
            return reader.about()

    def classes(self) -> list[ClassSummary]:
        """Every class with its counts, in label order."""
        with self._store.read() as reader:
            return reader.classes()

    def covers(self) -> dict[str, int]:
        """Label -> the photo that stands for the class in a list: the one enrolled first."""
        with self._store.read() as reader:
            return reader.first_supports()

    def size(self) -> tuple[int, int]:
        """How many classes and how many photos are enrolled. Counted once a change: counting very many takes long."""
        with self._store.read() as reader:
            content = reader.content()
            if self._size_of is None or self._size_of[0] != content:
                self._size_of = (content, (reader.n_classes(), reader.n_supports()))
            return self._size_of[1]

    def supports(self, label: str) -> list[Support]:
        """The photos of a class, in order of enrolment.

        Raises:
            UnknownLabelError: there is no such class.
        """
        with self._store.read() as reader:
            return reader.supports_of(reader.wanted_class_id(checked_label(label)))

    def support(self, support_id: int) -> Support:
        """One photo's record.

        Raises:
            UnknownSupportError: there is no such photo.
        """
        with self._store.read() as reader:
            return reader.wanted_support(support_id)

    def thumbnail(self, support_id: int) -> bytes:
        """The kept photo of a support: a WebP file, short side at most 256 px.

        Raises:
            UnknownSupportError: there is no such photo.
            IndexDamagedError: its bytes do not fit their checksum, or are missing.
        """
        with self._store.read() as reader:
            support = reader.wanted_support(support_id)
            kept = reader.thumbnail(support_id)
        if kept is None:
            raise IndexDamagedError(f"index {self.name!r} keeps no picture of {support.file} (support {support_id}).")
        return kept

    def is_enrolled(self, sha256: str) -> bool:
        """Whether a photo with this content hash is enrolled, under whatever label."""
        with self._store.read() as reader:
            return sha256 in reader.labels_of_photos([sha256])

    def history(self, limit: int = 100) -> list[dict[str, Any]]:
        """The latest changes, newest first."""
        with self._store.read() as reader:
            return reader.history(limit)

    # ---- an index that others change too

    def follow(self, stop: threading.Event, *, poll_s: float = 0.5, on_look: Callable[[], None] | None = None) -> None:
        """Keep the copies of an index in a database in step with it until stopped, however it is changed elsewhere.

        Every question is answered from the database's state at that moment, followed or not; following only makes what
        a change costs before a question pays for it. What goes wrong is told in the log, and ends it never.

        Args:
            stop: set from another thread.
            poll_s: how often to look where the database has said nothing.
            on_look: called first, each time.
        """
        if isinstance(self._store, ServerStore):
            keep_up(self._store, self._neighbours, self._calibrations, stop, poll_s=poll_s, on_look=on_look)

    def kept_tokens(self) -> list[Any]:
        """What the database of this index keeps of its tokens: the facts of each, if nobody meddled."""
        with self._store.read() as reader:
            return reader.kept_tokens()

    def change_tokens(self, added: Sequence[dict[str, Any]], dropped: Sequence[str]) -> None:
        """Keep and forget tokens in the database of this index.

        Args:
            added: facts, of which `token_id` and `name` tell tokens apart.
            dropped: token ids.

        Raises:
            LabelTakenError: there is a token of this name already.
        """
        with self._store.write() as writer:
            for token_id in dropped:
                writer.drop_token(token_id)
            for facts in added:
                writer.keep_token(facts["token_id"], facts["name"], facts)

    def build_search_index(
        self, wanted_recall: float, n_results: int, n_asked: int, on_step: Callable[[str], None]
    ) -> list[Measured]:
        """Let the database of this index search its photos by HNSW; see `store.searching.build`."""
        with self._store.write() as writer:
            return writer.build_search_index(wanted_recall, n_results, n_asked, on_step)

    @property
    def has_search_index(self) -> bool:
        """Whether the database of this index searches its photos by HNSW."""
        with self._store.read() as reader:
            return reader.has_search_index()

    def drop_search_index(self) -> None:
        """Let the database of this index search its photos by an exact scan again."""
        with self._store.write() as writer:
            writer.drop_search_index()

    # ---- enroll

    def enroll(
        self,
        folders: Sequence[ClassFolder],
        *,
        strict: bool = False,
        keep_metadata: bool = False,
        on_photo: Callable[[], None] | None = None,
        cluster: "Cluster | None" = None,
    ) -> Iterator[EnrollReport]:
        """Enroll classes, or add photos to them; each class goes in as a whole when its last photo is embedded.

        Args:
            folders: one a class.
            strict: if any photo of any class is refused, enroll nothing at all.
            keep_metadata: leave place, time and camera (EXIF) in the small pictures that the index keeps.
            on_photo: called after each photo, for progress.
            cluster: what decodes and embeds; None: this process. This process writes either way.

        Yields:
            A report a class, once that class is safely stored.

        Raises:
            StrictError: `strict`, and a photo was refused.
            MixedEmbeddingsError: the index is pinned to another embedder.
            ClusterError: the cluster failed; classes that were reported are stored.
        """
        embedder = self.embedder()
        photos = [path for folder in folders for path in folder.photos]
        if cluster is None:
            with self._store.read() as reader:
                is_empty = not reader.may_hold_more_supports_than(0)
            outcomes = embedder.embed_photos(
                photos,
                n_photos=len(photos),
                is_known=None if is_empty else self.is_enrolled,  # where nothing can be known, no photo is asked about
                keep=True,
                keep_metadata=keep_metadata,
                cutter=self._cutter,
            )
        else:
            outcomes = cluster.embed_photos(
                embedder, photos, is_known=self.is_enrolled, keep=True, keep_metadata=keep_metadata
            )
        batches = outcomes_by_class(folders, outcomes, on_photo)
        if strict:
            yield from self._enroll_together(list(batches), embedder, strict=True)
            return
        for each in batches:
            yield from self._enroll_together([each], embedder, strict=False)

    def add(self, label: str, photos: Sequence[Outcome], made_by: Embedder, *, strict: bool = False) -> EnrollReport:
        """Enroll photos that are embedded already (`keep=True`) into a class, made if there is none.

        Raises:
            LabelError: the label cannot be stored.
            StrictError: `strict`, and a photo was refused.
            MixedEmbeddingsError: the index is pinned to another embedder than `made_by`.
        """
        (report,) = self._enroll_together([(checked_label(label), photos)], made_by, strict=strict)
        return report

    def replace(
        self, label: str, photos: Sequence[Outcome], made_by: Embedder, *, strict: bool = False
    ) -> tuple[EnrollReport, int]:
        """Make a class hold these photos and no others, in one change; also how many photos it lost.

        Raises:
            LabelError: the label cannot be stored.
            StrictError: `strict`, and a photo was refused.
            NoUsablePhotoError: every photo was refused; nothing is changed.
            MixedEmbeddingsError: the index is pinned to another embedder than `made_by`.
        """
        label = checked_label(label)
        with self._store.write() as writer:
            self._pinned.check(writer, made_by)
            report, n_removed = replace_class(writer, made_by, label, photos, strict=strict)
            if report.enrolled or n_removed:
                writer.note("replace", label, n_supports=report.enrolled, n_removed=n_removed)
        return report, n_removed

    def doubts(self, support_ids: Iterable[int]) -> list[str]:
        """What a careful user would want to know of photos just enrolled, in sentences; see `inspection.doubts`."""
        with self._store.read() as reader:
            return inspection.doubts(reader, self._neighbours, support_ids)

    # ---- query

    def query(
        self,
        photos: Sequence[Path | NamedBytes],
        question: Question | None = None,
        *,
        on_photo: Callable[[], None] | None = None,
        cluster: "Cluster | None" = None,
    ) -> Iterator[Prediction]:
        """Answer photos, in order; with `question.together`, give one answer to all of them.

        Args:
            photos: files, or bytes with names. One that cannot be read is answered `unknown` with reason `bad_image`;
                asked together, it is left out of the answer.
            question: how to answer.
            on_photo: called after each photo, for progress.
            cluster: what decodes and embeds; None: this process.

        Raises:
            EmptyIndexError: no class is enrolled, or none that fits `question.within`.
            MixedEmbeddingsError: the index is pinned to another embedder than chosen.
            ClusterError: the cluster failed.
        """
        question = question or Question()
        with self._store.read() as reader:
            answering.asked_classes(reader, question)
        embedder = self.embedder()
        search.load_ahead()
        if cluster is None:
            outcomes = embedder.embed_photos(photos, n_photos=len(photos), cutter=self._cutter)
        else:
            outcomes = cluster.embed_photos(embedder, photos)
        together: list[Outcome] = []
        while chunk := list(islice(outcomes, QUERY_CHUNK)):
            if question.together:
                together += chunk
            else:
                (found,) = self.answer([chunk], question, embedder)
                yield from found
            if on_photo is not None:
                for _ in chunk:
                    on_photo()
        if together:
            (found,) = self.answer([together], question, embedder)
            yield from found

    def answer(
        self, asked: Sequence[Sequence[Outcome]], question: Question, made_by: Embedder
    ) -> list[list[Prediction]]:
        """Answer several requests that ask the same question, from one view of the index.

        Args:
            asked: of each request its photos, as the embedder gave them.
            question: with `together`, each request gets one answer, behind those of photos that cannot be read.
            made_by: the embedder.

        Returns:
            A list a request, in order.

        Raises:
            EmptyIndexError: no class is enrolled, or none that fits `question.within`.
            MixedEmbeddingsError: the index has got another embedder meanwhile.
        """
        rows = [[photo.embedding for photo in photos if isinstance(photo, EmbeddedPhoto)] for photos in asked]
        answers: Iterator[Prediction] = iter(())
        if any(rows):
            vectors = np.stack([row for each in rows for row in each])
            sizes = [len(each) for each in rows if each]
            answers = iter(self.predict(vectors, question, made_by=made_by, sizes=sizes))
        return [answering.request_answers(photos, question.together, answers) for photos in asked]

    def predict(
        self,
        vectors: Float32s,
        question: Question | None = None,
        *,
        made_by: Embedder | None = None,
        sizes: Sequence[int] | None = None,
    ) -> list[Prediction]:
        """Answer embeddings of this index's own embedder.

        Args:
            vectors: (n_query, dim) float32, rows of unit length.
            question: how to answer.
            made_by: the embedder, to be held against the index's.
            sizes: how many rows, one after the other, are of one request; None: all are.

        Returns:
            An answer each, without a file's name; with `question.together`, one answer a request.

        Raises:
            EmptyIndexError: no class is enrolled, or none that fits `question.within`.
            MixedEmbeddingsError: `made_by` is another embedder than the index's.
        """
        with self._store.read() as reader:
            if made_by is not None:
                self._pinned.check(reader, made_by)
            question = question or Question()
            within = answering.asked_classes(reader, question)
            known = self._calibrations.of(reader, within)
            sizes = sizes if sizes is not None else [len(vectors)]
            return answering.predictions(reader, self._neighbours, known, vectors, question, within, sizes)

    # ---- change

    def remove(self, label: str) -> int:
        """Remove a class and its photos; how many photos.

        Raises:
            UnknownLabelError: there is no such class.
        """
        label = checked_label(label)
        with self._store.write() as writer:
            n = writer.remove_class(writer.wanted_class_id(label))
            writer.note("remove", label, n_supports=n)
        return n

    def remove_support(self, support_id: int) -> Support:
        """Remove one photo from its class; its record as it was.

        Raises:
            UnknownSupportError: there is no such photo.
            LastSupportError: it is the only photo of its class.
        """
        with self._store.write() as writer:
            support = remove_support(writer, support_id)
            writer.note("remove", support.label, support_id=support_id, n_supports=1)
        return support

    def rename(self, old: str, new: str) -> list[str]:
        """Give a class another label; a warning, in a sentence, if another class's is spoken alike.

        Raises:
            UnknownLabelError: there is no class `old`.
            LabelTakenError: there is a class `new` already.
        """
        old, new = checked_label(old), checked_label(new)
        with self._store.write() as writer:
            writer.rename_class(writer.wanted_class_id(old), new)
            writer.note("rename", old, to=new)
            return inspection.twin_labels([new], writer.labels())

    def reindex(self, *, originals: Iterable[Path] = (), on_photo: Callable[[], None] | None = None) -> tuple[int, int]:
        """Embed every photo anew with the chosen embedder, and pin the index to it.

        Of a choice of quality or precision alone, the rest stays the index's own; without any, it is the default.

        Can be interrupted at any time: the index answers with its old embeddings until the last photo is done, and
        the next call goes on where this one stopped. A database's search index of embeddings of another length is
        dropped.

        Args:
            originals: files among which the original photos may be (found by content hash). Photos not found there
                are embedded from the 256-px photo that the index keeps.
            on_photo: called after each photo, for progress.

        Returns:
            How many photos there are, and how many of those embedded now came from originals.

        Raises:
            IndexDamagedError: a kept photo does not fit its checksum.
        """
        embedder = self._pinned.for_reindex(self._store)
        return embed_anew(self._store, embedder, originals, cutter=self._cutter, on_photo=on_photo)

    # ---- inspect

    def inspect(self, label: str | None = None) -> Iterator[ClassInspection]:
        """What each class (or one) looks like from inside: spread, confusable classes, suspicious photos.

        Raises:
            UnknownLabelError: there is no such class.
            EmptyIndexError: no class is enrolled.
        """
        with self._store.read() as reader:
            if label is None:
                labels = reader.labels()
                if not labels:
                    raise EmptyIndexError(f"index {self.name!r} holds no class yet.")
            else:
                labels = [checked_label(label)]
            for each in labels:
                _, _, found = inspection.describe_class(reader, self._neighbours, each)
                yield found

    def describe(self, label: str) -> tuple[ClassSummary, list[Support], ClassInspection]:
        """A class from one view of the index: its counts, its photos in order of enrolment, and its inspection.

        Raises:
            UnknownLabelError: there is no such class.
        """
        label = checked_label(label)
        with self._store.read() as reader:
            return inspection.describe_class(reader, self._neighbours, label)

    def embeddings(self, n_most: int) -> tuple[int, list[Support], Float32s]:
        """The generation, enrolled photos (at most about `n_most`, evenly chosen) and their (n, dim) embeddings."""
        with self._store.read() as reader:
            ids = reader.support_ids(n_most)
            records = reader.supports(ids.tolist())
            return reader.about().generation, [records[i] for i in ids.tolist()], reader.support_vectors(ids)

    def photo_hashes(self) -> Iterator[tuple[str, dict[int, str]]]:
        """Each label with its photos, support id -> content hash, in order of enrolment."""
        with self._store.read() as reader:
            for label in reader.labels():
                yield label, reader.photo_hashes(reader.wanted_class_id(label))

    def views(self, photos: Mapping[str, Sequence[int]]) -> Iterator[ClassView]:
        """Embeddings, prototypes and nearest other classes of photos, a class at a time.

        Args:
            photos: label -> ids of the supports wanted; only their vectors are read.

        Raises:
            UnknownLabelError: there is no such class.
        """
        with self._store.read() as reader:
            for label, support_ids in photos.items():
                yield inspection.class_view(reader, self._neighbours, label, support_ids)

    def nearest_classes(self, vectors: Float32s) -> list[tuple[str, float]]:
        """Each vector's nearest class by plain cosine to its nearest prototype: label and cosine.

        What `predict` answers may differ: it asks in the index's own metric, where that has proved better.

        Args:
            vectors: (n, dim) float32, rows of unit length.

        Raises:
            EmptyIndexError: no class is enrolled.
        """
        with self._store.read() as reader:
            answering.asked_classes(reader, Question())
            similarities, class_ids = self._neighbours.classes(reader, vectors, 1)
            labels = reader.class_labels(class_ids.ravel().tolist())
        pairs = zip(class_ids[:, 0].tolist(), similarities[:, 0].tolist(), strict=True)
        return [(labels[i], similarity) for i, similarity in pairs]

    def thumbnails(self, support_ids: Iterable[int]) -> Iterator[bytes | None]:
        """The kept photos, WebP files of 256 px on their short side; None where none is kept.

        Raises:
            IndexDamagedError: a photo does not fit its checksum.
        """
        with self._store.read() as reader:
            for support_id in support_ids:
                yield reader.thumbnail(support_id)

    def copy_to(self, folder: Path) -> None:
        """Make another index of the same content in an empty folder.

        Raises:
            NotAnIndexError: there is something in the folder.
            IndexUnwritableError, DiskFullError: it cannot be written.
        """
        copy_to_folder(self._store, folder)

    def backup(self, target: Path, on_part: Callable[[], None] | None = None) -> Backup:
        """Write a verified backup while the index is in use; see `backup.back_up`."""
        return back_up(self._store, target, on_part)

    def problems(self) -> list[str]:
        """What is wrong with the index's own file and with its caches, in sentences; reads all of it."""
        with self._store.read() as reader:
            return found_problems(reader, self._neighbours.cache_files, self._calibration_file)

    # ---- the embedder

    def embedder(self) -> Embedder:
        """The embedder of this index, opened at its first use.

        Raises:
            MixedEmbeddingsError: the chosen one makes other embeddings than those that the index holds.
            BackboneError, EngineError: it cannot be opened here.
        """
        return self._pinned.of(self._store)

    def open_ahead(self) -> None:
        """Begin to open the embedder in the background, for a caller that has other things to do until it needs it."""
        self._pinned.open_ahead(self._store)

    # ---- inside a change

    def _enroll_together(
        self, batches: Sequence[tuple[str, Sequence[Outcome]]], embedder: Embedder, *, strict: bool
    ) -> list[EnrollReport]:
        """Write classes in one transaction: one change, one line of history."""
        with self._store.write() as writer:
            # Another process may have pinned the index to another embedder while the photos were embedded.
            self._pinned.check(writer, embedder)
            reports = [enroll_class(writer, embedder, label, batch) for label, batch in batches]
            if strict:
                check_strict(reports)
            changed = {report.label: report.enrolled for report in reports if report.enrolled}
            if changed:
                writer.note("enroll", next(iter(changed)) if len(changed) == 1 else None, n_supports=changed)
        return reports
