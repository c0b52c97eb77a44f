"""An index that is asked: what is enrolled is recognised, and what is said of an answer is true."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import LEAF_COLOURS, both, write_leaf
from gallery_steps import ask_photos, enroll

from fewshot.classifier.calibration import Calibration
from fewshot.errors import EmptyIndexError, NoFittingClassError
from fewshot.records import NamedBytes, Question

FRUIT = (90, 60, 190)  # of a plant whose leaves are of another colour


@both
def test_enrolled_classes_are_recognised_in_new_photos(gallery, leaves, tmp_path):
    reports = enroll(gallery, leaves(n=5))
    assert [(each.label, each.enrolled, each.already_there, each.refused) for each in reports] == [
        (label, 5, 0, ()) for label in sorted(LEAF_COLOURS)
    ]
    photos, right = ask_photos(tmp_path)
    predictions = list(gallery.query(photos, Question(top=2, n_nearest=2)))
    assert [each.answer for each in predictions] == right
    assert [each.file for each in predictions] == [str(photo) for photo in photos]
    for each, label in zip(predictions, right, strict=True):
        assert each.reason == "match"
        assert each.matches[0].label == label
        assert len(each.matches) == 2
        assert each.matches[0].similarity >= each.matches[1].similarity
        assert 0.5 < each.matches[0].probability <= 1.0
        assert [near.label for near in each.nearest] == [label, label]


def test_an_enrolled_photo_finds_itself_under_its_own_name(gallery, leaves):
    folder = leaves(n=3)
    enroll(gallery, folder)
    photos = sorted(folder.rglob("*.png"))
    for photo, prediction in zip(photos, gallery.query(photos, Question(n_nearest=1)), strict=True):
        assert (prediction.nearest[0].file, prediction.nearest[0].label) == (photo.name, photo.parent.name)
        assert prediction.nearest[0].similarity == pytest.approx(1.0, abs=1e-5)


def test_probabilities_of_all_classes_sum_to_one(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=5))
    for prediction in gallery.query(ask_photos(tmp_path)[0], Question(top=10)):
        assert len(prediction.matches) == 4
        assert sum(match.probability for match in prediction.matches) == pytest.approx(1.0, abs=1e-5)


def test_bytes_are_answered_like_the_file_they_came_from(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=5))
    photo = ask_photos(tmp_path)[0][0]
    (from_file,) = gallery.query([photo])
    (from_bytes,) = gallery.query([NamedBytes(str(photo), photo.read_bytes())])
    assert from_bytes == from_file


def test_a_colour_far_from_every_class_is_unknown_and_the_nearest_is_still_listed(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=5))
    (prediction,) = gallery.query([write_leaf(tmp_path / "blue.png", (0, 0, 255), 1)])
    assert (prediction.answer, prediction.reason) == ("unknown", "unknown")
    assert "below the threshold" in prediction.message
    assert len(prediction.matches) == 3


def test_photos_together_get_one_answer_and_unreadable_ones_are_told_apart(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=5))
    photos = [write_leaf(tmp_path / f"{i}.png", LEAF_COLOURS["rust"], 900 + i) for i in range(3)]
    (tmp_path / "notes.jpg").write_text("not a picture")
    bad, answer = gallery.query([*photos[:2], tmp_path / "notes.jpg", photos[2]], Question(together=True))
    assert (bad.reason, Path(bad.file).name) == ("bad_image", "notes.jpg")
    assert answer.answer == "rust"
    assert answer.file == " + ".join(map(str, photos))
    alone = list(gallery.query(photos))
    mean = np.mean([each.matches[0].similarity for each in alone])
    assert answer.matches[0].similarity == pytest.approx(mean, abs=1e-5)
    (only_bad,) = gallery.query([tmp_path / "notes.jpg"], Question(together=True))
    assert only_bad.reason == "bad_image"


def test_photos_together_may_each_show_another_group_of_their_class(gallery, leaves, tmp_path):
    folder = leaves(n=6)
    for i in range(6):
        write_leaf(folder / "rust" / f"fruit-{i}.png", FRUIT, 300 + i)
    enroll(gallery, folder)
    assert next(each for each in gallery.classes() if each.label == "rust").prototypes == 2
    leaf = write_leaf(tmp_path / "leaf.png", LEAF_COLOURS["rust"], 900)
    fruit = write_leaf(tmp_path / "fruit.png", FRUIT, 901)
    alone = list(gallery.query([leaf, fruit], Question(top=4)))
    (answer,) = gallery.query([leaf, fruit], Question(top=4, together=True))
    assert [each.answer for each in alone] == ["rust", "rust"]
    assert (answer.answer, answer.reason) == ("rust", "match")
    for match in answer.matches:
        each_alone = [match_.similarity for each in alone for match_ in each.matches if match_.label == match.label]
        assert len(each_alone) == 2
        assert match.similarity == pytest.approx(np.mean(each_alone), abs=1e-5)


@both
def test_within_answers_and_shows_photos_of_the_fitting_classes_only(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=5))
    rust = write_leaf(tmp_path / "ask.png", LEAF_COLOURS["rust"], 900)
    (answer,) = gallery.query([rust], Question(top=9, n_nearest=50, within=("h*", "*dew")))
    assert {match.label for match in answer.matches} == {"healthy", "mildew"}
    assert {photo.label for photo in answer.nearest} == {"healthy", "mildew"}
    assert len(answer.nearest) == 10
    assert sum(match.probability for match in answer.matches) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(NoFittingClassError, match=f"no class of index '{gallery.name}' fits 'helthy'") as caught:
        list(gallery.query([rust], Question(within=("helthy",))))
    assert "'healthy'" in caught.value.hint


def test_a_label_fits_itself_whatever_it_holds(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=3))
    gallery.rename("rust", "rust [early]")
    rust = write_leaf(tmp_path / "ask.png", LEAF_COLOURS["rust"], 900)
    (answer,) = gallery.query([rust], Question(within=("rust [early]",)))
    assert [match.label for match in answer.matches] == ["rust [early]"]


def test_a_pattern_fits_however_its_accents_are_written(gallery, leaves, tmp_path):
    photos, _ = ask_photos(tmp_path)
    enroll(gallery, leaves(n=3) / "rust", unicodedata.normalize("NFC", "café-rust"))
    for form in ("NFC", "NFD"):
        within = unicodedata.normalize(form, "café-*")
        assert [match.label for match in next(gallery.query(photos, Question(within=(within,)))).matches] == [
            "café-rust"
        ]


@pytest.mark.parametrize("within", [("rust",), ("rust", "healthy")])
def test_within_judges_what_is_unknown_by_the_classes_asked(gallery, leaves, tmp_path, within):
    enroll(gallery, leaves(n=12))
    photos, right = ask_photos(tmp_path)
    found = dict(zip(right, gallery.query(photos, Question(within=within)), strict=True))
    assert [found[label].answer for label in within] == list(within)
    assert found["blight"].answer == found["mildew"].answer == "unknown"
    assert "of the classes asked" in found["rust"].message
    (wide,) = gallery.query(photos[:1])
    assert "of this index" in wide.message


def test_covering_sets_hold_the_best_label_and_grow_with_the_coverage(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=20))
    photos, right = ask_photos(tmp_path)
    wide = list(gallery.query(photos, Question(coverage=0.99)))
    narrow = list(gallery.query(photos, Question(coverage=0.5)))
    for large, small, label in zip(wide, narrow, right, strict=True):
        assert large.covering[0] == label
        assert set(small.covering) <= set(large.covering)
    assert all("covering" not in each.as_dict() for each in gallery.query(photos))
    assert wide[0].as_dict()["covering"] == list(wide[0].covering)


def test_a_photo_between_classes_is_ambiguous_unless_it_is_unknown(gallery, leaves, monkeypatch):
    enroll(gallery, leaves(n=5))
    with gallery._store.read() as reader:
        between = sum(reader.prototypes_of(reader.wanted_class_id(label)) for label in ("rust", "blight", "mildew"))
    between /= np.linalg.norm(between)
    known = Calibration(1.0, -2.0, np.zeros(0, np.int64), np.zeros(0, np.float32))
    monkeypatch.setattr(gallery._calibrations, "of", lambda reader, within: known)
    (answer,) = gallery.predict(between)
    assert (answer.reason, answer.answer) == ("ambiguous", answer.matches[0].label)
    assert answer.matches[0].probability < 0.5
    assert "less likely than all other classes together" in answer.message
    monkeypatch.setattr(gallery._calibrations, "of", lambda reader, within: replace(known, threshold=2.0))
    (answer,) = gallery.predict(between)
    assert (answer.reason, answer.answer) == ("unknown", "unknown")


def test_a_photo_that_cannot_be_read_is_answered_in_its_place(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=5))
    (tmp_path / "notes.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    photos, right = ask_photos(tmp_path)
    asked = [tmp_path / "notes.jpg", photos[0], tmp_path / "empty.jpg", tmp_path / "gone.jpg", photos[1]]
    predictions = list(gallery.query(asked))
    assert [each.answer for each in predictions] == ["unknown", right[0], "unknown", "unknown", right[1]]
    assert [each.reason for each in predictions] == ["bad_image", "match", "bad_image", "bad_image", "match"]
    assert "notes.jpg" in predictions[0].message
    assert predictions[0].matches == predictions[0].nearest == ()


def test_an_empty_index_has_no_answers(gallery, tmp_path):
    photos, _ = ask_photos(tmp_path)
    with pytest.raises(EmptyIndexError, match="no class"):
        list(gallery.query(photos))
    with pytest.raises(EmptyIndexError):
        list(gallery.inspect())
    assert gallery.classes() == []
    assert gallery.problems() == []
