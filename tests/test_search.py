"""The index of vectors against a plain numpy search, over whatever is added, removed, saved and opened."""

import os
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.errors import CacheDamagedError, VectorError
from fewshot.records import NO_ID
from fewshot.sealed import write_sealed
from fewshot.search import VectorIndex, bases

DIM = 8
ORDINARY = settings(max_examples=40, deadline=None)


def unit(n, dim=DIM, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def built(ids, vectors, **options):
    index = VectorIndex(vectors.shape[1], **options)
    index.build(np.array(ids, np.int64), vectors)
    return index


def int64s(*ids):
    return np.array(ids, np.int64)


def brute_force(content, queries, k):
    """(n_query, k) similarities and ids out of {id: vector}: highest first, equal ones by id, padded."""
    ids = np.array(sorted(content), np.int64)
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    found = np.full((len(queries), k), NO_ID, np.int64)
    if len(ids):
        scores = queries @ np.stack([content[i] for i in ids.tolist()]).T
        for row, each in enumerate(scores):
            best = np.lexsort((ids, -each))[:k]
            similarities[row, : len(best)], found[row, : len(best)] = each[best], ids[best]
    return similarities, found


def held(index, n):
    """Which of the ids below n are there: those that are found where all of them are asked for."""
    found = index.search(np.ones((1, index.dim), np.float32), n, np.arange(n))[1][0]
    return sorted(found[found != NO_ID].tolist())


def assert_same(one, other):
    np.testing.assert_array_equal(one[1], other[1])
    np.testing.assert_allclose(one[0], other[0], atol=1e-6)


# Rows of +-0.5 in four dimensions: cosines are exact in float32 and often equal, so ties really are ties.
CORNERS = (np.array([[1 if row >> bit & 1 else -1 for bit in range(4)] for row in range(16)]) / 2).astype(np.float32)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 30), st.integers(0, 15)),
        st.tuples(st.just("remove"), st.integers(0, 30), st.just(0)),
        st.tuples(st.sampled_from(["fold", "open"]), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("search")


def fold(index, content):
    ids = np.array(list(content), np.int64)
    index.build(ids, np.array([content[i] for i in content], np.float32).reshape(len(ids), index.dim))


# ---- what is found


@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
@ORDINARY
def test_a_stored_vector_finds_itself(n, seed):
    vectors = unit(n, seed=seed)
    ids = np.random.default_rng(seed).permutation(10 * n)[:n].astype(np.int64)
    half = n // 2
    index = built(ids[:half], vectors[:half])
    index.add(ids[half:], vectors[half:])
    similarities, found = index.search(vectors, 1)
    np.testing.assert_array_equal(found[:, 0], ids)
    np.testing.assert_allclose(similarities[:, 0], 1, atol=1e-5)


@given(STEPS, st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_it_agrees_with_brute_force_whatever_was_added_removed_saved_and_opened(folder, steps, k):
    index, content = VectorIndex(4), {}
    for verb, vector_id, row in steps:
        if verb == "add" and vector_id not in content:
            index.add(int64s(vector_id), CORNERS[row : row + 1])
            content[vector_id] = CORNERS[row]
        elif verb == "remove":
            index.remove(int64s(vector_id))
            content.pop(vector_id, None)
        elif verb in ("fold", "open"):
            fold(index, content)
            if verb == "open":
                index.save(folder / "steps.faiss", {})
                index, _ = VectorIndex.open(folder / "steps.faiss", {})
        assert len(index) == len(content)
    assert held(index, 32) == sorted(content)
    assert_same(index.search(CORNERS, k), brute_force(content, CORNERS, k))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 70), st.integers(0, 2**32 - 1))
@ORDINARY
def test_it_agrees_with_brute_force_on_ordinary_vectors(n_base, n_fresh, k, seed):
    vectors = unit(n_base + n_fresh, seed=seed)
    content = dict(enumerate(vectors))
    index = built(range(n_base), vectors[:n_base])
    index.add(np.arange(n_base, n_base + n_fresh), vectors[n_base:])
    for gone in list(content)[::3]:
        index.remove(int64s(gone))
        del content[gone]
    queries = unit(5, seed=seed + 1)
    assert_same(index.search(queries, k), brute_force(content, queries, k))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("fresh", [False, True])
