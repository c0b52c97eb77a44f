"""Embeddings -> points in two or three dimensions by PCA, t-SNE or UMAP, and how far to trust them."""

import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from fewshot.errors import NeighbourCountError, TooFewPointsError, UsageError, VectorError, did_you_mean
from fewshot.records import Float32s, Int64s

METHODS = ("pca", "tsne", "umap")
NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
N_DIMS = (2, 3)
MIN_POINTS = 4
# Classes have 5 to 20 photos: with sklearn's 30 a point would be held against several classes at once.
N_NEIGHBOURS = 15
# UMAP packs the photos of a class closer than marks are wide, and drives classes far apart: with its own 0.1 and 1 a
# class is a dot on an empty page. The neighbourhoods stay (trustworthiness 0.99 on 50 classes, either way).
MIN_DIST, LEARNING_RATE = 0.8, 0.5
# Trustworthiness sorts the distances of every pair: memory and time grow with the square.
MAX_TRUST_POINTS = 5000


def coordinates(vectors: Float32s, method: str, n_dims: int, seed: int, n_neighbours: int | None = None) -> Float32s:
    """Where embeddings lie in a picture: the same arguments give the same points, on any number of cores.

    Neighbours are exact and by cosine, in all dimensions of the embedding. t-SNE and UMAP start from the principal
    components, which keeps the arrangement of far groups from being chance (Kobak & Linderman 2021).

    Args:
        vectors: (n, dim) float32, rows of unit length; n is at least 4.
        method: "pca", "tsne" or "umap".
        n_dims: 2 or 3.
        seed: of the random numbers that t-SNE and UMAP draw.
        n_neighbours: how many neighbours a point is held against: t-SNE's perplexity, UMAP's n_neighbors. None: 15,
            or as many as there are.

    Returns:
        (n, n_dims) float32. Only PCA's axes have a unit (that of the cosine); of the others the distances alone count,
        and the near ones more than the far.

    Raises:
        UsageError: an unknown method, other than 2 or 3 dimensions, or fewer dimensions in than out.
        TooFewPointsError: fewer than 4 vectors.
        NeighbourCountError: more neighbours asked for than there are, or fewer than 2.
        VectorError: not a table of vectors, NaN or infinite numbers.

    Source:
        scikit-learn's PCA and TSNE, umap-learn's UMAP. UMAP is given the exact neighbours instead of its own
        approximate ones, so that its answer does not depend on threads.
    """
    if method not in METHODS:
        hint = f"{did_you_mean(method, METHODS)} Known: {', '.join(METHODS)}.".strip()
        raise UsageError(f"there is no projection {method!r}.", hint=hint)
    if n_dims not in N_DIMS:
        raise UsageError(f"a picture of {n_dims} dimensions cannot be drawn; wanted 2 or 3.")
    _check(vectors, n_dims)
    k = neighbours_used(len(vectors), n_neighbours)
    with threadpool_limits(1):  # sums in another order are other numbers; and threads that wait burn the other core
        found = {"pca": _pca, "tsne": _tsne, "umap": _umap}[method](vectors, n_dims, seed, k)
    return np.ascontiguousarray(found, np.float32)


def neighbours_used(n_points: int, n_neighbours: int | None) -> int:
    """How many neighbours a point is held against, of `n_points` points in all.

    Raises:
        NeighbourCountError: more asked for than there are, or fewer than 2.
    """
    if n_neighbours is None:
        return min(N_NEIGHBOURS, n_points - 1)
    if not 2 <= n_neighbours < n_points:
        raise NeighbourCountError(
            f"{n_neighbours} neighbours were asked for and there are {n_points} points; wanted 2 to {n_points - 1}.",
            hint="Leave --neighbours out, or give a smaller number.",
        )
    return n_neighbours


def trust(vectors: Float32s, points: Float32s, seed: int, n_neighbours: int | None = None) -> tuple[float, int]:
    """How far near points of a picture are near in the embedding too: trustworthiness, 0 to 1 (1: all are).

    Args:
        vectors: (n, dim) float32.
        points: (n, n_dims) float32, where they lie in the picture.
        seed: draws the points that are looked at where there are more than 5,000.
        n_neighbours: as for `coordinates`; held to less than half of the points, for which alone it is defined.

    Returns:
        The trustworthiness and of how many points it was taken.

    Source:
        Venna & Kaski 2001, as scikit-learn computes it; distances in the embedding are cosine distances.
    """
    rows: Int64s = np.arange(len(vectors))
    if len(rows) > MAX_TRUST_POINTS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_TRUST_POINTS, replace=False))
    k = min(neighbours_used(len(vectors), n_neighbours), (len(rows) - 1) // 2)
    return float(trustworthiness(vectors[rows], points[rows], n_neighbors=k, metric="cosine")), len(rows)


def _check(vectors: Float32s, n_dims: int) -> None:
    if vectors.ndim != 2:
        raise VectorError(f"vectors have shape {vectors.shape}; wanted (n, dim).")
    n, dim = vectors.shape
    if n < MIN_POINTS:
        raise TooFewPointsError(f"there {'is' if n == 1 else 'are'} {n} to draw; wanted at least {MIN_POINTS}.")
    if dim < n_dims:
        raise UsageError(f"embeddings of {dim} dimensions cannot be drawn in {n_dims}.")
    if not np.isfinite(vectors).all():
        raise VectorError("a vector holds NaN or infinite numbers.")


def _pca(vectors: Float32s, n_dims: int, seed: int, _k: int) -> Float32s:
    with np.errstate(invalid="ignore"):  # the share of variance of photos that are all the same
        points: Float32s = PCA(n_dims, svd_solver="randomized", random_state=seed).fit_transform(vectors)
    return points


def _tsne(vectors: Float32s, n_dims: int, seed: int, k: int) -> Float32s:
    start = _start(vectors, n_dims, seed)
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)  # as narrow as scikit-learn's own
    method = TSNE(n_dims, perplexity=k, metric="cosine", init=start, random_state=seed)
    points: Float32s = method.fit_transform(vectors)
    return points


def _umap(vectors: Float32s, n_dims: int, seed: int, k: int) -> Float32s:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed")  # of a variant that nobody asks for
        from umap import UMAP  # importing it takes seconds, which the other methods need not wait for

    distances, indices = NearestNeighbors(n_neighbors=k, metric="cosine").fit(vectors).kneighbors(vectors)
    method = UMAP(
        n_neighbors=k,
        n_components=n_dims,
        metric="cosine",
        init=10 * _start(vectors, n_dims, seed),  # as wide as umap-learn's own
        min_dist=MIN_DIST,
        learning_rate=LEARNING_RATE,
        random_state=seed,
        n_jobs=1,
        precomputed_knn=(indices, distances.astype(np.float32)),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "precomputed_knn")  # new points cannot be placed later: they are not
        points: Float32s = method.fit_transform(vectors)
    return points


def _start(vectors: Float32s, n_dims: int, seed: int) -> Float32s:
    """The principal components, at most 1 from the middle, with a little noise so that equal photos can part."""
    points = _pca(vectors, n_dims, seed, 0)
    points = points / max(float(np.abs(points).max()), 1e-12)
    start: Float32s = (points + np.random.default_rng(seed).normal(0, 1e-4, points.shape)).astype(np.float32)
    return start
