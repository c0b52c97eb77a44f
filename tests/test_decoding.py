"""What a hostile photo cannot do: guarded processes decode it under limits, die of it alone, and are replaced."""

import errno
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import LEAF_COLOURS, eventually, write_leaf
from PIL import Image

from fewshot import errors, images
from fewshot.decoding.cutting import Cut, cut_photo
from fewshot.decoding.guard import _KNOWN, Guard, GuardLimits
from fewshot.errors import GuardError, ImageError, ImageStoppedError, ImageTooLargeError, NotAnImageError

CUT = Cut(64, 0.875, "bilinear")
LIMITS = GuardLimits.for_pixels(50_000_000)


@pytest.fixture(scope="module")
def guard():
    made = Guard(1, LIMITS)
    yield made
    made.close()


@pytest.fixture
def leaf(tmp_path):
    return write_leaf(tmp_path / "leaf.png", LEAF_COLOURS["rust"], 3, size=(320, 300)).read_bytes()


def same(first, second):
    assert (first.width, first.height, first.thumbnail, first.dhash) == (
        second.width,
        second.height,
        second.thumbnail,
        second.dhash,
    )
    assert np.array_equal(first.pixels, second.pixels)


def many_scans(side_px, n_scans):
    """A progressive JPEG whose last scan stands there again and again: a small file that takes for ever."""
    buffer = io.BytesIO()
    Image.new("L", (side_px, side_px), 128).save(buffer, "JPEG", progressive=True, quality=50)
    data = buffer.getvalue()
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * n_scans + b"\xff\xd9"


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("keep_metadata", [False, True])
def test_a_guarded_photo_is_what_it_would_be_without(guard, leaf, keep, keep_metadata):
    cut = replace(CUT, keep=keep, keep_metadata=keep_metadata)
    same(guard.cut_photo(leaf, "leaf.png", cut), cut_photo(leaf, "leaf.png", cut))


def test_a_refusal_is_the_same_error_with_the_same_words(guard, leaf):
    for data in (b"no picture", leaf[:200], b""):
        with pytest.raises(ImageError) as here:
            cut_photo(data, "x.png", CUT)
        with pytest.raises(type(here.value)) as there:
            guard.cut_photo(data, "x.png", CUT)
        assert there.value.as_dict() == here.value.as_dict()
    with pytest.raises(ImageTooLargeError, match=r"at most 0\.001 megapixels"):
        guard.cut_photo(leaf, "x.png", replace(CUT, most_pixels=1000))


def test_every_refusal_of_a_photo_survives_the_way_out_of_the_process():
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, ImageError) and kind is not ImageError:
            assert _KNOWN[kind.code] is kind


def test_photos_of_all_sizes_one_after_the_other_do_not_mix(guard, tmp_path):
    for seed, size in enumerate([(2000, 1500), (40, 40), (900, 700), (33, 400)]):
        data = write_leaf(tmp_path / f"{seed}.png", LEAF_COLOURS["blight"], seed, size=size).read_bytes()
        cut = replace(CUT, keep=bool(seed % 2))
        same(guard.cut_photo(data, "a.png", cut), cut_photo(data, "a.png", cut))


def test_a_photo_that_takes_too_much_processor_time_is_stopped_and_the_next_is_decoded(leaf):
    data = many_scans(4000, 2000)
    assert len(data) < 20_000_000
    guard = Guard(1, replace(LIMITS, cpu_s=1.0))
    try:
        with pytest.raises(ImageStoppedError, match=r"slow\.jpg takes more than 1 s of a processor"):
            guard.cut_photo(data, "slow.jpg", CUT)
        assert guard.n_died == 1
        same(guard.cut_photo(leaf, "leaf.png", CUT), cut_photo(leaf, "leaf.png", CUT))
    finally:
        guard.close()


def test_a_photo_that_takes_too_much_memory_is_stopped_and_the_process_lives_on(leaf):
    buffer = io.BytesIO()
    Image.new("RGBA", (6000, 6000)).save(buffer, "PNG", compress_level=1)
    guard = Guard(1, replace(LIMITS, memory_bytes=100_000_000))
    try:
        with pytest.raises(ImageStoppedError, match="needs more memory"):
            guard.cut_photo(buffer.getvalue(), "large.png", CUT)
        assert guard.n_died == 0
        same(guard.cut_photo(leaf, "leaf.png", CUT), cut_photo(leaf, "leaf.png", CUT))
    finally:
        guard.close()


