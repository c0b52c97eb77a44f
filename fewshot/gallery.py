"""An opened index: enroll, query, remove, rename, inspect, reindex; what every interface calls."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fewshot import calibration, classifier, images, inspection
from fewshot.backbones import WeightsSource, resolve
from fewshot.calibration import Calibration
from fewshot.datasets import ClassFolder, checked_label
from fewshot.embedder import Embedder, EmbedderChoice, Outcome, open_embedder
from fewshot.errors import (
    CacheDamagedError,
    EmptyIndexError,
    FewshotError,
    ImageError,
    MixedEmbeddingsError,
    OtherLabelError,
    StrictError,
    did_you_mean,
)
from fewshot.neighbours import Neighbours
from fewshot.records import (
    UNKNOWN,
    ClassInspection,
    ClassSummary,
    ClassView,
    EmbeddedPhoto,
    EnrollReport,
    Float32s,
    Int64s,
    Match,
    NamedBytes,
    Prediction,
    Question,
    Refused,
    SkippedPhoto,
    Support,
)
from fewshot.search import VectorIndex
from fewshot.store import FILE_NAME, About, Reader, Store, Writer

QUERY_CHUNK = 32
STAGE_CHUNK = 256
AMBIGUOUS_BELOW = 0.5

log = logging.getLogger(__name__)


class Gallery:
    """One index, open for questions and changes. Other processes may use the same index at the same time.

    Args:
        folder: the index's folder.
        create: make the index if there is none.
        choice: backbone, precision and engine; by default those of the index.
        embedder: used instead of `choice`, for embedders that do not come from a backbone's name.
        on_notice: told, in a sentence, of one-time work that takes seconds.

    Raises:
        IndexProblem: the index cannot be opened; the subclass says why.
    """

    def __init__(
        self,
        folder: Path,
        *,
        create: bool = False,
        choice: EmbedderChoice | None = None,
        embedder: Embedder | None = None,
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = folder
        self._choice = choice or EmbedderChoice()
        self._embedder = embedder
        self._on_notice = on_notice
        if create and embedder is None and not (folder / FILE_NAME).exists():
            # A backbone that cannot be had is told before a folder is made for it.
            self._embedder = open_embedder(self._choice, on_notice=on_notice)
        self._store = Store(folder, create=create)
        self._neighbours = Neighbours(folder / "cache")
        self._calibration_of: tuple[int, Calibration] | None = None

    @property
    def name(self) -> str:
        """The index's name: its folder's."""
        return self._store.name

    def close(self) -> None:
        """Close the index's files."""
        self._store.close()

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

    def supports(self, label: str) -> list[Support]:
        """The photos of a class, in order of enrolment.

        Raises:
            UnknownLabelError: there is no such class.
        """
        with self._store.read() as reader:
            return reader.supports_of(reader.wanted_class_id(checked_label(label)))

    def history(self, limit: int = 100) -> list[dict[str, Any]]:
        """The latest changes, newest first."""
        with self._store.read() as reader:
            return reader.history(limit)

    # ---- enroll

    def enroll(
        self,
        folders: Sequence[ClassFolder],
        *,
        strict: bool = False,
        on_photo: Callable[[], None] | None = None,
    ) -> Iterator[EnrollReport]:
        """Enroll classes, or add photos to them; each class goes in as a whole when its last photo is embedded.

        Args:
            folders: one a class.
            strict: if any photo of any class is refused, enroll nothing at all.
            on_photo: called after each photo, for progress.

        Yields:
            A report a class, once that class is safely stored.

        Raises:
            StrictError: `strict`, and a photo was refused.
            MixedEmbeddingsError: the index is pinned to another embedder.
        """
        embedder = self.embedder()
        photos = [path for folder in folders for path in folder.photos]
        outcomes = embedder.embed_photos(photos, n_photos=len(photos), is_known=self._is_enrolled, keep=True)
        batches = _by_class(folders, outcomes, on_photo)
        if strict:
            yield from self._enroll_together(list(batches), strict=True)
            return
        for each in batches:
            yield from self._enroll_together([each], strict=False)

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
    ) -> Iterator[Prediction]:
        """Answer photos, in order; with `question.together`, give one answer to all of them.

        Args:
            photos: files, or bytes with names. One that cannot be read is answered `unknown` with reason `bad_image`;
                asked together, it is left out of the answer.
            question: how to answer.
            on_photo: called after each photo, for progress.

        Raises:
            EmptyIndexError: no class is enrolled, or none that fits `question.within`.
            MixedEmbeddingsError: the index is pinned to another embedder than chosen.
        """
        question = question or Question()
        with self._store.read() as reader:
            self._asked_classes(reader, question)
        outcomes = self.embedder().embed_photos(photos, n_photos=len(photos))
        together: list[EmbeddedPhoto] = []
        while chunk := list(islice(outcomes, QUERY_CHUNK)):
            embedded = [outcome for outcome in chunk if isinstance(outcome, EmbeddedPhoto)]
            vectors = [outcome.embedding for outcome in embedded]
            asked_now = vectors and not question.together
            answers = iter(self.predict(np.stack(vectors), question) if asked_now else ())
            together += embedded
            for outcome in chunk:
                if isinstance(outcome, Refused):
                    yield Prediction(outcome.file, UNKNOWN, "bad_image", outcome.message)
                elif not question.together:
                    yield replace(next(answers), file=outcome.file)
                if on_photo is not None:
                    on_photo()
        if question.together and together:
            (answer,) = self.predict(np.stack([outcome.embedding for outcome in together]), question)
            yield replace(answer, file=" + ".join(outcome.file for outcome in together))

    def predict(self, vectors: Float32s, question: Question | None = None) -> list[Prediction]:
        """Answer embeddings of this index's own embedder: (n_query, dim) float32, rows of unit length.

        Returns:
            An answer each, without a file's name; with `question.together`, one answer.

        Raises:
            EmptyIndexError: no class is enrolled, or none that fits `question.within`.
        """
        question = question or Question()
        with self._store.read() as reader:
            within = self._asked_classes(reader, question)
            known = self._calibration(reader)
            n_way = reader.n_classes() if within is None else len(within)
            n_scored = min(n_way, max(classifier.N_SCORED, question.top))
            compared = vectors if known.metric is None else known.metric(vectors)
            if question.together:  # means, not of unit length: their cosines are the means of the photos' cosines
                vectors, compared = (rows.mean(axis=0, keepdims=True) for rows in (vectors, compared))
            similarities, class_ids = self._neighbours.classes(reader, compared, n_scored, within, known.metric)
            shares = classifier.probabilities(similarities, n_way, known.scale)
            labels = reader.class_labels(class_ids[:, : question.top].ravel().tolist())
            nearest = self._neighbours.supports(reader, vectors, question.n_nearest, within)
            covering = self._covering(reader, known, question.coverage, similarities, class_ids)
        predictions = []
        for row in range(len(vectors)):
            matches = tuple(
                Match(labels[int(class_ids[row, i])], float(similarities[row, i]), float(shares[row, i]))
                for i in range(min(question.top, n_scored))
            )
            best = matches[0]
            unknown = known.is_unknown(similarities[row])
            message = known.explain(best.label, similarities[row])
            if unknown:
                reason = "unknown"
            elif best.probability < AMBIGUOUS_BELOW:
                reason = "ambiguous"
                message += f"; {best.label} is less likely than all other classes together"
            else:
                reason = "match"
            answer = UNKNOWN if unknown else best.label
            predictions.append(Prediction("", answer, reason, message, matches, nearest[row], covering[row]))
        return predictions

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

    def rename(self, old: str, new: str) -> None:
        """Give a class another label.

        Raises:
            UnknownLabelError: there is no class `old`.
            LabelTakenError: there is a class `new` already.
        """
        old, new = checked_label(old), checked_label(new)
        with self._store.write() as writer:
            writer.rename_class(writer.wanted_class_id(old), new)
            writer.note("rename", old, to=new)

    def reindex(self, *, originals: Iterable[Path] = (), on_photo: Callable[[], None] | None = None) -> tuple[int, int]:
        """Embed every photo anew with the chosen embedder, and pin the index to it.

        Can be interrupted at any time: the index answers with its old embeddings until the last photo is done, and
        the next call goes on where this one stopped.

        Args:
            originals: files among which the original photos may be (found by content hash). Photos not found there
                are embedded from the 256-px photo that the index keeps.
            on_photo: called after each photo, for progress.

        Returns:
            How many photos there are, and how many of those embedded now came from originals.

        Raises:
            IndexDamagedError: a kept photo does not fit its checksum.
        """
        embedder = self._embedder or open_embedder(self._choice, on_notice=self._on_notice)
        by_hash = _by_hash(originals)
        n_from_originals = 0
        while True:
            with self._store.write() as writer:
                todo = writer.unstaged(embedder.fingerprint)
                if not todo:
                    n_supports = writer.n_supports()
                    self._adopt(writer, embedder)
                    return n_supports, n_from_originals
            n_from_originals += sum(sha256 in by_hash for _, sha256, _ in todo)
            self._stage(embedder, todo, by_hash, on_photo)

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
                reader.wanted_class_id(labels[0])
            for each in labels:
                yield inspection.inspect_class(reader, self._neighbours, each)

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
            self._asked_classes(reader, Question())
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
        """Make another index of the same content in an empty folder; see `Store.copy_to`."""
        self._store.copy_to(folder)

    def problems(self) -> list[str]:
        """What is wrong with the index's own file and with its caches, in sentences; reads all of it."""
        with self._store.read() as reader:
            found = reader.problems()
            about = reader.about()
            for path in filter(Path.exists, self._neighbours.cache_files):
                try:
                    VectorIndex.open(path, {})
                except CacheDamagedError as error:
                    found.append(f"cache: {error.message} It will be rebuilt at the next use.")
            if about.fingerprint is None and reader.n_supports():
                found.append("photos are enrolled, but the index does not say by which backbone")
        return found

    # ---- the embedder

    def embedder(self) -> Embedder:
        """The embedder of this index, opened at its first use.

        Raises:
            MixedEmbeddingsError: the chosen one makes other embeddings than those that the index holds.
            BackboneError, EngineError: it cannot be opened here.
        """
        about = self.about()
        if self._embedder is None:
            source = None
            if about.source is not None and self._choice.backbone is None:
                source = WeightsSource(**about.source)
                if source.kind in ("shipped", "package"):  # installed elsewhere on another machine
                    source = resolve(source.name)
            choice = replace(self._choice, precision=self._choice.precision or about.precision)
            self._embedder = open_embedder(choice, source=source, on_notice=self._on_notice)
        self._check_pinned(about, self._embedder)
        return self._embedder

    def _check_pinned(self, about: About, embedder: Embedder) -> None:
        if about.fingerprint is None or _digits(about.fingerprint) == _digits(embedder.fingerprint):
            return
        raise MixedEmbeddingsError(
            f"index {self.name!r} holds {about.dim}-dim {about.precision} embeddings of {about.fingerprint}; this "
            f"backbone, {embedder.fingerprint}, makes {embedder.dim}-dim {embedder.precision} ones.",
            hint="Open it with its own backbone (leave --backbone and --precision out), or rebuild it with "
            "`fewshot reindex`.",
        )

    # ---- inside a question

    def _asked_classes(self, reader: Reader, question: Question) -> list[int] | None:
        """The ids of the classes asked; None: all."""
        if reader.n_classes() == 0:
            raise EmptyIndexError(f"index {self.name!r} holds no class yet.")
        if question.within is None:
            return None
        labels = reader.labels()
        fitting = [label for label in labels if any(fnmatchcase(label, pattern) for pattern in question.within)]
        if not fitting:
            shown = ", ".join(map(repr, question.within))
            raise EmptyIndexError(
                f"no class of index {self.name!r} fits {shown}.",
                hint=did_you_mean(question.within[0], labels) or "`fewshot classes` lists them.",
            )
        return reader.class_ids(fitting)

    def _calibration(self, reader: Reader) -> Calibration:
        """What the index's own photos say of its answers, once a generation."""
        generation = reader.about().generation
        if self._calibration_of is None or self._calibration_of[0] != generation:
            found = calibration.calibrated(reader, self._neighbours, self.folder / "cache" / "calibration")
            self._calibration_of = (generation, found)
        return self._calibration_of[1]

    def _covering(
        self,
        reader: Reader,
        known: Calibration,
        coverage: float | None,
        similarities: Float32s,
        class_ids: Int64s,
    ) -> list[tuple[str, ...] | None]:
        """Each query's labels that cannot be ruled out, nearest first; none, if it is too unlike every class."""
        if coverage is None:
            return [None] * len(similarities)
        different = np.unique(class_ids[class_ids >= 0])
        needed = dict(zip(different.tolist(), known.needed_margins(different, coverage).tolist(), strict=True))
        labels = reader.class_labels(different.tolist())
        found: list[tuple[str, ...] | None] = []
        for row, ids in zip(similarities.tolist(), class_ids.tolist(), strict=True):
            second = row[1] if len(row) > 1 else -np.inf
            rivals = [second] + [row[0]] * (len(row) - 1)
            leads = zip(ids, row, rivals, strict=True)
            found.append(tuple(labels[i] for i, own, rival in leads if i >= 0 and own - rival >= needed[i]))
        return found

    # ---- inside a change

    def _is_enrolled(self, sha256: str) -> bool:
        with self._store.read() as reader:
            return reader.label_of_photo(sha256) is not None

    def _enroll_together(
        self, batches: Sequence[tuple[ClassFolder, list[Outcome]]], *, strict: bool
    ) -> list[EnrollReport]:
        """Write classes in one transaction: one change, one line of history."""
        with self._store.write() as writer:
            reports = [self._enroll_class(writer, folder.label, batch, strict) for folder, batch in batches]
            changed = {report.label: report.enrolled for report in reports if report.enrolled}
            if changed:
                writer.note("enroll", next(iter(changed)) if len(changed) == 1 else None, n_supports=changed)
        return reports

    def _enroll_class(self, writer: Writer, label: str, batch: Sequence[Outcome], strict: bool) -> EnrollReport:
        embedder = self.embedder_of(writer)
        refused = [outcome for outcome in batch if isinstance(outcome, Refused)]
        readable = [outcome for outcome in batch if not isinstance(outcome, Refused)]
        known = writer.labels_of_photos([outcome.sha256 for outcome in readable])
        new: dict[str, EmbeddedPhoto] = {}
        n_already = 0
        for outcome in readable:
            there = known.get(outcome.sha256)
            if there == label or outcome.sha256 in new:
                n_already += 1
            elif there is not None:
                refused.append(
                    _refused(
                        OtherLabelError(f"{Path(outcome.file).name} is already enrolled as {there!r}."), outcome.file
                    )
                )
            elif isinstance(outcome, SkippedPhoto):
                gone = ImageError(
                    f"{Path(outcome.file).name} was just removed from the index by another process.",
                    hint="Enroll again to put it back.",
                )
                refused.append(_refused(gone, outcome.file))
            else:
                new[outcome.sha256] = outcome
        if strict and refused:
            raise StrictError(
                f"nothing was enrolled: {len(refused)} of {len(batch)} photos of {label!r} were refused, first "
                f"{Path(refused[0].file).name}: {refused[0].message}",
                hint="Mend or take out the photos named above, or leave --strict out.",
            )
        ids: list[int] = []
        if new:
            if writer.about().fingerprint is None:
                writer.pin_embedder(embedder.facts())
            class_id = writer.add_class(label)
            ids = writer.add_supports(class_id, list(new.values()))
            _learn_class(writer, class_id)
        return EnrollReport(label, len(ids), n_already, tuple(refused), tuple(ids))

    def embedder_of(self, reader: Reader) -> Embedder:
        """The opened embedder, checked once more against what another process may have pinned meanwhile."""
        embedder = self._embedder
        assert embedder is not None
        self._check_pinned(reader.about(), embedder)
        return embedder

    def _stage(
        self,
        embedder: Embedder,
        todo: Sequence[tuple[int, str, str]],
        by_hash: dict[str, Path],
        on_photo: Callable[[], None] | None,
    ) -> None:
        def photos() -> Iterator[Path | NamedBytes]:
            for support_id, sha256, file in todo:
                if sha256 in by_hash:
                    yield by_hash[sha256]
                    continue
                with self._store.read() as reader:
                    yield NamedBytes(file, reader.thumbnail(support_id) or b"")

        outcomes = zip(todo, embedder.embed_photos(photos(), n_photos=len(todo)), strict=True)
        while chunk := list(islice(outcomes, STAGE_CHUNK)):
            vectors = {}
            for (support_id, _, file), outcome in chunk:
                if not isinstance(outcome, EmbeddedPhoto):
                    message = outcome.message if isinstance(outcome, Refused) else "it was skipped"
                    raise FewshotError(
                        f"photo {file} (support {support_id}) cannot be embedded again: {message}",
                        hint="Give the folder with the original photos: `fewshot reindex --photos FOLDER`.",
                    )
                vectors[support_id] = outcome.embedding
                if on_photo is not None:
                    on_photo()
            with self._store.write() as writer:
                present = writer.supports(vectors)
                writer.stage(embedder.fingerprint, {key: vectors[key] for key in present})

    def _adopt(self, writer: Writer, embedder: Embedder) -> None:
        before = writer.about().fingerprint
        writer.pin_embedder(embedder.facts())
        writer.adopt_staged(embedder.fingerprint)
        for label in writer.labels():
            _learn_class(writer, writer.wanted_class_id(label))
        writer.note("reindex", None, before=before, after=embedder.fingerprint)


