"""That whitening is the linear discriminant it says it is, and that statistics survive their file."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.errors import WeightsDamagedError
from fewshot.transforms import (
    ClassStatistics,
    Transform,
    group_sums,
    level,
    measure_statistics,
    pack_statistics,
    statistics_sha256,
    unpack_statistics,
    whitening,
)

DIM = 12


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def photos(rng):
    """400 embeddings of 8 classes whose photos spread far in a few directions and little in the others."""
    class_index = np.repeat(np.arange(8), 50)
    spread = np.linspace(0.05, 0.6, DIM)
    rows = rng.normal(size=(8, DIM))[class_index] + rng.normal(size=(400, DIM)) * spread
    return unit(rows), class_index


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def within_class_covariance(rows, class_index):
    means = np.stack([rows[class_index == i].mean(axis=0) for i in range(class_index.max() + 1)])
    around = rows - means[class_index]
    return around.T @ around / len(rows)


def test_whitened_classes_spread_alike_in_every_direction_but_for_the_shrinkage(photos):
    rows, class_index = photos
    statistics = measure_statistics(rows, class_index, shrinkage=0.0)
    assert 0 < statistics.shrinkage < 0.2  # what 400 photos ask for
    moved = whitening(statistics)(rows).astype(np.float64)
    before = np.linalg.cond(within_class_covariance(level(rows, 0.5).astype(np.float64), class_index))
    after = np.linalg.cond(within_class_covariance(moved, class_index))
    assert after < before / 3
    # Where the covariance is put in for the shrunk one, nothing is left of the difference.
    exact = within_class_covariance(level(rows, 0.5).astype(np.float64), class_index).astype(np.float32)
    plain = whitening(ClassStatistics(statistics.mean, exact, 0.0, 400, 8))(rows).astype(np.float64)
    np.testing.assert_allclose(within_class_covariance(plain, class_index), np.eye(DIM), atol=2e-3)


def test_distance_after_whitening_is_the_mahalanobis_distance(photos, rng):
    statistics = measure_statistics(*photos)
    transform = whitening(statistics)
    a, b = unit(rng.normal(size=(2, DIM)))
    difference = (level(a[None], 0.5)[0] - level(b[None], 0.5)[0]).astype(np.float64)
    wanted = difference @ np.linalg.inv(statistics.covariance.astype(np.float64)) @ difference
    moved = transform(a[None])[0] - transform(b[None])[0]
    assert moved @ moved == pytest.approx(wanted, rel=1e-3)


def test_a_covariance_is_shrunk_as_far_as_asked_and_further_where_photos_are_few(photos):
    rows, class_index = photos
    asked = measure_statistics(rows, class_index, shrinkage=0.6)
    assert asked.shrinkage == 0.6
    exact = within_class_covariance(level(rows, 0.5).astype(np.float64), class_index)
    wanted = 0.4 * exact + 0.6 * np.trace(exact) / DIM * np.eye(DIM)
    np.testing.assert_allclose(asked.covariance, wanted, atol=1e-6)
    few = rows.reshape(8, 50, DIM)[:, :3].reshape(-1, DIM)
    assert measure_statistics(few, np.repeat(np.arange(8), 3), shrinkage=0.01).shrinkage > 0.1


def test_whitening_helps_classes_it_has_not_seen(rng):
    """The point of it: the spread that the trained classes show is the spread of new ones too."""
    spread = np.concatenate([np.full(3, 1.5), np.full(DIM - 3, 0.15)])
    centres = rng.normal(size=(30, DIM)) * 0.5
    class_index = np.repeat(np.arange(30), 40)
    rows = unit(centres[class_index] + rng.normal(size=(1200, DIM)) * spread + 1.0)
    known, new = class_index < 20, class_index >= 20
    transform = whitening(measure_statistics(rows[known], class_index[known], shrinkage=0.0))

    def accuracy(vectors):
        first = np.flatnonzero(new).reshape(10, 40)
        prototypes = unit(vectors[first[:, :10]].mean(axis=1))
        asked = vectors[first[:, 10:].ravel()]
        return float(((asked @ prototypes.T).argmax(axis=1) == np.repeat(np.arange(10), 30)).mean())

    assert accuracy(unit(transform(rows))) > accuracy(rows) + 0.05


def test_length_of_the_embeddings_does_not_matter(photos, rng):
    rows, class_index = photos
    longer = rows * rng.uniform(0.5, 20, (len(rows), 1)).astype(np.float32)
    first, second = measure_statistics(rows, class_index), measure_statistics(longer, class_index)
    np.testing.assert_allclose(first.mean, second.mean, atol=1e-6)
    np.testing.assert_allclose(first.covariance, second.covariance, atol=1e-6)


def test_directions_without_any_spread_do_not_blow_up():
    rows = unit(np.tile(np.eye(4, DIM), (5, 1)))
    flat = ClassStatistics(rows.mean(axis=0), np.diag([1.0] * 3 + [0.0] * (DIM - 3)).astype(np.float32), 0.0, 20, 4)
    assert np.isfinite(whitening(flat)(rows)).all()


def test_power_of_one_keeps_directions_and_one_half_evens_components_out(rng):
    rows = rng.normal(size=(6, DIM)).astype(np.float32)
    np.testing.assert_allclose(level(rows, 1.0), unit(rows), rtol=1e-6)
    np.testing.assert_array_equal(np.sign(level(rows, 0.5)), np.sign(rows))
    assert (np.abs(level(rows, 0.5)).max(axis=1) < np.abs(level(rows, 1.0)).max(axis=1)).all()


def test_packed_statistics_come_back_and_are_small(photos):
    statistics = measure_statistics(*photos)
    data = pack_statistics(statistics)
    again = unpack_statistics(data, "statistics.safetensors")
    np.testing.assert_array_equal(again.mean, statistics.mean)
    np.testing.assert_allclose(again.covariance, statistics.covariance, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(np.diag(again.covariance), np.diag(statistics.covariance), rtol=1e-6)
    assert (again.shrinkage, again.n_photos, again.n_classes) == (statistics.shrinkage, 400, 8)
    assert statistics_sha256(data) == statistics_sha256(pack_statistics(statistics))
    large = ClassStatistics(np.zeros(1280, np.float32), np.eye(1280, dtype=np.float32), 0.1, 1, 1)
    assert len(pack_statistics(large)) < 1_700_000


def test_a_direction_in_which_nothing_varies_comes_back_as_it_was():
    covariance = np.array([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]], np.float32)
    packed = pack_statistics(ClassStatistics(np.zeros(3, np.float32), covariance, 0.0, 9, 3))
    again = unpack_statistics(packed, "statistics.safetensors")
    np.testing.assert_allclose(again.covariance, covariance, atol=1e-3)


@settings(deadline=None)
@given(st.data())
def test_damaged_statistics_are_refused(data):
    whole = pack_statistics(ClassStatistics(np.zeros(3, np.float32), np.eye(3, dtype=np.float32), 0.1, 9, 3))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(WeightsDamagedError, match=r"class statistics s\.safetensors cannot be read"):
        unpack_statistics(whole[:cut], "s.safetensors")


def test_transform_survives_its_bytes(rng):
    transform = Transform(rng.normal(size=DIM).astype(np.float32), rng.normal(size=(DIM, DIM)).astype(np.float32), 0.7)
    again = Transform.from_bytes(transform.to_bytes(), DIM, 0.7)
    rows = unit(rng.normal(size=(5, DIM)))
    np.testing.assert_array_equal(again(rows), transform(rows))


@pytest.mark.parametrize(("n", "n_groups"), [(0, 3), (1, 1), (7, 12), (200, 5)])
def test_sums_of_groups_are_those_of_a_loop(n, n_groups):
    rng = np.random.default_rng(n)
    rows = rng.normal(size=(n, 6)).astype(np.float32)
    groups = rng.integers(0, n_groups, n)
    wanted = np.zeros((n_groups, 6))
    for row, group in zip(rows, groups, strict=True):
        wanted[group] += row
    np.testing.assert_allclose(group_sums(rows, groups, n_groups), wanted, rtol=1e-12, atol=1e-12)


def test_classes_whose_photos_do_not_differ_change_no_direction():
    statistics = ClassStatistics(np.full(4, 0.1, np.float32), np.zeros((4, 4), np.float32), 0.0, 9, 3)
    rows = np.eye(4, dtype=np.float32)
    assert np.array_equal(
        whitening(statistics)(rows), whitening(replace(statistics, covariance=np.eye(4, dtype=np.float32)))(rows)
    )
