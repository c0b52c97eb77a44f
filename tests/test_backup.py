"""Backups: taken while the index changes, verified, and restored as one change or as a new index."""

import errno
import os
import shutil
import sqlite3
import threading
from contextlib import closing

import numpy as np
import pytest
from conftest import LEAF_COLOURS, write_leaf

import fewshot.backup
from fewshot.backup import KEPT_FOLDER, back_up, backups_in, chosen_backup, read_backup, restore
from fewshot.datasets import ClassFolder, class_folders
from fewshot.errors import (
    BackupDamagedError,
    BackupError,
    BackupMissingError,
    DiskFullError,
    IndexDamagedError,
    IndexExistsError,
    IndexLockedError,
    NewerFormatError,
    NotAnIndexError,
    OtherIndexError,
    UsageError,
)
from fewshot.gallery import Gallery
from fewshot.sealed import write_sealed
from fewshot.service.tokens import TokenFile
from fewshot.store import FILE_NAME


def content(gallery):
    return {label: dict(photos) for label, photos in gallery.photo_hashes()}


@pytest.fixture
def filled(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=3))))
    return gallery


def reopened(folder, embedder):
    return Gallery(folder, embedder=embedder)


def test_a_backup_restored_is_the_index_it_was_taken_of(filled, tmp_path, embedder):
    made = filled.backup(tmp_path / "kept")
    assert (made.n_classes, made.n_supports, made.event_id) == (4, 12, 4)
    done = restore(chosen_backup(tmp_path / "kept"), tmp_path / "again")
    assert done.kept is None
    with reopened(tmp_path / "again", embedder) as again:
        assert content(again) == content(filled)
        assert again.problems() == []
        assert again.history(1)[0]["action"] == "restore"
        photos = [tmp_path / "photos" / "rust" / "rust-00.png"]
        assert [each.matches for each in again.query(photos)] == [each.matches for each in filled.query(photos)]


def test_a_backup_taken_while_photos_are_enrolled_holds_what_was_acknowledged_before_it(filled, tmp_path, embedder):
    acknowledged, stop = [], threading.Event()

    def enroll():
        for i in range(40):
            photo = write_leaf(tmp_path / "new" / f"{i}.png", (20, 30, 200), 500 + i)
            (report,) = filled.enroll([ClassFolder("new", (photo,))])
            acknowledged.extend(report.support_ids)
            if stop.is_set():
                return

    thread = threading.Thread(target=enroll)
    thread.start()
    for number in range(4):
        before = list(acknowledged)
        made = filled.backup(tmp_path / f"{number}.backup")
        restore(made, tmp_path / f"index-{number}")
        with reopened(tmp_path / f"index-{number}", embedder) as again:
            assert set(before) <= {i for photos in content(again).values() for i in photos}
            assert again.problems() == []
    stop.set()
    thread.join()


