import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import silhouette_score

from fewshot.projection.marks import HUES, N_MARKS, marks
from fewshot.projection.numbers import measure, nearest_others, shared_neighbours
from fewshot.projection.spaces import Point, Space


def space(vectors, labels, nearest=None):
    nearest = nearest or labels
    points = tuple(
        Point("support", own, f"{i}.jpg", near, 0.5, own == near)
        for i, (own, near) in enumerate(zip(labels, nearest, strict=True))
    )
    return Space("made", "x@1", np.asarray(vectors, np.float32), points, len(points), 0, len(set(labels)))


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_silhouette_is_scikit_learn_s_by_cosine():
    vectors = unit(np.random.default_rng(0).normal(size=(30, 6)))
    labels = ["a", "b", "c"] * 10
    found = measure(space(vectors, labels))
    assert found.silhouette == pytest.approx(silhouette_score(vectors, labels, metric="cosine"), abs=1e-4)
    assert np.mean(list(found.class_silhouette.values())) == pytest.approx(found.silhouette, abs=1e-4)


def test_classes_apart_score_high_and_mixed_ones_low():
    rng = np.random.default_rng(0)
    apart = unit(np.repeat(np.eye(2, 8), 10, axis=0) + 0.05 * rng.normal(size=(20, 8)))
    labels = ["a"] * 10 + ["b"] * 10
    good, bad = measure(space(apart, labels)), measure(space(apart, ["a", "b"] * 10))
    assert good.silhouette > 0.9 > 0.1 > bad.silhouette
    assert good.neighbour_agreement == 1.0


def test_confusion_counts_own_against_nearest_class():
    found = measure(space(unit(np.eye(5)), ["a", "a", "b", "b", "c"], ["a", "b", "b", "b", "a"]))
    assert found.labels == ("a", "b", "c")
    assert found.confusion.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert found.class_agreement == 0.6
    confused = {(each["label"], each["nearest"]): each["photos"] for each in found.as_dict()["confused"]}
    assert confused == {("a", "b"): 1, ("c", "a"): 1}


def test_a_photo_is_not_its_own_neighbour():
    assert nearest_others(unit(np.eye(3) + 0.1), 1)[:, 0].tolist() != [0, 1, 2]


@given(hnp.arrays(np.float32, (2, 12, 4), elements=st.floats(0.125, 1, width=32)), st.integers(1, 11))
def test_sharing_is_mutual_and_whole_where_every_other_photo_is_a_neighbour(both, k):
    first, second = both
    share = shared_neighbours(first, second, k)
    assert 0 <= share <= 1
    assert share == shared_neighbours(second, first, k)
    assert shared_neighbours(first, second, 11) == 1.0


def test_unlike_spaces_share_few_neighbours():
    rng = np.random.default_rng(0)
    first, second = unit(rng.normal(size=(200, 16))), unit(rng.normal(size=(200, 16)))
    assert shared_neighbours(first, second, 10) == pytest.approx(10 / 199, abs=0.02)
    assert shared_neighbours(first, first, 10) == 1.0


# ---- marks


def test_no_two_of_sixty_classes_have_the_same_mark():
    found = marks([f"class {i}" for i in range(60)])
    assert len({(mark.colour, mark.shape) for mark in found.values()}) == 60
    assert len({(mark.colour, mark.plotly_2d) for mark in found.values()}) == 60


def test_neighbours_in_the_list_differ_in_colour():
    colours = [mark.colour for mark in marks([str(i) for i in range(N_MARKS)]).values()]
    for i in range(len(colours) - len(HUES) + 1):
        assert len(set(colours[i : i + len(HUES)])) == len(HUES)
