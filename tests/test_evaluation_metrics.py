"""Metrics against hand-counted examples, and prototype accuracy against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshot.errors import PrototypeError, UsageError
from fewshot.evaluation.metrics import crop_of, measure, prototype_accuracy, top_k_share, wilson_interval


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_metrics_are_the_hand_counted_ones() -> None:
    # class a: 3 photos, 2 found; b: 1 photo, found, and one a taken for it; c: 1 photo, taken for a.
    metrics = measure(ints(0, 0, 0, 1, 2), ints(0, 0, 1, 1, 0), ["a", "b", "c"])
    a, b, c = metrics.classes
    assert (a.precision, a.recall, a.n) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 3)
    assert (b.precision, b.recall, b.n) == (0.5, 1.0, 1)
    assert (c.precision, c.recall, c.f1, c.n) == (0.0, 0.0, 0.0, 1)
    assert metrics.precision == pytest.approx((3 * 2 / 3 + 0.5 + 0) / 5)
    assert metrics.recall == metrics.accuracy.share == pytest.approx(3 / 5)
    assert metrics.confusion == ((2, 1, 0), (0, 1, 0), (1, 0, 0))


@pytest.mark.parametrize(
    ("true", "predicted"), [(ints(), ints()), (ints(0, 1), ints(0)), (ints(0, 3), ints(0, 1)), (ints(0), ints(-1))]
)
def test_answers_that_do_not_fit_are_refused(true: np.ndarray, predicted: np.ndarray) -> None:
    with pytest.raises(UsageError):
        measure(true, predicted, ["a", "b", "c"])


def test_wilson_interval_is_the_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    interval = wilson_interval(81, 263)
    assert (interval.low, interval.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    empty = wilson_interval(0, 20)
    assert (empty.low, empty.high) == (0.0, pytest.approx(0.1611, abs=5e-5))


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_its_share_and_stays_a_share(counts: tuple[int, int]) -> None:
    interval = wilson_interval(*counts)
    assert 0.0 <= interval.low <= interval.share <= interval.high <= 1.0
    mirrored = wilson_interval(counts[1] - counts[0], counts[1])
    assert mirrored.low == pytest.approx(1 - interval.high)


@pytest.mark.parametrize("counts", [(0, 0), (3, 2), (-1, 4)])
def test_no_share_without_answers(counts: tuple[int, int]) -> None:
    with pytest.raises(UsageError):
        wilson_interval(*counts)


def test_top_k_counts_places_and_ties_count_against() -> None:
    similarity = np.array([[0.9, 0.5, 0.1], [0.2, 0.3, 0.4], [0.5, 0.5, 0.1]], dtype=np.float32)
    true = ints(0, 0, 0)
    assert [top_k_share(similarity, true, k).share for k in (1, 2, 3)] == [
        pytest.approx(1 / 3),
        pytest.approx(2 / 3),
        1.0,
    ]


def test_a_similarity_that_is_no_number_is_not_right() -> None:
    nan = np.nan
    similarity = np.array([[nan, 0.5], [0.3, nan], [nan, nan], [0.9, nan]], dtype=np.float32)
    assert top_k_share(similarity, ints(0, 0, 1, 0), 1).share == 0


def test_prototype_accuracy_agrees_with_brute_force() -> None:
    rng = np.random.default_rng(0)
    labels = ["corn-rust", "corn-healthy", "apple-scab", "apple-rust"]
    centres = rng.normal(size=(4, 16))
    gallery = (centres.repeat(5, axis=0) + rng.normal(size=(20, 16))).astype(np.float32)
    queries = (centres.repeat(30, axis=0) + 2.0 * rng.normal(size=(120, 16))).astype(np.float32)
    gallery_labels = [label for label in labels for _ in range(5)]
    query_labels = [label for label in labels for _ in range(30)]
    right = right_3 = right_in_crop = 0
    for query, label in zip(queries, query_labels, strict=True):
        cosine = {}
        for other in labels:
            rows = [
                row / np.linalg.norm(row) for row, name in zip(gallery, gallery_labels, strict=True) if name == other
            ]
            mean = np.mean(rows, axis=0)
            cosine[other] = query @ mean / np.linalg.norm(mean) / np.linalg.norm(query)
        ranked = sorted(cosine, key=lambda name: -cosine[name])
        right += ranked[0] == label
        right_3 += label in ranked[:3]
        right_in_crop += next(name for name in ranked if name.split("-")[0] == label.split("-")[0]) == label
    found = prototype_accuracy(gallery, gallery_labels, queries, query_labels)
    assert 0.3 < right / 120 < right_in_crop / 120 < 1.0
    assert found.top1.share == pytest.approx(right / 120)
    assert found.top3.share == pytest.approx(right_3 / 120)
    assert found.within_crop.share == pytest.approx(right_in_crop / 120)


def test_the_order_of_supports_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    gallery, queries = rng.normal(size=(2, 12, 8)).astype(np.float32)
    labels = ["a-1", "a-2", "b-1"] * 4
    order = rng.permutation(12)
    one = prototype_accuracy(gallery, labels, queries, labels)
    assert one == prototype_accuracy(gallery[order], [labels[i] for i in order], queries, labels)


def test_embeddings_without_information_are_not_right() -> None:
    same = np.ones((6, 4), dtype=np.float32)
    found = prototype_accuracy(same, ["a", "b", "c"] * 2, same, ["a", "b", "c"] * 2)
    assert found.top1.share == 0.0


@pytest.mark.parametrize(
    ("gallery", "labels", "query_label"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], ["a", "b"], "c"),
        ([[1.0, 0.0], [-1.0, 0.0]], ["a", "a"], "a"),
        ([[0.0, 0.0], [1.0, 0.0]], ["a", "b"], "a"),
        ([[float("nan"), 0.0], [1.0, 0.0]], ["a", "b"], "a"),
    ],
)
def test_a_class_without_a_direction_is_refused(
    gallery: list[list[float]], labels: list[str], query_label: str
) -> None:
    queries = np.ones((1, 2), dtype=np.float32)
    with pytest.raises(PrototypeError):
        prototype_accuracy(np.array(gallery, dtype=np.float32), labels, queries, [query_label])


def test_crop_is_what_stands_before_the_first_dash() -> None:
    assert [crop_of(label) for label in ("strawberry-lab-healthy", "fire")] == ["strawberry", "fire"]
