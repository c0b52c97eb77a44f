"""That temperature, threshold and conformal sets keep what they promise on data where the truth is known."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot import calibration
from fewshot.calibration import Calibration, Calibrations, LeaveOneOut, calibrate, calibrated
from fewshot.classifier import SOFTMAX_SCALE, class_prototypes, familiarity, own_similarities, probabilities
from fewshot.neighbours import Neighbours
from fewshot.records import EmbeddedPhoto
from fewshot.sealed import read_sealed
from fewshot.store import Store

DIM = 32


def world(n_way, n_shot, n_query, seed, spread=1.0):
    """Gaussian classes on the sphere: supports, their classes, queries, theirs."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_way, DIM))

    def draw(n):
        index = np.repeat(np.arange(n_way), n)
        rows = centres[index] + spread * rng.normal(size=(n_way * n, DIM))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), index

    return *draw(n_shot), *draw(n_query)


def left_out(support, class_index):
    """Leave-one-out by brute force."""
    n_way = class_index.max() + 1
    cosines = support @ class_prototypes(support, class_index, n_way).T
    own = np.empty(len(support), np.float32)
    for i in range(n_way):
        own[class_index == i] = own_similarities(support[class_index == i])
    cosines[np.arange(len(support)), class_index] = -np.inf
    return LeaveOneOut(class_index + 100, own, -np.sort(-cosines, axis=1)[:, : max(1, n_way - 1)])


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
    assert (familiarity(everything) < found.threshold).mean() <= calibration.REJECTED_PART + 1 / len(scores)


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
        assert calibration.student_t_quantile(1.6448536, df) == pytest.approx(value, rel=0.01)
    for df, value in {4: 2.776, 9: 2.262, 29: 2.045}.items():
        assert calibration.student_t_quantile(1.959964, df) == pytest.approx(value, rel=0.02)


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


# ---- over a store


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "index", create=True)
    with opened.write() as writer:
        writer.pin_embedder({"fingerprint": "x@1", "precision": "f32", "dim": DIM, "source": {}, "backbone": {}})
        writer.note("test", None)
    yield opened
    opened.close()


def enroll(store, support, class_index):
    for i in range(class_index.max() + 1):
        vectors = support[class_index == i]
        with store.write() as writer:
            class_id = writer.add_class(f"class {i}")
            photos = [
                EmbeddedPhoto("x.png", f"{i:032d}{j:032d}", 9, 9, vector, None) for j, vector in enumerate(vectors)
            ]
            ids = writer.add_supports(class_id, photos)
            writer.set_prototypes(class_id, class_prototypes(vectors, np.zeros(len(vectors), int), 1))
            writer.set_own_similarities(np.array(ids), own_similarities(vectors), np.arange(len(ids)))
            writer.note("enroll", f"class {i}")


def test_scores_from_a_store_are_those_of_brute_force(store, tmp_path):
    support, class_index, *_ = world(7, 9, 1, seed=5)
    enroll(store, support, class_index)
    with store.read() as reader:
        found = calibration.leave_one_out(reader, Neighbours(tmp_path / "cache"))
    wanted = left_out(support, class_index)
    np.testing.assert_allclose(found.own, wanted.own, atol=1e-5)
    np.testing.assert_allclose(found.rivals, wanted.rivals, atol=1e-5)


def test_a_sample_says_of_how_many_photos_each_prototype_is(store, tmp_path, monkeypatch):
    support, class_index, *_ = world(8, 40, 1, seed=6)
    kept = (class_index != 3) | (np.arange(len(support)) % 40 < 3)  # class 3 has three photos, one after the other
    enroll(store, support[kept], class_index[kept])
    monkeypatch.setattr(calibration, "MOST_ASKED", 60)
    with store.read() as reader:
        sampled, *_ = reader.asked_supports(60)
        assert len(sampled) < 61
        _, metric = calibration.asked_enrolled(reader, Neighbours(tmp_path / "cache"))
    assert metric.counts.tolist() == [40, 40, 40, 3, 40, 40, 40, 40]


def test_a_prototype_that_a_sample_passed_over_is_not_taken_for_one_photo():
    sizes = {7: 60, 8: 40, 9: 1}
    owners = np.array([7, 7, 8, 9])
    whole = np.repeat([0, 1, 2], [45, 15, 40])
    assert calibration._photos_of_prototypes(whole, owners, sizes).tolist() == [45, 15, 40, 1]
    sample = np.repeat([0, 2], [6, 4])
    assert calibration._photos_of_prototypes(sample, owners, sizes).tolist() == [52, 8, 40, 1]
    assert calibration._photos_of_prototypes(np.repeat(0, 58), owners, sizes).tolist()[:2] == [59, 3]
    assert calibration._photos_of_prototypes(np.zeros(0, np.int64), owners, sizes).tolist() == [30, 30, 40, 1]