def test_of_equal_similarities_the_lowest_ids_are_found_and_come_first(k, fresh):
    ids, same = int64s(9, 3, 7, 1, 5), np.repeat(unit(1), 5, axis=0)
    index = VectorIndex(DIM)
    (index.add if fresh else index.build)(ids, same)
    assert index.search(same[:1], k)[1][0].tolist() == [1, 3, 5, 7, 9][:k]


def test_equal_similarities_in_the_base_and_beside_it_come_by_id():
    same = np.repeat(unit(1), 2, axis=0)
    index = built([2, 8], same)
    index.add(int64s(1, 5), same)
    assert index.search(same[:1], 4)[1][0].tolist() == [1, 2, 5, 8]


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(1, 12))
@ORDINARY
def test_added_then_removed_equals_never_added(n, n_added, seed, k):
    vectors, queries = unit(n + n_added, seed=seed), unit(4, seed=seed + 1)
    index = built(range(n), vectors[:n])
    before = index.search(queries, k)
    index.add(np.arange(n, n + n_added), vectors[n:])
    index.remove(np.arange(n, n + n_added))
    assert len(index) == n
    assert index.n_pending == 0
    after = index.search(queries, k)
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_array_equal(after[0], before[0])


def test_a_removed_vector_is_never_returned():
    vectors = unit(20)
    index = built(range(10), vectors[:10])
    index.add(np.arange(10, 20), vectors[10:])
    index.remove(int64s(3, 15, 3))
    _, found = index.search(vectors, 20)
    assert not {3, 15} & set(found.ravel().tolist())
    assert len(index) == 18
    assert 3 not in held(index, 30)


def test_what_is_passed_over_is_told_faiss_anew_only_after_a_change(monkeypatch):
    made = []
    batch = faiss.IDSelectorBatch
    monkeypatch.setattr(faiss, "IDSelectorBatch", lambda ids: made.append(len(ids)) or batch(ids))
    vectors = unit(10)
    index = built(range(10), vectors)
    for gone in ([3], [3, 5]):
        index.remove(int64s(gone[-1]))
        for _ in range(3):
            found = index.search(vectors, 10)[1]
            assert all(sorted(row[row >= 0].tolist()) == [i for i in range(10) if i not in gone] for row in found)
    assert made == [1, 2]
    index.build(np.arange(10), vectors)
    assert len(set(index.search(vectors, 10)[1][0].tolist())) == 10


def test_removing_what_is_not_there_changes_nothing():
    index = built([1, 2], unit(2))
    index.remove(int64s(5, -1, 99))
    assert (len(index), index.n_pending) == (2, 0)


def test_an_id_can_be_given_again_after_its_removal():
    old, new = unit(1, seed=1), unit(1, seed=2)
    index = built([4], old)
    index.remove(int64s(4))
    index.add(int64s(4), new)
    similarities, found = index.search(new, 2)
    assert found[0].tolist() == [4, NO_ID]
    assert similarities[0, 0] == pytest.approx(1, abs=1e-5)
    index.remove(int64s(4))
    assert len(index) == 0
    assert index.search(new, 1)[1].tolist() == [[NO_ID]]


# ---- fewer than k


@pytest.mark.parametrize("k", [1, 2, 7])
def test_an_empty_index_answers_with_padding(k):
    similarities, ids = VectorIndex(DIM).search(unit(3), k)
    assert ids.tolist() == [[NO_ID] * k] * 3
    assert similarities.tolist() == [[-np.inf] * k] * 3


@pytest.mark.parametrize("n_fresh", [0, 1])
@pytest.mark.parametrize("n_gone", [0, 2])
def test_where_fewer_than_k_are_held_the_rest_is_padded(n_fresh, n_gone):
    index = built(range(3), unit(3))
    index.add(np.arange(10, 10 + n_fresh), unit(n_fresh, seed=9))
    index.remove(np.arange(n_gone))
    n = 3 + n_fresh - n_gone
    similarities, ids = index.search(unit(2, seed=5), 6)
    assert similarities.shape == ids.shape == (2, 6)
    assert (ids[:, :n] != NO_ID).all()
    assert np.isfinite(similarities[:, :n]).all()
    assert (ids[:, n:] == NO_ID).all()
    assert (similarities[:, n:] == -np.inf).all()


