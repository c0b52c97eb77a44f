import numpy as np
import pytest

from fewshot.errors import NeighbourCountError, TooFewPointsError, UsageError, VectorError
from fewshot.projection.coordinates import METHODS, N_NEIGHBOURS, coordinates, neighbours_used, trust


def groups(n_groups=4, n_each=10, dim=32, spread=0.3, seed=0):
    """Unit vectors around directions of their own, and the group of each."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_groups, dim))
    which = np.repeat(np.arange(n_groups), n_each)
    vectors = centres[which] + spread * rng.normal(size=(len(which), dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), which


def same_group_nearest(points, which):
    """The share of points whose nearest other point is of their group."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return (which[distances.argmin(axis=1)] == which).mean()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_dims", [2, 3])
def test_points_have_the_shape_asked_for_and_are_the_same_again(method, n_dims):
    vectors, _ = groups()
    points = coordinates(vectors, method, n_dims, 0)
    assert points.shape == (40, n_dims)
    assert points.dtype == np.float32
    assert np.isfinite(points).all()
    assert np.array_equal(points, coordinates(vectors, method, n_dims, 0))


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_another_seed_gives_other_points(method):
    vectors, _ = groups()
    assert not np.array_equal(coordinates(vectors, method, 2, 0), coordinates(vectors, method, 2, 1))


@pytest.mark.parametrize("method", METHODS)
def test_what_lies_together_in_the_embedding_lies_together_in_the_picture(method):
    vectors, which = groups()
    points = coordinates(vectors, method, 3, 0)
    assert same_group_nearest(points, which) > 0.9


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_neighbours_are_by_cosine_whatever_the_length_of_the_vectors(method):
    """By plain distance the short vectors of all groups would be neighbours."""
    vectors, which = groups(spread=0.1)
    points = coordinates(vectors * np.where(np.arange(40) % 2, 1, 0.05).astype(np.float32)[:, None], method, 2, 0)
    assert same_group_nearest(points, which) > 0.9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [4, 5])
def test_the_fewest_photos_can_be_drawn_even_if_they_are_all_the_same(method, n):
    vectors, _ = groups(1, n)
    for each in (vectors, np.repeat(vectors[:1], n, axis=0)):
        points = coordinates(each, method, 3, 0)
        assert points.shape == (n, 3)
        assert np.isfinite(points).all()


def test_too_few_photos_are_told_how_many_it_takes():
    vectors, _ = groups(1, 4)
    with pytest.raises(TooFewPointsError, match="there is 1 to draw; wanted at least 4"):
        coordinates(vectors[:1], "pca", 2, 0)


def test_more_neighbours_than_points_are_refused_with_both_numbers():
    vectors, _ = groups(1, 12)
    with pytest.raises(NeighbourCountError, match="and there are 12 points; wanted 2 to 11"):
        coordinates(vectors, "umap", 2, 0, n_neighbours=12)
    with pytest.raises(NeighbourCountError):
        coordinates(vectors, "tsne", 2, 0, n_neighbours=1)


def test_neighbours_not_asked_for_fit_the_number_of_points():
    assert neighbours_used(1000, None) == N_NEIGHBOURS
    assert neighbours_used(5, None) == 4
    assert neighbours_used(5, 3) == 3


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_the_number_of_neighbours_is_used(method):
    vectors, _ = groups()
    assert not np.array_equal(coordinates(vectors, method, 2, 0, 3), coordinates(vectors, method, 2, 0, 20))


def test_an_unknown_method_suggests_the_nearest():
    with pytest.raises(UsageError, match="no projection 'tsn'") as caught:
        coordinates(groups()[0], "tsn", 2, 0)
    assert "Did you mean 'tsne'?" in caught.value.hint


@pytest.mark.parametrize(
    ("vectors", "n_dims", "error"),
    [
        (np.zeros(10, np.float32), 2, VectorError),
        (np.full((10, 4), np.nan, np.float32), 2, VectorError),
        (np.ones((10, 2), np.float32), 3, UsageError),
        (np.ones((10, 8), np.float32), 4, UsageError),
    ],
)
def test_what_cannot_be_drawn_is_refused(vectors, n_dims, error):
    with pytest.raises(error):
        coordinates(vectors, "pca", n_dims, 0)


def test_trust_is_full_for_the_embedding_itself_and_low_for_chance():
    vectors, _ = groups(dim=3)
    value, n = trust(vectors, vectors, 0)
    assert (round(value, 6), n) == (1.0, 40)
    shuffled = np.random.default_rng(0).permutation(vectors)
    assert trust(vectors, shuffled, 0)[0] < 0.7


def test_trust_of_many_points_is_taken_of_some_and_says_so(monkeypatch):
    monkeypatch.setattr("fewshot.projection.coordinates.MAX_TRUST_POINTS", 20)
    vectors, _ = groups()
    assert trust(vectors, vectors, 0)[1] == 20
