"""The embedder an index is pinned to, and how it is exchanged for another."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import LEAF_COLOURS, both, colour_embedder
from gallery_steps import Interrupter, answers, ask_photos, counts, enroll
from test_store import change

from fewshot.backbones import WeightsSource
from fewshot.datasets import class_folders
from fewshot.decoding.cutting import cut_photo
from fewshot.embedder import EmbedderChoice
from fewshot.errors import FewshotError, ImageTooLargeError, IndexDamagedError, MixedEmbeddingsError
from fewshot.gallery import Gallery, reindexing
from fewshot.store.schema import thumbnails


def test_another_embedder_is_refused_naming_both(gallery, leaves, tmp_path):
    folder = leaves(n=3)
    enroll(gallery, folder)
    photos, _ = ask_photos(tmp_path)
    other = colour_embedder("others", image_size_px=32)
    with Gallery(gallery.place, embedder=other) as opened:
        for call in (lambda: list(opened.query(photos)), lambda: enroll(opened, folder)):
            with pytest.raises(MixedEmbeddingsError, match="48-dim") as caught:
                call()
            assert colour_embedder().fingerprint in caught.value.message
            assert other.fingerprint in caught.value.message
            assert "reindex" in caught.value.hint
        assert set(counts(opened)) == set(LEAF_COLOURS)


@both
def test_an_embedder_pinned_meanwhile_by_another_process_is_noticed_before_anything_is_stored(gallery, leaves):
    folder = leaves(n=3)
    with Gallery(gallery.place, embedder=colour_embedder("others", 32)) as other:
        reports = other.enroll(class_folders(folder))
        first = next(reports)  # pins the index
        with pytest.raises(MixedEmbeddingsError):
            enroll(gallery, folder)
        assert first.label == "blight"
        list(reports)
    assert len(gallery.history()) == 4


def test_renamed_weights_are_still_the_same_embedder(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=5))
    with Gallery(gallery.place, embedder=colour_embedder("colours-under-another-name")) as opened:
        photos, right = ask_photos(tmp_path)
        assert answers(opened, photos) == right


@pytest.mark.parametrize(
    ("chosen", "source", "precision"),
    [
        ({"quality": "best"}, "own", "f32"),
        ({"precision": "bf16"}, "own", "bf16"),
        ({"precision": "bf16", "quality": "fast"}, "own", "bf16"),
        ({}, None, None),
        ({"engine": "torch"}, None, None),
        ({"backbone": "others", "quality": "best"}, None, None),
    ],
)
def test_reindex_keeps_the_backbone_where_only_quality_or_precision_is_chosen(
    gallery, leaves, monkeypatch, chosen, source, precision
):
    enroll(gallery, leaves(n=2))
    own = WeightsSource(**gallery.about().source)
    asked = []

    def opened(choice, *, source=None, on_notice=None):
        asked.append((choice, source))
        return colour_embedder("others", 32)

    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", opened)
    monkeypatch.setattr("fewshot.gallery.pinning.on_this_machine", lambda source: source)
    with Gallery(gallery.place, choice=EmbedderChoice(**chosen)) as other:
        other.reindex()
    ((choice, found),) = asked
    assert found == (own if source == "own" else None)
    assert choice == replace(EmbedderChoice(**chosen), precision=precision)


def test_reindex_takes_the_default_also_where_the_index_was_asked_before(gallery, leaves, monkeypatch):
    folder = leaves(n=2)
    enroll(gallery, folder)
    sources = []

    def opened(choice, *, source=None, on_notice=None):
        sources.append(source)
        return colour_embedder() if source is not None else colour_embedder("default", 32)

    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", opened)
    monkeypatch.setattr("fewshot.gallery.pinning.on_this_machine", lambda source: source)
    with Gallery(gallery.place) as other:
        list(other.query([next(folder.rglob("*.png"))]))
        other.reindex()
        assert other.about().fingerprint == colour_embedder("default", 32).fingerprint
    assert [source is not None for source in sources] == [True, False]


@both
def test_reindex_changes_the_fingerprint_and_keeps_labels_photos_and_answers(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=5))
    photos, right = ask_photos(tmp_path)
    before = [(s.support_id, s.label, s.file) for label in LEAF_COLOURS for s in gallery.supports(label)]
    old = gallery.about()
    other = colour_embedder("others", image_size_px=32)
    with Gallery(gallery.place, embedder=other) as opened:
        assert opened.reindex() == (20, 0)
        assert opened.about().fingerprint == other.fingerprint
        assert opened.about().generation == old.generation + 1
        assert answers(opened, photos) == right
        assert opened.problems() == []
        assert opened.history(1)[0]["detail"] == {"before": old.fingerprint, "after": other.fingerprint}
    assert [(s.support_id, s.label, s.file) for label in LEAF_COLOURS for s in gallery.supports(label)] == before
    with pytest.raises(MixedEmbeddingsError):
        answers(gallery, photos)


def test_reindex_with_the_originals_equals_enrolling_them(leaves, tmp_path):
    folder = leaves(n=3)
    photos, _ = ask_photos(tmp_path)
    other = colour_embedder("others", image_size_px=32)
    with Gallery(tmp_path / "a", create=True, embedder=colour_embedder()) as gallery:
        enroll(gallery, folder)
    with Gallery(tmp_path / "a", embedder=other) as gallery:
        originals = [path for path in sorted(folder.rglob("*.png")) if path.name != "rust-02.png"]
        (tmp_path / "broken.png").touch()
        assert gallery.reindex(originals=[*originals, tmp_path / "broken.png", tmp_path / "gone.png"]) == (12, 11)
        partly = list(gallery.query(photos))
        assert gallery.reindex(originals=sorted(folder.rglob("*.png"))) == (12, 12)
        wholly = list(gallery.query(photos))
    with Gallery(tmp_path / "b", create=True, embedder=other) as gallery:
        enroll(gallery, folder)
        assert wholly == list(gallery.query(photos))
        assert partly != wholly, "a kept photo is not quite the original"


@both
def test_interrupted_reindex_answers_as_before_and_goes_on_where_it_stopped(gallery, leaves, tmp_path, monkeypatch):
    monkeypatch.setattr("fewshot.gallery.reindexing.STAGE_CHUNK", 4)
    enroll(gallery, leaves(n=5))
    photos, right = ask_photos(tmp_path)
    before = (gallery.about(), list(gallery.query(photos)))
    other = colour_embedder("others", image_size_px=32)
    with Gallery(gallery.place, embedder=other) as opened:
        with pytest.raises(KeyboardInterrupt):
            opened.reindex(on_photo=Interrupter(14))
        assert (gallery.about(), list(gallery.query(photos))) == before
        assert gallery.problems() == []
        steps = []
        assert opened.reindex(on_photo=lambda: steps.append(1)) == (20, 0)
        assert len(steps) == 20 - 12, "three chunks of four were kept"
        assert answers(opened, photos) == right


@both
def test_reindex_takes_in_what_was_enrolled_meanwhile_and_drops_what_was_removed(gallery, leaves, monkeypatch):
    monkeypatch.setattr("fewshot.gallery.reindexing.STAGE_CHUNK", 4)
    folder = leaves(n=5)
    for label in ("healthy", "rust"):
        enroll(gallery, folder / label, label)
    todo = [lambda: enroll(gallery, folder / "mildew", "mildew"), lambda: gallery.remove("rust")]

    def meanwhile():
        if todo:
            todo.pop()()

    with Gallery(gallery.place, embedder=colour_embedder("others", 32)) as opened:
        opened.reindex(on_photo=meanwhile)
        assert counts(opened) == {"healthy": 5, "mildew": 5}
        assert opened.problems() == []
        assert {each.label for each in opened.inspect()} == {"healthy", "mildew"}


@pytest.mark.parametrize("with_originals", [False, True])
def test_reindex_goes_on_without_a_photo_that_is_removed_before_its_turn(gallery, leaves, monkeypatch, with_originals):
    folder = leaves(n=3)
    enroll(gallery, folder)
    other = colour_embedder("others", 32)
    embed_photos = other.embed_photos

    def removed_first(photos, **settings):
        gallery.remove_support(gallery.supports("mildew")[0].support_id)
        gallery.remove("rust")
        return embed_photos(photos, **settings)

    monkeypatch.setattr(other, "embed_photos", removed_first)
    with Gallery(gallery.place, embedder=other) as opened:
        originals = sorted(folder.rglob("*.png")) if with_originals else []
        assert opened.reindex(originals=originals) == (8, 8 if with_originals else 0)
        assert counts(opened) == {"blight": 3, "healthy": 3, "mildew": 2}
        assert opened.problems() == []


@pytest.mark.parametrize("what", ["gone", "another photo", "refused"])
def test_reindex_takes_the_kept_photo_where_an_original_serves_no_more(gallery, leaves, monkeypatch, caplog, what):
    folder = leaves(n=3)
    enroll(gallery, folder)
    originals = sorted(folder.rglob("*.png"))
    rust = [file for file in originals if file.parent.name == "rust"]
    rust_bytes = {file.read_bytes() for file in rust}

    def embeddings(embedder, **how):
        monkeypatch.setattr("fewshot.gallery.gallery.cut_photo", how.pop("cutter", cut_photo))
        with Gallery(gallery.place, embedder=embedder) as opened:
            n = opened.reindex(**how)
            assert opened.problems() == []
            _, supports, vectors = opened.embeddings(100)
        return n, np.stack([vector for s, vector in zip(supports, vectors, strict=True) if s.label == "rust"])

    _, from_kept = embeddings(colour_embedder("others", 32))
    by_hash = reindexing._by_hash

    def found_and_then_changed(files):
        found = by_hash(files)
        for file in rust:
            file.unlink() if what == "gone" else shutil.copy(originals[0], file)
        return found

    def refusing(data, name, cut):
        if data in rust_bytes:
            raise ImageTooLargeError(f"{name} has 200 megapixels.")
        return cut_photo(data, name, cut)

    if what != "refused":
        monkeypatch.setattr(reindexing, "_by_hash", found_and_then_changed)
    steps = []
    n, taken = embeddings(
        colour_embedder("thirds", 32),
        originals=originals,
        on_photo=lambda: steps.append(1),
        cutter=refusing if what == "refused" else cut_photo,
    )
    assert n == (12, 9)
    assert np.array_equal(taken, from_kept)
    assert len(steps) == 12
    assert sum("the photo that the index keeps is taken instead" in record.message for record in caplog.records) == 3


def test_reindex_with_a_damaged_kept_photo_says_so_and_changes_nothing(gallery, leaves):
    enroll(gallery, leaves(n=2))
    cut = gallery.thumbnail(3)[:100]
    change(gallery._store, thumbnails.update().where(thumbnails.c.support_id == 3).values(webp=cut))
    before = gallery.about()
    with Gallery(gallery.place, embedder=colour_embedder("others", 32)) as opened:
        with pytest.raises(IndexDamagedError, match="support 3"):
            opened.reindex()
        assert opened.about() == before


def test_reindex_without_a_kept_photo_asks_for_the_original(gallery, leaves):
    folder = leaves(n=2)
    enroll(gallery, folder)
    change(gallery._store, thumbnails.delete().where(thumbnails.c.support_id == 3))
    with Gallery(gallery.place, embedder=colour_embedder("others", 32)) as opened:
        with pytest.raises(FewshotError, match="support 3") as caught:
            opened.reindex()
        assert "--photos" in caught.value.hint
        assert opened.reindex(originals=sorted(folder.rglob("*.png"))) == (8, 8)
