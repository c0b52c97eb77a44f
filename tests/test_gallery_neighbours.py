"""Whatever became of the cache files, and whatever changes came in between: the answers are those of the store."""

import logging
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.classifier.prototypes import class_prototypes
from fewshot.gallery import neighbours as module
from fewshot.gallery.neighbours import Neighbours
from fewshot.records import EmbeddedPhoto
from fewshot.search import VectorIndex
from fewshot.store import FILE_NAME, Store

DIM = 8
QUERIES = np.random.default_rng(99).normal(size=(6, DIM)).astype(np.float32)
QUERIES /= np.linalg.norm(QUERIES, axis=1, keepdims=True)


def add(store, label, n=2, seed=0):
    """One change: `n` new photos in a class."""
    rng = np.random.default_rng([seed, len(label), *label.encode()])
    with store.write() as writer:
        if writer.about().fingerprint is None:
            writer.pin_embedder(
                {"fingerprint": "colours@0", "precision": "f32", "dim": DIM, "source": {}, "backbone": {}}
            )
        class_id = writer.add_class(label)
        photos = []
        for _ in range(n):
            vector = rng.normal(size=DIM).astype(np.float32)
            sha256 = rng.bytes(32).hex()
            photos.append(EmbeddedPhoto(f"{sha256[:6]}.png", sha256, 80, 72, vector / np.linalg.norm(vector), None))
        writer.add_supports(class_id, photos)
        ids, vectors = writer.class_vectors(class_id)
        writer.set_prototypes(class_id, class_prototypes(vectors, np.zeros(len(ids), np.int64), 1))
        writer.note("enroll", label)


def remove(store, label):
    with store.write() as writer:
        writer.remove_class(writer.wanted_class_id(label))
        writer.note("remove", label)


def rename(store, old, new):
    with store.write() as writer:
        writer.rename_class(writer.wanted_class_id(old), new)
        writer.note("rename", old, to=new)


def answers(store, lookup):
    """Classes and supports near the queries, as an answer shows them."""
    with store.read() as reader:
        if not reader.n_classes():
            return []
        similarities, class_ids = lookup.classes(reader, QUERIES, reader.n_classes())
        labels = reader.class_labels(class_ids.ravel().tolist())
        classes = [
            [(labels[int(i)], round(float(s), 5)) for i, s in zip(row_ids, row, strict=True)]
            for row_ids, row in zip(class_ids, similarities, strict=True)
        ]
        near = lookup.supports(reader, QUERIES, 4)
        return [classes, [[(n.support_id, n.label, round(n.similarity, 5), n.file) for n in row] for row in near]]


def fresh(store):
    """The answers of a copy just built from the store."""
    with tempfile.TemporaryDirectory() as folder:
        return answers(store, Neighbours(Path(folder)))


@pytest.fixture
def store(tmp_path):
    with closing(Store(tmp_path / "plants", create=True)) as opened:
        for number, label in enumerate(["healthy", "rust", "mildew"]):
            add(opened, label, n=3, seed=number)
        yield opened


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def cached(store, cache):
    """Cache files that fit the store as it is now."""
    lookup = Neighbours(cache)
    answers(store, lookup)
    assert all(path.is_file() for path in lookup.cache_files)
    return lookup.cache_files


def inodes(files):
    return [path.stat().st_ino for path in files]


# ---- the answers


