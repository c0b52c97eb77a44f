"""The system of record: what is refused at the door, what a change keeps, what damage is noticed."""

import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from fewshot.errors import (
    DiskFullError,
    IndexDamagedError,
    IndexLockedError,
    IndexMissingError,
    IndexUnwritableError,
    LabelTakenError,
    NewerFormatError,
    NotAnIndexError,
    UnknownLabelError,
)
from fewshot.records import EmbeddedPhoto
from fewshot.store import FILE_NAME, Store, open_store
from fewshot.store.drawing import drawn
from fewshot.store.schema import (
    APPLICATION_ID,
    FORMAT_VERSION,
    about,
    embeddings,
    metadata,
    prototypes,
    removals,
    staged,
    thumbnails,
)

DIM = 8


def unit_vector(seed):
    vector = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def photo(name, *, n_thumbnail_bytes=40):
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    thumbnail = np.random.default_rng(seed).bytes(n_thumbnail_bytes)
    return EmbeddedPhoto(name, hashlib.sha256(name.encode()).hexdigest(), 80, 72, unit_vector(seed), thumbnail)


def add_class(store, label, *names, n_thumbnail_bytes=40):
    """One change: a class with photos; their ids."""
    with store.write() as writer:
        if writer.about().fingerprint is None:
            writer.pin_embedder(
                {"fingerprint": "colours@0", "precision": "f32", "dim": DIM, "source": {}, "backbone": {}}
            )
        class_id = writer.add_class(label)
        ids = writer.add_supports(class_id, [photo(name, n_thumbnail_bytes=n_thumbnail_bytes) for name in names])
        _, vectors = writer.class_vectors(class_id)
        mean = vectors.sum(axis=0)
        writer.set_prototypes(class_id, (mean / np.linalg.norm(mean))[None])
        writer.note("enroll", label, n_supports=len(ids))
    return ids


def content(store):
    """All rows of all tables."""
    with store.read() as reader:
        return {
            table.name: [tuple(row) for row in reader.connection.execute(sa.select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
        }


def change(store, statement):
    """Change the record behind the index's back; how many rows were changed."""
    with store.write() as writer:
        return writer.connection.execute(statement).rowcount


@pytest.fixture
def store(place):
    """A new, empty index: in a folder, and in a database."""
    with closing(open_store(place, create=True, timeout_s=0.05)) as opened:
        yield opened


@pytest.fixture
def closed(store):
    """Where a sound index with two classes is that nobody has open."""
    add_class(store, "healthy", "a.png", "b.png")
    add_class(store, "rust", "c.png")
    store.close()
    return store.place


@pytest.fixture
def file(tmp_path):
    """A new, empty index in a folder."""
    with closing(Store(tmp_path / "plants", create=True, timeout_s=0.05)) as opened:
        yield opened


@pytest.fixture
def closed_file(file):
    """The folder of a sound index with a class that nobody has open."""
    add_class(file, "rust", "c.png")
    file.close()
    return file.folder


# ---- what is refused at the door


@pytest.mark.parametrize("make_folder", [False, True])
def test_missing_index_is_refused_with_the_way_to_make_it(tmp_path, make_folder):
    folder = tmp_path / "nowhere"
    if make_folder:
        folder.mkdir()
    with pytest.raises(IndexMissingError, match="nowhere") as caught:
        Store(folder)
    assert "enroll" in caught.value.hint
    assert not (folder / FILE_NAME).exists(), "asking must not make an index"


@pytest.mark.parametrize("create", [False, True])
def test_file_instead_of_a_folder_is_no_index_and_is_left_as_it_is(tmp_path, create):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NotAnIndexError, match=r"notes\.txt is a file"):
        Store(tmp_path / "notes.txt", create=create)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("create", [False, True])
def test_folder_with_other_things_is_no_index_and_gets_none(tmp_path, create):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    with pytest.raises(NotAnIndexError, match="photos"):
        Store(tmp_path / "photos", create=create)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]


