"""Damage to any file of an index: noticed, named, made anew or repaired; and old formats open for ever."""

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import time
from pathlib import Path

import damage
import faults
import pytest
from click.testing import CliRunner
from conftest import colour_embedder
from gallery_steps import enroll

from fewshot.backup import read_backup, restore
from fewshot.cli.main import main
from fewshot.errors import IndexDamagedError
from fewshot.gallery import Gallery
from fewshot.gallery.repair import repair
from fewshot.store import FILE_NAME
from fewshot.store.log import damaged_log
from fewshot.store.schema import FORMAT_VERSION

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return damage.made_sound(tmp_path_factory.mktemp("sound"), n=3)


@pytest.fixture(autouse=True)
def colours_instead_of_a_backbone(monkeypatch):
    for module in faults.OPENING:
        for name in ("open_embedder", "on_this_machine"):
            monkeypatch.setattr(module, name, getattr(module, name))
    faults.patch()


@pytest.fixture
def broken(sound, tmp_path):
    """A copy of the sound index, with its last changes folded in, to be damaged."""
    shutil.copytree(sound.folder, tmp_path / "index")
    with Gallery(tmp_path / "index", embedder=colour_embedder()):
        pass
    return tmp_path / "index"


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("file", [*damage.FILES, "a backup"])
def test_damage_to_any_file_is_noticed_and_nothing_is_lost_without_a_word(sound, tmp_path, file):
    for number, kind in enumerate(damage.KINDS):
        for seed in range(2):
            if file == "a backup":
                _, wrong = damage.backup_judged(sound.folder.parent, kind, f"{number} {seed}")
            else:
                _, wrong = damage.judged(sound, tmp_path, file, kind, f"{number} {seed}")
            assert wrong == []


def test_a_photo_whose_embedding_is_damaged_is_embedded_anew_from_its_kept_picture(broken, sound):
    with Gallery(broken, embedder=colour_embedder()) as gallery:
        _, records, vectors = gallery.embeddings(100)
    blob = vectors[4].astype("<f4").tobytes()
    flip(broken / FILE_NAME, (broken / FILE_NAME).read_bytes().index(blob) + 9)
    done = repair(broken)
    assert (done.n_photos, done.lost) == (12, ())
    assert f"support {records[4].support_id}" in done.doubts[0]
    with Gallery(broken, embedder=colour_embedder()) as gallery:
        assert gallery.problems() == []
        assert set(damage.content(gallery)) == set(sound.photos)
        assert gallery.history(1)[0]["action"] == "repair"


def test_the_file_name_of_a_photo_is_damaged_and_its_other_copy_tells_it(broken, sound):
    name = next(iter(sound.photos.values()))[0]["file"]
    content = (broken / FILE_NAME).read_bytes()
    flip(broken / FILE_NAME, content.index(name.encode()))
    with Gallery(broken, embedder=colour_embedder()) as gallery:
        assert any("guard_supports" in each for each in gallery.problems())


def test_doctor_names_the_damage_and_repair_lists_what_is_lost_photo_by_photo(broken, sound):
    index, words = broken / FILE_NAME, ["doctor", "--index", str(broken), "--json"]
    photo = sound.photos[3]
    with Gallery(broken, embedder=colour_embedder()) as gallery:
        _, _, vectors = gallery.embeddings(100)
    content = index.read_bytes()
    flip(index, content.index(vectors[2].astype("<f4").tobytes()) + 3)
    flip(index, content.index(photo[1][:200]) + 60)
    told = CliRunner().invoke(main, words)
    assert told.exit_code == 1
    problems = json.loads(told.stdout)["index"]["problems"]
    assert "the vector of support 3 does not fit its checksum" in problems
    assert "the webp of support 3 does not fit its checksum" in problems
    mended = CliRunner().invoke(main, [*words, "--repair"])
    assert mended.exit_code == 1, "a photo was lost"
    (lost,) = json.loads(mended.stdout)["repaired"]["lost"]
    assert (lost["support_id"], lost["photo"]) == (3, f"{photo[0]['label']}/{photo[0]['file']}")
    assert "both damaged" in lost["reason"]
    after = CliRunner().invoke(main, words)
    assert (after.exit_code, json.loads(after.stdout)["index"]["supports"]) == (0, 11)
    kept = Path(json.loads(mended.stdout)["repaired"]["damaged"])
    assert kept.is_file()


def test_a_service_that_has_the_index_open_goes_on_with_the_repaired_one(broken, leaves):
    with Gallery(broken, embedder=colour_embedder()) as served:
        _, records, vectors = served.embeddings(100)
        flip(broken / FILE_NAME, (broken / FILE_NAME).read_bytes().index(vectors[4].astype("<f4").tobytes()) + 9)
        repair(broken)
        enroll(served, leaves(2, ["mildew"], first_seed=900) / "mildew", "new")
        assert served.history(2)[1]["action"] == "repair"
        assert served.predict(vectors[4:5])[0].matches[0].label == records[4].label
    with Gallery(broken, embedder=colour_embedder()) as again:
        assert "new" in [each.label for each in again.classes()]
        assert again.problems() == []