@pytest.mark.parametrize("kind", ["quantised", "cells"])
def test_photos_of_a_large_index_have_the_similarities_of_the_stored_vectors(tmp_path, cache, monkeypatch, kind):
    monkeypatch.setattr(module, "EXACT_NUMBERS", 100 * DIM)
    monkeypatch.setattr(VectorIndex, "__init__", limited(kind))
    with closing(Store(tmp_path / "large", create=True)) as large:
        for number in range(6):
            add(large, f"class {number}", n=40, seed=number)
        lookup = Neighbours(cache)
        for change in (None, lambda: add(large, "late", n=3, seed=9), lambda: remove(large, "class 2")):
            if change is not None:
                change()
            with large.read() as reader:
                ids, vectors = reader.changed_vectors("support", -1)
                found = lookup.supports(reader, QUERIES, 4)
                near = lookup.supports(reader, vectors, 1)
            assert VectorIndex.open(cache / "supports.faiss", {})[0].facts["kind"] == kind
            exact = QUERIES @ vectors.T
            for row, scores in zip(found, exact, strict=True):
                cosine_of = dict(zip(ids.tolist(), scores.tolist(), strict=True))
                assert [each.similarity for each in row] == pytest.approx(
                    [cosine_of[each.support_id] for each in row], abs=1e-6
                )
                if kind == "quantised":  # cells may miss what lies between all of them, as a query of no class does
                    assert [each.support_id for each in row] == ids[np.argsort(-scores)[:4]].tolist()
            assert [row[0].support_id for row in near] == ids.tolist()


