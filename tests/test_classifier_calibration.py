"""That temperature, threshold and conformal sets keep what they promise on data where the truth is known."""

import numpy as np
import pytest
from calibration_steps import left_out, world
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.classifier.calibration import (
    REJECTED_PART,
    Calibration,
    LeaveOneOut,
    calibrate,
    student_t_quantile,
)
from fewshot.classifier.prototypes import class_prototypes
from fewshot.classifier.scores import SOFTMAX_SCALE, familiarity, probabilities


def asked(support, class_index, query):
    """Cosines of queries to all classes, highest first, and the classes in that order."""
    cosines = query @ class_prototypes(support, class_index, class_index.max() + 1).T
    order = np.argsort(-cosines, axis=1)
    return np.take_along_axis(cosines, order, axis=1), order


# ---- temperature


@pytest.mark.parametrize("spread", [0.8, 1.5, 2.5])
def test_probabilities_under_the_fitted_temperature_are_as_often_right_as_they_say(spread):
    support, class_index, query, truth = world(12, 15, 100, seed=1, spread=spread)
    found = calibrate(left_out(support, class_index), 12)
    cosines, order = asked(support, class_index, query)
    best = probabilities(cosines, 12, found.scale)[:, 0]
    right = order[:, 0] == truth
    error = 0.0
    for low in np.arange(0, 1, 0.1):
        inside = (best > low) & (best <= low + 0.1)
        if inside.any():
            error += inside.mean() * abs(best[inside].mean() - right[inside].mean())
    assert error < 0.06


def test_too_few_photos_or_classes_keep_the_default_temperature():
    assert calibrate_nothing().scale == SOFTMAX_SCALE
    support, class_index, *_ = world(3, 4, 1, seed=0)
    assert calibrate(left_out(support, class_index), 3).scale == SOFTMAX_SCALE
    alone = LeaveOneOut(np.zeros(30, int), np.full(30, 0.8, np.float32), np.full((30, 1), -np.inf, np.float32))
    assert calibrate(alone, 1).scale == SOFTMAX_SCALE


@pytest.mark.parametrize(("n_way", "n"), [(2, 20), (3, 30), (5, 100)])
def test_without_an_error_the_temperature_stays_near_the_usual_one(n_way, n):
    class_ids = np.arange(n) % n_way
    never_wrong = LeaveOneOut(class_ids, np.full(n, 0.5, np.float32), np.full((n, n_way - 1), 0.4, np.float32))
    assert SOFTMAX_SCALE < calibrate(never_wrong, n_way).scale < 3 * SOFTMAX_SCALE


def test_wrong_answers_of_a_small_index_are_not_stated_with_certainty():
    certain = []
    for seed in range(40):
        support, class_index, query, truth = world(2, 10, 30, seed=seed, spread=1.8)
        found = calibrate(left_out(support, class_index), 2)
        cosines, order = asked(support, class_index, query)
        wrong = order[:, 0] != truth
        certain += (probabilities(cosines, 2, found.scale)[wrong, 0] > 0.99).tolist()
    assert len(certain) > 50
    assert np.mean(certain) < 0.2


def explained(known, *similarities):
    """What is said of a query with these similarities to corn rust and others."""
    row = np.array(similarities, np.float32)
    return known.explain("corn rust", row, float(familiarity(row[None])[0]))


def calibrate_nothing():
    return calibrate(LeaveOneOut(np.zeros(0, int), np.zeros(0, np.float32), np.zeros((0, 1), np.float32)), 0)


# ---- unknown


def test_familiarity_is_the_best_cosine_and_its_lead():
    rows = np.array([[0.9, 0.2, 0.1], [0.9, 0.85, 0.1], [0.3, -np.inf, -np.inf]], np.float32)
    np.testing.assert_allclose(familiarity(rows), [1.6, 0.95, 0.6], atol=1e-6)
    np.testing.assert_allclose(familiarity(rows[:, :1]), [1.8, 1.8, 0.6], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n_way=st.integers(2, 10))
def test_the_threshold_rejects_no_more_than_its_part_of_what_it_was_chosen_on(seed, n_way):
    support, class_index, *_ = world(n_way, 12, 1, seed=seed, spread=1.5)
    scores = left_out(support, class_index)
    found = calibrate(scores, n_way)
    everything = -np.sort(-np.concatenate([scores.own[:, None], scores.rivals], axis=1), axis=1)
    assert (familiarity(everything) < found.threshold).mean() <= REJECTED_PART + 1 / len(scores)