def test_repair_of_a_sound_index_changes_nothing(broken):
    before = (broken / FILE_NAME).read_bytes()
    told = CliRunner().invoke(main, ["doctor", "--repair", "--index", str(broken)])
    assert told.exit_code == 0
    assert (broken / FILE_NAME).read_bytes() == before


@pytest.mark.parametrize("is_log_damaged", [False, True])
def test_an_index_of_a_later_version_is_not_rewritten(broken, is_log_damaged):
    with contextlib.closing(sqlite3.connect(broken / FILE_NAME)) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION + 1}")
    if is_log_damaged:
        (broken / f"{FILE_NAME}-wal").write_bytes(b"noise")
    before = (broken / FILE_NAME).read_bytes()
    told = CliRunner().invoke(main, ["doctor", "--repair", "--index", str(broken), "--json"])
    assert (told.exit_code, json.loads(told.stdout)["error"]["code"]) == (1, "newer_format")
    assert (broken / FILE_NAME).read_bytes() == before
    assert list(broken.glob("*.damaged-*")) == []


def test_a_wrong_setting_is_no_damage(broken, monkeypatch):
    monkeypatch.setenv("FEWSHOT_SUPPORTS_IN_MEMORY", "1e6")
    before = (broken / FILE_NAME).read_bytes()
    told = CliRunner().invoke(main, ["doctor", "--repair", "--index", str(broken), "--json"])
    assert (told.exit_code, json.loads(told.stdout)["error"]["code"]) == (2, "usage")
    assert (broken / FILE_NAME).read_bytes() == before


def test_damaged_caches_are_taken_away_and_nothing_else(broken):
    flip(broken / "cache" / "supports.faiss", 100)
    before = (broken / FILE_NAME).read_bytes()
    told = CliRunner().invoke(main, ["doctor", "--repair", "--index", str(broken)])
    assert told.exit_code == 0
    assert "nothing is lost" in told.stdout
    assert not (broken / "cache").exists()
    assert (broken / FILE_NAME).read_bytes() == before


def test_caches_that_cannot_be_taken_away_are_told(broken, monkeypatch):
    flip(broken / "cache" / "supports.faiss", 100)
    rmtree = shutil.rmtree

    def barred(path, **words):
        if Path(path) == broken / "cache":
            raise PermissionError(errno.EACCES, "Permission denied")
        rmtree(path, **words)

    monkeypatch.setattr(shutil, "rmtree", barred)
    told = CliRunner().invoke(main, ["doctor", "--repair", "--index", str(broken), "--json"])
    assert (told.exit_code, json.loads(told.stdout)["error"]["code"]) == (1, "index_unwritable")


def test_an_index_beyond_repair_is_left_as_it_is(broken):
    (broken / FILE_NAME).write_bytes(b"noise" * 3000)
    with pytest.raises(IndexDamagedError, match="cannot be repaired"):
        repair(broken)
    assert (broken / FILE_NAME).read_bytes() == b"noise" * 3000