def limited(kind):
    """`VectorIndex` with cells from few vectors on, or without."""
    plain = VectorIndex.__init__

    def init(self, dim, *, exact_limit=200, cells_limit=None):
        plain(self, dim, exact_limit=exact_limit, cells_limit=200 if kind == "cells" else None)

    return init


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_sample_is_had_whichever_ids_were_removed(store, cache, monkeypatch, step):
    monkeypatch.setattr(module, "EXACT_NUMBERS", 2 * DIM)
    add(store, "blight", n=91, seed=5)
    with store.write() as writer:
        writer.remove_supports([i for i in range(1, 101) if i % step == 0])
        writer.note("remove", None)
    monkeypatch.setattr(VectorIndex, "n_training", lambda self, n: n // step)
    given = []
    build_from = VectorIndex.build_from
    monkeypatch.setattr(
        VectorIndex,
        "build_from",
        lambda self, n, sample, *rest: given.append(len(sample[0]) / (n // step)) or build_from(self, n, sample, *rest),
    )
    with store.read() as reader:
        ids, vectors = reader.changed_vectors("support", -1)
        near = Neighbours(cache).supports(reader, vectors, 1)
    assert [row[0].support_id for row in near] == ids.tolist()
    assert VectorIndex.open(cache / "supports.faiss", {})[0].facts["kind"] == "quantised"
    assert given
    assert all(0.7 <= part <= 1.3 for part in given)


def test_a_stored_vector_finds_itself_and_its_class(store, cache):
    with store.read() as reader:
        ids, vectors = reader.changed_vectors("support", -1)
        near = Neighbours(cache).supports(reader, vectors, 1)
    assert [row[0].support_id for row in near] == ids.tolist()
    assert all(row[0].similarity == pytest.approx(1.0, abs=1e-6) for row in near)
    assert all(row[0].similarity <= 1.0 for row in near)


def test_classes_agree_with_brute_force_and_are_padded_beyond_what_there_is(store, cache):
    with store.read() as reader:
        similarities, class_ids = Neighbours(cache).classes(reader, QUERIES, 5)
        wanted = {
            reader.wanted_class_id(label): reader.prototypes_of(reader.wanted_class_id(label))[0]
            for label in reader.labels()
        }
    for row, (found, ids) in enumerate(zip(similarities, class_ids, strict=True)):
        ranked = sorted(((float(QUERIES[row] @ v), i) for i, v in wanted.items()), reverse=True)
        assert ids.tolist() == [*(i for _, i in ranked), -1, -1]
        assert found[:3].tolist() == pytest.approx([s for s, _ in ranked], abs=1e-6)
        assert found[3:].tolist() == [-np.inf, -np.inf]


@pytest.mark.parametrize("n_prototypes", [2, 4])
def test_a_class_of_several_prototypes_counts_once_and_as_its_nearest(store, cache, n_prototypes):
    rng = np.random.default_rng(3)
    own = {}
    with store.read() as reader:
        before = reader.labels()
    for label in before:
        remove(store, label)
    for label in "abcdef":
        add(store, label, seed=1)
        vectors = rng.normal(size=(n_prototypes, DIM)).astype(np.float32)
        if label in "abc":  # all near the queries, so that they would fill the first places
            vectors = QUERIES[:n_prototypes] + 0.01 * vectors
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        with store.write() as writer:
            writer.set_prototypes(writer.wanted_class_id(label), vectors)
            writer.note("test", label)
        own[label] = vectors
    truth = np.stack([(QUERIES @ own[label].T).max(axis=1) for label in "abcdef"], axis=1)
    with store.read() as reader:
        ids = {reader.wanted_class_id(label): i for i, label in enumerate("abcdef")}
        for n in (1, 3, 6, 9):
            similarities, class_ids = Neighbours(cache).classes(reader, QUERIES, n)
            assert similarities.shape == class_ids.shape == (len(QUERIES), n)
            for row in range(len(QUERIES)):
                order = np.argsort(-truth[row])[:n]
                assert [ids[i] for i in class_ids[row].tolist() if i != -1] == order.tolist()
                np.testing.assert_allclose(similarities[row, : len(order)], truth[row, order], atol=1e-5)
                assert (similarities[row, len(order) :] == -np.inf).all()


def test_other_classes_never_holds_the_own_class_and_is_empty_without_others(store, cache):
    lookup = Neighbours(cache)
    with store.read() as reader:
        own = reader.wanted_class_id("rust")
        rows = lookup.other_classes(reader, QUERIES, own, 5)
    assert all(len(row) == 2 and own not in dict(row) for row in rows)
    assert all(row[0][1] >= row[1][1] for row in rows)
    remove(store, "healthy")
    remove(store, "mildew")
    with store.read() as reader:
        assert lookup.other_classes(reader, QUERIES, own, 5) == [[] for _ in QUERIES]


def test_no_neighbours_wanted_gives_none(store, cache):
    with store.read() as reader:
        assert Neighbours(cache).supports(reader, QUERIES, 0) == [()] * len(QUERIES)


def test_a_renamed_class_keeps_its_answers_under_its_new_name(store, cache):
    lookup = Neighbours(cache)
    before = answers(store, lookup)
    rename(store, "rust", "leaf rust")
    assert answers(store, lookup) == _with_label(before, "rust", "leaf rust")


def _with_label(found, old, new):
    classes, near = found
    return [
        [[(new if label == old else label, s) for label, s in row] for row in classes],
        [[(i, new if label == old else label, s, file) for i, label, s, file in row] for row in near],
    ]


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "rename", "reopen", "ask"]),
        st.sampled_from("abcd"),
        st.sampled_from("abcd"),
        st.integers(1, 3),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(changes=CHANGES, floor=st.sampled_from([0, 3, 512]))
def test_after_any_changes_the_answers_are_those_of_a_fresh_copy(changes, floor):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PENDING_FLOOR", floor)
        with closing(Store(Path(folder) / "plants", create=True)) as store:
            lookup = Neighbours(Path(folder) / "cache")
            for number, (what, label, other, n) in enumerate(changes):
                with store.read() as reader:
                    labels = reader.labels()
                if what == "add":
                    add(store, label, n, seed=number)
                elif what == "remove" and label in labels:
                    remove(store, label)
                elif what == "rename" and label in labels and other not in labels:
                    rename(store, label, other)
                elif what == "reopen":
                    lookup = Neighbours(Path(folder) / "cache")
                elif what == "ask":
                    assert answers(store, lookup) == fresh(store)
            assert answers(store, lookup) == fresh(store)
            assert answers(store, Neighbours(Path(folder) / "cache")) == fresh(store)


# ---- the cache files


def test_missing_cache_files_are_made_and_then_used_as_they_are(store, cache):
    files = cached(store, cache)
    before = inodes(files)
    assert answers(store, Neighbours(cache)) == fresh(store)
    assert inodes(files) == before, "a sound cache must not be written again"
    for path in files:
        path.unlink()
    assert answers(store, Neighbours(cache)) == fresh(store)
    assert all(path.is_file() for path in files)


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.9, -1, -9, -13, -21])
def test_cache_with_a_flipped_bit_is_rebuilt(store, cache, place, caplog):
    files = cached(store, cache)
    sound = [path.read_bytes() for path in files]
    for path, data in zip(files, sound, strict=True):
        where = int(place * len(data)) if place >= 0 else len(data) + place
        path.write_bytes(data[:where] + bytes([data[where] ^ 0x04]) + data[where + 1 :])
    with caplog.at_level(logging.INFO, "fewshot.gallery.neighbours"):
        assert answers(store, Neighbours(cache)) == fresh(store)
    assert sum("passed over" in record.message for record in caplog.records) == len(files)
    assert [path.read_bytes() for path in files] == sound, "the damaged files must have been replaced"