def test_a_process_that_does_not_answer_is_ended_at_its_deadline(leaf):
    guard = Guard(1, replace(LIMITS, deadline_s=1.0))
    try:
        guard.cut_photo(leaf, "leaf.png", CUT)
        process = guard._free.queue[0]._process
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(ImageStoppedError, match=r"leaf\.png was not decoded in 1 s"):
            guard.cut_photo(leaf, "leaf.png", CUT)
        assert process.returncode == -signal.SIGKILL
    finally:
        guard.close()


def test_a_process_that_crashes_takes_its_photo_with_it_and_no_other(leaf):
    guard = Guard(1, LIMITS)
    try:
        guard.cut_photo(leaf, "leaf.png", CUT)
        process = guard._free.queue[0]._process
        process.send_signal(signal.SIGSTOP)
        found = []

        def ask():
            with pytest.raises(ImageStoppedError) as refused:
                guard.cut_photo(leaf, "leaf.png", CUT)
            found.append(refused.value.message)

        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: guard._free.empty())
        os.kill(process.pid, signal.SIGSEGV)
        os.kill(process.pid, signal.SIGCONT)
        asking.join(20)
        assert found == ["leaf.png made the process that decoded it fail (SIGSEGV)."]
        same(guard.cut_photo(leaf, "leaf.png", CUT), cut_photo(leaf, "leaf.png", CUT))
    finally:
        guard.close()


def test_a_process_that_the_system_ended_is_not_the_photo_s_fault(leaf):
    """Such as by the kernel where memory is short: the photo is tried once more."""
    guard = Guard(1, LIMITS)
    try:
        guard.cut_photo(leaf, "leaf.png", CUT)
        guard._free.queue[0]._process.kill()
        same(guard.cut_photo(leaf, "leaf.png", CUT), cut_photo(leaf, "leaf.png", CUT))
        assert guard.n_died == 1
    finally:
        guard.close()


@pytest.mark.parametrize(
    "reply", [b"", b"rubbish\n", b"[]\n", b"{}\n", b'{"size": [1], "n_thumbnail": 0}\n', b'{"n_thumbnail": 1e12}\n']
)
def test_a_process_that_says_what_cannot_be_is_replaced(guard, leaf, reply, monkeypatch):
    """What a process might say that a photo has taken over."""
    guard.cut_photo(leaf, "leaf.png", CUT)
    worker = guard._free.queue[0]
    with closing(worker._lines):
        monkeypatch.setattr(worker, "_lines", io.BytesIO(reply))
        with pytest.raises(ImageStoppedError):
            guard.cut_photo(leaf, "leaf.png", CUT)
    assert guard._free.queue[0] is not worker
    same(guard.cut_photo(leaf, "leaf.png", CUT), cut_photo(leaf, "leaf.png", CUT))


def test_a_process_that_cannot_start_says_why(monkeypatch, leaf):
    monkeypatch.setattr("fewshot.decoding.guard.PROGRAM", "raise SystemExit('no such thing')")
    guard = Guard(1, LIMITS)
    with pytest.raises(GuardError, match="did not start: no such thing"):
        guard.cut_photo(leaf, "leaf.png", CUT)
    monkeypatch.undo()
    with suppress(GuardError):  # the one that was begun meanwhile
        guard.cut_photo(leaf, "leaf.png", CUT)
    same(guard.cut_photo(leaf, "leaf.png", CUT), cut_photo(leaf, "leaf.png", CUT))
    guard.close()


@pytest.mark.parametrize("lacking", ["tempfile.TemporaryFile", "_memory_file", "socket.socketpair"])
def test_a_guard_without_a_file_descriptor_left_goes_on_when_there_are_some_again(monkeypatch, leaf, lacking):
    def none_left(*_arguments):
        raise OSError(errno.EMFILE, "Too many open files")

    n_open = len(list(Path("/proc/self/fd").iterdir()))
    guard = Guard(2, LIMITS)
    monkeypatch.setattr(f"fewshot.decoding.guard.{lacking}", none_left)
    for _ in range(3):
        with pytest.raises(GuardError, match=r"no process .* can be started: Too many open files"):
            guard.cut_photo(leaf, "leaf.png", CUT)
    assert guard._free.qsize() == 2
    assert len(list(Path("/proc/self/fd").iterdir())) == n_open
    monkeypatch.undo()
    same(guard.cut_photo(leaf, "leaf.png", CUT), cut_photo(leaf, "leaf.png", CUT))
    guard.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == n_open