def _learn_class(writer: Writer, class_id: int) -> None:
    """Compute what follows from a class's supports: its prototypes, and how well each photo fits the others."""
    ids, _, vectors = writer.class_vectors([class_id])
    groups = classifier.support_groups(vectors)
    writer.set_prototypes(class_id, classifier.class_prototypes(vectors, groups, int(groups.max()) + 1))
    writer.set_own_similarities(ids, classifier.own_similarities(vectors, groups))


def _by_class(
    folders: Sequence[ClassFolder], outcomes: Iterator[Outcome], on_photo: Callable[[], None] | None
) -> Iterator[tuple[ClassFolder, list[Outcome]]]:
    """The stream of all photos' outcomes, cut at the borders between classes."""
    for folder in folders:
        batch = []
        for outcome in islice(outcomes, len(folder.photos)):
            batch.append(outcome)
            if on_photo is not None:
                on_photo()
        yield folder, batch


def _by_hash(files: Iterable[Path]) -> dict[str, Path]:
    found = {}
    for file in files:
        try:
            found[images.content_hash(images.read_bytes(file))] = file
        except ImageError as error:
            log.warning("%s", error.message)
    return found


def _refused(error: ImageError, file: str) -> Refused:
    return Refused(file, error.code, f"{error.message} {error.hint}".strip())


def _digits(fingerprint: str) -> str:
    """The part of a fingerprint that depends on content alone; a weights file may have been renamed."""
    return fingerprint.rpartition("@")[2]