@pytest.mark.parametrize("content", [b"", b"x", b"FEWSEAL1", bytes(4000)])
def test_cache_that_is_no_cache_is_rebuilt(store, cache, content):
    files = cached(store, cache)
    for path in files:
        path.write_bytes(content)
    assert answers(store, Neighbours(cache)) == fresh(store)
    assert all(len(path.read_bytes()) > 100 for path in files)


def test_cut_short_cache_is_rebuilt(store, cache):
    files = cached(store, cache)
    for path in files:
        path.write_bytes(path.read_bytes()[:-30])
    assert answers(store, Neighbours(cache)) == fresh(store)


def test_stale_cache_is_caught_up(store, cache):
    files = cached(store, cache)
    before = inodes(files)
    remove(store, "healthy")
    add(store, "blight", seed=7)
    add(store, "rust", seed=8)
    assert answers(store, Neighbours(cache)) == fresh(store)
    assert inodes(files) == before, "a few changes are carried beside the file"


def test_pending_changes_are_carried_up_to_the_floor_and_then_written(store, cache, monkeypatch):
    monkeypatch.setattr(module, "PENDING_FLOOR", 5)
    monkeypatch.setattr(module, "PENDING_PART", 0.0)
    lookup = Neighbours(cache)
    answers(store, lookup)
    supports = next(path for path in lookup.cache_files if path.name.startswith("support"))
    before = supports.stat().st_ino
    add(store, "a", n=5, seed=1)
    assert answers(store, lookup) == fresh(store)
    assert supports.stat().st_ino == before
    add(store, "b", n=1, seed=2)
    assert answers(store, lookup) == fresh(store)
    assert supports.stat().st_ino != before


def test_cache_of_another_index_is_rebuilt(store, cache, tmp_path):
    files = cached(store, cache)
    with closing(Store(tmp_path / "other", create=True)) as other:
        for number, label in enumerate(["x", "y", "z"]):  # as many changes, vectors and dims: only content differs
            add(other, label, n=3, seed=50 + number)
        other_files = cached(other, tmp_path / "other-cache")
        for theirs, ours in zip(other_files, files, strict=True):
            shutil.copy(theirs, ours)
        assert answers(store, Neighbours(cache)) == fresh(store)
        assert answers(store, Neighbours(cache)) != answers(other, Neighbours(tmp_path / "other-cache"))


def test_cache_of_another_embedder_is_rebuilt(store, cache):
    files = cached(store, cache)
    before = inodes(files)
    with store.write() as writer:
        writer.pin_embedder({"fingerprint": "others@1", "precision": "f32", "dim": DIM, "source": {}, "backbone": {}})
    assert answers(store, Neighbours(cache)) == fresh(store)
    assert inodes(files) != before


@pytest.mark.parametrize("reopen", [True, False])
@pytest.mark.parametrize("n_changes", [0, 1, 2])
def test_cache_from_a_future_that_a_restored_copy_never_had_is_rebuilt(store, cache, tmp_path, n_changes, reopen):
    with closing(sqlite3.connect(store.path)) as source, closing(sqlite3.connect(tmp_path / "copy")) as target:
        source.backup(target)
    add(store, "blight", n=2, seed=3)
    lookup = Neighbours(cache)
    answers(store, lookup)  # the cache is now one generation past the copy
    (tmp_path / "restored").mkdir()
    shutil.copy(tmp_path / "copy", tmp_path / "restored" / FILE_NAME)
    with closing(Store(tmp_path / "restored")) as restored:
        for number in range(n_changes):
            add(restored, f"scab-{number}", n=2, seed=20 + number)
        lookup = Neighbours(cache) if reopen else lookup
        found = answers(restored, lookup)
        assert found == fresh(restored)
        assert "blight" not in str(found)