@pytest.mark.parametrize("n_shot", [3, 5, 10])
def test_a_class_of_few_photos_alone_knows_most_of_its_own_kind(n_shot):
    rejected = []
    for seed in range(150):
        support, class_index, query, _ = world(1, n_shot, 20, seed=seed)
        found = calibrate(left_out(support, class_index), 1)
        cosines = query @ class_prototypes(support, class_index, 1).T
        rejected.append(np.mean([found.is_unknown(each) for each in familiarity(cosines)]))
    assert np.mean(rejected) < 0.08


def test_two_photos_are_too_few_for_a_threshold():
    support, class_index, *_ = world(1, 2, 1, seed=0)
    assert calibrate(left_out(support, class_index), 1).threshold is None
    support, class_index, *_ = world(1, 3, 1, seed=0)
    assert calibrate(left_out(support, class_index), 1).threshold is not None


def test_students_quantile_is_the_tabled_one():
    tabled = {4: 2.132, 9: 1.833, 29: 1.699, 999: 1.646}
    for df, value in tabled.items():
        assert student_t_quantile(1.6448536, df) == pytest.approx(value, rel=0.01)
    for df, value in {4: 2.776, 9: 2.262, 29: 2.045}.items():
        assert student_t_quantile(1.959964, df) == pytest.approx(value, rel=0.02)


def test_queries_of_classes_that_are_not_enrolled_are_unknown_and_those_of_enrolled_ones_are_not():
    support, class_index, query, truth = world(16, 15, 40, seed=3, spread=0.8)
    enrolled = class_index < 12
    found = calibrate(left_out(support[enrolled], class_index[enrolled]), 12)
    cosines, _ = asked(support[enrolled], class_index[enrolled], query)
    unknown = np.array([found.is_unknown(each) for each in familiarity(cosines)])
    assert unknown[truth >= 12].mean() > 0.95
    assert unknown[truth < 12].mean() < 0.08


def test_without_a_threshold_nothing_is_unknown_and_the_explanation_says_why():
    found = calibrate_nothing()
    assert found.threshold is None
    assert not found.is_unknown(-1.0)
    assert "corn rust; with one photo a class" in explained(found, 0.2)


@pytest.mark.parametrize(("best", "side"), [(0.31, "below"), (0.5, "above"), (0.93, "above")])
def test_the_explanation_says_what_was_found_against_what(best, side):
    found = Calibration(20.0, 0.7, np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert "similarity 1.00 to corn rust, 1.00 to" in explained(found, 1.34, 1.2)
    text = explained(found, best, 0.1)
    start = f"similarity {best:.2f} to corn rust, 0.10 to the next: familiarity {2 * best - 0.1:.2f}, {side}"
    assert text == f"{start} the threshold 0.70 of this index"


# ---- conformal sets


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_sets_cover_the_truth_as_often_as_asked(coverage, spread):
    hit = []
    for seed in range(4):
        support, class_index, query, truth = world(10, 20, 60, seed=seed, spread=spread)
        found = calibrate(left_out(support, class_index), 10)
        needed = found.needed_margins(np.arange(10) + 100, coverage)
        cosines = query @ class_prototypes(support, class_index, 10).T
        second = np.sort(cosines, axis=1)[:, -2:]
        best_other = np.where(cosines == second[:, 1:], second[:, :1], second[:, 1:])
        inside = cosines - best_other >= needed
        hit.append(inside[np.arange(len(truth)), truth].mean())
    assert coverage - 0.03 <= np.mean(hit) <= coverage + 0.07


def test_a_class_of_few_photos_is_judged_by_all_and_no_photos_rule_nothing_out():
    margins = np.linspace(-0.5, 0.5, 101).astype(np.float32)
    class_ids = np.array([7] * 4 + [8] * 97)
    found = Calibration(20.0, 0.0, class_ids, margins)
    few, many, new = found.needed_margins(np.array([7, 8, 9]), 0.9)
    assert few == new == np.sort(margins)[int(102 * 0.1) - 1]
    assert many == np.sort(margins[4:])[int(98 * 0.1) - 1]
    nothing = Calibration(20.0, None, np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert nothing.needed_margins(np.array([1]), 0.9).tolist() == [-np.inf]


@pytest.mark.parametrize("coverage", [1e-300, 1e-10, 1 - 1e-10])
def test_a_coverage_beside_its_bounds_takes_the_margins_that_there_are(coverage):
    margins = np.linspace(-0.5, 0.5, 12).astype(np.float32)
    found = Calibration(20.0, 0.0, np.array([7] * 9 + [8] * 3), margins)
    needed = found.needed_margins(np.array([7, 8, 9]), coverage)  # no photo of 9 is known
    assert needed.tolist() == ([-np.inf] * 3 if coverage > 0.5 else [margins[8], margins[11], margins[11]])
    nothing = Calibration(20.0, None, np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert nothing.needed_margins(np.array([1]), coverage).tolist() == [-np.inf]
