"""Made-up embeddings that spread as real ones do, for sizes that nobody has photographs for."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from fewshot.backbones import Backbone, Preprocessing, WeightsSource
from fewshot.embedder import Embedder
from fewshot.store import Store
from fewshot.store.schema import classes, embeddings, prototypes, supports

# The part of the variance that lies between classes, by dimensions: of plants-lite0's whitened embeddings of 1,671
# photos that its training did not see, of 48 classes, as they are and reduced to their first 256 principal directions.
# What lies within classes is spread over very many directions (422 and 183 effective ones), and so is the noise here.
BETWEEN = {256: 0.36, 1280: 0.25}


def between(dim: int) -> float:
    """The part of the variance between classes for so many dimensions: of the nearest number that was measured."""
    return BETWEEN[min(BETWEEN, key=lambda known: abs(known - dim))]


class MadeUp:
    """Classes in random directions, their photos around them.

    Args:
        n: vectors.
        n_each: vectors a class.
        dim: their length.
        share: the part of the variance that lies between classes; None: what real embeddings have.
    """

    def __init__(self, n: int, n_each: int, dim: int, share: float | None = None, seed: int = 0) -> None:
        self.n, self.n_each, self.dim = n, n_each, dim
        self._between = between(dim) if share is None else share
        self._rng = np.random.default_rng(seed)
        self._centres = unit(self._rng.standard_normal((-(-n // n_each), dim), dtype=np.float32)) * self._between**0.5

    def parts(self, size: int = 20_000) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids and unit vectors, some at a time; the same each time."""
        rng = np.random.default_rng(1)
        for start in range(0, self.n, size):
            ids = np.arange(start, min(self.n, start + size))
            yield ids, self._around(ids // self.n_each, rng)

    def queries(self, n: int) -> np.ndarray:
        """Other photos of the same classes: (n, dim)."""
        rng = np.random.default_rng(2)
        return self._around(rng.integers(0, len(self._centres), n), rng)

    def _around(self, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = rng.standard_normal((len(classes), self.dim), dtype=np.float32)
        return unit(self._centres[classes] + ((1 - self._between) / self.dim) ** 0.5 * noise)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def fill(folder: Path, made: MadeUp, facts: dict[str, Any]) -> None:
    """An index of made-up photos, written table by table: what follows from a class's photos is as enrolling has it.

    Args:
        folder: where.
        made: the photos; classes of at least two.
        facts: the embedder's (`Embedder.facts`).
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    n_each = made.n_each
    with_checksum = _with_checksum
    store = Store(folder, create=True)
    with store.write() as writer:
        writer.pin_embedder(facts)
        generation, put = writer.generation(), writer._connection.execute
        for ids, vectors in made.parts(n_each * max(1, 20_000 // n_each)):
            class_ids = ids // n_each + 1
            sums = np.add.reduceat(vectors, np.arange(0, len(vectors), n_each), axis=0)
            others = sums[class_ids - class_ids[0]] - vectors
            own = (others * vectors).sum(axis=1) / np.linalg.norm(others, axis=1)
            new = np.unique(class_ids).tolist()
            put(classes.insert(), [{"class_id": c, "label": f"class-{c:06d}", "created_at": now} for c in new])
            rows = zip(ids.tolist(), class_ids.tolist(), own.tolist(), strict=True)
            put(
                supports.insert(),
                [
                    {
                        "support_id": i + 1,
                        "class_id": c,
                        "sha256": f"{i:064x}",
                        "file": f"{i:08d}.jpg",
                        "width": 256,
                        "height": 256,
                        "dhash": i.to_bytes(16, "big"),
                        "added_at": now,
                        "generation": generation,
                        "own_similarity": similarity,
                    }
                    for i, c, similarity in rows
                ],
            )
            put(
                embeddings.insert(),
                [{"support_id": i + 1, **with_checksum(v)} for i, v in zip(ids.tolist(), vectors, strict=True)],
            )
            put(
                prototypes.insert(),
                [
                    {"class_id": c, "generation": generation, **with_checksum(v)}
                    for c, v in zip(new, unit(sums), strict=True)
                ],
            )
        writer.note("enroll", None, n_supports=made.n)
    store.close()


def _with_checksum(vector: np.ndarray) -> dict[str, Any]:
    blob = vector.astype("<f4").tobytes()
    value = xxhash.xxh3_64_intdigest(blob)
    return {"vector": blob, "xxh3": value - (1 << 64) if value >= 1 << 63 else value}


class _SteadyEngine:
    """Made-up features at a constant speed: a photo's pixels seed its direction."""

    batch_size, n_parallel = 1, 2

    def __init__(self, dim: int, images_per_s: float) -> None:
        self._dim, self._images_per_s = dim, images_per_s

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """(n, size, size, 3) uint8 -> (n, dim) float32, after n / images_per_s seconds (0: at once)."""
        if self._images_per_s:
            time.sleep(self.n_parallel * len(pixels) / self._images_per_s)
        seeds = [xxhash.xxh3_64_intdigest(np.ascontiguousarray(each).tobytes()) for each in pixels]
        rows = [np.random.default_rng(seed).standard_normal(self._dim, dtype=np.float32) for seed in seeds]
        return np.stack(rows)


def steady_embedder(dim: int, images_per_s: float = 0.0) -> Embedder:
    """An embedder of a constant speed that needs no weights; 0: as fast as photos come."""
    preprocessing = Preprocessing(224, 0.875, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    backbone = Backbone("steady", "made_up", dim, "0" * 64, preprocessing)
    source = WeightsSource("steady", "made_up", "package", "")
    return Embedder(backbone, source, "f32", lambda bulk: _SteadyEngine(dim, images_per_s))