def test_two_views_of_different_age_each_get_their_own_answer(store, cache):
    lookup = Neighbours(cache)
    with store.read() as old:
        n_old = old.n_supports()
        add(store, "blight", n=2, seed=3)
        with store.read() as new:
            assert sum(n.support_id > 0 for n in lookup.supports(new, QUERIES[:1], 50)[0]) == n_old + 2
        assert len(lookup.supports(old, QUERIES[:1], 50)[0]) == n_old


def test_views_before_and_behind_a_change_make_nothing_of_each_other_anew(store, cache, monkeypatch):
    built = []
    build_from = VectorIndex.build_from
    monkeypatch.setattr(VectorIndex, "build_from", lambda self, *given: built.append(1) or build_from(self, *given))
    lookup = Neighbours(cache)
    answers(store, lookup)
    files = lookup.cache_files
    with store.read() as old:
        n_old = old.n_supports()
        add(store, "blight", n=2, seed=3)
        answers(store, lookup)
        with store.read() as new:
            before = inodes(files)
            del built[:]
            for _ in range(3):
                for view, n in ((old, n_old), (new, n_old + 2)):
                    labels = view.class_labels(lookup.classes(view, QUERIES, view.n_classes())[1].ravel().tolist())
                    assert ("blight" in labels.values()) == (view is new)
                    assert len(lookup.supports(view, QUERIES[:1], 50)[0]) == n
    assert len(built) == len(files), "one copy of each kind for the older view"
    assert inodes(files) == before
    assert answers(store, lookup) == fresh(store)


def test_a_view_older_than_what_is_kept_leaves_the_files_of_the_newer_one(store, cache, monkeypatch):
    monkeypatch.setattr(module, "PENDING_FLOOR", 0)  # each change is written at once
    monkeypatch.setattr(module, "PENDING_PART", 0.0)
    lookup = Neighbours(cache)
    answers(store, lookup)
    with store.read() as old:
        wanted = lookup.classes(old, QUERIES, 2)
        add(store, "blight", n=2, seed=3)
        answers(store, lookup)
        before = inodes(lookup.cache_files)
        np.testing.assert_array_equal(lookup.classes(old, QUERIES, 2)[1], wanted[1])
        lookup.supports(old, QUERIES, 2)
        assert inodes(lookup.cache_files) == before
    answers(store, Neighbours(cache))
    assert inodes(lookup.cache_files) == before, "the next start finds them as they are"


def test_cache_folder_that_cannot_be_written_only_warns(store, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    lookup = Neighbours(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING, "fewshot.gallery.neighbours"):
        assert answers(store, lookup) == fresh(store)
        add(store, "blight", seed=4)
        assert answers(store, lookup) == fresh(store)
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warned
    assert all("cannot be written" in text and "answers are right" in text for text in warned)


def test_full_disk_while_the_cache_is_written_only_warns_and_leaves_no_scrap(store, cache, monkeypatch, caplog):
    def full(index, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("Error: 'ret == (size)' failed: write error: No space left on device")

    monkeypatch.setattr("fewshot.search.index.faiss.write_index", full)
    with caplog.at_level(logging.WARNING, "fewshot.gallery.neighbours"):
        assert answers(store, Neighbours(cache)) == fresh(store)
    assert any("No space left" in record.message for record in caplog.records)
    assert list(cache.iterdir()) == []


def test_making_a_large_search_file_is_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TOLD_FROM", 3)
    store, told = Store(tmp_path, create=True), []
    add(store, "rust", n=4)
    answers(store, Neighbours(tmp_path / "cache", on_notice=told.append))
    answers(store, Neighbours(tmp_path / "cache", on_notice=told.append))
    assert [sentence.split(";")[0] for sentence in told] == ["making the search file of 4 photos"]
    store.close()