def test_a_guard_keeps_its_places_whatever_keeps_a_process_from_starting(monkeypatch, leaf):
    guard = Guard(1, LIMITS)
    monkeypatch.setattr("fewshot.decoding.guard._memory_file", lambda: [][0])
    with pytest.raises(IndexError):
        guard.cut_photo(leaf, "leaf.png", CUT)
    assert guard._free.qsize() == 1
    monkeypatch.undo()
    guard.close()


@pytest.mark.parametrize(("limit", "most"), [("AS", 4_000_000_000), ("FSIZE", 1_000_000), ("NOFILE", 48), ("CPU", 30)])
def test_a_guard_under_a_stricter_limit_of_the_system_decodes_within_it(limit, most, tmp_path, leaf):
    (tmp_path / "leaf.png").write_bytes(leaf)
    script = (
        f"import resource\nresource.setrlimit(resource.RLIMIT_{limit}, ({most}, {most}))\n"
        "from pathlib import Path\nfrom fewshot.decoding.cutting import Cut\n"
        "from fewshot.decoding.guard import Guard, GuardLimits\n"
        "guard = Guard(1, GuardLimits(8_000_000_000, cpu_s=60.0))\n"
        "print(guard.cut_photo(Path('leaf.png').read_bytes(), 'leaf.png', Cut(64, 0.875, 'bilinear')).width)\n"
        "guard.close()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("320\n", "")


def test_a_guarded_process_knows_nothing_of_its_surroundings(monkeypatch, leaf):
    """No secret of the environment, and no file but its own three, its socket and its memory."""
    monkeypatch.setenv("FEWSHOT_POST_TOKEN", "secret-word")
    guard = Guard(1, LIMITS)
    try:
        guard.cut_photo(leaf, "leaf.png", CUT)
        process = guard._free.queue[0]._process
        status = Path(f"/proc/{process.pid}")
        assert b"secret-word" not in (status / "environ").read_bytes()
        kept = [str(each.readlink()) for each in (status / "fd").iterdir()]
        assert all(name.startswith(("/dev/null", "socket:", "/memfd:")) for name in kept), kept
    finally:
        guard.close()


def test_processes_end_with_the_program_that_started_them(tmp_path):
    script = (
        "import os, signal\nfrom fewshot.decoding.guard import Guard, GuardLimits\n"
        "guard = Guard(2, GuardLimits.for_pixels(10**6)); guard.start()\n"
        "print(*[worker._process.pid for worker in guard._free.queue], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2

    def is_over(pid):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state == "Z"  # nobody is left to reap it
        except FileNotFoundError:
            return True

    eventually(lambda: all(map(is_over, pids)), 30)


def test_gps_tags_are_read_in_the_process_too(guard):
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 51.0, 24.48), 3: "E", 4: (151.0, 12.0, 55.08)})
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", exif=exif)
    assert guard.gps_tags(buffer.getvalue()) == images.gps_tags(buffer.getvalue()) != {}
    assert guard.gps_tags(b"nothing") == {}


def test_memory_stays_where_it_was_after_large_photos(guard, tmp_path):
    """What a large photo took is given back when the next one comes."""
    large = write_leaf(tmp_path / "l.bmp", LEAF_COLOURS["rust"], 1, size=(3000, 2500)).read_bytes()
    small = write_leaf(tmp_path / "s.png", LEAF_COLOURS["rust"], 1).read_bytes()
    guard.cut_photo(large, "l.bmp", CUT)
    guard.cut_photo(small, "s.png", CUT)
    guard.cut_photo(small, "s.png", CUT)
    worker = guard._free.queue[0]
    assert os.fstat(worker._area).st_size < len(large) / 2
    status = Path(f"/proc/{worker._process.pid}/statm").read_text()
    assert int(status.split()[1]) * os.sysconf("SC_PAGESIZE") < 120_000_000


def test_a_picture_that_unpacks_to_gigabytes_is_refused_by_its_header(guard):

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10_000_000))) + chunk(b"IEND", b"")
    began = time.process_time()
    with pytest.raises(ImageTooLargeError):
        guard.cut_photo(bomb, "bomb.png", CUT)
    assert time.process_time() - began < 5


def test_as_many_photos_at_once_as_there_are_threads(leaf):
    guard = Guard(2, LIMITS)
    try:
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(guard.cut_photo(leaf, "leaf.png", CUT))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(results) == 8
        with pytest.raises(NotAnImageError):
            guard.cut_photo(b"x", "x", CUT)
    finally:
        guard.close()
