"""That episodes measure what they say, on embeddings whose truth is known."""

import numpy as np
import pytest

from fewshot.classifier.metric import plain_metric
from fewshot.errors import TooFewPhotosError, UsageError
from fewshot.evaluation.episodes import (
    EpisodePlan,
    LearntClasses,
    _Answers,
    area_under_roc,
    evaluate_episodes,
    expected_calibration_error,
)


def world(n_classes=12, n=30, spread=1.0, seed=0, dim=32):
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(n_classes), n)
    rows = rng.normal(size=(n_classes, dim))[index] + spread * rng.normal(size=(len(index), dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), index


def test_classes_far_apart_are_all_right_and_random_ones_are_chance():
    plan = EpisodePlan(5, 5, 10, 60)
    good = evaluate_episodes(*world(spread=0.3), plan)
    assert good.accuracy.mean == 1.0
    assert good.auroc.mean > 0.999
    assert good.fpr95.mean < 0.01
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(360, 32)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    chance = evaluate_episodes(noise, np.repeat(np.arange(12), 30), plan)
    assert chance.accuracy.low - 0.02 < 0.2 < chance.accuracy.high + 0.02
    assert 0.4 < chance.auroc.mean < 0.6
    assert chance.fpr95.mean > 0.85


def test_probabilities_and_sets_keep_their_promise():
    report = evaluate_episodes(*world(spread=2.2), EpisodePlan(8, 20, 10, 80, coverage=0.9))
    assert 0.6 < report.accuracy.mean < 0.98
    assert report.calibration_error < 0.06
    assert 0.86 < report.covered.mean < 0.95
    assert 1 <= report.set_size < 8
    wider = evaluate_episodes(*world(spread=2.2), EpisodePlan(8, 20, 10, 30, coverage=0.5))
    assert wider.covered.mean < report.covered.mean


def test_more_photos_help_and_the_interval_shrinks_with_more_episodes():
    few, many = (evaluate_episodes(*world(spread=2.0), EpisodePlan(5, n, 10, 60)) for n in (1, 15))
    assert many.accuracy.mean > few.accuracy.mean + 0.05
    short, long = (evaluate_episodes(*world(spread=2.0), EpisodePlan(5, 5, 10, n)) for n in (20, 100))
    assert long.accuracy.high - long.accuracy.low < short.accuracy.high - short.accuracy.low


def test_an_interval_stays_between_0_and_1_and_few_episodes_have_none():
    for seed in range(20):
        report = evaluate_episodes(*world(spread=0.9), EpisodePlan(2, 2, 5, 6, seed=seed))
        for found in (report.accuracy, report.auroc, report.fpr95, report.covered):
            assert 0 <= found.low <= found.mean <= found.high <= 1
    report = evaluate_episodes(*world(), EpisodePlan(2, 2, 5, 4))
    assert report.accuracy.low is report.accuracy.high is None


def test_strangers_are_told_apart_within_each_episode(monkeypatch):
    """Scores of one episode say nothing of another's: each has a metric of its own."""
    drawn = iter([0.0, 100.0])

    def shifted(*_):
        by = next(drawn)
        scores = [np.array([by + 2, by + 3], np.float32), np.array([by, by + 1], np.float32)]
        return _Answers(np.ones(2, bool), np.ones(2, np.float32), np.ones(2, bool), 1.0, *scores)

    monkeypatch.setattr("fewshot.evaluation.episodes._episode", shifted)
    report = evaluate_episodes(*world(), EpisodePlan(2, 2, 5, 2))
    assert (report.auroc.mean, report.fpr95.mean) == (1.0, 0.0)


def test_same_seed_same_report_other_seed_another():
    plan = EpisodePlan(5, 5, 5, 10)
    assert evaluate_episodes(*world(), plan) == evaluate_episodes(*world(), plan)
    hard = world(spread=2.5)
    assert evaluate_episodes(*hard, plan) != evaluate_episodes(*hard, EpisodePlan(5, 5, 5, 10, seed=1))


def test_all_classes_in_an_episode_leave_no_strangers():
    report = evaluate_episodes(*world(n_classes=4), EpisodePlan(4, 5, 5, 5))
    assert report.auroc is report.fpr95 is None
    assert report.as_dict()["plan"]["n_way"] == 4


@pytest.mark.parametrize("change", [{"n_way": 1}, {"n_shot": 0}, {"n_query": 0}, {"n_episode": 0}, {"seed": -1}])
def test_impossible_plans_are_refused(change):
    ((name, value),) = change.items()
    with pytest.raises(UsageError, match=f"{name} is {value}; wanted"):
        evaluate_episodes(*world(), EpisodePlan(**{"n_way": 3, "n_shot": 2, "n_query": 2, "n_episode": 2, **change}))


def test_too_few_photos_say_how_many_classes_would_do():
    with pytest.raises(TooFewPhotosError, match="0 of 12 classes have the 31 photos") as caught:
        evaluate_episodes(*world(), EpisodePlan(5, 21, 10, 5))
    assert "--n-way" in caught.value.hint
    with pytest.raises(TooFewPhotosError):
        evaluate_episodes(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), EpisodePlan())


def test_roc_and_calibration_agree_with_their_definitions():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    known, strange = rng.integers(0, 20, 300).astype(np.float32), rng.integers(0, 15, 200).astype(np.float32)
    truth = np.repeat([1, 0], [300, 200])
    assert area_under_roc(known, strange) == pytest.approx(roc_auc_score(truth, np.concatenate([known, strange])))
    said = rng.uniform(0, 1, 20_000).astype(np.float32)
    assert expected_calibration_error(said, rng.uniform(size=20_000) < said) < 0.02
    assert expected_calibration_error(said, np.ones(20_000, bool)) == pytest.approx(0.5, abs=0.01)


def test_a_class_is_as_similar_as_its_nearest_prototype():
    eye = np.eye(3, dtype=np.float32)
    learnt = LearntClasses(
        plain_metric(3, np.ones(3, np.int64)), eye, np.arange(3), np.arange(3), eye, np.array([0, 0, 1])
    )
    found = learnt.similarities(np.array([[0, 1, 0], [0.6, 0, 0.8]], np.float32))
    np.testing.assert_allclose(found, [[1, 0], [0.6, 0.8]], atol=1e-6)
