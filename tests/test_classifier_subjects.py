"""Several shots of one plant: what is found, and that they are left out together."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.classifier.calibration import calibrate
from fewshot.classifier.metric import fit_metric, without_each
from fewshot.classifier.prototypes import class_prototypes, own_similarities, support_groups
from fewshot.classifier.scores import familiarity
from fewshot.classifier.subjects import first_shots, grouped, subjects, subjects_of_classes
from fewshot.evaluation.episodes import learn_classes
from fewshot.gallery import calibrations
from fewshot.gallery import left_out as asking
from fewshot.gallery.calibrations import calibrated
from fewshot.gallery.enrolling import learn_class
from fewshot.gallery.neighbours import Neighbours
from fewshot.records import EmbeddedPhoto
from fewshot.store import Store
from fewshot.transforms import unit_rows

DIM = 256


def shots(n_plants, n_shots, seed=0, apart=0.4, centre=None):
    """(n_plants * n_shots, DIM) embeddings of one class, a plant's shots one after the other; and which plant it is."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(0, 1, DIM) if centre is None else centre
    plants = centre + rng.normal(0, 1, (n_plants, DIM))
    photos = np.repeat(plants, n_shots, axis=0) + apart * rng.normal(0, 1, (n_plants * n_shots, DIM))
    return unit_rows(photos.astype(np.float32)), np.repeat(np.arange(n_plants), n_shots)


@pytest.mark.parametrize(("n_plants", "n_shots"), [(5, 3), (3, 2), (10, 4), (30, 8)])
def test_shots_of_one_plant_are_found_whatever_their_order(n_plants, n_shots):
    support, truth = shots(n_plants, n_shots, seed=n_plants, apart=0.2)
    assert subjects(support).tolist() == truth.tolist()
    order = np.random.default_rng(0).permutation(len(support))
    found = subjects(support[order])
    assert found[0] == 0, "numbered by the first photo"
    assert len(set(zip(found.tolist(), truth[order].tolist(), strict=True))) == n_plants


def test_photos_from_two_places_are_no_shots_of_two_plants():
    places = np.random.default_rng(3).normal(0, 3, (2, DIM))
    for n in (5, 10, 40):
        both = np.concatenate([shots(n, 1, seed=s, centre=places[s])[0] for s in (0, 1)])
        assert subjects(both).tolist() == list(range(2 * n))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 120), seed=st.integers(0, 1000))
def test_photos_of_different_plants_are_each_another_subject(n, seed):
    assert subjects(shots(n, 1, seed)[0]).tolist() == list(range(n))


def test_of_fewer_than_six_photos_nothing_is_told_and_a_class_is_never_one_subject():
    assert subjects(shots(2, 2)[0]).tolist() == [0, 1, 2, 3]
    assert subjects(np.repeat(shots(1, 1)[0], 9, axis=0)).tolist() == list(range(9))


def test_many_photos_are_compared_in_parts_with_the_same_result(monkeypatch):
    support, truth = shots(40, 3, seed=3, apart=0.2)
    monkeypatch.setattr("fewshot.classifier.subjects._ROWS_AT_ONCE", 7)
    assert subjects(support).tolist() == truth.tolist()


def test_subjects_of_two_classes_are_never_one():
    one, truth = shots(4, 3, seed=1)
    both = np.concatenate([one, one])  # a photo is never in two classes; its likes may be
    found = subjects_of_classes(both, np.repeat([7, 3], 12))
    assert found.tolist() == [*truth, *(truth + 4)]
    assert first_shots(found).tolist() == list(range(0, 24, 3))
    mixed = np.random.default_rng(0).permutation(24)
    found = subjects_of_classes(both[mixed], np.repeat([7, 3], 12)[mixed])
    assert found.max() == 7
    assert found[first_shots(found)].tolist() == list(range(8)), "numbered by the first photo"