def test_classes_enrolled_in_turn_are_both_asked_where_not_all_can_be(store):
    support, *_ = world(2, 60, 1, seed=4)
    with store.write() as writer:
        class_ids = [writer.add_class(f"class {i}") for i in range(2)]
        for i, vector in enumerate(support):
            ids = writer.add_supports(class_ids[i % 2], [EmbeddedPhoto("x.png", f"{i:064d}", 9, 9, vector, None)])
            writer.set_own_similarities(np.array(ids), np.array([0.5], np.float32), np.arange(1))
        writer.note("enroll", "both")
    with store.read() as reader:
        for n_most in (30, 60):
            ids, asked, *_ = reader.asked_supports(n_most)
            assert n_most / 2 < len(ids) < n_most * 1.5
            assert np.bincount(asked, minlength=3)[class_ids].min() > n_most / 4
            assert set(reader.support_ids(n_most).tolist()) == set(ids.tolist())


def test_narrowed_to_some_classes_it_is_that_of_an_index_of_these_alone(store, tmp_path):
    support, class_index, *_ = world(9, 12, 1, seed=8)
    enroll(store, support, class_index)
    neighbours = Neighbours(tmp_path / "cache")
    with store.read() as reader:
        known = calibrated(reader, neighbours, tmp_path / "cache" / "calibration")
        within = [reader.wanted_class_id(f"class {i}") for i in (2, 5, 6)]
        found = calibration.calibrated_within(reader, neighbours, known, within)
        whole = calibration.calibrated_within(reader, neighbours, known, reader.class_ids(reader.labels()))
    rows = np.isin(class_index, (2, 5, 6))
    prototypes = class_prototypes(support, class_index, 9)[[2, 5, 6]]
    metric = replace(known.metric, counts=known.metric.counts[[2, 5, 6]])
    wanted = calibration.asked_in(metric, support[rows], np.repeat([0, 1, 2], 12), prototypes, np.array(within))
    alone = calibrate(wanted, 3)
    assert set(found.class_ids.tolist()) == set(within)
    np.testing.assert_allclose(found.margins, alone.margins, atol=1e-5)
    assert (found.scale, found.threshold) == pytest.approx((alone.scale, alone.threshold))
    assert found.threshold != pytest.approx(known.threshold)
    np.testing.assert_allclose(whole.margins, known.margins, atol=1e-5)
    assert (whole.scale, whole.threshold) == pytest.approx((known.scale, known.threshold))


def test_narrowed_to_classes_of_one_photo_it_keeps_the_threshold_of_the_index(store, tmp_path):
    support, class_index, *_ = world(6, 12, 1, seed=9)
    kept = (class_index > 1) | (np.arange(len(support)) % 12 == 0)  # classes 0 and 1 have one photo
    enroll(store, support[kept], class_index[kept])
    neighbours = Neighbours(tmp_path / "cache")
    with store.read() as reader:
        known = calibrated(reader, neighbours, tmp_path / "cache" / "calibration")
        within = [reader.wanted_class_id(f"class {i}") for i in (0, 1)]
        found = calibration.calibrated_within(reader, neighbours, known, within)
    assert known.threshold is not None
    assert (found.threshold, found.scale, found.whose) == (known.threshold, known.scale, "this index")


def test_many_photos_are_sampled_evenly(store, tmp_path, monkeypatch):
    support, class_index, *_ = world(10, 30, 1, seed=5)
    enroll(store, support, class_index)
    monkeypatch.setattr(calibration, "MOST_ASKED", 60)
    with store.read() as reader:
        found = calibration.leave_one_out(reader, Neighbours(tmp_path / "cache"))
    assert 40 <= len(found) <= 60
    assert len(set(found.class_ids.tolist())) == 10


@pytest.fixture
def made(monkeypatch):
    """One item for each calibration that is made."""
    found, real = [], calibration.calibrate
    monkeypatch.setattr(calibration, "calibrate", lambda scores, n_way: found.append(1) or real(scores, n_way))
    return found


