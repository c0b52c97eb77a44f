"""That the photos of an index are asked as if they were not enrolled, and what that says is kept while it holds."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from calibration_steps import DIM, left_out, world
from safetensors.numpy import load

from fewshot.classifier.calibration import asked_in, calibrate
from fewshot.classifier.prototypes import class_prototypes, own_similarities
from fewshot.gallery import calibrations
from fewshot.gallery import left_out as asking
from fewshot.gallery.calibrations import Calibrations, calibrated
from fewshot.gallery.neighbours import Neighbours
from fewshot.records import EmbeddedPhoto
from fewshot.sealed import read_sealed
from fewshot.store import Store


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
        found = asking.leave_one_out(reader, Neighbours(tmp_path / "cache"))
    wanted = left_out(support, class_index)
    np.testing.assert_allclose(found.own, wanted.own, atol=1e-5)
    np.testing.assert_allclose(found.rivals, wanted.rivals, atol=1e-5)


def test_a_sample_says_of_how_many_photos_each_prototype_is(store, tmp_path, monkeypatch):
    support, class_index, *_ = world(8, 40, 1, seed=6)
    kept = (class_index != 3) | (np.arange(len(support)) % 40 < 3)  # class 3 has three photos, one after the other
    enroll(store, support[kept], class_index[kept])
    monkeypatch.setattr(asking, "MOST_ASKED", 60)
    with store.read() as reader:
        sampled, *_ = reader.asked_supports(60)
        assert len(sampled) < 61
        _, metric = asking.asked_enrolled(reader, Neighbours(tmp_path / "cache"))
    assert metric.counts.tolist() == [40, 40, 40, 3, 40, 40, 40, 40]


def test_a_prototype_that_a_sample_passed_over_is_not_taken_for_one_photo():
    sizes = {7: 60, 8: 40, 9: 1}
    owners = np.array([7, 7, 8, 9])
    whole = np.repeat([0, 1, 2], [45, 15, 40])
    assert asking._photos_of_prototypes(whole, owners, sizes).tolist() == [45, 15, 40, 1]
    sample = np.repeat([0, 2], [6, 4])
    assert asking._photos_of_prototypes(sample, owners, sizes).tolist() == [52, 8, 40, 1]
    assert asking._photos_of_prototypes(np.repeat(0, 58), owners, sizes).tolist()[:2] == [59, 3]
    assert asking._photos_of_prototypes(np.zeros(0, np.int64), owners, sizes).tolist() == [30, 30, 40, 1]


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
        found = calibrations.calibrated_within(reader, neighbours, known, within)
        whole = calibrations.calibrated_within(reader, neighbours, known, reader.class_ids(reader.labels()))
    rows = np.isin(class_index, (2, 5, 6))
    prototypes = class_prototypes(support, class_index, 9)[[2, 5, 6]]
    metric = replace(known.metric, counts=known.metric.counts[[2, 5, 6]])
    wanted = asked_in(metric, support[rows], np.repeat([0, 1, 2], 12), prototypes, np.array(within))
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
        found = calibrations.calibrated_within(reader, neighbours, known, within)
    assert known.threshold is not None
    assert (found.threshold, found.scale, found.whose) == (known.threshold, known.scale, "this index")


def test_many_photos_are_sampled_evenly(store, tmp_path, monkeypatch):
    support, class_index, *_ = world(10, 30, 1, seed=5)
    enroll(store, support, class_index)
    monkeypatch.setattr(asking, "MOST_ASKED", 60)
    with store.read() as reader:
        found = asking.leave_one_out(reader, Neighbours(tmp_path / "cache"))
    assert 40 <= len(found) <= 60
    assert len(set(found.class_ids.tolist())) == 10


@pytest.fixture
def made(monkeypatch):
    """One item for each calibration that is made."""
    found, real = [], calibrations.calibrate
    monkeypatch.setattr(calibrations, "calibrate", lambda scores, n_way: found.append(1) or real(scores, n_way))
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

    def slow(scores, n_way, real=calibrations.calibrate):
        made.append(1)
        time.sleep(0.2)
        return real(scores, n_way)

    monkeypatch.setattr(calibrations, "calibrate", slow)
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
    assert set(facts) == {
        *("kind", "version", "fingerprint", "generation", "token", "scale", "threshold", "metric"),
        *("payload_bytes", "payload_xxh3"),
    }
    assert facts["version"] == 8
    assert set(facts["metric"]) == {"prior", "agreement"}
    tensors = load(payload)
    assert {name: tensor.dtype.str for name, tensor in tensors.items()} == {
        **{"class_ids": "<i8", "counts": "<i8", "margins": "<f4", "factors": "<f4", "directions": "<f4"}
    }
    assert tensors["directions"].shape == (len(tensors["factors"]), DIM)
    assert tensors["counts"].tolist() == sizes
    np.testing.assert_array_equal(tensors["class_ids"], found.class_ids)
    np.testing.assert_array_equal(tensors["margins"], found.margins)
    np.testing.assert_array_equal(tensors["factors"], found.metric.factors)


@pytest.mark.parametrize("n_photos", [1, 9])
def test_what_was_kept_is_read_back_as_it_was_made(store, tmp_path, n_photos):
    """With one photo a class, the metric is the plain one, whose prior is infinite."""
    support, class_index, *_ = world(5, n_photos, 1, seed=5)
    enroll(store, support, class_index)
    with store.read() as reader:
        made, read = (calibrated(reader, Neighbours(tmp_path / "cache"), tmp_path / "calibration") for _ in range(2))
    assert np.isinf(made.metric.prior) == (n_photos == 1)
    assert (read.scale, read.threshold) == (made.scale, made.threshold)
    assert (read.metric.prior, read.metric.agreement) == (made.metric.prior, made.metric.agreement)
    for name in ("directions", "factors", "counts"):
        np.testing.assert_array_equal(getattr(read.metric, name), getattr(made.metric, name))


def test_a_file_of_an_earlier_layout_is_made_anew(store, tmp_path, monkeypatch, made):
    support, class_index, *_ = world(5, 9, 1, seed=5)
    enroll(store, support, class_index)
    for version in (7, 8, 8):
        monkeypatch.setattr(calibrations, "VERSION", version)
        with store.read() as reader:
            calibrated(reader, Neighbours(tmp_path / "cache"), tmp_path / "calibration")
    assert len(made) == 2


def test_a_cache_that_cannot_be_written_changes_no_answer(store, tmp_path):
    support, class_index, *_ = world(3, 9, 1, seed=5)
    enroll(store, support, class_index)
    (tmp_path / "taken").write_text("a file where the folder should be")
    with store.read() as reader:
        found = calibrated(reader, Neighbours(tmp_path / "cache"), tmp_path / "taken" / "calibration")
    assert len(found.margins) == 27