def test_changes_behind_damage_in_the_log_are_saved_too(sound, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(sound.folder, folder)
    assert damaged_log(folder / FILE_NAME) is None
    flip(folder / f"{FILE_NAME}-wal", 32 + 24 + 700)
    assert "frame 1 of" in damaged_log(folder / FILE_NAME)
    done = repair(folder)
    assert (done.n_photos, done.lost) == (12, ())


@pytest.fixture
def with_leftovers(sound, tmp_path):
    """An index whose log ends in the frames of a change that never counted, over which a shorter one was written."""
    folders = [tmp_path / name for name in ("killed", "index")]
    for folder in folders:
        shutil.copytree(sound.folder, folder)
    killed, index = folders
    with Gallery(killed, embedder=colour_embedder()) as gallery:
        gallery.remove("rust")
        gallery.remove("blight")
        longer = (killed / f"{FILE_NAME}-wal").read_bytes()
    with Gallery(index, embedder=colour_embedder()) as gallery:
        gallery.rename("mildew", "powdery mildew")
        whole = damage.content(gallery)
        left = {name: (index / name).read_bytes() for name in (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm")}
    shorter = left[f"{FILE_NAME}-wal"]
    assert len(longer) > len(shorter)
    left[f"{FILE_NAME}-wal"] = shorter + longer[len(shorter) :]
    for name, content in left.items():
        (index / name).write_bytes(content)
    return index, whole


def test_frames_that_never_counted_are_no_damage(with_leftovers):
    index, whole = with_leftovers
    assert damaged_log(index / FILE_NAME) is None
    told = CliRunner().invoke(main, ["doctor", "--index", str(index), "--repair", "--json"])
    assert (told.exit_code, json.loads(told.stdout)["index"]["problems"]) == (0, [])
    with Gallery(index, embedder=colour_embedder()) as gallery:
        assert damage.content(gallery) == whole


def test_damage_among_the_frames_that_count_is_seen_beside_leftovers(with_leftovers):
    index, _ = with_leftovers
    flip(index / f"{FILE_NAME}-wal", 32 + 24 + 700)
    assert "frame 1 of" in damaged_log(index / FILE_NAME)


@pytest.mark.parametrize("gone", ["-shm", ""])
def test_a_repair_lets_no_leftover_frame_replace_what_is_sound(with_leftovers, gone):
    index, whole = with_leftovers
    if gone:  # nothing tells how many frames count
        (index / f"{FILE_NAME}{gone}").unlink()
        assert "committed behind" in damaged_log(index / FILE_NAME)
    done = repair(index)
    assert (done.n_photos, done.lost) == (12, ())
    with Gallery(index, embedder=colour_embedder()) as gallery:
        there = damage.content(gallery)
        assert {i: row["label"] for i, (row, _) in there.items()} == {i: row["label"] for i, (row, _) in whole.items()}
        assert [webp for _, webp in there.values()] == [webp for _, webp in whole.values()]
        assert gallery.problems() == []


def test_a_log_that_is_being_written_is_looked_at_again(sound, tmp_path, monkeypatch):
    shutil.copytree(sound.folder, tmp_path / "index")
    log = tmp_path / "index" / f"{FILE_NAME}-wal"
    flip(log, 32 + 24 + 700)  # as if half of a page had been written when it was read
    monkeypatch.setattr(time, "sleep", lambda _: flip(log, 32 + 24 + 700))
    assert damaged_log(log.with_name(FILE_NAME)) is None


def test_an_index_on_a_disk_of_its_own_is_repaired(sound, tmp_path, mounted):
    folder = tmp_path / "index"
    shutil.copytree(sound.folder, folder)
    flip(folder / f"{FILE_NAME}-wal", 32 + 24 + 700)
    mounted(folder)
    assert repair(folder).n_photos == 12
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EIO, "index_unwritable")]
)
def test_a_repair_that_fails_puts_the_log_back(sound, tmp_path, monkeypatch, number, code):
    folder, replace = tmp_path / "index", os.replace
    shutil.copytree(sound.folder, folder)
    flip(folder / f"{FILE_NAME}-wal", 32 + 24 + 700)
    before = {path.name: path.read_bytes() for path in folder.glob("index.*")}

    def fails(source, target, **words):
        if Path(target) == folder / FILE_NAME:
            raise OSError(number, os.strerror(number))
        replace(source, target, **words)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fails)
        told = CliRunner().invoke(main, ["doctor", "--repair", "--index", str(folder), "--json"])
    assert (told.exit_code, json.loads(told.stdout)["error"]["code"]) == (1, code)
    assert {path.name: path.read_bytes() for path in folder.glob("index.*")} == before
    assert repair(folder).n_photos == 12


def test_a_cache_that_saw_more_than_the_index_holds_tells_that_the_log_was_cut(sound, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(sound.folder, folder)
    (folder / f"{FILE_NAME}-wal").unlink()
    with Gallery(folder, embedder=colour_embedder()) as gallery:
        assert any("does not hold" in each and each.startswith("missing:") for each in gallery.problems())
    for words in ([], ["--json"]):
        told = CliRunner().invoke(main, ["doctor", "--repair", "--index", str(folder), *words])
        assert told.exit_code == 1
        assert "nothing is lost" not in told.stdout
    assert json.loads(told.stdout)["repaired"] is None
    assert (folder / "cache" / "supports.faiss").exists(), "which is what tells of it"


# ---- formats


def goldens():
    return sorted(path for path in GOLDEN.iterdir() if path.is_dir())


def test_every_format_version_has_a_golden_index():
    versions = {json.loads((path / "expected.json").read_text())["format"] for path in goldens()}
    assert versions == set(range(1, FORMAT_VERSION + 1))


@pytest.mark.parametrize("golden", goldens(), ids=lambda path: path.name)
def test_a_golden_index_opens_and_answers_as_it_did(golden, tmp_path):
    wanted = json.loads((golden / "expected.json").read_text())
    shutil.copytree(golden, tmp_path / "index")
    with Gallery(tmp_path / "index", embedder=colour_embedder()) as gallery:
        assert gallery.problems() == []
        assert {row.label: row.supports for row in gallery.classes()} == wanted["classes"]
        assert [each["action"] for each in gallery.history()] == wanted["actions"]
        assert [each[0] for each in damage.answers(gallery, wanted["asked"])] == wanted["answers"]
        gallery.rename("rust", "leaf rust")  # and can be changed
        made = gallery.backup(tmp_path / "golden.backup")
    restore(made, tmp_path / "again")


def test_a_golden_backup_is_restored(tmp_path):
    for path in sorted(GOLDEN.glob("*.backup")):
        made = read_backup(path)
        restore(made, tmp_path / path.stem)
        with Gallery(tmp_path / path.stem, embedder=colour_embedder()) as gallery:
            assert gallery.problems() == []
            assert gallery.size() == (made.n_classes, made.n_supports)


def test_a_golden_index_without_second_copies_can_be_repaired(tmp_path):
    shutil.copytree(GOLDEN / "v1-first", tmp_path / "index")
    done = repair(tmp_path / "index")
    assert (done.n_photos, done.lost) == (12, ())
