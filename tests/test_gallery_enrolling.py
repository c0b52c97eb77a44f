"""What is added to a class, replaced in it and taken from it leaves the index as if it had always been so."""

import threading

import pytest
from conftest import LEAF_COLOURS, colour_embedder, write_leaf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewshot.datasets import class_folders
from fewshot.errors import LastSupportError, NoUsablePhotoError, StrictError, UnknownSupportError
from fewshot.gallery import Gallery
from fewshot.records import NamedBytes


@pytest.fixture
def filled(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=5))))
    return gallery


def embedded(gallery, *photos):
    return list(gallery.embedder().embed_photos(photos, n_photos=len(photos), keep=True))


def content(gallery, label):
    """A class as it is compared: its photos with how they fit, and its prototypes."""
    with gallery._store.read() as reader:
        class_id = reader.wanted_class_id(label)
        photos = [(photo.file, photo.own_similarity) for photo in reader.supports_of(class_id)]
        return photos, reader.prototypes_of(class_id).tolist()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.sets(st.integers(0, 7), min_size=1))
def test_add_then_remove_equals_never_added(tmp_path_factory, kept):
    folder = tmp_path_factory.mktemp("enrolling")
    photos = [write_leaf(folder / f"{i}.png", LEAF_COLOURS["rust"], i) for i in range(8)]
    with (
        Gallery(folder / "a", create=True, embedder=colour_embedder()) as ours,
        Gallery(folder / "b", create=True, embedder=colour_embedder()) as theirs,
    ):
        report = ours.add("rust", embedded(ours, *photos), ours.embedder())
        for i, support_id in enumerate(report.support_ids):
            if i not in kept:
                assert ours.remove_support(support_id).file == f"{i}.png"
        theirs.add("rust", embedded(theirs, *(photos[i] for i in sorted(kept))), theirs.embedder())
        assert content(ours, "rust") == content(theirs, "rust")
        ours.replace("rust", embedded(ours, *photos[:3]), ours.embedder())
        theirs.replace("rust", embedded(theirs, *photos[:3]), theirs.embedder())
        # The photos are the same, in another order of enrolment; so sums may differ in the last digit.
        ours_fit, theirs_fit = (dict(content(each, "rust")[0]) for each in (ours, theirs))
        assert ours_fit == pytest.approx(theirs_fit, abs=1e-5)
        assert ours.problems() == theirs.problems() == []


def test_a_replacement_is_one_change_with_one_line_of_history(filled, tmp_path):
    new = write_leaf(tmp_path / "new.png", LEAF_COLOURS["rust"], 300)
    before = filled.about().generation
    report, n_removed = filled.replace("rust", embedded(filled, new), filled.embedder())
    assert (report.enrolled, n_removed) == (1, 5)
    assert filled.about().generation == before + 1
    (line,) = filled.history(1)
    assert (line["action"], line["label"]) == ("replace", "rust")
    assert line["detail"] == {"n_supports": 1, "n_removed": 5}


def test_a_replacement_that_cannot_be_leaves_everything_as_it_is(filled):
    before, generation = content(filled, "rust"), filled.about().generation
    bad = embedded(filled, NamedBytes("note.txt", b"no photo"))
    with pytest.raises(NoUsablePhotoError, match=r"note\.txt"):
        filled.replace("rust", bad, filled.embedder())
    with pytest.raises(StrictError):
        filled.replace("rust", bad, filled.embedder(), strict=True)
    assert content(filled, "rust") == before
    assert filled.about().generation == generation


def test_what_strict_refuses_leaves_no_thread_running(filled, leaves):
    folder = leaves(n=3, first_seed=60, name="more")
    (folder / "rust" / "notes.jpg").write_text("words")
    before = set(threading.enumerate())
    with pytest.raises(StrictError) as caught:
        list(filled.enroll(class_folders(folder), strict=True))
    assert set(threading.enumerate()) <= before, f"while somebody holds {caught.value!r}"


def test_a_photo_of_another_class_stays_there(filled, tmp_path):
    there = tmp_path / "photos" / "blight" / "blight-00.png"
    new = write_leaf(tmp_path / "new.png", LEAF_COLOURS["rust"], 300)
    report, _ = filled.replace("rust", embedded(filled, there, new), filled.embedder())
    assert [refused.code for refused in report.refused] == ["other_label"]
    assert "blight-00.png" in [photo.file for photo in filled.supports("blight")]


def test_the_last_photo_and_one_that_is_not_there_cannot_be_removed(filled, tmp_path):
    lonely = filled.add("lonely", embedded(filled, write_leaf(tmp_path / "a.png", (9, 9, 200), 1)), filled.embedder())
    with pytest.raises(LastSupportError, match=r"only photo of 'lonely'"):
        filled.remove_support(lonely.support_ids[0])
    with pytest.raises(UnknownSupportError, match="holds no photo 999"):
        filled.remove_support(999)
    with pytest.raises(UnknownSupportError):
        filled.thumbnail(999)