def test_an_index_whose_vectors_are_all_removed_is_empty():
    index = built(range(5), unit(5))
    index.remove(np.arange(5))
    assert len(index) == 0
    assert index.search(unit(1), 3)[1].tolist() == [[NO_ID] * 3]


def test_no_query_gives_no_row():
    similarities, ids = built(range(5), unit(5)).search(np.empty((0, DIM), np.float32), 2)
    assert similarities.shape == ids.shape == (0, 2)


def test_answers_have_the_promised_types():
    similarities, ids = built(range(5), unit(5)).search(unit(2), 3)
    assert (similarities.dtype, ids.dtype) == (np.float32, np.int64)


# ---- quantised


def clustered(n_classes, n_each, dim, seed=0):
    """Photos of classes: close to their class, but each a photo of its own."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, 1, dim))
    rows = (centres + 0.5 * rng.normal(size=(n_classes, n_each, dim))).reshape(-1, dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_quantised_base_keeps_99_percent_of_the_first_places(tmp_path):
    vectors = clustered(200, 20, 64)
    rng = np.random.default_rng(1)
    queries = vectors[rng.permutation(len(vectors))[:1000]] + 0.04 * rng.normal(size=(1000, 64)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    index = built(range(len(vectors)), vectors, exact_limit=100)
    assert not index.is_exact
    scores = queries @ vectors.T
    similarities, found = index.search(queries, 1)
    assert (found[:, 0] == scores.argmax(axis=1)).mean() >= 0.99
    assert np.abs(similarities[:, 0] - scores.max(axis=1)).max() < 0.005
    index.save(tmp_path / "q.faiss", {})
    opened, _ = VectorIndex.open(tmp_path / "q.faiss", {})
    assert not opened.is_exact
    assert_same(opened.search(queries, 3), index.search(queries, 3))


def test_a_quantised_base_forgets_and_learns_as_an_exact_one_does():
    vectors = clustered(20, 10, 32)
    index = built(range(150), vectors[:150], exact_limit=100)
    index.add(np.arange(150, 200), vectors[150:])
    index.remove(np.arange(0, 200, 2))
    _, found = index.search(vectors, 1)
    assert (found[1::2, 0] == np.arange(1, 200, 2)).all()
    assert (found % 2 == 1).all()
    assert len(index) == 100


def test_at_the_limit_a_base_is_exact_and_one_above_it_is_not():
    assert built(range(10), unit(10), exact_limit=10).is_exact
    assert not built(range(11), unit(11), exact_limit=10).is_exact


# ---- in cells


@pytest.fixture(scope="module")
def in_cells():
    """An index whose vectors lie in cells, and those vectors."""
    vectors = clustered(60, 50, 32)
    index = built(range(len(vectors)), vectors, exact_limit=100, cells_limit=1000)
    assert index.facts["kind"] == "cells"
    return index, vectors


def near(vectors, n=300, seed=1):
    rng = np.random.default_rng(seed)
    rows = vectors[rng.permutation(len(vectors))[:n]] + 0.04 * rng.normal(size=(n, vectors.shape[1]))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_cells_reach_the_recall_that_their_facts_state(in_cells):
    index, vectors = in_cells
    assert index.facts["recall"] >= bases.WANTED_RECALL
    assert 1 <= index.facts["n_read"] <= bases.MOST_READ * index.facts["n_cells"]
    queries = near(vectors)
    similarities, found = index.search(queries, 1, vectors_of=lambda ids: vectors[ids])
    scores = queries @ vectors.T
    assert (found[:, 0] == scores.argmax(axis=1)).mean() >= 0.99
    np.testing.assert_allclose(similarities[:, 0], scores[np.arange(300), found[:, 0]], atol=1e-6)


def test_the_stated_recall_is_what_brute_force_says_of_the_held_out_vectors(in_cells):
    index, vectors = in_cells
    held_out = bases.HeldOut(np.arange(len(vectors)), vectors)
    for start in range(0, len(vectors), 700):  # in parts, as when a base is filled
        ids = np.arange(start, min(start + 700, len(vectors)))
        held_out.compare(ids, vectors[ids])
    scores = held_out.vectors @ vectors.T
    scores[np.arange(len(scores)), held_out.ids] = -np.inf
    np.testing.assert_array_equal(held_out.nearest, scores.argmax(axis=1))
    assert index.facts["recall"] == held_out.recall(index._base, index.facts["n_read"])
    assert held_out.recall(index._base, 1) < 1.0  # one cell does not find everything, so there is something to choose


def test_vectors_without_any_structure_are_kept_without_cells():
    vectors = unit(4000, 64)
    index = built(range(4000), vectors, exact_limit=100, cells_limit=1000)
    assert index.facts["kind"] == "quantised"
    assert index.facts["recall_in_cells"] < bases.WANTED_RECALL
    _, found = index.search(vectors[:200], 1, vectors_of=lambda ids: vectors[ids])
    assert found[:, 0].tolist() == list(range(200))


def test_cells_saved_and_opened_answer_the_same(in_cells, tmp_path):
    index, vectors = in_cells
    index.save(tmp_path / "c.faiss", {"generation": 3})
    opened, facts = VectorIndex.open(tmp_path / "c.faiss", {"generation": 3})
    assert facts["base"] == opened.facts == index.facts
    assert_same(opened.search(near(vectors), 4), index.search(near(vectors), 4))
    opened.remove(int64s(5, 9, 77_777))
    asked = opened.search(vectors[:1], 3, int64s(5, 6, 77_777))[1]
    assert asked.tolist() == [[6, NO_ID, NO_ID]]
    assert len(opened) == len(vectors) - 2
    (tmp_path / "c.faiss").unlink()
    assert 5 not in opened.search(vectors[5:6], 10)[1]


def test_cells_forget_and_learn_as_an_exact_base_does(in_cells):
    _, vectors = in_cells
    index = built(range(2900), vectors[:2900], exact_limit=100, cells_limit=1000)
    index.add(np.arange(2900, 3000), vectors[2900:])
    index.remove(np.arange(0, 3000, 2))
    _, found = index.search(vectors, 1)
    assert (found[1::2, 0] == np.arange(1, 3000, 2)).all()
    assert (found % 2 == 1).all()
    with pytest.raises(VectorError, match="id 1 is in the index"):
        index.add(int64s(1), vectors[1:2])


def test_cells_are_all_read_where_few_vectors_are_asked_for_or_many_are_wanted(in_cells):
    index, vectors = in_cells
    only = int64s(7, 1500, 2999)
    _, found = index.search(vectors[:3], 3, only)
    assert sorted(found[0].tolist()) == only.tolist()
    _, found = index.search(vectors[:3], len(vectors))
    assert sorted(found[1].tolist()) == list(range(len(vectors)))


def test_what_comes_in_parts_is_the_same_as_what_comes_at_once(in_cells):
    index, vectors = in_cells
    ids = np.arange(len(vectors))
    parts = VectorIndex(32, exact_limit=100, cells_limit=1000)
    every = max(1, len(ids) // parts.n_training(len(ids)))
    sample = (ids[::every], vectors[::every])
    parts.build_from(len(ids), sample, lambda: ((ids[i : i + 700], vectors[i : i + 700]) for i in range(0, 3000, 700)))
    assert parts.facts == index.facts
    assert_same(parts.search(near(vectors), 4), index.search(near(vectors), 4))


def test_an_id_in_two_parts_is_refused():
    index = VectorIndex(DIM)
    with pytest.raises(VectorError, match="twice"):
        index.build_from(2, (int64s(), unit(0)), lambda: [(int64s(3), unit(1)), (int64s(3), unit(1))])


def test_a_quantised_base_with_the_vectors_at_hand_answers_as_an_exact_one():
    vectors = clustered(50, 20, 64)
    vectors_of = vectors.__getitem__
    index = built(range(900), vectors[:900], exact_limit=100)
    index.add(np.arange(900, 1000), vectors[900:])
    index.remove(np.arange(0, 1000, 3))
    left = {i: vectors[i] for i in range(1000) if i % 3}
    assert_same(index.search(near(vectors), 3, vectors_of=vectors_of), brute_force(left, near(vectors), 3))


# ---- what cannot be held


BAD = {
    "nan": (int64s(7), np.full((1, DIM), np.nan, np.float32)),
    "infinite": (int64s(7), np.full((1, DIM), np.inf, np.float32)),
    "too short": (int64s(7), unit(1, DIM - 1)),
    "too long": (int64s(7), unit(1, DIM + 1)),
    "one-dimensional": (int64s(7), unit(1)[0]),
    "not unit length": (int64s(7), unit(1) * 1.01),
    "zero": (int64s(7), np.zeros((1, DIM), np.float32)),
    "given twice": (int64s(7, 7), unit(2)),
    "negative": (int64s(-1), unit(1)),
    "fewer ids": (int64s(7), unit(2)),
    "more ids": (int64s(7, 8), unit(1)),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("verb", ["add", "build"])
def test_what_cannot_be_held_is_refused_and_changes_nothing(case, verb):
    index = built([1, 2], unit(2))
    with pytest.raises(VectorError):
        getattr(index, verb)(*BAD[case])
    assert len(index) == 2
    assert 7 not in held(index, 30)
    assert index.search(unit(1), 3)[1][0][:2].tolist() in ([1, 2], [2, 1])


def test_one_bad_row_refuses_the_whole_batch():
    vectors = unit(5)
    vectors[4, 0] = np.nan
    index = VectorIndex(DIM)
    with pytest.raises(VectorError):
        index.add(np.arange(5), vectors)
    assert len(index) == 0


@pytest.mark.parametrize("fresh", [False, True])
def test_an_id_that_is_there_is_refused(fresh):
    index = VectorIndex(DIM)
    (index.add if fresh else index.build)(int64s(5), unit(1))
    with pytest.raises(VectorError, match="id 5"):
        index.add(int64s(4, 5), unit(2, seed=3))
    assert len(index) == 1
    assert 4 not in held(index, 30)


@pytest.mark.parametrize("case", ["nan", "infinite", "too short", "too long", "one-dimensional"])
def test_a_query_that_is_no_vector_of_this_index_is_refused(case):
    with pytest.raises(VectorError):
        built([1, 2], unit(2)).search(BAD[case][1], 1)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_1_is_refused(k):
    with pytest.raises(VectorError, match=f"k is {k}"):
        built([1], unit(1)).search(unit(1), k)


# ---- saved and opened


@given(st.integers(0, 60), st.integers(0, 2**32 - 1), st.sampled_from([10, 1000]))
@ORDINARY
def test_saved_then_opened_changes_nothing(folder, n, seed, exact_limit):
    vectors, queries = unit(n, seed=seed), unit(6, seed=seed + 1)
    ids = np.random.default_rng(seed).permutation(1000)[:n].astype(np.int64)
    index = built(ids, vectors, exact_limit=exact_limit)
    index.save(folder / "a.faiss", {"kind": "support", "generation": 3})
    opened, facts = VectorIndex.open(folder / "a.faiss", {"kind": "support"})
    assert (facts["generation"], facts["n_vectors"], facts["dim"]) == (3, n, DIM)
    assert (len(opened), opened.dim, opened.is_exact) == (n, DIM, index.is_exact)
    assert held(opened, 1000) == sorted(ids.tolist())
    k = max(1, n)
    one, other = index.search(queries, k), opened.search(queries, k)
    np.testing.assert_array_equal(one[1], other[1])
    np.testing.assert_array_equal(one[0], other[0])


def test_an_opened_index_can_be_changed_and_its_file_stays_as_it_was(tmp_path):
    vectors = unit(6)
    built(range(4), vectors[:4]).save(tmp_path / "a.faiss", {})
    before = (tmp_path / "a.faiss").read_bytes()
    opened, _ = VectorIndex.open(tmp_path / "a.faiss", {})
    with pytest.raises(VectorError):
        opened.add(int64s(2), vectors[5:])
    opened.remove(int64s(0))
    opened.add(int64s(4, 0), vectors[4:])
    assert_same(
        opened.search(vectors, 6), brute_force(dict(zip([1, 2, 3, 4, 0], vectors[1:], strict=True)), vectors, 6)
    )
    assert (tmp_path / "a.faiss").read_bytes() == before


def test_an_opened_index_outlives_the_replacement_and_deletion_of_its_file(tmp_path):
    vectors = unit(50)
    built(range(50), vectors).save(tmp_path / "a.faiss", {})
    opened, _ = VectorIndex.open(tmp_path / "a.faiss", {})
    built([7], unit(1, seed=8)).save(tmp_path / "a.faiss", {})
    (tmp_path / "a.faiss").unlink()
    assert opened.search(vectors, 1)[1][:, 0].tolist() == list(range(50))


@pytest.mark.parametrize("limits", [{}, {"exact_limit": 100}, {"exact_limit": 100, "cells_limit": 200}])
def test_a_file_may_lie_in_a_folder_whose_name_is_no_utf8(tmp_path, limits):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    vectors = unit(1000)
    saved = VectorIndex(DIM, **limits)
    saved.build(np.arange(1000), vectors)
    n_open = len(list(Path("/dev/fd").iterdir()))
    saved.save(folder / "a.faiss", {"generation": 1})
    opened, facts = VectorIndex.open(folder / "a.faiss", {"generation": 1})
    assert len(list(Path("/dev/fd").iterdir())) == n_open
    assert list(folder.iterdir()) == [folder / "a.faiss"]
    assert facts["base"] == saved.facts
    assert_same(opened.search(vectors[:5], 3), saved.search(vectors[:5], 3))


def replaced_while_read(path, monkeypatch, times):
    """From now on another process writes the index anew, with one vector more, just before faiss reads it."""
    read, seen = bases.faiss.read_index, []

    def replace_and_read(*words):
        seen.append(words)
        if len(seen) <= times:
            n = 50 + len(seen)
            built(range(n), unit(n)).save(path, {"generation": n})
        return read(*words)

    monkeypatch.setattr(bases.faiss, "read_index", replace_and_read)
    return seen


def test_an_index_that_is_replaced_while_it_is_opened_is_opened_anew_as_one_file(tmp_path, monkeypatch):
    path = tmp_path / "a.faiss"
    built(range(50), unit(50)).save(path, {"generation": 50})
    seen = replaced_while_read(path, monkeypatch, times=2)
    opened, facts = VectorIndex.open(path, {})
    assert len(seen) == 3
    assert len(opened) == facts["generation"] == facts["n_vectors"] == 52


def test_an_index_that_is_replaced_without_end_is_given_up(tmp_path, monkeypatch):
    path = tmp_path / "a.faiss"
    built(range(50), unit(50)).save(path, {"generation": 50})
    seen = replaced_while_read(path, monkeypatch, times=1000)
    with pytest.raises(CacheDamagedError, match="replaced"):
        VectorIndex.open(path, {})
    assert len(seen) < 10


def test_an_index_replaced_by_one_with_other_facts_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.faiss"
    built(range(50), unit(50)).save(path, {"generation": 50})
    replaced_while_read(path, monkeypatch, times=1)
    with pytest.raises(CacheDamagedError, match="has generation 51; wanted 50"):
        VectorIndex.open(path, {"generation": 50})


@pytest.mark.parametrize("error", [RuntimeError("no space"), OSError(28, "No space left on device")])
def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch, error):
    built([1], unit(1)).save(tmp_path / "a.faiss", {"generation": 1})

    def fail(index, name):
        with open(name, "wb") as file:  # noqa: PTH123 - as faiss does
            file.write(b"half")
        raise error

    monkeypatch.setattr(bases.faiss, "write_index", fail)
    with pytest.raises(type(error)):
        built([2], unit(1)).save(tmp_path / "a.faiss", {"generation": 2})
    assert VectorIndex.open(tmp_path / "a.faiss", {})[1]["generation"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.faiss"]


@pytest.mark.parametrize("exact_limit", [5, 1000])
def test_a_flipped_bit_anywhere_is_refused(tmp_path, exact_limit):
    path = tmp_path / "a.faiss"
    built(range(20), unit(20), exact_limit=exact_limit).save(path, {"kind": "support"})
    data = path.read_bytes()
    for at in [*range(0, len(data), 11), *range(len(data) - 40, len(data))]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(CacheDamagedError):
            VectorIndex.open(path, {"kind": "support"})


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "a.faiss"
    built(range(20), unit(20)).save(path, {})
    data = path.read_bytes()
    for length in [0, 1, 19, 20, *range(30, len(data), 41), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CacheDamagedError):
            VectorIndex.open(path, {})


def test_a_missing_file_a_stranger_and_a_sealed_stranger_are_refused(tmp_path):
    with pytest.raises(CacheDamagedError):
        VectorIndex.open(tmp_path / "missing", {})
    (tmp_path / "stranger").write_bytes(b"not an index" * 50)
    with pytest.raises(CacheDamagedError):
        VectorIndex.open(tmp_path / "stranger", {})
    write_sealed(tmp_path / "sealed", lambda target: target.write_bytes(b"not faiss" * 50), {"dim": DIM})
    with pytest.raises(CacheDamagedError, match="faiss"):
        VectorIndex.open(tmp_path / "sealed", {})


@pytest.mark.parametrize(
    "expected",
    [{"kind": "prototype"}, {"fingerprint": "other@1"}, {"token": "x"}, {"kind": "support", "fingerprint": None}],
)
def test_other_facts_than_expected_are_refused(tmp_path, expected):
    built([1], unit(1)).save(tmp_path / "a.faiss", {"kind": "support", "fingerprint": "lite0@1"})
    with pytest.raises(CacheDamagedError, match="wanted"):
        VectorIndex.open(tmp_path / "a.faiss", expected)


def test_search_among_some_ids_only_finds_those_whether_old_fresh_or_removed():
    vectors = unit(30, seed=4)
    index = built(list(range(20)), vectors[:20])
    index.add(np.arange(20, 30), vectors[20:])
    index.remove(np.array([3, 25]))
    only = np.array([1, 3, 5, 21, 25, 27, 99])
    similarities, ids = index.search(vectors[:6], 5, only)
    there = np.array([1, 5, 21, 27])
    for row in range(6):
        order = np.argsort(-(vectors[there] @ vectors[row]))
        assert ids[row].tolist() == [*there[order].tolist(), -1]
        assert similarities[row, -1] == -np.inf
    assert (index.search(vectors[:1], 2, np.array([], np.int64))[1] == -1).all()


def test_cells_around_given_centres_find_nearly_all_and_live_through_a_file(tmp_path):
    rng = np.random.default_rng(4)
    n_centres, n_each, dim = 600, 5, 32
    centres = rng.normal(size=(n_centres, dim))
    centres = (centres / np.linalg.norm(centres, axis=1, keepdims=True)).astype(np.float32)
    ids = np.arange(n_centres * n_each, dtype=np.int64)
    vectors = centres[ids // n_each] + rng.normal(scale=0.05, size=(len(ids), dim))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index = VectorIndex(dim, exact_limit=100, cells_limit=100)
    index.build_from(len(ids), (ids, vectors), lambda: [(ids, vectors)], lambda: (centres, lambda some: some // n_each))
    assert index.facts["kind"] == "cells"
    assert index.facts["n_cells"] == n_centres, "the centres themselves, not as many as would be fitted"
    assert index.facts["recall"] >= 0.995
    index.save(tmp_path / "cells", {})
    opened, _ = VectorIndex.open(tmp_path / "cells", {})
    for each in (index, opened):
        similarities, found = each.search(vectors[:200], 1, vectors_of=lambda some: vectors[some])
        assert (found[:, 0] == ids[:200]).mean() >= 0.99
        assert np.allclose(similarities[found[:, 0] == ids[:200]], 1.0, atol=1e-5)
    opened.remove(ids[:3])
    opened.add(ids[-1:] + 1, vectors[:1])
    assert len(opened) == len(ids) - 2
    assert opened.search(vectors[:1], 1, vectors_of=lambda some: vectors[some % len(ids)])[1][0, 0] == len(ids)