@pytest.mark.parametrize("create", [False, True])
def test_folder_below_a_file_cannot_be_an_index(tmp_path, create):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(IndexUnwritableError if create else IndexMissingError, match="file"):
        Store(tmp_path / "file" / "index", create=create)


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("owner", [0, 0x12345678])
def test_sqlite_file_of_another_program_is_refused_and_not_one_byte_of_it_changes(tmp_path, create, owner):
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / FILE_NAME
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.execute(f"PRAGMA application_id = {owner}")
    before = path.read_bytes()
    with pytest.raises(NotAnIndexError, match="another program"):
        Store(path.parent, create=create)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("n_bytes", [99, 4096, 50_000])
def test_random_bytes_are_no_index_and_are_left_as_they_are(tmp_path, create, n_bytes):
    (tmp_path / "random").mkdir()
    path = tmp_path / "random" / FILE_NAME
    path.write_bytes(np.random.default_rng(0).bytes(n_bytes))
    before = path.read_bytes()
    with pytest.raises(NotAnIndexError, match="SQLite"):
        Store(path.parent, create=create)
    assert path.read_bytes() == before


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.95])
def test_truncated_index_is_refused_as_damaged(file, create, part):
    add_class(file, "rust", *(f"{i}.png" for i in range(40)), n_thumbnail_bytes=3000)
    file.close()
    data = file.path.read_bytes()
    file.path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(IndexDamagedError, match=r"'plants' is damaged") as caught:
        Store(file.folder, create=create)
    assert "copy" in caught.value.hint


@pytest.mark.parametrize("create", [False, True])
def test_newer_format_is_refused_with_both_version_numbers(closed_file, create):
    with closing(sqlite3.connect(closed_file / FILE_NAME)) as connection:
        connection.execute("PRAGMA user_version = 97")
    with pytest.raises(NewerFormatError, match="'plants'") as caught:
        Store(closed_file, create=create)
    assert "97" in caught.value.message
    assert f"up to {FORMAT_VERSION}" in caught.value.message


def test_never_finished_index_is_told_from_a_finished_one_and_can_be_finished(tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / FILE_NAME).touch()  # what a maker that is killed before its first commit leaves
    with pytest.raises(IndexMissingError, match="never finished"):
        Store(tmp_path / "begun")
    with closing(Store(tmp_path / "begun", create=True)) as store:
        add_class(store, "rust", "a.png")
    with closing(Store(tmp_path / "begun")) as store, store.read() as reader:
        assert reader.labels() == ["rust"]


def test_index_without_its_own_facts_is_damaged(store):
    change(store, about.delete())
    with store.read() as reader, pytest.raises(IndexDamagedError, match="facts are missing"):
        reader.about()