def test_the_calibration_is_kept_until_the_index_changes_and_made_anew_when_damaged(store, tmp_path, made):
    support, class_index, *_ = world(5, 9, 1, seed=5)
    enroll(store, support, class_index)

    def now():
        with store.read() as reader:
            return calibrated(reader, Neighbours(tmp_path / "cache"), tmp_path / "cache" / "calibration")

    first, second = now(), now()
    assert len(made) == 1
    assert (first.scale, first.threshold) == (second.scale, second.threshold)
    np.testing.assert_array_equal(first.margins, second.margins)
    np.testing.assert_array_equal(first.class_ids, second.class_ids)
    file = tmp_path / "cache" / "calibration"
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    np.testing.assert_array_equal(now().margins, first.margins)
    assert len(made) == 2
    with store.write() as writer:
        writer.remove_class(writer.wanted_class_id("class 4"))
        writer.note("remove", "class 4")
    assert len(now().margins) == 36
    assert len(made) == 3


def test_views_before_and_behind_a_change_make_nothing_of_each_other_anew(store, tmp_path, made):
    support, class_index, *_ = world(5, 9, 1, seed=5)
    enroll(store, support, class_index)
    file = tmp_path / "cache" / "calibration"
    kept = Calibrations(Neighbours(tmp_path / "cache"), file)
    with store.read() as old:
        old.about()  # the view begins with its first question
        with store.write() as writer:
            writer.remove_class(writer.wanted_class_id("class 4"))
            writer.note("remove", "class 4")
        with store.read() as new:
            for _ in range(3):
                assert [len(kept.of(view).margins) for view in (new, old)] == [36, 45]
            generation = new.about().generation
    assert len(made) == 2
    assert read_sealed(file)[1]["generation"] == generation


def test_what_several_threads_ask_at_once_is_made_once(store, tmp_path, monkeypatch):
    support, class_index, *_ = world(5, 9, 1, seed=5)
    enroll(store, support, class_index)
    made, all_ask = [], threading.Barrier(4)

    def slow(scores, n_way, real=calibration.calibrate):
        made.append(1)
        time.sleep(0.2)
        return real(scores, n_way)

    monkeypatch.setattr(calibration, "calibrate", slow)
    kept = Calibrations(Neighbours(tmp_path / "cache"), tmp_path / "cache" / "calibration")

    def ask(_):
        with store.read() as reader:
            reader.about()
            all_ask.wait(10)
            return kept.of(reader)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert len(made) == 1
    assert all(each is found[0] for each in found)


def test_the_cached_file_is_laid_out_as_the_format_says(store, tmp_path):
    """As indexes/README.md describes it, for whoever reads it with another program."""
    support, class_index, *_ = world(5, 9, 1, seed=5)
    enroll(store, support, class_index)
    with store.read() as reader:
        found = calibrated(reader, Neighbours(tmp_path / "cache"), tmp_path / "calibration")
        sizes = [each.supports for each in reader.classes()]
    payload, facts = read_sealed(tmp_path / "calibration")
    metric = facts["metric"]
    assert set(facts) == {
        *("kind", "version", "fingerprint", "generation", "token", "n", "scale", "threshold", "metric"),
        *("payload_bytes", "payload_xxh3"),
    }
    assert set(metric) == {"n_directions", "dim", "prior", "agreement", "n_prototypes"}
    places = np.cumsum(
        [
            8 * facts["n"],
            8 * metric["n_prototypes"],
            4 * facts["n"],
            4 * metric["n_directions"],
            4 * metric["n_directions"] * metric["dim"],
        ]
    )
    assert places[-1] == len(payload)
    np.testing.assert_array_equal(np.frombuffer(payload[: places[0]], "<i8"), found.class_ids)
    np.testing.assert_array_equal(np.frombuffer(payload[places[0] : places[1]], "<i8"), sizes)
    np.testing.assert_array_equal(np.frombuffer(payload[places[1] : places[2]], "<f4"), found.margins)
    np.testing.assert_array_equal(np.frombuffer(payload[places[2] : places[3]], "<f4"), found.metric.factors)


def test_a_cache_that_cannot_be_written_changes_no_answer(store, tmp_path):
    support, class_index, *_ = world(3, 9, 1, seed=5)
    enroll(store, support, class_index)
    (tmp_path / "taken").write_text("a file where the folder should be")
    with store.read() as reader:
        found = calibrated(reader, Neighbours(tmp_path / "cache"), tmp_path / "taken" / "calibration")
    assert len(found.margins) == 27
