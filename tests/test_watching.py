"""A watched folder: each photo at rest is answered once, whatever is done to the folder, the files and the process."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from conftest import LEAF_COLOURS, colour_embedder, eventually, write_leaf

from fewshot.datasets import class_folder, class_folders
from fewshot.errors import DeliveryError, MissingFolderError, UnreadableFileError, WatchRunningError, WatchStateError
from fewshot.gallery import Gallery
from fewshot.watching import arrivals as arrivals_module
from fewshot.watching import sinks as sinks_module
from fewshot.watching.arrivals import Arrivals, changes, signature_of, watched_folder
from fewshot.watching.memory import FILE_NAME, Memory
from fewshot.watching.routes import Routes
from fewshot.watching.sinks import AnswerFile, Screen
from fewshot.watching.watcher import Watcher

ROUTES = Routes("farm", {"rust": ("Sprayer",), "healthy": (), "mildew": ("Sprayer", "Adviser"), "blight": ("Adviser",)})


@pytest.fixture
def enrolled(gallery, leaves):
    """The colour gallery with four classes."""
    list(gallery.enroll(class_folders(leaves(n=5))))
    return gallery


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


def new_photo(path, label="rust", seed=900):
    return write_leaf(path, LEAF_COLOURS[label], seed)


class Watch:
    """A watch of `inbox` that writes `answers.jsonl` and remembers what it was told."""

    def __init__(self, gallery, inbox, *, routes=ROUTES, target="answers.jsonl", **settings):
        self.told, self.shown = [], []
        self.memory = Memory(inbox.parent / "state", inbox, gallery.folder)
        self.file = AnswerFile(inbox.parent / target)
        self.report = AnswerFile(inbox.parent / "bad.jsonl")
        self.stop = threading.Event()
        self.watcher = Watcher(
            gallery,
            inbox,
            routes,
            self.memory,
            sinks=[Screen(self.shown.extend), self.file],
            report=self.report,
            on_warning=self.told.append,
            on_note=self.told.append,
            **{"settle_s": 0.05, "poll_s": 0.02, **settings},
        )

    def once(self):
        try:
            return self.watcher.run(self.stop, once=True)
        finally:
            self.memory.close()

    def __enter__(self):
        self.thread = threading.Thread(target=self.watcher.run, args=(self.stop,))
        self.thread.start()
        return self

    def __exit__(self, *_exc):
        self.stop.set()
        self.thread.join()
        self.memory.close()


def lines(path):
    """The objects of a JSON-lines file; one that is being written at its end is left out."""
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def answered(inbox):
    """File: answer, of everything written; fails if a file was answered twice."""
    found = lines(inbox.parent / "answers.jsonl")
    assert len({each["key"] for each in found}) == len(found)
    return {each["file"]: each["answer"] for each in found}


# ---- arrivals


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_file_that_still_changes_is_not_at_rest(inbox):
    clock = Clock()
    found = Arrivals(inbox, 1.0, clock)
    (inbox / "a.jpg").write_bytes(b"half")
    found.look()
    clock.now += 0.9
    assert found.settled() == []
    (inbox / "a.jpg").write_bytes(b"half and half")
    clock.now += 0.9  # the pause is over, but the file has grown
    assert found.settled() == []
    clock.now += 0.9
    assert found.settled() == []
    clock.now += 0.2
    (arrival,) = found.settled()
    assert arrival.path == inbox / "a.jpg"
    assert arrival.quiet_s >= 1.0
    assert found.settled() == []
    assert found.n_waiting == 0


def test_the_files_own_times_are_not_compared_with_the_clock(inbox):
    """A file server's clock may be hours away from ours."""
    clock = Clock()
    found = Arrivals(inbox, 1.0, clock)
    (inbox / "a.jpg").write_bytes(b"old")
    os.utime(inbox / "a.jpg", (0, 0))
    (inbox / "b.jpg").write_bytes(b"from the future")
    os.utime(inbox / "b.jpg", (9e9, 9e9))
    found.look()
    assert found.settled() == []
    clock.now += 1.0
    assert [arrival.path.name for arrival in found.settled()] == ["a.jpg", "b.jpg"]


