"""A sealed file is whole or refused: every cut and every flipped bit is noticed, and a failed write changes nothing."""

import builtins
import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot import sealed as sealed_files
from fewshot.errors import CacheDamagedError
from fewshot.sealed import MAGIC, clear_leftovers, read_facts, read_sealed, verify, write_sealed

PAYLOAD = bytes(range(256)) * 3
FACTS = {"kind": "support", "generation": 7, "fingerprint": "lite0@0123456789ab", "label": "Kräusel"}


def seal(path, payload=PAYLOAD, facts=FACTS):
    write_sealed(path, lambda target: target.write_bytes(payload), facts)
    return path


@pytest.fixture
def sealed(tmp_path):
    return seal(tmp_path / "a.sealed")


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def assert_refused(path):
    with pytest.raises(CacheDamagedError):
        verify(path)
    with pytest.raises(CacheDamagedError):
        read_sealed(path)


# ---- there and back


@given(
    payload=st.binary(max_size=2000),
    facts=st.dictionaries(
        st.text(max_size=8), st.none() | st.integers() | st.text(max_size=8) | st.lists(st.booleans())
    ),
)
@settings(max_examples=60, deadline=None)
def test_what_is_sealed_comes_back(tmp_path_factory, payload, facts):
    path = seal(tmp_path_factory.mktemp("round") / "a.sealed", payload, facts)
    got, got_facts = read_sealed(path)
    assert got == payload
    assert facts.items() <= got_facts.items()
    assert verify(path) == read_facts(path) == got_facts


def test_the_payload_stands_at_the_start_as_it_was_written(sealed):
    """Another reader maps the payload from there."""
    data = sealed.read_bytes()
    assert data.startswith(PAYLOAD)
    assert data.endswith(MAGIC)


def test_an_empty_payload_is_sealed_too(tmp_path):
    assert read_sealed(seal(tmp_path / "a.sealed", b""))[0] == b""


def test_the_folder_is_made(tmp_path):
    assert verify(seal(tmp_path / "new" / "deep" / "a.sealed"))["generation"] == 7


def test_the_same_content_gives_the_same_bytes(tmp_path):
    assert seal(tmp_path / "a").read_bytes() == seal(tmp_path / "b").read_bytes()


def test_facts_cannot_be_given_for_what_is_measured(tmp_path):
    path = seal(tmp_path / "a.sealed", PAYLOAD, {"payload_bytes": 1, "payload_xxh3": "lie"})
    assert verify(path)["payload_bytes"] == len(PAYLOAD)


# ---- replaced as a whole


def test_writing_replaces_what_was_there(sealed):
    seal(sealed, b"new", {"generation": 8})
    assert read_sealed(sealed)[0] == b"new"
    assert "label" not in read_facts(sealed)
    assert names_in(sealed.parent) == ["a.sealed"]


def test_a_reader_that_has_the_old_file_open_keeps_it(sealed):
    with sealed.open("rb") as old:
        seal(sealed, b"new")
        assert old.read(len(PAYLOAD)) == PAYLOAD


def test_until_it_is_whole_the_old_file_stands(sealed):
    seen = []

    def write(target):
        target.write_bytes(b"new")
        seen.append(read_sealed(sealed)[0])

    write_sealed(sealed, write, {})
    assert seen == [PAYLOAD]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("faiss"), KeyboardInterrupt()])
@pytest.mark.parametrize("written", [b"", b"half of it"])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(sealed, error, written):
    def fail(target):
        if written:
            target.write_bytes(written)
        raise error

    before = sealed.read_bytes()
    with pytest.raises(type(error)):
        write_sealed(sealed, fail, {})
    assert sealed.read_bytes() == before
    assert names_in(sealed.parent) == ["a.sealed"]


def test_a_writer_that_fails_the_first_time_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_sealed(tmp_path / "f" / "a.sealed", lambda target: 1 / 0, {})
    assert names_in(tmp_path / "f") == []


def test_facts_that_are_no_json_leave_the_old_file(sealed):
    with pytest.raises(TypeError):
        seal(sealed, b"new", {"path": Path("x")})
    assert read_sealed(sealed)[0] == PAYLOAD
    assert names_in(sealed.parent) == ["a.sealed"]


def test_a_replacement_that_is_refused_leaves_no_temporary(tmp_path):
    (tmp_path / "a.sealed" / "inner").mkdir(parents=True)  # a folder cannot be replaced by a file
    with pytest.raises(OSError, match=r".+"):
        seal(tmp_path / "a.sealed")
    assert names_in(tmp_path) == ["a.sealed"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        seal(tmp_path / "a.sealed")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.sealed").stat().st_mode) == mode


# ---- damage


def test_cut_anywhere_it_is_refused(sealed):
    data = sealed.read_bytes()
    for length in [*range(0, len(data) - 60, 13), *range(len(data) - 60, len(data))]:
        sealed.write_bytes(data[:length])
        assert_refused(sealed)


def test_a_flipped_bit_in_any_byte_is_noticed(tmp_path):
    path = seal(tmp_path / "a.sealed", PAYLOAD[:128])
    data = path.read_bytes()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        assert_refused(path)


def test_the_facts_and_the_tail_are_guarded_bit_by_bit(tmp_path):
    path = seal(tmp_path / "a.sealed", b"", {})
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 3):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CacheDamagedError):
            read_facts(path)


