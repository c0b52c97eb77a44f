"""What a watch writes and remembers: each answer once, whatever is done to the files and the process."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from conftest import LEAF_COLOURS, eventually
from watch_steps import Watch, answered, lines, new_photo

from fewshot.errors import DeliveryError, WatchRunningError, WatchStateError
from fewshot.watching import sinks as sinks_module
from fewshot.watching.memory import FILE_NAME, Memory
from fewshot.watching.sinks import AnswerFile

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


@pytest.mark.parametrize(("target", "there"), [("answers.jsonl", b'{"mine": 1}'), ("answers.csv", b"mine,1")])
def test_answers_begin_a_line_of_their_own_where_a_file_lacks_its_last_lines_end(enrolled, inbox, target, there):
    path = inbox.parent / target
    path.write_bytes(there)
    new_photo(inbox / "a.png", seed=901)
    Watch(enrolled, inbox, target=target).once()
    first, answer = path.read_bytes().splitlines()
    assert first == there
    assert b"a.png" in answer
    path.write_bytes(path.read_bytes()[:-1] + b"!")  # as long as before, and its end gone
    new_photo(inbox / "b.png", seed=902)
    Watch(enrolled, inbox, target=target).once()
    assert path.read_bytes().splitlines()[:2] == [there, answer + b"!"]
    assert b"b.png" in path.read_bytes().splitlines()[2]


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
    import fewshot.gallery.pinning
    from conftest import colour_embedder
    fewshot.gallery.pinning.open_embedder = lambda *args, **kwargs: colour_embedder()
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