def test_what_is_done_is_told_again_only_when_it_changes(inbox):
    clock = Clock()
    found = Arrivals(inbox, 1.0, clock)
    photo = inbox / "a.jpg"
    photo.write_bytes(b"one")
    found.done(photo, signature_of(photo))
    found.look()
    clock.now += 2
    assert found.settled() == []
    photo.write_bytes(b"two!")
    found.look()
    clock.now += 2
    assert [arrival.path for arrival in found.settled()] == [photo]


def test_hidden_files_notes_and_linked_folders_are_passed_over(inbox):
    for name in (".hidden.jpg", "notes.txt", "Thumbs.db", "photo", "photo.jpg.part", ".trash/a.jpg"):
        (inbox / name).parent.mkdir(exist_ok=True)
        (inbox / name).write_bytes(b"x")
    (inbox / "circle").symlink_to(inbox, target_is_directory=True)
    os.mkfifo(inbox / "pipe.jpg")
    (inbox / "dead.jpg").symlink_to(inbox / "nothing")
    (inbox / "sub" / "deep").mkdir(parents=True)
    for name in ("a.JPG", "sub/b.png", "sub/deep/c.heic"):
        (inbox / name).write_bytes(b"x")
    found = Arrivals(inbox, 0.0, Clock())
    found.look()
    found.look(inbox / ".trash")
    found.look(inbox / ".trash" / "a.jpg")
    assert [str(arrival.path.relative_to(inbox)) for arrival in found.settled()] == [
        "a.JPG",
        "sub/b.png",
        "sub/deep/c.heic",
    ]


def test_a_folder_that_cannot_be_watched_says_why(tmp_path):
    with pytest.raises(MissingFolderError, match="there is no folder"):
        watched_folder(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(MissingFolderError, match="is a file"):
        watched_folder(tmp_path / "file")


def test_the_system_tells_of_files_written_renamed_and_moved_in_with_their_folder(inbox, tmp_path):
    stop, told = threading.Event(), set()

    def listen():
        for paths in changes(inbox, None, 0.05, stop, lambda text: told.add(text)):
            told.update(str(path.relative_to(inbox)) for path in paths if path is not None)

    thread = threading.Thread(target=listen)
    thread.start()
    time.sleep(0.3)
    (inbox / "written.jpg").write_bytes(b"x")
    (tmp_path / "made.jpg").write_bytes(b"x")
    (tmp_path / "made.jpg").rename(inbox / "renamed.jpg")
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "moved.jpg").write_bytes(b"x")
    (tmp_path / "day").rename(inbox / "day")
    try:
        eventually(lambda: {"written.jpg", "renamed.jpg", "day"} <= told)
    finally:
        stop.set()
        thread.join()


def test_where_the_system_does_not_tell_polling_takes_over_and_says_so(inbox, monkeypatch):
    def no_watches(*_args, **_kwargs):
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr(arrivals_module, "watch", no_watches)
    monkeypatch.setattr(arrivals_module, "FALLBACK_POLL_S", 0.01)
    stop, warnings = threading.Event(), []
    stream = changes(inbox, None, 0.01, stop, warnings.append)
    assert next(stream) == [None]
    assert any(list(next(stream)) == [None] for _ in range(20))
    assert "watch limit" in warnings[0]
    assert "looking every" in warnings[0]
    stop.set()
    assert list(stream) == []


# ---- the watch


def test_each_photo_is_answered_once_with_its_place_and_units(enrolled, inbox):
    new_photo(inbox / "33.8568_151.2153.png", "mildew")
    new_photo(inbox / "field" / "-10.5000_20.2500.png", "rust")
    watch = Watch(enrolled, inbox)
    tally = watch.once()
    by_file = {each["file"]: each for each in lines(watch.file.path)}
    mildew = by_file["33.8568_151.2153.png"]
    assert (mildew["answer"], mildew["reason"]) == ("mildew", "match")
    assert (mildew["latitude"], mildew["longitude"], mildew["place_from"]) == (33.8568, 151.2153, "name")
    assert mildew["units"] == ["Sprayer", "Adviser"]
    rust = by_file["field/-10.5000_20.2500.png"]
    assert (rust["answer"], rust["latitude"], rust["units"]) == ("rust", -10.5, ["Sprayer"])
    assert (tally.n_answered, tally.n_bad) == (2, 0)
    assert [each.as_dict() for each in watch.shown] == lines(watch.file.path)