def test_index_says_whose_file_it_is_and_which_format(file):
    with closing(sqlite3.connect(file.path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (FORMAT_VERSION,)


# ---- other processes


def test_index_locked_by_another_connection_says_so_keeps_nothing_and_can_still_be_read(file):
    add_class(file, "healthy", "a.png")
    before = content(file)
    with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(IndexLockedError, match="'plants' is locked"):
            add_class(file, "rust", "b.png")
        with file.read() as reader:
            assert reader.labels() == ["healthy"]
        with closing(Store(file.folder, timeout_s=0.05)) as second, second.read() as reader:
            assert reader.labels() == ["healthy"]
        other.execute("ROLLBACK")
    assert content(file) == before
    add_class(file, "rust", "b.png")


def test_a_reader_keeps_its_view_while_another_writes(store):
    add_class(store, "healthy", "a.png")
    with closing(open_store(store.place)) as other, store.read() as reader:
        assert reader.n_supports() == 1
        add_class(other, "rust", "b.png")
        assert (reader.labels(), reader.n_supports()) == (["healthy"], 1)
    with store.read() as reader:
        assert reader.labels() == ["healthy", "rust"]


# ---- a change is whole, durable, or has not been


def test_every_connection_is_in_wal_mode_with_full_sync_and_foreign_keys(file):
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    with file.read() as first, file.read() as second, file.write() as third:
        for reader in (first, second, third):
            found = {name: reader._connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in wanted}
            assert found == wanted


def test_foreign_keys_are_enforced(store):
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"), store.write() as writer:
        writer.add_supports(99, [photo("a.png")])
    assert content(store)["supports"] == []


def test_a_change_that_fails_half_way_leaves_nothing(store):
    add_class(store, "healthy", "a.png")
    before = content(store)

    def half_a_change():
        with store.write() as writer:
            writer.remove_class(writer.wanted_class_id("healthy"))
            writer.add_supports(writer.add_class("rust"), [photo("b.png")])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_a_change()
    assert content(store) == before


def test_full_disk_inside_a_change_leaves_the_content_unchanged(file):
    add_class(file, "healthy", "a.png")
    before = content(file)

    def change_without_room():
        with file.write() as writer:
            n_pages = writer._connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            writer._connection.exec_driver_sql(f"PRAGMA max_page_count = {n_pages + 3}")
            writer.add_supports(writer.add_class("rust"), [photo("b.png", n_thumbnail_bytes=100_000)])

    with pytest.raises(DiskFullError, match="'plants' is full") as caught:
        change_without_room()
    assert "space" in caught.value.hint
    assert content(file) == before


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1.5 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", folder], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here: run as root to fill a real disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_really_full_disk_keeps_what_was_there_and_takes_the_change_once_there_is_room(small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(700_000))
    with closing(Store(small_disk / "plants", create=True)) as store:
        add_class(store, "healthy", "a.png", n_thumbnail_bytes=1000)
        before = content(store)
        with pytest.raises(DiskFullError, match="change was not kept"):
            add_class(store, "rust", *(f"{i}.png" for i in range(20)), n_thumbnail_bytes=50_000)
        assert content(store) == before
        with store.read() as reader:
            assert reader.problems() == []
        filler.unlink()
        add_class(store, "rust", "b.png", "c.png", n_thumbnail_bytes=50_000)
    with closing(Store(small_disk / "plants")) as store, store.read() as reader:
        assert [(each.label, each.supports) for each in reader.classes()] == [("healthy", 1), ("rust", 2)]
        assert reader.problems() == []


def test_new_index_on_a_full_disk_is_refused_as_full(small_disk):
    with (small_disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises((DiskFullError, IndexUnwritableError)):
        Store(small_disk / "plants", create=True)


# ---- damage


def flipped(blob):
    return blob[:5] + bytes([blob[5] ^ 0x10]) + blob[6:]


@pytest.mark.parametrize("table", [embeddings, prototypes], ids=lambda table: table.name)
@pytest.mark.parametrize("damage", [flipped, lambda blob: blob[:-4], lambda blob: blob[:4]])
def test_damaged_vector_is_noticed_when_read_and_named_by_problems(store, table, damage):
    add_class(store, "healthy", "a.png", "b.png")
    damaged = add_class(store, "rust", "c.png", "d.png")[0] if table is embeddings else 2
    if table is prototypes:
        add_class(store, "rust", "c.png", "d.png")
    (key,) = table.primary_key
    with store.read() as reader:
        blob = reader.connection.execute(sa.select(table.c.vector).where(key == damaged)).scalar_one()
    assert change(store, table.update().where(key == damaged).values(vector=damage(blob))) == 1
    kind = "support" if table is embeddings else "prototype"
    with store.read() as reader:
        with pytest.raises(IndexDamagedError, match=rf"row {damaged} does not fit its checksum"):
            reader.changed_vectors(kind, since=-1)
        class_id = reader.wanted_class_id("rust")
        with pytest.raises(IndexDamagedError, match="checksum"):
            reader.class_vectors(class_id) if kind == "support" else reader.prototypes_of(class_id)
        problems = reader.problems()
    assert len(problems) == 1, problems
    assert f"{kind} {damaged} " in problems[0]


def test_every_hint_of_damage_names_this_index_as_a_shell_takes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Path("my plants")
    with closing(Store(place, create=True)) as opened:
        (damaged,) = add_class(opened, "rust", "c.png")
        change(opened, embeddings.update().values(vector=b""))
        change(opened, thumbnails.update().values(webp=b""))
        with opened.read() as reader:
            for ask in (
                lambda: reader.support_vectors(np.array([damaged])),
                lambda: reader.support_vectors(np.array([999])),
                lambda: reader.thumbnail(damaged),
            ):
                with pytest.raises(IndexDamagedError) as caught:
                    ask()
                assert "`fewshot doctor --index './my plants'`" in caught.value.hint
        change(opened, about.delete())
        with opened.read() as reader, pytest.raises(IndexDamagedError) as caught:
            reader.about()
        assert "`fewshot doctor --index './my plants'`" in caught.value.hint
        assert "`fewshot doctor --index './my plants'`" in opened.translated(sqlite3.DatabaseError("malformed")).hint


def test_vector_of_no_bytes_is_noticed_in_a_file(file):
    """A server's column cannot hold one."""
    (damaged,) = add_class(file, "rust", "c.png")
    change(file, embeddings.update().values(vector=b""))
    with file.read() as reader:
        assert reader.problems() == [f"the vector of support {damaged} does not fit its checksum"]


def test_damaged_thumbnail_is_noticed_when_read_and_named_by_problems(store):
    first, second = add_class(store, "rust", "a.png", "b.png")
    damaged = flipped(photo("b.png").thumbnail)
    change(store, thumbnails.update().where(thumbnails.c.support_id == second).values(webp=damaged))
    with store.read() as reader:
        assert reader.thumbnail(first) == photo("a.png").thumbnail
        with pytest.raises(IndexDamagedError, match=rf"support {second} does not fit its\s+checksum"):
            reader.thumbnail(second)
        assert reader.problems() == [f"the webp of support {second} does not fit its checksum"]


def without_foreign_keys(store):
    """What damage does that no rule of the database foresaw."""
    if isinstance(store, Store):
        connection = store._engine.connect()
        connection.exec_driver_sql("ROLLBACK") if connection.in_transaction() else None
        connection.connection.driver_connection.execute("PRAGMA foreign_keys = OFF")
        return connection
    connection = store._connect(write=True)
    connection.exec_driver_sql("SET session_replication_role = replica")
    return connection


def test_problems_names_supports_without_embedding_and_rows_that_refer_to_nothing(store):
    first, _ = add_class(store, "rust", "a.png", "b.png")
    with without_foreign_keys(store) as connection:
        connection.execute(embeddings.delete().where(embeddings.c.support_id == first))
        connection.execute(thumbnails.update().where(thumbnails.c.support_id == first).values(support_id=77))
        connection.commit()
        connection.invalidate()  # not to be lent again
    with store.read() as reader:
        problems = reader.problems()
    assert "1 supports have no embedding" in problems
    assert any("thumbnails refers to nothing in supports" in text for text in problems)


def test_sound_index_has_no_problems(closed):
    with closing(open_store(closed)) as store, store.read() as reader:
        assert reader.problems() == []


# ---- ids, generations, history


def test_removed_ids_are_never_given_again(store):
    first = add_class(store, "rust", "a.png", "b.png")
    with store.write() as writer:
        old_class = writer.wanted_class_id("rust")
        assert writer.remove_class(old_class) == 2
        writer.note("remove", "rust")
    second = add_class(store, "rust", "a.png", "b.png")
    assert min(second) > max(first)
    with store.read() as reader:
        assert reader.wanted_class_id("rust") > old_class
        prototype_ids, _ = reader.changed_vectors("prototype", -1)
        assert not set(prototype_ids.tolist()) & set(reader.removed_ids("prototype", -1).tolist())
        assert sorted(reader.removed_ids("support", -1).tolist()) == first


def test_each_change_counts_the_generation_once_and_leaves_its_own_token(store):
    def generation():
        with store.read() as reader:
            return reader.about().generation

    assert generation() == 0
    add_class(store, "healthy", "a.png", "b.png", "c.png")
    assert generation() == 1
    with store.write() as writer:
        writer.rename_class(writer.wanted_class_id("healthy"), "well")
        writer.note("rename", "healthy", to="well")
    assert generation() == 2
    with store.write() as writer:
        writer.remove_class(writer.wanted_class_id("well"))
        writer.note("remove", "well")
    assert generation() == 3
    with store.read() as reader:
        tokens = [reader.token(number) for number in (1, 2, 3)]
        assert reader.token(4) is None
    assert None not in tokens
    assert len(set(tokens)) == 3


def test_a_user_whose_name_is_no_utf8_may_change_an_index(store, monkeypatch):
    monkeypatch.setenv("FEWSHOT_USER", os.fsdecode(b"Jos\xe9"))
    add_class(store, "rust", "a.png")
    with store.read() as reader:
        assert [line["who"] for line in reader.history()] == ["Jos\\xe9"]


def test_history_has_one_line_a_change_newest_first_with_who_and_when(store, monkeypatch):
    monkeypatch.setenv("FEWSHOT_USER", "ada")
    add_class(store, "rust", "a.png")
    add_class(store, "rust", "b.png", "c.png")
    with store.read() as reader:
        lines, latest = reader.history(), reader.history(limit=1)
    assert [(line["action"], line["label"], line["detail"]) for line in lines] == [
        ("enroll", "rust", {"n_supports": 2}),
        ("enroll", "rust", {"n_supports": 1}),
    ]
    assert {line["who"] for line in lines} == {"ada"}
    assert lines[0]["at"] >= lines[1]["at"]
    assert latest == lines[:1]


def test_changed_vectors_gives_what_was_written_since_and_nothing_else(store):
    first = add_class(store, "healthy", "a.png")
    second = add_class(store, "rust", "b.png", "c.png")
    with store.read() as reader:
        assert reader.changed_vectors("support", -1)[0].tolist() == [*first, *second]
        ids, vectors = reader.changed_vectors("support", 1)
        assert ids.tolist() == second
        assert np.array_equal(vectors, np.stack([photo("b.png").embedding, photo("c.png").embedding]))
        assert reader.n_rows("support", since=1) == 2
        assert reader.changed_vectors("support", 2)[0].tolist() == []


def test_photos_that_can_be_asked_are_those_with_an_own_similarity_evenly_chosen(store):
    ids = add_class(store, "rust", *(f"{i}.png" for i in range(6)))
    with store.read() as reader:
        assert [len(part) for part in reader.asked_supports(100)] == [0, 0, 0, 0]
    with store.write() as writer:
        writer.set_own_similarities(np.array(ids[1:]), np.array([0.5, 0.1, 0.4, 0.2, 0.3], np.float32), np.arange(5))
        writer.note("enroll", "rust")
    with store.read() as reader:
        found, class_ids, own, shown = reader.asked_supports(100)
        assert shown.tolist() == ids[1:]
        assert found.tolist() == ids[1:]
        assert set(class_ids.tolist()) == {reader.class_id("rust")}
        assert own.tolist() == pytest.approx([0.5, 0.1, 0.4, 0.2, 0.3])
        thinned = reader.asked_supports(2)
        assert 1 <= len(thinned[0]) <= 2
        within = [reader.class_id("rust")]
        assert all(
            np.array_equal(a, b)
            for a, b in zip(reader.asked_supports(100, within), (found, class_ids, own, shown), strict=True)
        )
        assert reader.asked_supports(2, within)[0].tolist() == thinned[0].tolist()
        assert [len(part) for part in reader.asked_supports(100, [])] == [0, 0, 0, 0]
        assert reader.class_sizes() == {reader.class_id("rust"): 6}
        backwards = reader.support_vectors(found[::-1])
        assert np.array_equal(backwards[::-1], reader.support_vectors(found))
        with pytest.raises(IndexDamagedError, match="support 999 has no embedding"):
            reader.support_vectors(np.array([999]))
        assert reader.ids_of("support", [reader.class_id("rust")]).tolist() == ids
        assert reader.class_ids(["rust", "none"]) == [reader.class_id("rust")]


@pytest.mark.parametrize(("n", "n_most"), [(4001, 4000), (4001, 2500), (1999, 1000), (300, 7), (10, 10), (10, 99)])
def test_about_as_many_are_drawn_as_may_be_and_from_everywhere(store, n, n_most):
    numbers = np.arange(1, n + 1) + 2**40  # a database counts so far without being asked
    change(store, removals.insert().values([{"kind": "x", "removed_id": int(i), "generation": 1} for i in numbers]))
    with store.read() as reader:
        query = sa.select(removals.c.removed_id).where(drawn(removals.c.removed_id, n, n_most))
        found = np.sort(np.array(reader.connection.execute(query).scalars().all()))
    wanted = min(n, n_most)
    assert abs(len(found) - wanted) <= 2
    of_each_part = np.histogram(found, 5, (numbers[0], numbers[-1]))[0]
    assert abs(of_each_part - wanted / 5).max() <= 3


def test_new_embeddings_are_put_aside_in_one_statement_and_the_last_ones_count(store):
    ids = add_class(store, "rust", *(f"{i}.png" for i in range(4)))
    said = []
    with store.write() as writer:
        event.listen(writer.connection, "before_cursor_execute", lambda *given: said.append(given[2]))
        writer.stage("others@0", {i: unit_vector(i) for i in ids[:3]})
        assert len(said) == 1
        writer.stage("others@1", {i: unit_vector(100 + i) for i in ids[1:]})
        writer.stage("others@1", {})
        assert len(said) == 2
    with store.read() as reader:
        assert [row[0] for row in reader.unstaged("others@0")] == ids[1:]
        assert [row[0] for row in reader.unstaged("others@1")] == ids[:1]
        query = sa.select(staged.c.support_id, staged.c.vector)
        kept = {i: np.frombuffer(vector, "<f4") for i, vector in reader.connection.execute(query)}
    for i in ids:
        assert np.array_equal(kept[i], unit_vector(i if i == ids[0] else 100 + i))


# ---- classes


def test_unknown_label_suggests_the_nearest(closed):
    with (
        closing(open_store(closed)) as store,
        store.read() as reader,
        pytest.raises(UnknownLabelError, match="'helthy'") as caught,
    ):
        reader.wanted_class_id("helthy")
    assert "'healthy'" in caught.value.hint


def test_rename_onto_another_class_is_refused_and_onto_itself_is_not(closed):
    with closing(open_store(closed)) as store:
        with pytest.raises(LabelTakenError, match="'rust'"), store.write() as writer:
            writer.rename_class(writer.wanted_class_id("healthy"), "rust")
        with store.write() as writer:
            writer.rename_class(writer.wanted_class_id("healthy"), "healthy")
            writer.note("rename", "healthy", to="healthy")
        with store.read() as reader:
            assert reader.labels() == ["healthy", "rust"]


def test_the_same_photo_cannot_stand_twice_in_the_tables(store):
    add_class(store, "rust", "a.png")
    with pytest.raises(IntegrityError, match=r"(?i)unique"):
        add_class(store, "healthy", "a.png")
    with store.read() as reader:
        assert (reader.labels(), reader.n_supports()) == (["rust"], 1)


def test_questions_about_more_values_than_sqlite_takes_at_once_are_answered(store):
    names = [f"{i}.png" for i in range(1200)]
    ids = add_class(store, "rust", *names, n_thumbnail_bytes=1)
    with store.read() as reader:
        assert sorted(reader.supports(ids)) == ids
        assert len(reader.labels_of_photos([photo(name).sha256 for name in names])) == 1200


def test_save_then_open_changes_nothing(closed):
    with closing(open_store(closed)) as store:
        before = content(store)
    with closing(open_store(closed, create=True)) as store:
        assert content(store) == before
        with store.read() as reader:
            assert [(each.label, each.supports, each.prototypes) for each in reader.classes()] == [
                ("healthy", 2, 1),
                ("rust", 1, 1),
            ]


def test_only_a_file_name_is_kept_of_where_a_photo_was(store, tmp_path):
    with store.write() as writer:
        writer.add_supports(writer.add_class("rust"), [photo(str(tmp_path / "private" / "a.png"))])
        writer.note("enroll", "rust")
        query = sa.text("SELECT file FROM supports")
        assert writer._connection.execute(query).scalars().all() == ["a.png"]