@pytest.mark.parametrize("extra", [b"\x00", b"more", MAGIC])
def test_bytes_behind_or_before_are_noticed(sealed, extra):
    data = sealed.read_bytes()
    sealed.write_bytes(data + extra)
    assert_refused(sealed)
    sealed.write_bytes(extra + data)
    assert_refused(sealed)


def test_a_missing_file_a_folder_and_a_stranger_are_refused(tmp_path):
    assert_refused(tmp_path / "missing")
    assert_refused(tmp_path)
    (tmp_path / "stranger").write_bytes(bytes(1000))
    assert_refused(tmp_path / "stranger")


def test_reading_the_facts_does_not_read_the_payload(tmp_path, monkeypatch):
    path = seal(tmp_path / "a.sealed", bytes(5_000_000))
    n_read, real_open = [], Path.open

    class Counted:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *caught):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, size=-1):
            data = self.file.read(size)
            n_read.append(len(data))
            return data

    monkeypatch.setattr(Path, "open", lambda path, *mode: Counted(real_open(path, *mode)))
    monkeypatch.setattr(builtins, "open", lambda *_: pytest.fail("opened another way"))
    assert read_facts(path)["payload_bytes"] == 5_000_000
    assert 0 < sum(n_read) < 1000


def test_a_disk_that_fails_while_the_payload_is_read_is_damage(sealed, monkeypatch):
    real = sealed_files.mmap.mmap

    def failing(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sealed_files.mmap, "mmap", failing)
    with pytest.raises(CacheDamagedError, match="Input/output error"):
        verify(sealed)
    monkeypatch.setattr(sealed_files.mmap, "mmap", real)
    assert verify(sealed)["generation"] == 7


def test_facts_and_payload_are_those_of_one_file_though_it_is_replaced_meanwhile(sealed, monkeypatch):
    before, facts_of = read_sealed(sealed), sealed_files._facts

    def replaced(file, path):
        facts = facts_of(file, path)
        seal(path, b"another payload", {"generation": 8})
        return facts

    monkeypatch.setattr(sealed_files, "_facts", replaced)
    assert read_sealed(sealed) == before


def test_facts_can_be_read_where_the_payload_is_damaged(sealed):
    data = bytearray(sealed.read_bytes())
    data[5] ^= 1
    sealed.write_bytes(data)
    assert read_facts(sealed)["generation"] == 7
    assert_refused(sealed)


# ---- what killed writers leave


def left_by(path, process, age_s):
    left = path.with_name(f".{path.name}.{process}.0a1b2c3d")
    left.write_bytes(b"half")
    then = time.time() - age_s
    os.utime(left, (then, then))
    return left


def dead_process():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def test_what_a_dead_writer_left_is_taken_away_and_what_a_living_one_writes_stays(tmp_path):
    path = tmp_path / "cache"
    dead = dead_process()
    old = left_by(path, dead, 120)
    fresh = left_by(path.with_name("other"), dead, 120)
    living = left_by(path, os.getpid(), 3600)
    write_sealed(path, lambda target: target.write_bytes(b"whole"), {})
    assert not old.exists()
    assert living.exists(), "its process runs"
    assert fresh.exists(), "another file's"
    assert read_sealed(path)[0] == b"whole"


def test_a_leftover_that_has_just_been_written_stays_for_a_minute(tmp_path):
    path = tmp_path / "cache"
    just = left_by(path, dead_process(), 5)  # perhaps of a process on another machine that shares the folder
    assert clear_leftovers(path) == []
    assert just.exists()


def test_after_a_day_nobody_writes_any_more_whatever_the_process_number_says(tmp_path):
    path = tmp_path / "cache"
    left = left_by(path, os.getpid(), 100_000)
    assert clear_leftovers(path) == [left]


def test_a_folder_that_a_dead_writer_left_is_taken_away_with_what_is_in_it(tmp_path):
    path = tmp_path / "cache"
    left = path.with_name(f".{path.name}.{dead_process()}.0a1b2c3d")
    left.mkdir()
    (left / "half").write_bytes(b"half")
    os.utime(left, (0, 0))
    assert clear_leftovers(path) == [left]
    assert list(tmp_path.iterdir()) == []


def test_names_that_only_look_alike_are_left_alone(tmp_path):
    path = tmp_path / "cache"
    names = [
        ".cache.12.notes",
        ".cache.twelve.0a1b2c3d",
        "cache.12.0a1b2c3d",
        ".cache.12.0a1b2c3d.txt",
        ".cacheX.12.0a1b2c3d",
    ]
    for name in names:
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (0, 0))
    clear_leftovers(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(names)


def test_a_durable_file_is_synced_before_it_gets_its_name_and_its_folder_after(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor):
        events.append(Path(f"/proc/self/fd/{descriptor}").resolve())
        real_fsync(descriptor)

    def replace(self, target):
        events.append("named")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_sealed(tmp_path / "kept", lambda target: target.write_bytes(b"whole"), {}, durable=True)
    assert [each if each == "named" else each == tmp_path for each in events] == [False, "named", True]
