"""Made-up embeddings that spread as real ones do, for sizes that nobody has photographs for."""

from collections.abc import Iterator

import numpy as np

# Of plants-lite0's whitened embeddings of 4,438 field and laboratory photos of 50 classes: the part of their variance
# that lies between classes, the rest being alike in nearly a thousand directions.
BETWEEN = 0.31


class MadeUp:
    """Classes in random directions, their photos around them.

    Args:
        n: vectors.
        n_each: vectors a class.
        dim: their length.
        between: the part of the variance that lies between classes.
    """

    def __init__(self, n: int, n_each: int, dim: int, between: float = BETWEEN, seed: int = 0) -> None:
        self.n, self.n_each, self.dim, self._between = n, n_each, dim, between
        self._rng = np.random.default_rng(seed)
        self._centres = unit(self._rng.standard_normal((-(-n // n_each), dim), dtype=np.float32)) * between**0.5

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
