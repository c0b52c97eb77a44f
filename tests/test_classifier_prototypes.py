"""Prototypes, probabilities and rejection against their definitions, written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from fewshot.classifier.prototypes import MAX_PROTOTYPES, MIN_GROUP, class_prototypes, own_similarities, support_groups
from fewshot.classifier.scores import SOFTMAX_SCALE, probabilities
from fewshot.errors import PrototypeError

ORDINARY = settings(max_examples=60, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def unit(n, dim=6, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def episode(n_way, n_shot, seed):
    return unit(n_way * n_shot, seed=seed), np.repeat(np.arange(n_way), n_shot)


def descending(n_query, n_way, seed):
    similarities = np.random.default_rng(seed).uniform(-1, 1, (n_query, n_way)).astype(np.float32)
    return -np.sort(-similarities, axis=1)


# ---- prototypes


@given(st.integers(1, 8), st.integers(1, 9), SEEDS)
@ORDINARY
def test_prototypes_ignore_support_order(n_way, n_shot, seed):
    support, class_index = episode(n_way, n_shot, seed)
    order = np.random.default_rng(seed).permutation(len(support))
    shuffled = class_prototypes(support[order], class_index[order], n_way)
    np.testing.assert_allclose(shuffled, class_prototypes(support, class_index, n_way), atol=1e-6)


@given(st.integers(1, 8), st.integers(1, 9), SEEDS)
@ORDINARY
def test_relabelling_permutes_prototypes_and_scores(n_way, n_shot, seed):
    support, class_index = episode(n_way, n_shot, seed)
    new_index = np.random.default_rng(seed).permutation(n_way)  # class i becomes class new_index[i]
    prototypes = class_prototypes(support, class_index, n_way)
    relabelled = class_prototypes(support, new_index[class_index], n_way)
    np.testing.assert_array_equal(relabelled[new_index], prototypes)
    queries = unit(5, seed=seed + 1)
    np.testing.assert_allclose((queries @ relabelled.T)[:, new_index], queries @ prototypes.T, atol=1e-6)


@given(st.integers(1, 8), st.integers(1, 9), SEEDS)
@ORDINARY
def test_prototypes_have_unit_length_and_are_the_mean_s_direction(n_way, n_shot, seed):
    support, class_index = episode(n_way, n_shot, seed)
    prototypes = class_prototypes(support, class_index, n_way)
    assert (prototypes.shape, prototypes.dtype) == ((n_way, 6), np.float32)
    np.testing.assert_allclose(np.linalg.norm(prototypes, axis=1), 1, atol=1e-6)
    for i in range(n_way):
        mean = support[class_index == i].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(prototypes[i], mean / np.linalg.norm(mean), atol=1e-5)


def test_the_prototype_of_one_photo_is_its_embedding():
    support = unit(3)
    np.testing.assert_allclose(class_prototypes(support, np.arange(3), 3), support, atol=1e-7)


@pytest.mark.parametrize(("class_index", "missing"), [([0, 0, 2], 1), ([1, 1, 2], 0), ([0, 1, 1], 2)])
def test_a_class_without_a_photo_is_an_error_that_names_it(class_index, missing):
    with pytest.raises(PrototypeError, match=f"class {missing} of 3 has no support"):
        class_prototypes(unit(3), np.array(class_index), n_way=3)


def test_a_class_beyond_those_asked_for_is_an_error():
    with pytest.raises((PrototypeError, AssertionError)):
        class_prototypes(unit(3), np.array([0, 1, 2]), n_way=2)


def test_embeddings_that_cancel_out_are_an_error_that_names_the_class():
    one = unit(2)
    support = np.concatenate([one, -one[1:]])
    with pytest.raises(PrototypeError, match="class 1 cancel out"):
        class_prototypes(support, np.array([0, 1, 1]), n_way=2)


# ---- leave one out


@given(st.integers(2, 20), SEEDS)
@ORDINARY
def test_own_similarities_are_those_to_the_prototype_of_the_others(n, seed):
    support = unit(n, seed=seed)
    explicit = []
    for i in range(n):
        others = np.delete(support, i, axis=0)
        prototype = class_prototypes(others, np.zeros(n - 1, np.int64), 1)[0]
        explicit.append(float(prototype.astype(np.float64) @ support[i]))
    np.testing.assert_allclose(own_similarities(support), explicit, atol=1e-5)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_photos_have_no_own_similarity(n):
    assert own_similarities(unit(n)) is None


@given(st.integers(2, 6), SEEDS)
@ORDINARY
def test_own_similarities_of_copies_are_one_and_never_more(n, seed):
    similarities = own_similarities(np.repeat(unit(1, seed=seed), n, axis=0))
    assert similarities.dtype == np.float32
    np.testing.assert_allclose(similarities, 1, atol=1e-6)
    assert similarities.max() <= 1


@ORDINARY
@given(n=st.integers(4, 30), n_groups=st.integers(1, 3), seed=SEEDS)
def test_own_similarities_with_groups_are_those_to_the_nearest_prototype_made_without_the_photo(n, n_groups, seed):
    support = unit(n, seed=seed)
    groups = np.random.default_rng(seed).permutation(np.arange(n) % n_groups)
    explicit = []
    for i in range(n):
        rest = [support[(groups == g) & (np.arange(n) != i)] for g in range(n_groups)]
        explicit.append(
            max(float(support[i] @ class_prototypes(r, np.zeros(len(r), np.int64), 1)[0]) for r in rest if len(r))
        )
    np.testing.assert_allclose(own_similarities(support, groups), explicit, atol=1e-5)


def around(centre, n, rng, spread=0.7):
    """n unit vectors around a direction, in 64 dimensions."""
    rows = centre + spread * rng.normal(size=(n, len(centre))) / np.sqrt(len(centre))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@ORDINARY
@given(n=st.integers(1, 40), seed=SEEDS)
def test_photos_around_one_place_get_one_prototype(n, seed):
    rng = np.random.default_rng(seed)
    centre = np.eye(64)[0]
    assert support_groups(around(centre, n, rng)).tolist() == [0] * n


@ORDINARY
@given(n=st.integers(MIN_GROUP, 25), n_other=st.integers(MIN_GROUP, 25), seed=SEEDS)
def test_photos_around_two_places_get_two_prototypes_whatever_their_order(n, n_other, seed):
    rng = np.random.default_rng(seed)
    first, second = np.eye(64)[:2]
    support = np.concatenate([around(first, n, rng), around(second, n_other, rng)])
    truth = np.repeat([0, 1], [n, n_other])
    assert support_groups(support).tolist() == truth.tolist()
    order = rng.permutation(len(support))
    groups = support_groups(support[order])
    assert groups[0] == 0, "numbered by their first photo"
    assert len(set(zip(groups.tolist(), truth[order].tolist(), strict=True))) == 2


def test_a_group_needs_photos_enough_and_there_are_only_so_many():
    rng = np.random.default_rng(0)
    places = np.eye(64)[:6]
    few = np.concatenate([around(places[0], 8, rng), around(places[1], MIN_GROUP - 1, rng)])
    assert support_groups(few).max() == 0
    many = np.concatenate([around(place, 8, rng) for place in places])
    assert support_groups(many).max() + 1 <= MAX_PROTOTYPES


def test_others_that_cancel_out_give_a_number():
    one = unit(2, seed=3)
    similarities = own_similarities(np.concatenate([one[:1], -one[:1], one[1:]]))
    assert np.isfinite(similarities).all()
    assert np.abs(similarities).max() <= 1 + 1e-6
    assert abs(similarities[2]) < 1e-3


# ---- probabilities


@given(st.integers(1, 5), st.integers(1, 30), SEEDS, st.sampled_from([1.0, SOFTMAX_SCALE, 300.0]))
@ORDINARY
def test_with_every_class_given_they_are_the_softmax(n_query, n_way, seed, scale):
    similarities = descending(n_query, n_way, seed)
    expected = softmax(scale * similarities.astype(np.float64), axis=1)
    np.testing.assert_allclose(probabilities(similarities, n_way, scale), expected, atol=1e-6)


@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 30), SEEDS)
@ORDINARY
def test_with_the_nearest_classes_given_none_is_overstated(n_query, n_way, n_given, seed):
    similarities = descending(n_query, n_way, seed)
    whole = probabilities(similarities, n_way)
    part = probabilities(similarities[:, :n_given], n_way)
    assert part.shape == whole[:, :n_given].shape
    assert (part <= whole[:, :n_given] + 1e-6).all()


@given(st.integers(1, 20), st.integers(0, 10_000), SEEDS)
@ORDINARY
def test_they_sum_to_at_most_one_and_fall(n_given, n_more, seed):
    shares = probabilities(descending(4, n_given, seed), n_given + n_more)
    assert shares.dtype == np.float32
    assert ((shares >= 0) & (shares <= 1)).all()
    assert (shares.sum(axis=1) <= 1 + 1e-5).all()
    assert (np.diff(shares, axis=1) <= 0).all()


def test_a_single_class_has_all_of_it():
    assert probabilities(np.array([[-0.3]], np.float32), n_way=1).tolist() == [[1.0]]


def test_a_place_without_a_class_has_no_probability():
    shares = probabilities(np.array([[0.8, 0.7, -np.inf]], np.float32), n_way=2)
    assert shares[0, 2] == 0
    np.testing.assert_allclose(shares[0, :2], probabilities(np.array([[0.8, 0.7]], np.float32), 2)[0], atol=1e-6)


def test_a_row_without_any_class_has_no_probability():
    """What searching an empty index gives."""
    shares = probabilities(np.array([[0.8, 0.7], [-np.inf, -np.inf]], np.float32), n_way=2)
    assert shares[1].tolist() == [0, 0]
    assert shares[0].sum() == pytest.approx(1)