@pytest.mark.parametrize("change", ["flip", "cut", "empty"])
def test_a_damaged_backup_is_refused_and_changes_nothing(filled, tmp_path, change):
    made = filled.backup(tmp_path / "one.backup")
    whole = made.path.read_bytes()
    at = len(whole) // 3
    flipped = whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
    made.path.write_bytes({"flip": flipped, "cut": whole[:at], "empty": b""}[change])
    before = content(filled)
    with pytest.raises(BackupDamagedError):
        restore(made, filled.folder, replace=True)
    assert content(filled) == before
    with pytest.raises(BackupDamagedError):
        restore(made, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_damaged_index_is_not_backed_up_and_the_older_backup_stays(filled, tmp_path):
    made = filled.backup(tmp_path / "one.backup")
    whole = made.path.read_bytes()
    with filled._store.write() as writer:
        writer._connection.exec_driver_sql("UPDATE embeddings SET xxh3 = xxh3 + 1 WHERE support_id = 3")
    with pytest.raises(IndexDamagedError, match=r"not backed up.*vector of support 3"):
        filled.backup(tmp_path / "one.backup")
    assert made.path.read_bytes() == whole


def test_what_is_no_backup_is_never_written_over(filled, tmp_path):
    (tmp_path / "thesis.backup").write_text("the only copy")
    with pytest.raises(BackupDamagedError):
        filled.backup(tmp_path / "thesis.backup")
    assert (tmp_path / "thesis.backup").read_text() == "the only copy"


def test_an_index_is_replaced_only_when_asked_and_what_it_held_is_kept(filled, tmp_path, embedder):
    filled.backup(tmp_path / "kept")
    then = content(filled)
    filled.remove("rust")
    filled.rename("blight", "leaf blight")
    now = content(filled)
    with pytest.raises(IndexExistsError, match="there is an index"):
        restore(chosen_backup(tmp_path / "kept"), filled.folder)
    done = restore(chosen_backup(tmp_path / "kept"), filled.folder, replace=True)
    assert content(filled) == then, "the open index sees it at once"
    assert [each["action"] for each in done.undone] == ["rename", "remove"]
    assert [each["action"] for each in filled.history(3)] == ["restore", "rename", "remove"]
    restore(read_backup(done.kept), filled.folder, replace=True)
    assert content(filled) == now, "and there is a way back"
    assert len(backups_in(filled.folder / KEPT_FOLDER)[0]) == 2


def test_answers_behind_a_restore_are_those_of_then_whatever_the_caches_hold(filled, tmp_path):
    photos = sorted((tmp_path / "photos").rglob("*.png"))
    filled.backup(tmp_path / "kept")
    then = [each.as_dict() for each in filled.query(photos)]
    list(filled.inspect())
    filled.remove("rust")
    filled.rename("blight", "leaf blight")
    list(filled.query(photos))
    list(filled.inspect())
    restore(chosen_backup(tmp_path / "kept"), filled.folder, replace=True)
    assert [each.as_dict() for each in filled.query(photos)] == then
    assert {each.label for each in filled.inspect()} == set(LEAF_COLOURS)


def test_ids_are_never_given_twice_also_behind_a_restore(filled, tmp_path):
    filled.backup(tmp_path / "kept")
    photo = write_leaf(tmp_path / "a.png", (1, 2, 3), 70)
    (first,) = filled.enroll([ClassFolder("new", (photo,))])
    restore(chosen_backup(tmp_path / "kept"), filled.folder, replace=True)
    (second,) = filled.enroll([ClassFolder("new", (write_leaf(tmp_path / "b.png", (1, 2, 3), 71),))])
    assert set(first.support_ids).isdisjoint(second.support_ids)


def test_a_backup_of_another_index_does_not_replace_this_one(filled, tmp_path, leaves, embedder):
    with Gallery(tmp_path / "other", create=True, embedder=embedder) as other:
        list(other.enroll(class_folders(leaves(n=1, name="others"))))
        made = other.backup(tmp_path / "other.backup")
    before = content(filled)
    with pytest.raises(OtherIndexError, match="never was"):
        restore(made, filled.folder, replace=True)
    assert content(filled) == before


def test_an_index_beyond_opening_is_moved_aside(filled, tmp_path, embedder):
    made = filled.backup(tmp_path / "kept")
    then = content(filled)
    filled.close()
    (filled.folder / FILE_NAME).write_bytes(b"noise" * 2000)
    done = restore(made, filled.folder, replace=True)
    assert done.kept is not None
    assert done.kept.read_bytes() == b"noise" * 2000
    with reopened(filled.folder, embedder) as again:
        assert content(again) == then


def test_a_point_is_chosen_by_change_or_time(filled, tmp_path):
    chain = tmp_path / "chain"
    points = []
    for label in ("blight", "healthy", "mildew"):
        points.append((filled.backup(chain), content(filled)))
        filled.remove(label)
    for number, (made, _) in enumerate(points):
        assert chosen_backup(chain, str(made.event_id)).path == made.path
        assert chosen_backup(chain, made.event_at).path == made.path
        if number:
            assert chosen_backup(chain, str(made.event_id - 1)).event_id < made.event_id
    assert chosen_backup(chain, "2999-01-01").path == points[-1][0].path
    with pytest.raises(BackupMissingError, match=r"no backup in .* is as early as 1"):
        chosen_backup(chain, "1")
    with pytest.raises(UsageError, match="neither the number of a change nor a time"):
        chosen_backup(chain, "yesterday")
    restore(chosen_backup(chain, points[1][0].event_at), filled.folder, replace=True)
    assert content(filled) == points[1][1]


def test_a_folder_of_several_indexes_is_not_guessed_at(filled, tmp_path, embedder):
    filled.backup(tmp_path / "kept")
    with Gallery(tmp_path / "other", create=True, embedder=embedder) as other:
        other.backup(tmp_path / "kept")
    with pytest.raises(BackupError, match="2 indexes: index, other"):
        chosen_backup(tmp_path / "kept")


def test_nothing_to_restore_from_is_said(tmp_path):
    with pytest.raises(BackupMissingError):
        chosen_backup(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackupMissingError, match="no backup"):
        chosen_backup(tmp_path / "empty")


def test_a_folder_with_other_things_gets_no_index(filled, tmp_path):
    made = filled.backup(tmp_path / "one.backup")
    (tmp_path / "home").mkdir()
    for name in ("letter.txt", ".tokens.json.71.notes"):
        (tmp_path / "home" / name).write_text("dear")
        with pytest.raises(NotAnIndexError, match="other things"):
            restore(made, tmp_path / "home")
        assert [path.name for path in (tmp_path / "home").iterdir()] == [name]
        (tmp_path / "home" / name).unlink()


def test_a_disk_of_its_own_gets_an_index(filled, tmp_path, embedder, mounted):
    made = filled.backup(tmp_path / "one.backup")
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / ".disk.copying.7.abc").mkdir()  # of a restore that was killed
    mounted(folder)
    restore(made, folder)
    with reopened(folder, embedder) as again:
        assert content(again) == content(filled)
    (folder / FILE_NAME).write_bytes(b"noise" * 2000)
    assert restore(made, folder, replace=True).kept is not None