def test_answers_are_those_of_a_query(enrolled, inbox):
    photos = [new_photo(inbox / f"{label}.png", label, 700) for label in LEAF_COLOURS]
    Watch(enrolled, inbox).once()
    expected = {each.file: each for each in enrolled.query(photos)}
    for each in lines(inbox.parent / "answers.jsonl"):
        same = expected[str(inbox / each["file"])]
        assert (each["answer"], each["reason"], each["message"]) == (same.answer, same.reason, same.message)
        assert each["matches"] == [match.as_dict() for match in same.matches]


def test_after_a_restart_only_what_is_new_is_answered(enrolled, inbox):
    new_photo(inbox / "a.png", seed=901)
    Watch(enrolled, inbox).once()
    os.utime(inbox / "a.png")  # touched, not changed
    new_photo(inbox / "b.png", seed=902)
    tally = Watch(enrolled, inbox).once()
    assert (tally.n_answered, tally.n_copies) == (1, 0)
    assert list(answered(inbox)) == ["a.png", "b.png"]


def test_a_copy_is_not_answered_again_unless_its_name_tells_another_place(enrolled, inbox):
    first = new_photo(inbox / "a.png")
    shutil.copy(first, inbox / "b.png")
    watch = Watch(enrolled, inbox)
    assert watch.once().n_copies == 1
    assert any("b.png is the same photo as a.png" in each for each in watch.told)
    first.rename(inbox / "c.png")
    shutil.copy(inbox / "c.png", inbox / "33.8568_151.2153.png")
    assert Watch(enrolled, inbox).once().n_answered == 1
    assert list(answered(inbox)) == ["a.png", "33.8568_151.2153.png"]


def test_another_photo_under_the_same_name_is_answered(enrolled, inbox):
    new_photo(inbox / "latest.png", "rust")
    Watch(enrolled, inbox).once()
    new_photo(inbox / "latest.png", "mildew")
    Watch(enrolled, inbox).once()
    assert [each["answer"] for each in lines(inbox.parent / "answers.jsonl")] == ["rust", "mildew"]


@pytest.mark.parametrize("poll_s", [None, 0.02])
def test_photos_that_come_while_it_watches_are_answered(enrolled, inbox, tmp_path, poll_s):
    data = new_photo(tmp_path / "made.png", seed=905).read_bytes()
    with Watch(enrolled, inbox, poll_s=poll_s) as watch:
        time.sleep(0.3)
        new_photo(inbox / "a.png", seed=901)
        (inbox / "sub").mkdir()
        new_photo(inbox / "sub" / "b.png", "mildew", seed=902)
        new_photo(tmp_path / "day" / "c.png", seed=903)
        (tmp_path / "day").rename(inbox / "day")
        new_photo(tmp_path / "elsewhere.png", seed=904).rename(inbox / "d.png")
        with (inbox / "slow.png").open("wb") as file:  # written in pieces, faster than it settles
            for start in range(0, len(data), 4000):
                file.write(data[start : start + 4000])
                file.flush()
                time.sleep(0.01)
        eventually(lambda: len(answered(inbox)) == 5)
    assert answered(inbox) == {
        "a.png": "rust",
        "sub/b.png": "mildew",
        "day/c.png": "rust",
        "d.png": "rust",
        "slow.png": "rust",
    }
    assert lines(watch.report.path) == []


