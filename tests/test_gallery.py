"""An index in use: what goes in comes back, what is refused stays out, and whoever dies leaves it whole."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import LEAF_COLOURS, both, colour_embedder, write_leaf
from gallery_steps import answers, ask_photos, counts, enroll
from PIL import Image
from test_store import change

from fewshot import images
from fewshot.datasets import class_folders
from fewshot.errors import (
    EmptyIndexError,
    IndexUnwritableError,
    LabelError,
    LabelTakenError,
    NotAnIndexError,
    StrictError,
    UnknownLabelError,
)
from fewshot.gallery import Gallery
from fewshot.records import ClassSummary, Question
from fewshot.store.schema import embeddings

# ---- what goes in, and what does not


def test_enrolling_again_adds_nothing_and_is_no_change(gallery, leaves):
    folder = leaves(n=5)
    enroll(gallery, folder)
    before = gallery.about().generation
    assert [(each.enrolled, each.already_there, each.support_ids) for each in enroll(gallery, folder)] == [
        (0, 5, ())
    ] * 4
    assert gallery.about().generation == before
    assert set(counts(gallery).values()) == {5}


@both
def test_enrolling_again_adds_only_the_new_photos_whatever_they_are_called(gallery, leaves):
    folder = leaves(n=3, labels=["rust"])
    enroll(gallery, folder)
    (folder / "rust" / "rust-00.png").rename(folder / "rust" / "another-name.png")
    leaves(n=2, labels=["rust"], first_seed=50, name="more")
    for photo in (folder.parent / "more" / "rust").iterdir():
        shutil.copy(photo, folder / "rust" / f"new-{photo.name}")
    (report,) = enroll(gallery, folder)
    assert (report.enrolled, report.already_there) == (2, 3)
    assert [each.file for each in gallery.supports("rust")][3:] == ["new-rust-00.png", "new-rust-01.png"]


def test_enrolling_in_two_parts_equals_enrolling_at_once(leaves, tmp_path):
    folder = leaves(n=4)
    found = []
    for name in ("once", "parts"):
        with Gallery(tmp_path / name, create=True, embedder=colour_embedder()) as gallery:
            if name == "parts":
                held_back = tmp_path / "held-back"
                held_back.mkdir()
                (folder / "rust" / "rust-03.png").rename(held_back / "rust-03.png")
                enroll(gallery, folder)
                (held_back / "rust-03.png").rename(folder / "rust" / "rust-03.png")
            enroll(gallery, folder)
            predictions = list(gallery.query(ask_photos(tmp_path)[0]))
            found.append([(p.answer, [(m.label, round(m.similarity, 5)) for m in p.matches]) for p in predictions])
    assert found[0] == found[1]


@both
def test_the_same_photo_under_two_labels_is_refused_and_the_other_label_named(gallery, leaves):
    folder = leaves(n=3, labels=["rust", "healthy"])
    enroll(gallery, folder)
    shutil.copy(folder / "rust" / "rust-01.png", folder / "healthy" / "copied.png")
    (report,) = enroll(gallery, folder / "healthy", "healthy")
    assert (report.enrolled, report.already_there) == (0, 3)
    ((refused),) = report.refused
    assert (Path(refused.file).name, refused.code) == ("copied.png", "other_label")
    assert "'rust'" in refused.message
    assert counts(gallery) == {"healthy": 3, "rust": 3}


def test_the_same_photo_in_two_folders_of_one_run_goes_into_the_first(gallery, leaves):
    folder = leaves(n=3, labels=["rust", "healthy"])
    shutil.copy(folder / "rust" / "rust-01.png", folder / "healthy" / "copied.png")
    healthy, rust = enroll(gallery, folder)
    assert (healthy.enrolled, rust.enrolled) == (4, 2)
    assert [refused.code for refused in rust.refused] == ["other_label"]
    assert "'healthy'" in rust.refused[0].message


def test_the_same_photo_twice_in_a_folder_goes_in_once(gallery, leaves):
    folder = leaves(n=3, labels=["rust"])
    shutil.copy(folder / "rust" / "rust-00.png", folder / "rust" / "zz.png")
    (report,) = enroll(gallery, folder)
    assert (report.enrolled, report.already_there, report.refused) == (3, 1, ())
    assert counts(gallery) == {"rust": 3}


def spoil(folder):
    """One bad photo of each kind; their codes in name order."""
    (folder / "bad-0.jpg").write_text("words")
    (folder / "bad-1.png").touch()
    data = next(folder.glob("*-00.png")).read_bytes()
    (folder / "bad-2.png").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (8, 8)).save(folder / "bad-3.png")
    return ["not_an_image", "empty_file", "truncated", "too_small"]


def test_bad_photos_are_refused_with_their_reasons_and_the_others_go_in(gallery, leaves):
    folder = leaves(n=5, labels=["rust"])
    codes = spoil(folder / "rust")
    (report,) = enroll(gallery, folder)
    assert (report.enrolled, [refused.code for refused in report.refused]) == (5, codes)
    assert all(Path(refused.file).name in refused.message for refused in report.refused)
    assert counts(gallery) == {"rust": 5}


def test_a_class_without_one_usable_photo_is_not_made(gallery, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("words")
    (report,) = enroll(gallery, tmp_path / "bad", "rust")
    assert (report.enrolled, len(report.refused)) == (0, 1)
    assert gallery.classes() == []
    assert gallery.about().generation == 0


@both
def test_strict_is_all_or_nothing_across_classes(gallery, leaves):
    folder = leaves(n=3)
    (folder / "rust" / "bad.jpg").write_text("words")
    with pytest.raises(StrictError, match=r"1 of 13 photos was refused\. \(1\) rust: bad\.jpg is not") as caught:
        enroll(gallery, folder, strict=True)
    assert caught.value.hint
    assert gallery.classes() == []
    assert gallery.history() == []


def test_strict_enrolls_all_classes_when_every_photo_is_good(gallery, leaves):
    reports = enroll(gallery, leaves(n=3), strict=True)
    assert [each.enrolled for each in reports] == [3, 3, 3, 3]
    assert counts(gallery) == dict.fromkeys(LEAF_COLOURS, 3)


def test_progress_is_told_once_a_photo_good_or_bad(gallery, leaves):
    folder = leaves(n=3, labels=["rust"])
    spoil(folder / "rust")
    steps = []
    enroll(gallery, folder, on_photo=lambda: steps.append(1))
    assert len(steps) == 7
    steps.clear()
    list(gallery.query(sorted((folder / "rust").iterdir()), on_photo=lambda: steps.append(1)))
    assert len(steps) == 7


# ---- doubts


def doubts_of(gallery, reports):
    return gallery.doubts([support_id for report in reports for support_id in report.support_ids])


def varied(folder, n, seed=0):
    """Photos of one colour that differ more than copies do: each has a corner of its own."""
    for i in range(n):
        path = write_leaf(folder / f"varied-{i}.png", LEAF_COLOURS["rust"], seed + i)
        image = Image.open(path)
        image.paste((20 * i, 255 - 20 * i, 90), (18 * (i % 4), 18 * (i // 4), 18 * (i % 4) + 20, 18 * (i // 4) + 20))
        image.save(path)
    return folder


def test_a_class_of_enough_varied_photos_raises_no_doubt(gallery, tmp_path):
    reports = enroll(gallery, varied(tmp_path / "rust", 8), "rust")
    assert doubts_of(gallery, reports) == []


def test_few_photos_raise_a_doubt_that_names_the_class_and_what_is_wanted(gallery, tmp_path):
    reports = enroll(gallery, varied(tmp_path / "rust", 4), "rust")
    (sentence,) = doubts_of(gallery, reports)
    assert sentence.startswith("class 'rust' has 4 photos; wanted 5")


def test_a_class_of_one_photo_works_and_says_that_it_is_few(gallery, tmp_path):
    photo = write_leaf(tmp_path / "one" / "a.png", LEAF_COLOURS["rust"], 0)
    reports = enroll(gallery, photo.parent, "rust")
    assert doubts_of(gallery, reports) == ["class 'rust' has 1 photo; wanted 5 to 20 for answers to trust."]
    (prediction,) = gallery.query([photo])
    assert prediction.answer == "rust"
    (inspection,) = gallery.inspect("rust")
    assert (inspection.supports, inspection.similarity, inspection.spread) == (1, None, None)


def test_enrolling_tells_of_how_many_plants_several_shots_are(gallery, leaves, monkeypatch):
    monkeypatch.setattr("fewshot.classifier.subjects.subjects", lambda support: np.arange(len(support)) // 2)
    (sentence,) = doubts_of(gallery, enroll(gallery, leaves(n=6) / "rust", "rust"))[:1]
    assert "6 photos of 'rust' look like several shots each of 3 plants (or places), and count as so many" in sentence
    assert sentence.endswith("wanted 5 to 20.")
    sentences = doubts_of(gallery, enroll(gallery, leaves(n=12) / "rust", "rust"))
    assert any("count as so many." in sentence for sentence in sentences)


def test_near_copies_raise_a_doubt_that_names_both(gallery, tmp_path):
    folder = varied(tmp_path / "rust", 8)
    Image.open(folder / "varied-3.png").save(folder / "z-saved-again.jpg", quality=85)
    (sentence,) = doubts_of(gallery, enroll(gallery, folder, "rust"))
    assert "z-saved-again.jpg of varied-3.png" in sentence
    assert "1 photo of 'rust' is a near-copy" in sentence


def test_near_copy_of_a_photo_of_another_class_names_that_class(gallery, tmp_path):
    enroll(gallery, varied(tmp_path / "rust", 8), "rust")
    other = varied(tmp_path / "other", 6, seed=100)
    for path in other.iterdir():
        Image.open(path).point(lambda value: 255 - value).save(path)
    Image.open(tmp_path / "rust" / "varied-3.png").save(other / "z-copy.bmp")
    sentences = doubts_of(gallery, enroll(gallery, other, "other"))
    assert any("z-copy.bmp of varied-3.png of 'rust'" in sentence for sentence in sentences)


def test_a_photo_that_looks_like_another_class_raises_a_doubt_that_names_both(gallery, leaves, tmp_path):
    folder = leaves(n=6, labels=["rust", "healthy"])
    write_leaf(folder / "healthy" / "mistaken.png", LEAF_COLOURS["rust"], 300)
    enroll(gallery, folder / "rust", "rust")
    reports = enroll(gallery, folder / "healthy", "healthy")
    (sentence,) = [text for text in doubts_of(gallery, reports) if "another class" in text]
    assert sentence.startswith("1 photo of 'healthy' looks more like another class: mistaken.png (rust ")


def test_nothing_new_raises_no_doubt(gallery, leaves):
    assert gallery.doubts([]) == []
    enroll(gallery, leaves(n=2))
    assert gallery.doubts([]) == []


# ---- remove and rename


@both
def test_a_removed_class_is_never_returned(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=5))
    photos, _ = ask_photos(tmp_path)
    list(gallery.query(photos))
    assert gallery.remove("rust") == 5
    for opened in (gallery, Gallery(gallery.place, embedder=colour_embedder())):
        for prediction in opened.query(photos, Question(top=10, n_nearest=50)):
            assert "rust" not in {match.label for match in prediction.matches}
            assert "rust" not in {near.label for near in prediction.nearest}
            assert len(prediction.matches) == 3
            assert len(prediction.nearest) == 15
        assert "rust" not in {label for each in opened.inspect() for label, _ in each.confusable}
    opened.close()


def test_removed_then_enrolled_again_answers_as_before(gallery, leaves, tmp_path):
    folder = leaves(n=5)
    enroll(gallery, folder)
    photos, right = ask_photos(tmp_path)
    gallery.remove("rust")
    (report,) = enroll(gallery, folder / "rust", "rust")
    assert (report.enrolled, report.already_there) == (5, 0)
    assert answers(gallery, photos) == right


@both
def test_add_then_remove_answers_as_if_never_added(gallery, leaves, tmp_path):
    folder = leaves(n=5)
    enroll(gallery, folder / "healthy", "healthy")
    enroll(gallery, folder / "blight", "blight")
    photos, _ = ask_photos(tmp_path)
    before = list(gallery.query(photos))
    enroll(gallery, folder / "rust", "rust")
    assert list(gallery.query(photos)) != before
    gallery.remove("rust")
    assert list(gallery.query(photos)) == before


@both
def test_the_last_class_can_be_removed_and_the_index_filled_again(gallery, leaves, tmp_path):
    folder = leaves(n=5)
    enroll(gallery, folder / "rust", "rust")
    photos, _ = ask_photos(tmp_path)
    list(gallery.query(photos))
    gallery.remove("rust")
    with pytest.raises(EmptyIndexError):
        list(gallery.query(photos))
    enroll(gallery, folder / "healthy", "healthy")
    assert answers(gallery, photos[:1]) == ["healthy"]


@both
def test_rename_keeps_the_answers_under_the_new_name(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=5))
    photos, right = ask_photos(tmp_path)
    gallery.rename("rust", "leaf rust")
    assert answers(gallery, photos) == ["leaf rust" if label == "rust" else label for label in right]
    assert gallery.history(1)[0]["action"] == "rename"


def test_unknown_label_suggests_the_nearest_and_changes_nothing(gallery, leaves):
    enroll(gallery, leaves(n=2))
    before = gallery.about()
    for call in (
        lambda: gallery.remove("rusty"),
        lambda: gallery.rename("rusty", "scab"),
        lambda: list(gallery.inspect("rusty")),
        lambda: gallery.supports("rusty"),
    ):
        with pytest.raises(UnknownLabelError, match="'rusty'") as caught:
            call()
        assert "'rust'" in caught.value.hint
    assert gallery.about() == before


def test_rename_onto_an_existing_label_is_refused_and_changes_nothing(gallery, leaves):
    enroll(gallery, leaves(n=2))
    before = gallery.about()
    with pytest.raises(LabelTakenError, match="'healthy'"):
        gallery.rename("rust", " healthy ")
    assert gallery.about() == before


@pytest.mark.parametrize("label", ["", "a/b", "a\nb", "x" * 201, "unknown"])
def test_rename_to_what_cannot_be_a_label_is_refused(gallery, leaves, label):
    enroll(gallery, leaves(n=2, labels=["rust"]))
    with pytest.raises(LabelError):
        gallery.rename("rust", label)
    assert counts(gallery) == {"rust": 2}


# ---- inspect


@both
def test_inspect_tells_spread_confusable_classes_and_suspicious_photos(gallery, leaves):
    folder = leaves(n=6)
    write_leaf(folder / "healthy" / "mistaken.png", LEAF_COLOURS["rust"], 300)
    enroll(gallery, folder)
    found = {each.label: each for each in gallery.inspect()}
    assert list(found) == sorted(LEAF_COLOURS)
    healthy, mildew = found["healthy"], found["mildew"]
    assert (healthy.supports, mildew.supports) == (7, 6)
    assert mildew.similarity > healthy.similarity
    assert 0 < mildew.spread < healthy.spread
    assert [photo.file for photo in healthy.suspicious] == ["mistaken.png"]
    assert healthy.suspicious[0].looks_like == "rust"
    assert healthy.suspicious[0].similarity > healthy.suspicious[0].own_similarity
    assert mildew.suspicious == ()
    for each in found.values():
        similarities = [similarity for _, similarity in each.confusable]
        assert {label for label, _ in each.confusable} == set(LEAF_COLOURS) - {each.label}
        assert similarities == sorted(similarities, reverse=True)
    assert list(gallery.inspect("rust")) == [found["rust"]]


# ---- health


@both
def test_problems_names_damaged_rows_and_damaged_caches(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=3))
    list(gallery.query(ask_photos(tmp_path)[0]))
    assert gallery.problems() == []
    cache = next(file for file in gallery._neighbours.cache_files if file.name == "supports.faiss")
    cache.write_bytes(cache.read_bytes()[:-1])
    nothing = bytes(4 * gallery.about().dim)
    change(gallery._store, embeddings.update().where(embeddings.c.support_id == 2).values(vector=nothing))
    problems = gallery.problems()
    assert len(problems) == 2
    assert "support 2" in problems[0]
    assert "supports.faiss" in problems[1]
    assert "rebuilt" in problems[1]


def test_reports_and_answers_can_be_written_as_json(gallery, leaves, tmp_path):
    (report,) = enroll(gallery, leaves(n=3, labels=["rust"]))
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()
    (prediction,) = gallery.query(ask_photos(tmp_path)[0][1:2])
    assert json.loads(json.dumps(prediction.as_dict())) == prediction.as_dict()
    assert gallery.classes() == [ClassSummary("rust", 3, 1)]


def test_random_photos_in_random_order_give_the_same_prototypes(leaves, tmp_path):
    folder = leaves(n=6, labels=["rust", "healthy"])
    photos, _ = ask_photos(tmp_path)
    found = []
    for seed in range(2):
        with Gallery(tmp_path / f"index-{seed}", create=True, embedder=colour_embedder()) as gallery:
            files = sorted((folder / "rust").iterdir())
            random.Random(seed).shuffle(files)
            for file in files:
                enroll(gallery, file, "rust")
            enroll(gallery, folder / "healthy", "healthy")
            found.append([[round(m.similarity, 5) for m in p.matches] for p in gallery.query(photos)])
    assert found[0] == found[1]


# ---- views, thumbnails and copies: what pictures of the space are made of


@both
def test_views_hold_the_photos_asked_for_in_the_order_asked(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=4))))
    photos = {label: list(hashes)[::-1][:3] for label, hashes in gallery.photo_hashes()}
    views = list(gallery.views(photos))
    assert [view.label for view in views] == sorted(photos)
    for view in views:
        assert [support.support_id for support in view.supports] == photos[view.label]
        assert view.vectors.shape == (3, gallery.about().dim)
        assert np.allclose(np.linalg.norm(view.prototypes, axis=1), 1, atol=1e-5)
        for support, vector, (other, similarity) in zip(view.supports, view.vectors, view.nearest_other, strict=True):
            assert other != view.label
            assert support.own_similarity > similarity
            rivals = {each.label: (each.prototypes @ vector).max() for each in views if each.label != view.label}
            assert (max(rivals, key=rivals.get), pytest.approx(similarity, abs=1e-5)) == (other, rivals[other])


def test_nearest_classes_are_those_of_the_nearest_prototypes(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=4))))
    views = list(gallery.views({label: list(hashes) for label, hashes in gallery.photo_hashes()}))
    vectors = np.concatenate([view.vectors for view in views])
    for vector, (label, similarity) in zip(vectors, gallery.nearest_classes(vectors), strict=True):
        by_class = {view.label: float((view.prototypes @ vector).max()) for view in views}
        assert label == max(by_class, key=by_class.get)
        assert similarity == pytest.approx(by_class[label], abs=1e-5)


def test_an_empty_index_has_no_nearest_class(gallery):
    with pytest.raises(EmptyIndexError):
        gallery.nearest_classes(np.eye(1, 48, dtype=np.float32))


def test_hashes_are_those_of_the_files(gallery, leaves):
    folder = leaves(n=3)
    list(gallery.enroll(class_folders(folder)))
    for label, hashes in gallery.photo_hashes():
        files = sorted((folder / label).iterdir())
        assert list(hashes.values()) == [images.content_hash(file.read_bytes()) for file in files]


def test_thumbnails_come_in_the_order_asked(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=2))))
    ids = [i for _, hashes in gallery.photo_hashes() for i in hashes]
    forwards, backwards = list(gallery.thumbnails(ids)), list(gallery.thumbnails(ids[::-1]))
    assert forwards == backwards[::-1]
    assert all(images.decode(data, "kept", 32) for data in forwards)
    assert list(gallery.thumbnails([10_000])) == [None]


@both
def test_a_copy_is_an_index_of_its_own(gallery, leaves, tmp_path):
    list(gallery.enroll(class_folders(leaves(n=3))))
    before = gallery.classes()
    gallery.copy_to(tmp_path / "copy")
    with Gallery(tmp_path / "copy", embedder=colour_embedder()) as copy:
        assert copy.classes() == before
        assert copy.about() == gallery.about()
        assert copy.problems() == []
        copy.remove("rust")
        assert len(copy.classes()) == 3
    assert gallery.classes() == before


def test_a_copy_never_overwrites_what_is_there(gallery, leaves, tmp_path):
    list(gallery.enroll(class_folders(leaves(n=1))))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(NotAnIndexError, match="is not empty"):
        gallery.copy_to(tmp_path / "full")
    with pytest.raises(IndexUnwritableError, match="cannot be made"):
        gallery.copy_to(tmp_path / "full" / "thesis.txt" / "copy")
