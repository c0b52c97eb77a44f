"""Images -> (n, dim) unit vectors, and the fingerprint that names them."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import platformdirs

from fewshot import engines, extras, images, tuning
from fewshot.backbones import (
    DEFAULT_BACKBONE,
    PACKAGES,
    QUALITIES,
    Backbone,
    WeightsSource,
    load_statistics,
    read_portable,
    resolve,
    shipped,
    source_key,
)
from fewshot.decoding.cutting import Cut, Cutter, cut_photo
from fewshot.engines import BulkSettings, Engine, OpenVinoEngine, TorchEngine
from fewshot.errors import (
    CacheDamagedError,
    EmptyFileError,
    EngineError,
    FewshotError,
    ImageError,
    UsageError,
    did_you_mean,
)
from fewshot.records import EmbeddedPhoto, Float32s, LoadedPhoto, NamedBytes, Pixels, Refused, SkippedPhoto
from fewshot.sealed import read_facts, read_sealed, verify, write_sealed
from fewshot.transforms import Transform, whitening

Prepared = LoadedPhoto | SkippedPhoto | Refused
Outcome = EmbeddedPhoto | SkippedPhoto | Refused
Item = TypeVar("Item")
Result = TypeVar("Result")
# Up to so many photos the engine is compiled for the first answer, beyond for the most answers a second.
FEW_PHOTOS = 4
# From so many bytes on, hashing takes longer than starting a thread for it, by ten times.
HASHED_BESIDE_BYTES = 400_000
# Features are whitened so many at a time where many photos come: the matrix, megabytes, is read once for all of them.
FINISHED_TOGETHER = 16
# So many more are with the engine, so that it has work while others are whitened, stored or compared.
IN_FLIGHT = 32


@dataclass(frozen=True, slots=True)
class EmbedderChoice:
    """What a user chose of an embedder; None leaves it to the index, and in a new index to the default."""

    backbone: str | None = None
    precision: str | None = None
    engine: str = "auto"
    quality: str | None = None


class Embedder:
    """Preprocessing, backbone and the transform that belongs to it: photos in, unit vectors out.

    Args:
        backbone: the description whose fingerprint names the vectors.
        source: where its weights came from; kept in an index so that it can be opened again.
        precision: the engine's, part of the fingerprint.
        open_engine: gives the engine; called with True when many photos are to come.
        open_transform: gives the map that embeddings go through; None: they stay as the backbone makes them.
        measure_bulk: called before the engine is opened for very many photos; finds out how it takes them fastest.
    """

    def __init__(
        self,
        backbone: Backbone,
        source: WeightsSource,
        precision: str,
        open_engine: Callable[[bool], Engine],
        open_transform: Callable[[], Transform] | None = None,
        measure_bulk: Callable[[], object] | None = None,
    ) -> None:
        self.backbone = backbone
        self.source = source
        self.precision = precision
        self.fingerprint = backbone.fingerprint(precision)
        self._open_engine = open_engine
        self._engines: dict[bool, Engine] = {}
        self._open_transform = open_transform
        self._measure_bulk = measure_bulk
        self._transform: Transform | None = None
        self._opening = threading.Lock()
        self._runners: ThreadPoolExecutor | None = None

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.backbone.name

    @property
    def dim(self) -> int:
        """The embedding's length."""
        return self.backbone.dim

    def facts(self) -> dict[str, Any]:
        """What an index keeps of its embedder: fingerprint, precision, dim, and source and backbone as JSON."""
        return {
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            "dim": self.dim,
            "source": self.source.as_dict(),
            "backbone": self.backbone.as_dict(),
        }

    def embed_pixels(self, pixels: Pixels) -> Float32s:
        """Embed prepared pixels: (n, size, size, 3) uint8 -> (n, dim) float32, rows of unit length.

        Raises:
            EngineError: the backbone gave a vector that has no direction (zero, NaN or infinite).
        """
        engine = self._engine(len(pixels))
        size = engine.batch_size
        rows = [engine.run(pixels[start : start + size]) for start in range(0, len(pixels), size)]
        return self._finish(np.concatenate(rows))

    def prepare(
        self,
        photo: Path | NamedBytes,
        *,
        is_known: Callable[[str], bool] | None = None,
        keep: bool = False,
        keep_metadata: bool = False,
        most_pixels: int | None = None,
        cutter: Cutter = cut_photo,
    ) -> Prepared:
        """Read, check and cut one photo to the backbone's input; one that cannot be used is refused, without exception.

        Args:
            photo: a file, or bytes with a name.
            is_known: asked with the content hash before the photo is decoded; True skips it.
            keep: make the thumbnail and the difference hash that an index keeps.
            keep_metadata: leave the photo's EXIF block (place, time, camera) in that thumbnail.
            most_pixels: a limit below that of `images.max_pixels`.
            cutter: decodes the photo: here, or `Guard.cut_photo` in a process of its own.
        """
        file = photo.file if isinstance(photo, NamedBytes) else str(photo)
        wanted = self.backbone.preprocessing
        cut = Cut(
            wanted.image_size_px,
            wanted.crop_pct,
            wanted.interpolation,
            wanted.squash,
            keep=keep,
            keep_metadata=keep_metadata,
            most_pixels=most_pixels,
        )
        try:
            data = photo.data if isinstance(photo, NamedBytes) else images.read_bytes(photo)
            if not data:
                raise EmptyFileError(f"{Path(file).name} is empty.")
            # Where the hash decides whether the photo is decoded at all, nothing goes on beside it.
            hashed = _content_hash(data, beside=is_known is None and len(data) >= HASHED_BESIDE_BYTES)
            if is_known is not None and is_known(hashed()):
                return SkippedPhoto(file, hashed())
            found = cutter(data, Path(file).name, cut)
        except ImageError as error:
            return refused(error, file)
        return LoadedPhoto(file, hashed(), found.width, found.height, found.pixels, found.thumbnail, found.dhash)

    def embed_prepared(self, photos: Sequence[LoadedPhoto]) -> list[EmbeddedPhoto]:
        """Embed photos that `prepare` gave, with all the engine's streams; for one caller at a time.

        Raises:
            EngineError: see `embed_pixels`.
        """
        engine = self.open_for_many()
        if self._runners is None:
            # Threads that stay: each keeps its own request of the engine.
            self._runners = ThreadPoolExecutor(engine.n_parallel, "engine")
        pixels = [photo.pixels for photo in photos]
        size = min(engine.batch_size, -(-len(pixels) // engine.n_parallel))
        parts = [_batch(pixels[i : i + size]) for i in range(0, len(pixels), size)]
        rows = self._finish(np.concatenate(list(self._runners.map(engine.run, parts))))
        return [_embedded(photo, row) for photo, row in zip(photos, rows, strict=True)]

    def open_for_many(self) -> Engine:
        """The engine compiled for the most answers a second, opened at its first use."""
        return self._engine(FEW_PHOTOS + 1)

    def close(self) -> None:
        """Stop the threads that `embed_prepared` keeps."""
        if self._runners is not None:
            self._runners.shutdown(wait=True)
            self._runners = None

    def embed_photos(
        self,
        photos: Iterable[Path | NamedBytes],
        *,
        n_photos: int,
        is_known: Callable[[str], bool] | None = None,
        keep: bool = False,
        keep_metadata: bool = False,
        cutter: Cutter = cut_photo,
    ) -> Iterator[Outcome]:
        """Embed photos in order, decoding in threads while the engine runs.

        Args:
            photos: files, or bytes with names; taken lazily, a bounded number ahead.
            n_photos: about how many there are; decides how the engine is compiled.
            is_known: see `prepare`.
            keep: see `prepare`.
            keep_metadata: see `prepare`.
            cutter: see `prepare`.

        Yields:
            For each photo, in order: the embedded photo, the skipped one, or why it was refused.
        """
        prepare = partial(self.prepare, is_known=is_known, keep=keep, keep_metadata=keep_metadata, cutter=cutter)
        if n_photos == 1 and False in self._engines:  # threads would cost a photo more than they save
            for item in map(prepare, photos):
                if isinstance(item, LoadedPhoto):
                    yield _embedded(item, self.embed_pixels(item.pixels[None])[0])
                else:
                    yield item
            return
        n_decoders = engines.n_threads()
        with ThreadPoolExecutor(n_decoders, "decode") as decoders, ThreadPoolExecutor(1, "compile") as compiler:
            # The engine compiles while the first photos are read.
            opening = compiler.submit(self._engine, n_photos)
            prepared = _ahead(decoders, prepare, photos, n_ahead=4 * n_decoders)
            yield from self._embed_stream(prepared, opening)

    def _embed_stream(self, prepared: Iterable[Prepared], opening: "Future[Engine]") -> Iterator[Outcome]:
        runners: ThreadPoolExecutor | None = None
        waiting: deque[tuple[list[Prepared], Future[Float32s] | None]] = deque()
        group: list[Prepared] = []
        n_loaded, n_together, n_since = 0, 1, 0

        def submit() -> None:
            nonlocal group, n_loaded
            loaded = [item.pixels for item in group if isinstance(item, LoadedPhoto)]
            future = None
            if loaded:
                assert runners is not None
                future = runners.submit(opening.result().run, _batch(loaded))
            waiting.append((group, future))
            group, n_loaded = [], 0

        try:
            for item in prepared:
                if not isinstance(item, LoadedPhoto) and not group and not waiting:
                    yield item  # nothing before it is still at work
                    continue
                group.append(item)
                if not isinstance(item, LoadedPhoto):
                    n_since += 1
                    if n_since >= FINISHED_TOGETHER:  # a long run of these keeps nothing back that came before it
                        submit()
                        while waiting and ((call := waiting[0][1]) is None or call.done()):
                            yield from self._finished([waiting.popleft()])
                    continue
                n_since = 0
                engine = opening.result()
                runners = runners or ThreadPoolExecutor(engine.n_parallel, "engine")
                n_loaded += 1
                if n_loaded == engine.batch_size:
                    submit()
                n_together = -(-FINISHED_TOGETHER // engine.batch_size)
                n_at_work = max(2 * engine.n_parallel, -(-IN_FLIGHT // engine.batch_size))
                while len(waiting) >= n_at_work + n_together:
                    yield from self._finished([waiting.popleft() for _ in range(n_together)])
            if group:
                submit()
            while waiting:
                yield from self._finished([waiting.popleft() for _ in range(min(n_together, len(waiting)))])
        finally:
            if runners is not None:
                runners.shutdown(wait=True, cancel_futures=True)

    def _finished(self, groups: "Sequence[tuple[list[Prepared], Future[Float32s] | None]]") -> Iterator[Outcome]:
        """What became of groups of photos, each with the engine's call that has its features; None: no photo of it."""
        features = [future.result() for _, future in groups if future is not None]
        rows = iter(self._finish(np.concatenate(features)) if features else ())
        for item in chain.from_iterable(group for group, _ in groups):
            if isinstance(item, LoadedPhoto):
                yield _embedded(item, next(rows))
            else:
                yield item

    def _finish(self, features: Float32s) -> Float32s:
        """Raw features -> embeddings: unit length, and where there is a transform, moved by it and scaled again."""
        unit = _unit_rows(features, self.name)
        if self._open_transform is None:
            return unit
        if self._transform is None:
            self._transform = self._open_transform()
        return _unit_rows(self._transform(unit), self.name)

    def _engine(self, n_photos: int) -> Engine:
        bulk = n_photos > FEW_PHOTOS
        with self._opening:
            if bulk not in self._engines:
                if n_photos >= tuning.MEASURED_FROM and self._measure_bulk is not None:
                    self._measure_bulk()
                self._engines[bulk] = self._open_engine(bulk)
            return self._engines[bulk]


def refused(error: ImageError, file: str) -> Refused:
    """What is told of a photo that cannot be used."""
    return Refused(file, error.code, error.said)


def same_embeddings(fingerprint: str, other: str) -> bool:
    """Whether two fingerprints differ in the name alone: a weights file may have been renamed.

    >>> same_embeddings("mine@6b5bc16fbb27", "plants-lite0@6b5bc16fbb27")
    True
    """
    return fingerprint.rpartition("@")[2] == other.rpartition("@")[2]


def open_embedder(
    choice: EmbedderChoice, *, source: WeightsSource | None = None, on_notice: Callable[[str], None] | None = None
) -> Embedder:
    """The embedder that a user chose.

    On the OpenVINO path, torch and timm are needed once, and only for a backbone that does not come as ONNX.

    Args:
        choice: backbone, precision, engine and quality.
        source: where an index says that its backbone is; used when the choice names none.
        on_notice: told, in a sentence, of one-time work that takes seconds.

    Raises:
        UsageError: an unknown engine, precision or quality.
        BackboneError: the weights cannot be had; the subclass says why.
        MissingExtraError: the backbone or the engine needs torch, and it is not installed.
        EngineError: the engine cannot run it here.
    """
    for what, name, known in (
        ("engine", choice.engine, engines.ENGINES),
        ("precision", choice.precision or engines.PRECISIONS[0], engines.PRECISIONS),
        ("quality", choice.quality or "fast", tuple(QUALITIES)),
    ):
        if name not in known:
            raise UsageError(
                f"there is no {what} {name!r}.", hint=f"{did_you_mean(name, known)} Known: {', '.join(known)}.".strip()
            )
    if choice.backbone is not None or source is None:
        source = resolve(choice.backbone or DEFAULT_BACKBONE)
    if choice.quality is not None:
        source = replace(source, views=QUALITIES[choice.quality])
    on_gpu = choice.engine == "auto" and engines.cuda_available() and not extras.missing("train", extras.NETWORKS)
    if choice.engine == "torch" or on_gpu:
        return _open_torch(source, choice)
    return _open_openvino(source, choice, on_notice)


def cache_folder() -> Path:
    """Where converted and compiled backbones are kept: `$FEWSHOT_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("FEWSHOT_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("fewshot", appauthor=False))


def _open_openvino(source: WeightsSource, choice: EmbedderChoice, on_notice: Callable[[str], None] | None) -> Embedder:
    ir = cache_folder() / "backbones" / source_key(source) / "model.ir"
    try:
        backbone = Backbone.from_dict(read_facts(ir)["backbone"])
    except CacheDamagedError:
        backbone = _convert(source, ir, on_notice)
    precision = choice.precision or engines.native_precision()

    def open_engine(bulk: bool) -> Engine:
        try:
            return OpenVinoEngine(ir, precision, tuning.chosen(ir, precision) if bulk else None)
        except CacheDamagedError:
            _convert(source, ir, on_notice)
            return OpenVinoEngine(ir, precision, BulkSettings() if bulk else None)

    def measure_bulk() -> None:
        if tuning.is_measured(ir, precision):
            return
        if on_notice is not None:
            on_notice("finding out how this machine embeds many photos fastest; once, a few seconds.")
        try:
            tuning.measure(ir, precision)
        except CacheDamagedError:
            pass  # opening the engine makes the prepared backbone anew; the next large run measures

    def open_transform() -> Transform:
        file = _transform_file(ir)
        try:
            payload, facts = read_sealed(file)
        except CacheDamagedError:
            _convert(source, ir, on_notice)
            payload, facts = read_sealed(file)
        return Transform.from_bytes(payload, backbone.dim, facts["power"])

    whitened = backbone.statistics_sha256 is not None
    return Embedder(backbone, source, precision, open_engine, open_transform if whitened else None, measure_bulk)


def _transform_file(ir: Path) -> Path:
    return ir.with_name("transform")


def _convert(source: WeightsSource, ir: Path, on_notice: Callable[[str], None] | None) -> Backbone:
    portable = read_portable(source)
    if portable is None:
        _check_network(source)
    if on_notice is not None:
        on_notice(f"preparing backbone {source.name} for this machine (once)")
    backbone, onnx = portable or _as_portable(source)
    backbone = backbone.in_views(source.views)
    try:
        engines.export_openvino(backbone, onnx, ir, {"backbone": backbone.as_dict(), "source": source.as_dict()})
        verify(ir)
        statistics = load_statistics(source)
        if statistics is not None:
            content = whitening(statistics).to_bytes()
            facts = {"source": source.as_dict(), "power": statistics.power}
            write_sealed(_transform_file(ir), lambda target: target.write_bytes(content), facts)
    except OSError as error:
        raise FewshotError(
            f"the prepared backbone cannot be written to {ir.parent}: {error.strerror}.",
            hint="Free some space, or name another folder with FEWSHOT_CACHE.",
        ) from error
    return backbone


def _check_network(source: WeightsSource) -> None:
    """Refuse a backbone that there is not, or that cannot be had here, before it is said to be prepared."""
    known = [*(each.name for each in shipped()), *PACKAGES]
    guess = "" if source.name in known else did_you_mean(source.name, known)
    hint = f"{guess} Without it: {', '.join(each.name for each in shipped())}, or a folder that `fewshot train` wrote."
    what = f"backbone {source.name!r}, which does not come as ONNX,"
    extras.need("train", what, extras.NETWORKS, hint=hint.strip())
    from fewshot.networks import check_architecture

    check_architecture(source)


def _as_portable(source: WeightsSource) -> tuple[Backbone, bytes]:
    """A backbone that comes without ONNX, as torch writes it."""
    from fewshot.networks import load
    from fewshot.portable import export_onnx

    backbone, network = load(source)
    return backbone, export_onnx(network, backbone.preprocessing.image_size_px)


def _open_torch(source: WeightsSource, choice: EmbedderChoice) -> Embedder:
    extras.need("train", "the engine 'torch'", extras.NETWORKS, hint="The engine 'openvino' does without.")
    from fewshot.networks import load

    backbone, network = load(source)
    backbone = backbone.in_views(source.views)
    device = "cuda" if engines.cuda_available() else "cpu"
    precision = choice.precision or ("bf16" if device == "cuda" else "f32")
    statistics = load_statistics(source)
    return Embedder(
        backbone,
        source,
        precision,
        lambda bulk: TorchEngine(backbone, network, precision, device=device),
        None if statistics is None else lambda: whitening(statistics),
    )


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], *, n_ahead: int
) -> Iterator[Result]:
    """`work` over `items` in the pool: results in order, at most `n_ahead` items ahead of the consumer."""
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) >= n_ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _batch(pixels: Sequence[Pixels]) -> Pixels:
    """Photos' pixels in one array; those of one alone are not copied."""
    return np.stack(pixels) if len(pixels) > 1 else pixels[0][None]


def _content_hash(data: bytes, *, beside: bool) -> Callable[[], str]:
    """What gives a photo's content hash: computed now, or in a thread beside what follows."""
    if not beside:
        sha256 = images.content_hash(data)
        return lambda: sha256
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(images.content_hash(data)), name="hash")
    thread.start()

    def hashed() -> str:
        thread.join()
        return found[0]

    return hashed


def _embedded(photo: LoadedPhoto, row: Float32s) -> EmbeddedPhoto:
    return EmbeddedPhoto(photo.file, photo.sha256, photo.width, photo.height, row, photo.thumbnail, photo.dhash)


def _unit_rows(rows: Float32s, name: str) -> Float32s:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise EngineError(
            f"backbone {name!r} gave an embedding without direction (zero, NaN or infinite).",
            hint="Try `--precision f32`; if it stays, the weights are not those of the architecture.",
        )
    unit: Float32s = (rows / norms).astype(np.float32)
    return unit