def test_a_writer_that_pauses_longer_than_settling_is_not_called_bad(enrolled, inbox, tmp_path):
    data = new_photo(tmp_path / "whole.png").read_bytes()
    with Watch(enrolled, inbox) as watch:  # settles in 0.05 s, is patient for 0.5 s
        (inbox / "a.png").write_bytes(data[: len(data) // 2])
        time.sleep(0.25)
        (inbox / "a.png").write_bytes(data)
        eventually(lambda: answered(inbox) == {"a.png": "rust"})
    assert lines(watch.report.path) == []
    assert watch.told == []


def test_bad_photos_go_to_the_report_once_and_the_others_are_answered(enrolled, inbox):
    whole = new_photo(inbox / "good.png").read_bytes()
    (inbox / "cut.png").write_bytes(whole[: len(whole) // 2])
    (inbox / "empty.jpg").write_bytes(b"")
    (inbox / "words.jpg").write_text("no picture")
    (inbox / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (inbox / "notes.txt").write_text("not a photo, and none meant")
    watch = Watch(enrolled, inbox)
    tally = watch.once()
    assert (tally.n_answered, tally.n_bad) == (1, 4)
    reported = {each["file"]: each["message"] for each in lines(watch.report.path)}
    assert set(reported) == {"cut.png", "empty.jpg", "words.jpg", "phone.heic"}
    assert "empty" in reported["empty.jpg"]
    assert "HEIC" in reported["phone.heic"]
    assert answered(inbox) == {"good.png": "rust"}
    assert len([each for each in watch.told if "words.jpg" in each]) == 1
    again = Watch(enrolled, inbox)
    assert again.once().n_bad == 0
    assert len(lines(watch.report.path)) == 4


def test_a_bad_photo_that_was_mended_is_answered(enrolled, inbox):
    (inbox / "a.png").write_text("no picture")
    Watch(enrolled, inbox).once()
    new_photo(inbox / "a.png")
    Watch(enrolled, inbox).once()
    assert answered(inbox) == {"a.png": "rust"}


def test_bad_photos_have_units_if_the_routes_say_so(enrolled, inbox):
    (inbox / "words.jpg").write_text("no picture")
    routes = Routes("farm", dict(ROUTES.units), bad_image=("Camera crew",))
    watch = Watch(enrolled, inbox, routes=routes)
    watch.once()
    (answer,) = lines(watch.file.path)
    assert (answer["reason"], answer["units"]) == ("bad_image", ["Camera crew"])
    assert lines(watch.report.path) == [answer]


def test_a_file_that_is_deleted_before_it_is_read_is_no_news(enrolled, inbox, monkeypatch):
    new_photo(inbox / "a.png", seed=901)
    gone = new_photo(inbox / "b.png", seed=902)
    watch = Watch(enrolled, inbox)
    settled = watch.watcher._arrivals.settled

    def settled_then_deleted():
        found = settled()
        gone.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(watch.watcher._arrivals, "settled", settled_then_deleted)
    tally = watch.once()
    assert (tally.n_answered, tally.n_bad, watch.told) == (1, 0, [])


def test_a_file_that_may_not_be_read_is_reported_once_and_answered_when_it_may(enrolled, inbox, monkeypatch):
    photo = new_photo(inbox / "a.png")

    def barred(path):
        raise UnreadableFileError(f"{path.name} cannot be read: Permission denied.")

    with monkeypatch.context() as patch:  # root, as which tests may run, may read everything
        patch.setattr("fewshot.images.read_bytes", barred)
        watch = Watch(enrolled, inbox)
        assert watch.once().n_bad == 1
        assert Watch(enrolled, inbox).once().n_bad == 0
    (reported,) = lines(watch.report.path)
    assert "Permission denied" in reported["message"]
    photo.chmod(0o600)
    assert Watch(enrolled, inbox).once().n_answered == 1


def test_a_class_enrolled_by_another_process_answers_at_once(enrolled, inbox, tmp_path):
    for i in range(5):
        write_leaf(tmp_path / "flower" / f"{i}.png", (255, 0, 255), i)
    with Watch(enrolled, inbox) as watch:
        new_photo(inbox / "a.png")
        eventually(lambda: len(answered(inbox)) == 1)
        with Gallery(enrolled.folder, embedder=colour_embedder()) as other:
            list(other.enroll([class_folder("flower", tmp_path / "flower")]))
        write_leaf(inbox / "b.png", (255, 0, 255), 77)
        eventually(lambda: len(answered(inbox)) == 2)
    assert answered(inbox) == {"a.png": "rust", "b.png": "flower"}
    assert any("no route for 'flower'" in each for each in watch.told)


def test_photos_wait_while_the_index_is_empty(enrolled, inbox, leaves, monkeypatch):
    monkeypatch.setattr("fewshot.watching.watcher.RETRY_S", 0.05)
    for label in LEAF_COLOURS:
        enrolled.remove(label)
    new_photo(inbox / "a.png")
    with Watch(enrolled, inbox) as watch:
        eventually(lambda: any("holds no class" in each for each in watch.told))
        with Gallery(enrolled.folder, embedder=colour_embedder()) as other:
            list(other.enroll(class_folders(leaves(n=5)), strict=True))  # all in one change
        eventually(lambda: answered(inbox) == {"a.png": "rust"})


@pytest.mark.parametrize("poll_s", [None, 0.02])
def test_a_folder_that_goes_and_comes_back_is_watched_again(enrolled, inbox, tmp_path, monkeypatch, poll_s):
    monkeypatch.setattr(arrivals_module, "FALLBACK_POLL_S", 0.05)
    with Watch(enrolled, inbox, poll_s=poll_s) as watch:
        time.sleep(0.2)
        inbox.rename(tmp_path / "away")
        eventually(lambda: any("there is no folder" in each for each in watch.told))
        new_photo(tmp_path / "away" / "a.png")
        (tmp_path / "away").rename(inbox)
        eventually(lambda: answered(inbox) == {"a.png": "rust"})


def test_names_that_are_no_unicode_and_that_move_cursors_are_answered(enrolled, inbox):
    photo = new_photo(inbox / "a.png")
    photo.rename(os.fsdecode(os.fsencode(inbox) + b"/caf\xe9.png"))
    new_photo(inbox / "b\x1b[2J\n.png", "mildew")
    Watch(enrolled, inbox).once()
    assert set(answered(inbox).values()) == {"rust", "mildew"}
    assert "caf\\xe9.png" in answered(inbox)
    assert Watch(enrolled, inbox).once().n_answered == 0


# ---- files of answers


def test_csv_has_a_heading_once_and_a_row_an_answer(enrolled, inbox):
    new_photo(inbox / "33.8568_151.2153.png", "mildew")
    watch = Watch(enrolled, inbox, target="answers.csv")
    watch.once()
    new_photo(inbox / "later, with a comma.png", seed=903)
    Watch(enrolled, inbox, target="answers.csv").once()
    with watch.file.path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["answer"], first["units"], first["latitude"]) == ("mildew", "Sprayer; Adviser", "33.8568")
    assert (second["file"], second["latitude"]) == ("later, with a comma.png", "")


def deliver_again(enrolled, inbox):
    watch = Watch(enrolled, inbox)
    watch.once()
    return watch.file.path


@pytest.fixture
def killed_after_writing(enrolled, inbox, monkeypatch):
    """Three answers written to the file by a process that was killed before it could note that; the file."""
    for i in range(3):
        new_photo(inbox / f"{i}.png", seed=900 + i)
    noted = Memory.handed_over

    def killed(self, sink, answer_ids, n_bytes=None):
        if answer_ids and sink.endswith("answers.jsonl"):
            raise KeyboardInterrupt
        noted(self, sink, answer_ids, n_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(Memory, "handed_over", killed)
        watch = Watch(enrolled, inbox)
        with pytest.raises(KeyboardInterrupt):
            watch.once()
    assert len(lines(watch.file.path)) == 3
    return watch.file.path


def test_answers_written_but_not_noted_are_not_written_again(killed_after_writing, enrolled, inbox):
    before = killed_after_writing.read_bytes()
    deliver_again(enrolled, inbox)
    assert killed_after_writing.read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_answers_half_written_are_completed(killed_after_writing, enrolled, inbox, share):
    before = killed_after_writing.read_bytes()
    killed_after_writing.write_bytes(before[: int(len(before) * share)])
    new_photo(inbox / "later.png", seed=950)
    deliver_again(enrolled, inbox)
    assert killed_after_writing.read_bytes().startswith(before)
    assert list(answered(inbox)) == ["0.png", "1.png", "2.png", "later.png"]


def test_what_stands_in_a_file_of_answers_is_never_changed(killed_after_writing, enrolled, inbox):
    killed_after_writing.write_bytes(b'{"key": "of another", "file": "x", "answer": "y"}')  # and no end of line
    deliver_again(enrolled, inbox)
    assert list(answered(inbox)) == ["x", "0.png", "1.png", "2.png"]


def test_answers_go_on_in_a_new_file_when_the_old_one_was_moved_away(enrolled, inbox):
    new_photo(inbox / "a.png", seed=901)
    path = deliver_again(enrolled, inbox)
    path.rename(path.with_suffix(".1"))
    new_photo(inbox / "b.png", seed=902)
    deliver_again(enrolled, inbox)
    assert list(answered(inbox)) == ["b.png"]


def test_a_new_csv_begins_with_its_heading_when_the_old_one_was_moved_away(enrolled, inbox):
    for i, name in enumerate(("a.png", "b.png")):
        new_photo(inbox / name, seed=901 + i)
        watch = Watch(enrolled, inbox, target="answers.csv")
        watch.once()
        with watch.file.path.open(newline="") as file:
            assert [row["file"] for row in csv.DictReader(file)] == [name]
        watch.file.path.rename(inbox.parent / f"old-{i}.csv")


def test_a_file_that_cannot_be_written_gets_its_answers_later(enrolled, inbox, monkeypatch):
    monkeypatch.setattr("fewshot.watching.watcher.RETRY_S", 0.05)
    full = threading.Event()
    full.set()
    fsync = os.fsync

    def disk_full(descriptor):
        if full.is_set():
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(sinks_module.os, "fsync", disk_full)
    with Watch(enrolled, inbox) as watch:
        for i in range(3):
            new_photo(inbox / f"{i}.png", seed=900 + i)
        eventually(lambda: any("No space left" in each for each in watch.told))
        eventually(lambda: len(watch.shown) == 3)
        full.clear()
        eventually(lambda: len(answered(inbox)) == 3)
    assert len([each for each in watch.told if "No space left" in each]) == 1


def test_a_file_that_cannot_be_opened_is_told_at_the_start(tmp_path):
    with pytest.raises(DeliveryError, match="cannot be written"):
        AnswerFile(tmp_path / "no folder" / "a.jsonl").check()


def test_a_sink_gets_what_is_answered_while_it_is_asked_for(enrolled, inbox):
    """A file added later does not repeat old alarms; one that was due answers gets them when it is back."""
    new_photo(inbox / "a.png", seed=901)
    Watch(enrolled, inbox, target="first.jsonl").once()
    new_photo(inbox / "b.png", seed=902)
    Watch(enrolled, inbox).once()
    assert list(answered(inbox)) == ["b.png"]
    assert [each["file"] for each in lines(inbox.parent / "first.jsonl")] == ["a.png"]


# ---- the memory


def test_two_watches_cannot_share_a_memory(tmp_path, inbox):
    held = Memory(tmp_path / "state", inbox, tmp_path / "index")
    with held, pytest.raises(WatchRunningError, match="another process"):
        Memory(tmp_path / "state", inbox, tmp_path / "index")
    Memory(tmp_path / "state", inbox, tmp_path / "index").close()


def test_a_memory_of_another_watch_is_refused(tmp_path, inbox):
    Memory(tmp_path / "state", inbox, tmp_path / "index").close()
    with pytest.raises(WatchStateError, match="is the memory of watching"):
        Memory(tmp_path / "state", tmp_path / "other", tmp_path / "index")


@pytest.mark.parametrize(("content", "words"), [(b"words" * 400, "damaged"), (None, "cannot be used")])
def test_a_memory_that_is_none_is_refused(tmp_path, inbox, content, words):
    (tmp_path / "state").mkdir()
    if content is None:
        (tmp_path / "state" / FILE_NAME).mkdir()
    else:
        (tmp_path / "state" / FILE_NAME).write_bytes(content)
    with pytest.raises(WatchStateError, match=words):
        Memory(tmp_path / "state", inbox, tmp_path / "index")


def test_a_memory_of_a_newer_version_names_both(tmp_path, inbox):
    with Memory(tmp_path / "state", inbox, tmp_path / "index") as memory:
        memory._connection.execute("PRAGMA user_version = 7")
    with pytest.raises(WatchStateError, match="version 7; this fewshot reads up to 1"):
        Memory(tmp_path / "state", inbox, tmp_path / "index")


# ---- killed


PROCESS = textwrap.dedent(
    """
    import sys, threading
    from pathlib import Path
    import fewshot.gallery
    from conftest import colour_embedder
    fewshot.gallery.open_embedder = lambda *args, **kwargs: colour_embedder()
    from fewshot.cli import main
    main(["watch", *sys.argv[1:]], prog_name="fewshot")
    """
)


def start_watch(*words):
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.fixture
def command(enrolled, inbox, tmp_path):
    """The words of a watch of `inbox`."""
    (tmp_path / "farm.yaml").write_text("routes:\n  rust: [Sprayer]\n  healthy: []\n  mildew: []\n  blight: []\n")
    return [
        *(inbox, "--routes", tmp_path / "farm.yaml", "--index", enrolled.folder, "--state", tmp_path / "state"),
        *("--to", tmp_path / "answers.jsonl", "--to", tmp_path / "answers.csv", "--settle", 0.05, "--poll", 0.05),
    ]


def test_killed_at_random_moments_it_leaves_no_photo_unanswered_and_answers_none_twice(command, inbox, tmp_path):
    rng = random.Random(5)
    written = tmp_path / "answers.jsonl"
    n, n_killed_in_the_middle = 0, 0

    def size():
        return written.stat().st_size if written.exists() else 0

    for _ in range(8):
        for _ in range(24):
            new_photo(inbox / f"{n:03}.png", rng.choice(list(LEAF_COLOURS)), seed=1000 + n)
            n += 1
        before = size()
        process = start_watch(*command)
        if rng.random() < 0.7:
            eventually(lambda before=before: size() > before, 30)  # it is answering now
            time.sleep(rng.uniform(0, 0.15))
        else:
            time.sleep(rng.uniform(0.2, 2.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        n_killed_in_the_middle += size() > before and len(lines(written)) % 24 > 0
    process = start_watch(*command, "--once")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = [each["file"] for each in lines(written)]
    assert sorted(found) == sorted(f"{i:03}.png" for i in range(n))
    with (tmp_path / "answers.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == found
    assert n_killed_in_the_middle > 0, "no kill fell into the work; the test shows nothing"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_it_cleanly(command, inbox, tmp_path, number):
    new_photo(inbox / "a.png")
    process = start_watch(*command, "--json")
    eventually(lambda: answered(inbox) == {"a.png": "rust"}, 30)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert [json.loads(line)["file"] for line in out.splitlines()] == ["a.png"]
    assert "1 answered, 0 could not be read" in err
    assert "Traceback" not in err


SIGNALS = textwrap.dedent(
    """
    import os, signal, threading, time
    from fewshot.cli.watch import _stopped_by_signals
    for n in range(100):
        with _stopped_by_signals() as stop:
            number = (signal.SIGINT, signal.SIGTERM)[n % 2]
            later = threading.Timer(0.003, os.kill, [os.getpid(), number])
            later.start()
            while not stop.is_set():
                stop.wait(0)
            later.join()
    """
)


def test_a_signal_in_any_moment_of_waiting_is_heard():
    # A handler that sets the event itself hangs when it interrupts the thread inside the event's lock.
    subprocess.run([sys.executable, "-c", SIGNALS], check=True, timeout=60, capture_output=True)
