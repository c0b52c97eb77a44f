"""That an index's own metric is what its definition says, and that leaving a photo out leaves all of it out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.classifier.metric import LEAST_AGREEMENT, fit_metric, plain_metric, without_each
from fewshot.classifier.prototypes import class_prototypes
from fewshot.transforms import unit_rows


def world(n_way, n_shot, dim, seed, noise=None):
    """Classes whose photos spread far more in some directions than in others."""
    rng = np.random.default_rng(seed)
    noise = np.linspace(0.1, 2, dim) if noise is None else noise
    groups = np.repeat(np.arange(n_way), n_shot)
    rows = rng.normal(size=(n_way, dim))[groups] + rng.normal(size=(len(groups), dim)) * noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), groups


def inverse(support, groups, prior):
    """The matrix of the metric by its definition, float64."""
    around = np.concatenate([support[groups == i] - support[groups == i].mean(axis=0) for i in np.unique(groups)])
    around = around.astype(np.float64)
    return np.linalg.inv(prior * np.eye(support.shape[1]) + around.T @ around)


def cosines(matrix, left, right):
    lengths = [np.sqrt(np.einsum("ij,jk,ik->i", rows, matrix, rows)) for rows in (left, right)]
    return left @ matrix @ right.T / np.outer(*lengths)


@settings(max_examples=40, deadline=None)
@given(n_way=st.integers(1, 6), n_shot=st.integers(2, 9), dim=st.sampled_from([3, 16, 40]), seed=st.integers(0, 10_000))
def test_a_dot_product_after_the_map_is_the_cosine_under_the_inverse_scatter(n_way, n_shot, dim, seed):
    support, groups = world(n_way, n_shot, dim, seed)
    metric = fit_metric(support, groups)
    query, _ = world(3, 2, dim, seed + 1)
    wanted = cosines(inverse(support, groups, metric.prior), query.astype(np.float64), support.astype(np.float64))
    np.testing.assert_allclose(metric(query) @ metric(support).T, wanted, atol=2e-3)


@settings(max_examples=30, deadline=None)
@given(n_way=st.integers(1, 5), n_shot=st.integers(2, 8), dim=st.sampled_from([4, 24]), seed=st.integers(0, 10_000))
def test_leaving_a_photo_out_equals_fitting_without_it(n_way, n_shot, dim, seed):
    support, groups = world(n_way, n_shot, dim, seed)
    metric = fit_metric(support, groups)
    found = without_each(metric, support, groups, class_prototypes(support, groups, n_way))
    for row in range(0, len(support), 3):
        rest = np.arange(len(support)) != row
        matrix = inverse(support[rest], groups[rest], metric.prior)
        prototypes = class_prototypes(support[rest], groups[rest], n_way).astype(np.float64)
        gains = metric.gains(np.bincount(groups[rest], minlength=n_way))
        wanted = cosines(matrix, support[[row]].astype(np.float64), prototypes)[0] * gains
        np.testing.assert_allclose(found[row], wanted, atol=2e-3)


def test_directions_in_which_photos_of_a_class_differ_count_less():
    noise = np.full(12, 0.2)
    noise[:4] = 3.0
    everything, groups = world(6, 60, 12, seed=1, noise=noise)
    enrolled = np.tile(np.arange(60), 6) < 15
    metric = fit_metric(everything[enrolled], groups[enrolled])
    lengths = np.linalg.norm(metric.moved(np.eye(12, dtype=np.float32)), axis=1)
    assert lengths[:4].max() < 0.7 * lengths[4:].min()
    prototypes, query = class_prototypes(everything[enrolled], groups[enrolled], 6), everything[~enrolled]
    plain = ((query @ prototypes.T).argmax(1) == groups[~enrolled]).mean()
    moved = ((metric(query) @ metric(prototypes).T).argmax(1) == groups[~enrolled]).mean()
    assert moved > plain + 0.05


def test_the_metric_moves_nothing_where_no_photo_has_a_say():
    support, _ = world(5, 1, 8, seed=0)
    metric = fit_metric(support, np.arange(5))
    np.testing.assert_array_equal(metric.moved(support), support)
    same = np.repeat(support, 2, axis=0)
    np.testing.assert_array_equal(fit_metric(same, np.repeat(np.arange(5), 2)).moved(support), support)
    np.testing.assert_allclose(plain_metric(8, np.ones(5, np.int64))(support), support, atol=1e-6)


def test_a_photo_alone_in_its_prototype_has_no_own_cosine():
    support, _ = world(3, 2, 8, seed=3)
    groups = np.array([0, 0, 1, 1, 2, 3])
    found = without_each(fit_metric(support, groups), support, groups, class_prototypes(support, groups, 4))
    assert np.isneginf(found[4, 2])
    assert np.isneginf(found[5, 3])
    assert np.isfinite(np.delete(found.ravel(), [4 * 4 + 2, 5 * 4 + 3])).all()


def test_the_order_of_enrolment_has_no_say():
    support, groups = world(4, 6, 20, seed=5)
    order = np.random.default_rng(0).permutation(len(support))
    query, _ = world(4, 3, 20, seed=6)
    one, other = fit_metric(support, groups), fit_metric(support[order], groups[order])
    np.testing.assert_allclose(one(query), other(query), atol=1e-4)


def test_a_sample_of_a_large_class_takes_out_one_photo_of_all():
    support, groups = world(2, 400, 16, seed=7)
    prototypes = class_prototypes(support, groups, 2)
    whole = without_each(fit_metric(support, groups), support, groups, prototypes)
    part = slice(None, None, 4)
    metric = fit_metric(support[part], groups[part], np.array([400, 400]))
    sample = without_each(metric, support[part], groups[part], prototypes)
    own = np.arange(len(sample)), groups[part]
    assert np.abs(sample[own] - whole[part][own]).mean() < 0.04


@pytest.mark.parametrize("n_here", [1, 2])
def test_of_a_small_class_a_sample_takes_out_the_whole_photo(n_here):
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(300), 5)
    support = unit_rows((rng.normal(0, 1, (300, 32))[groups] + rng.normal(0, 1, (1500, 32))).astype(np.float32))
    prototypes = class_prototypes(support, groups, 300)
    metric = plain_metric(32, np.full(300, 5))
    part = np.flatnonzero(np.arange(1500) % 5 < n_here)
    whole = without_each(metric, support, groups, prototypes)[part, groups[part]]
    sample = without_each(metric, support[part], groups[part], prototypes)[np.arange(len(part)), groups[part]]
    assert abs(float((sample - whole).mean())) < 0.01
    assert np.abs(sample - whole).mean() < 0.05


def test_a_photo_that_the_metric_was_not_fitted_on_takes_nothing_from_its_scatter():
    support, groups = world(3, 30, 16, seed=9)
    prototypes = class_prototypes(support, groups, 3)
    fitted = np.arange(90) % 3 > 0
    metric = fit_metric(support[fitted], groups[fitted], np.full(3, 30))
    found = without_each(metric, support, groups, prototypes, fitted)
    others = np.arange(3) != groups[:, None]
    plain = metric(support) @ metric.placed(prototypes).T
    np.testing.assert_allclose(found[~fitted][others[~fitted]], plain[~fitted][others[~fitted]], atol=1e-5)
    assert np.abs(found[fitted][others[fitted]] - plain[fitted][others[fitted]]).max() > 1e-3


@pytest.mark.parametrize("n_shot", [2, 5, 20])
def test_left_out_photos_are_no_more_flattered_than_new_ones(n_shot):
    gaps = []
    for seed in range(12):
        everything, groups = world(8, n_shot + 20, 24, seed=seed)
        place = np.tile(np.arange(n_shot + 20), 8)
        support, new = everything[place < n_shot], everything[place >= n_shot]
        enrolled = groups[place < n_shot]
        metric = fit_metric(support, enrolled)
        prototypes = class_prototypes(support, enrolled, 8)
        left_out = without_each(metric, support, enrolled, prototypes)[np.arange(len(support)), enrolled]
        asked = (metric(new) @ metric.placed(prototypes).T)[np.arange(len(new)), groups[place >= n_shot]]
        gaps.append(asked.mean() - left_out.mean())
    # Never above what a new photo scores by more than chance; below it, as its prototype has a photo less.
    assert np.mean(gaps) > -0.01


def test_a_prototype_of_few_photos_is_as_near_to_new_photos_as_one_of_many():
    everything, groups = world(40, 60, 48, seed=2, noise=np.full(48, 0.9))
    place = np.tile(np.arange(60), 40)
    few = groups < 20
    enrolled = place < np.where(few, 3, 30)
    support, owners = everything[enrolled], groups[enrolled]
    metric = fit_metric(support, owners)
    prototypes, asked = class_prototypes(support, owners, 40), place >= 30
    own = np.arange(asked.sum()), groups[asked]
    cosines = (metric(everything[asked]) @ metric(prototypes).T)[own]
    similarities = (metric(everything[asked]) @ metric.placed(prototypes).T)[own]
    short, long = few[asked], ~few[asked]
    assert cosines[long].mean() - cosines[short].mean() > 0.05
    assert abs(similarities[long].mean() - similarities[short].mean()) < 0.02


def test_gains_follow_the_expected_length_of_a_mean():
    metric = fit_metric(*world(5, 4, 16, seed=1), np.array([4] * 5 + [1, 1]))
    r = metric.agreement
    assert 0 < r < 1
    assert metric.counts.tolist() == [4] * 5 + [1, 1]
    np.testing.assert_allclose(metric.gains(np.array([1, 4])), [r**-0.5, ((r + (1 - r) / 4) / r) ** 0.5], rtol=1e-6)
    assert metric.gains(np.array([10**9]))[0] == pytest.approx(1)
    assert metric.gains(np.array([0])) == metric.gains(np.array([1]))
    lengths = np.linalg.norm(metric.placed(np.eye(16, dtype=np.float32)[:7]), axis=1)
    np.testing.assert_allclose(lengths, metric.gains(metric.counts), rtol=1e-5)


def test_photos_that_agree_in_nothing_let_no_single_photo_outgrow_the_rest():
    noise = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    metric = fit_metric(noise, np.repeat(np.arange(10), 4))
    assert metric.agreement == LEAST_AGREEMENT
    assert metric.gains(np.array([1]))[0] == 2