def test_a_prototype_needs_several_plants_and_shots_of_one_are_not_parted():
    support, _ = shots(5, 3, seed=2)
    assert support_groups(support).max() > 0, "the shots of a plant would be a group"
    groups, shown = grouped(support)
    assert (groups.max(), shown.max()) == (0, 4)
    places = np.random.default_rng(3).normal(0, 3, (2, DIM))
    both = np.concatenate([shots(4, 3, seed=s, centre=places[s])[0] for s in (0, 1)])
    groups, shown = grouped(both)
    assert groups.tolist() == [0] * 12 + [1] * 12
    assert shown.max() == 7


@settings(max_examples=40, deadline=None)
@given(n_plants=st.integers(2, 8), n_shots=st.integers(1, 4), seed=st.integers(0, 1000))
def test_own_similarities_are_those_to_the_prototypes_of_other_plants(n_plants, n_shots, seed):
    support, plants = shots(n_plants, n_shots, seed)
    groups = (plants >= n_plants // 2).astype(np.int64)
    explicit = []
    for photo, plant in zip(support, plants, strict=True):
        rest = [support[(groups == g) & (plants != plant)] for g in (0, 1)]
        explicit.append(max(float(photo @ class_prototypes(r, np.zeros(len(r), int), 1)[0]) for r in rest if len(r)))
    np.testing.assert_allclose(own_similarities(support, groups, plants), explicit, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(n_way=st.integers(1, 4), n_shots=st.integers(1, 3), seed=st.integers(0, 1000))
def test_leaving_a_plant_out_equals_fitting_without_it_where_its_shots_are_copies(n_way, n_shots, seed):
    support = np.concatenate([shots(4, n_shots, seed * 10 + i, apart=0)[0] for i in range(n_way)])
    groups, shown = np.repeat(np.arange(n_way), 4 * n_shots), np.repeat(np.arange(4 * n_way), n_shots)
    metric = fit_metric(support, groups)
    asked = np.flatnonzero(np.arange(len(support)) % 3 == 0)
    found = without_each(metric, support, groups, class_prototypes(support, groups, n_way), subjects=shown, asked=asked)
    for place, row in enumerate(asked):
        rest = shown != shown[row]
        means = np.stack([support[rest & (groups == i)].mean(axis=0, dtype=np.float64) for i in range(n_way)])
        around = support[rest] - means[groups[rest]]
        matrix = np.linalg.inv(around.T @ around + metric.prior * np.eye(DIM)) * metric.prior
        x = support[row].astype(np.float64)
        cosines = (means @ matrix @ x) / np.sqrt((x @ matrix @ x) * np.einsum("ij,jk,ik->i", means, matrix, means))
        gains = metric.gains(np.bincount(groups[rest], minlength=n_way))
        np.testing.assert_allclose(found[place], cosines * gains, atol=2e-3)


def test_a_prototype_of_one_plant_alone_is_not_there_without_it():
    support, plants = shots(3, 3, seed=4)
    groups = np.minimum(plants, 1)  # the first plant is a prototype of its own
    found = without_each(
        fit_metric(support, groups), support, groups, class_prototypes(support, groups, 2), subjects=plants
    )
    assert np.isneginf(found[:3, 0]).all()
    assert np.isfinite(np.delete(found, [0, 1, 2], axis=0)).all()


def test_of_a_sample_of_plants_each_is_taken_out_of_all():
    support, plants = shots(60, 8, seed=5)
    other, _ = shots(60, 8, seed=6)
    both, groups = np.concatenate([support, other]), np.repeat([0, 1], 480)
    shown = np.concatenate([plants, plants + 60])
    prototypes = class_prototypes(both, groups, 2)
    whole = without_each(fit_metric(both, groups), both, groups, prototypes, subjects=shown)
    part = np.flatnonzero(shown % 3 == 0)
    metric = fit_metric(both[part], groups[part], np.array([480, 480]))
    sample = without_each(metric, both[part], groups[part], prototypes, subjects=shown[part] // 3)
    own = np.arange(len(part)), groups[part]
    assert abs(float((sample[own] - whole[part][own]).mean())) < 0.02
    flattered = without_each(metric, both[part], groups[part], prototypes)
    assert (flattered[own] - whole[part][own]).mean() > 0.05


def test_with_few_plants_the_gain_is_that_of_the_photos_that_are_left():
    support, plants = shots(3, 4, seed=7)
    groups = np.zeros(12, np.int64)
    metric = fit_metric(support, groups)
    assert metric.agreement < 0.9
    prototypes = class_prototypes(support, groups, 1)
    found = without_each(metric, support, groups, prototypes, subjects=plants)
    flat = replace(metric, agreement=1.0)
    without_gain = without_each(flat, support, groups, prototypes, subjects=plants)
    np.testing.assert_allclose(found / without_gain, metric.gains(np.array([8]))[0], rtol=1e-5)


def test_what_was_not_fitted_is_not_taken_out_and_nothing_is_taken_out_twice():
    """A metric of a sample, asked with more photos of its classes than it saw: no cosine leaves its place."""
    classes = [shots(20, 10, seed=i)[0] for i in range(12)]
    everything = np.concatenate(classes)
    groups, shown = np.repeat(np.arange(12), 200), np.repeat(np.arange(240), 10)
    prototypes = class_prototypes(everything, groups, 12)
    fitted = shown % 5 == 0
    metric = fit_metric(everything[fitted], groups[fitted], np.full(12, 200))
    asked = np.flatnonzero(groups < 4)
    found = without_each(
        replace(metric, counts=metric.counts[:4]),
        everything[asked],
        groups[asked],
        prototypes[:4],
        fitted[asked],
        subjects=shown[asked],
    )
    wanted = without_each(fit_metric(everything, groups), everything, groups, prototypes, subjects=shown)[asked, :4]
    assert np.abs(found - wanted).max() < 0.25
    assert np.abs(found - wanted).mean() < 0.05
    plain = metric(everything[asked]) @ metric.placed(prototypes)[:4].T
    others = ~fitted[asked][:, None] & (np.arange(4) != groups[asked][:, None])
    np.testing.assert_allclose(found[others], plain[others], atol=1e-4)


def enrolled(tmp_path, classes):
    """A store that holds the embeddings of each class."""
    store = Store(tmp_path / "index", create=True)
    with store.write() as writer:
        writer.pin_embedder({"fingerprint": "x@1", "precision": "f32", "dim": DIM, "source": {}, "backbone": {}})
        for i, support in enumerate(classes):
            photos = [EmbeddedPhoto("x.png", hashlib.sha256(v).hexdigest(), 9, 9, v, None) for v in support]
            class_id = writer.add_class(f"class {i}")
            writer.add_supports(class_id, photos)
            learn_class(writer, class_id)
        writer.note("enroll", None)
    return store


def answered(known, learnt, query, true):
    """Which queries a calibration calls unknown, whether their label stays in the set of 0.9, and their lead."""
    similarities = learnt.similarities(query)
    ordered = -np.sort(-similarities, axis=1)
    rival = np.where(similarities.argmax(axis=1) == true, ordered[:, 1], ordered[:, 0])
    lead = similarities[np.arange(len(true)), true] - rival
    unknown = np.array([known.is_unknown(each) for each in familiarity(ordered)])
    return unknown, lead >= known.needed_margins(true, 0.9), lead


def world(seed):
    """Six classes of 12 plants, six shots of each; and photos of 40 other plants of each class."""
    centres = np.random.default_rng(seed).normal(0, 1, (6, DIM))
    support = [shots(12, 6, seed=100 * seed + i, centre=centre)[0] for i, centre in enumerate(centres)]
    query = [shots(40, 1, seed=100 * seed + 50 + i, centre=centre)[0] for i, centre in enumerate(centres)]
    return support, np.concatenate(query), np.repeat(np.arange(6), 40)


def test_what_shots_of_each_plant_teach_holds_for_other_plants():
    unknown, covered = [], []
    for seed in range(10):
        support, query, true = world(seed)
        learnt = learn_classes(support)
        found = answered(calibrate(learnt.left_out(), 6), learnt, query, true)
        unknown.append(found[0].mean())
        covered.append(found[1].mean())
    assert np.mean(unknown) < 0.05
    assert 0.87 < np.mean(covered) < 0.96


def test_each_photo_left_out_alone_would_make_other_plants_unknown():
    support, query, true = world(0)
    learnt = learn_classes(support)
    alone = replace(learnt, subjects=np.arange(len(learnt.subjects)))
    unknown, covered, _ = answered(calibrate(alone.left_out(), 6), learnt, query, true)
    assert unknown.mean() > 0.3
    assert covered.mean() < 0.5


def test_an_index_leaves_out_what_episodes_leave_out_and_nearly_so_from_a_sample(tmp_path, monkeypatch):
    support, query, true = world(0)
    store, learnt = enrolled(tmp_path, support), learn_classes(support)
    wanted, neighbours = calibrate(learnt.left_out(), 6), Neighbours(tmp_path / "cache")
    with store.read() as reader:
        assert reader.n_prototypes() == 6
        found = calibrated(reader, neighbours, tmp_path / "cache" / "calibration")
        np.testing.assert_allclose(found.margins, wanted.margins, atol=1e-4)
        assert found.threshold == pytest.approx(wanted.threshold, abs=1e-3)
        monkeypatch.setattr(asking, "MOST_ASKED", 150)
        monkeypatch.setattr(asking, "MOST_ASKED_WITHIN", 100)
        sampled = calibrated(reader, neighbours, tmp_path / "cache" / "of-a-sample")
        narrowed = calibrations.calibrated_within(reader, neighbours, sampled, [1, 2, 3, 4, 5, 6])
    store.close()
    for known, n_most in ((sampled, 150 / 6), (narrowed, 100 / 6)):
        assert n_most / 2 < len(known.margins) < n_most * 1.3, "one for each plant of the sample"
        moved = replace(learnt, metric=replace(sampled.metric, counts=learnt.metric.counts))
        unknown, _, lead = answered(replace(known, class_ids=known.class_ids - 1), moved, query, true)
        assert unknown.mean() < 0.15
        assert lead.mean() - 0.1 < known.margins.mean() < lead.mean() + 0.02, "nothing flatters"


def test_a_sample_of_many_small_classes_parts_no_plants(tmp_path, monkeypatch):
    """Fewer photos of a class in the sample than subjects could be told from."""
    support = [shots(5, 3, seed=i)[0] for i in range(60)]
    store, neighbours = enrolled(tmp_path, support), Neighbours(tmp_path / "cache")
    with store.read() as reader:
        whole = calibrated(reader, neighbours, tmp_path / "cache" / "calibration")
        monkeypatch.setattr(asking, "MOST_ASKED", 225)
        sampled = calibrated(reader, neighbours, tmp_path / "cache" / "of-a-sample")
        ids, _, _, shown = reader.asked_supports(225)
    store.close()
    assert np.unique(shown, return_counts=True)[1].tolist() == [3] * (len(ids) // 3)
    assert len(whole.margins) == 300
    assert 40 < len(sampled.margins) < 110
    assert sampled.threshold == pytest.approx(whole.threshold, abs=0.12)
    assert np.quantile(sampled.margins, 0.1) == pytest.approx(np.quantile(whole.margins, 0.1), abs=0.1)


def test_a_class_learnt_anew_notes_similarities_to_other_plants(tmp_path):
    support, plants = shots(6, 4, seed=9)
    store = enrolled(tmp_path, [support])
    with store.read() as reader:
        noted = [photo.own_similarity for photo in reader.supports_of(1)]
    store.close()
    np.testing.assert_allclose(noted, own_similarities(support, subjects=plants), atol=1e-6)
    assert np.mean(noted) < np.mean(own_similarities(support)) - 0.05


def test_removing_the_first_shot_of_a_plant_lets_another_stand_for_it(tmp_path):
    support, _ = shots(4, 3, seed=9)
    store = enrolled(tmp_path, [support])
    with store.write() as writer:
        writer.remove_supports([1])
        learn_class(writer, 1)
        writer.note("remove", "class 0")
    with store.read() as reader:
        ids, _, _, shown = reader.asked_supports(100)
    store.close()
    assert ids.tolist() == list(range(2, 13))
    assert shown.tolist() == [2, 2, 4, 4, 4, 7, 7, 7, 10, 10, 10]