def test_what_a_killed_backup_left_is_taken_away_whatever_the_index_is_called(tmp_path, embedder):
    left = tmp_path / "kept" / ".plants[1].copying.7.abc"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    with Gallery(tmp_path / "plants[1]", create=True, embedder=embedder) as index:
        index.backup(tmp_path / "kept")
    assert not left.exists()


def test_a_quota_that_is_used_up_is_a_full_disk(filled, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(fewshot.backup, "write_sealed", fails)
    with pytest.raises(DiskFullError, match="full"):
        filled.backup(tmp_path / "kept")


@pytest.mark.parametrize("error", [NewerFormatError, DiskFullError, IndexLockedError])
def test_what_keeps_a_sound_backup_from_being_read_is_not_called_its_damage(filled, tmp_path, monkeypatch, error):
    made = filled.backup(tmp_path / "one.backup")

    def fails(*_):
        raise error("as it is")

    monkeypatch.setattr(fewshot.backup, "_checked_facts", fails)
    with pytest.raises(error, match="as it is"):
        restore(made, tmp_path / "again")


def test_a_backup_of_a_newer_format_is_told_as_one(filled, tmp_path):
    with closing(sqlite3.connect(filled.folder / FILE_NAME)) as connection:
        connection.execute("VACUUM INTO ?", (str(tmp_path / "later.sqlite"),))
    with closing(sqlite3.connect(tmp_path / "later.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 99")
    facts = filled.backup(tmp_path / "one.backup")
    named = {name: getattr(facts, name) for name in facts.__dataclass_fields__ if name != "path"}
    later = tmp_path / "later.backup"
    write_sealed(later, (tmp_path / "later.sqlite").replace, {"kind": "backup", **named}, durable=True)
    with pytest.raises(NewerFormatError, match="99"):
        restore(read_backup(later), tmp_path / "again")


def test_an_index_that_is_cut_to_nothing_or_gone_is_restored(filled, tmp_path, embedder):
    made, then = filled.backup(tmp_path / "one.backup"), content(filled)
    list(filled.query(sorted((tmp_path / "photos").rglob("*.png"))[:1]))
    restore(made, filled.folder, replace=True)
    later = (filled.folder / f"{FILE_NAME}-wal").read_bytes()
    filled.close()
    (filled.folder / FILE_NAME).write_bytes(b"")
    done = restore(made, filled.folder, replace=True)
    assert done.kept.read_bytes() == b""
    with reopened(filled.folder, embedder) as again:
        assert content(again) == then
    (filled.folder / FILE_NAME).unlink()
    (filled.folder / f"{FILE_NAME}-wal").write_bytes(later)  # never read as the log of another file
    (filled.folder / "cache").mkdir(exist_ok=True)
    (filled.folder / "cache" / "supports.faiss").write_bytes(b"of what is gone")
    TokenFile(filled.folder).create("phone", ("read",))
    (filled.folder / ".tokens.json.71.0a1b2c3d").write_text('{"tok')  # of a change of the tokens that was killed
    restore(made, filled.folder)
    with reopened(filled.folder, embedder) as again:
        assert content(again) == then
        assert again.problems() == []
    assert [path.read_bytes() for path in filled.folder.glob("*.damaged-*-wal")] == [later]
    assert (filled.folder / KEPT_FOLDER).is_dir()
    assert [token.name for token in TokenFile(filled.folder).all()] == ["phone"]


def test_a_folder_whose_cache_is_of_something_else_gets_no_index(filled, tmp_path):
    made = filled.backup(tmp_path / "one.backup")
    (tmp_path / "home" / "cache").mkdir(parents=True)
    (tmp_path / "home" / "cache" / "page.html").write_text("kept")
    with pytest.raises(NotAnIndexError, match="other things"):
        restore(made, tmp_path / "home")
    assert (tmp_path / "home" / "cache" / "page.html").exists()


def test_a_folder_named_like_a_backup_is_passed_over(filled, tmp_path):
    made = filled.backup(tmp_path / "kept")
    (tmp_path / "kept" / "old.backup").mkdir()
    assert backups_in(tmp_path / "kept") == ([made], [])
    assert chosen_backup(tmp_path / "kept") == made


def test_a_damaged_backup_of_the_same_name_is_to_be_moved_away(filled, tmp_path):
    made = filled.backup(tmp_path / "one.backup")
    made.path.write_bytes(made.path.read_bytes()[:-9])
    with pytest.raises(BackupDamagedError, match="not written over") as caught:
        filled.backup(made.path)
    assert "Move it away" in caught.value.hint


def test_an_index_begun_anew_under_its_name_is_not_mixed_with_the_one_before(filled, tmp_path, embedder):
    filled.backup(tmp_path / "kept")
    filled.close()
    shutil.rmtree(filled.folder)
    with Gallery(filled.folder, create=True, embedder=embedder) as anew:
        with anew._store.write() as writer:
            writer._connection.exec_driver_sql("UPDATE about SET created_at = '2030-01-01T00:00:00+00:00'")
        made = anew.backup(tmp_path / "kept")
    with pytest.raises(BackupError, match="2 indexes of the name 'index'"):
        chosen_backup(tmp_path / "kept")
    assert chosen_backup(made.path) == made


def test_an_empty_index_can_be_backed_up_and_restored(gallery, tmp_path, embedder):
    made = gallery.backup(tmp_path / "one.backup")
    assert (made.event_id, made.event_at) == (0, None)
    restore(made, tmp_path / "again")
    with reopened(tmp_path / "again", embedder) as again:
        assert again.classes() == []


def test_nothing_is_left_beside_a_backup_or_a_restore(filled, tmp_path):
    filled.backup(tmp_path / "kept")
    restore(chosen_backup(tmp_path / "kept"), tmp_path / "again")
    restore(chosen_backup(tmp_path / "kept"), filled.folder, replace=True)
    assert [path for path in tmp_path.rglob(".*") if path.name.startswith(".")] == []


def test_progress_is_told_on_the_way(filled, tmp_path):
    told = []
    back_up(filled._store, tmp_path / "one.backup", lambda: told.append(1))
    assert np.sum(told) > 5
