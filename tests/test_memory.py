"""Freed memory: a service gives back what a burst of photos took, a training keeps it for its next batch."""

import ctypes
import mmap
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import LEAF_COLOURS, eventually, write_leaf
from service_client import files, serving

from fewshot.datasets import class_folders
from fewshot.memory import give_back_memory
from fewshot.service import batching

RESIDENT = Path("/proc/self/statm")


def resident_bytes():
    return int(RESIDENT.read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="only GNU's malloc keeps what it is given back")
def test_freed_memory_that_malloc_keeps_goes_back():
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    # Small pieces come from the heap; the last one stays, so that the heap cannot shrink from its end.
    pieces = [library.malloc(60_000) for _ in range(1000)]
    for piece in pieces:
        ctypes.memset(piece, 1, 60_000)
    for piece in pieces[:-1]:
        library.free(piece)
    before = resident_bytes()
    assert give_back_memory()
    assert before - resident_bytes() > 40_000_000
    library.free(pieces[-1])


UPLOADS = """
import mmap, sys
from pathlib import Path
from fewshot.memory import give_back_large_blocks
if sys.argv[1] == "given back":
    assert give_back_large_blocks()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
picture = bytearray(b"x") * 30_000_000
del picture
before = resident()
uploads, stay = [], []
for _ in range(100):
    uploads.append(bytearray(b"x") * 1_400_000)
    stay.append(bytearray(b"x") * 2_000)
uploads.clear()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only GNU's malloc can be told what to give back")
def test_uploads_leave_no_holes_between_what_stays():
    def left_behind(how):
        done = subprocess.run([sys.executable, "-c", UPLOADS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert left_behind("as it is") > 100_000_000
    assert left_behind("given back") < 10_000_000


BATCHES = """
import resource, sys
import numpy as np
from fewshot.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def batch():
    np.ones(40_000_000, np.uint8)
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only GNU's malloc can be told to keep what is freed")
def test_a_batch_takes_the_memory_of_the_one_before_where_it_would_be_cleared_anew():
    def pages_cleared(how):
        done = subprocess.run([sys.executable, "-c", BATCHES, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    n_pages = 40_000_000 // mmap.PAGESIZE
    assert pages_cleared("given back") > 10 * n_pages / 600  # a huge page holds 512
    assert pages_cleared("kept") < 10


def test_memory_is_given_back_once_a_burst_is_over_and_again_after_the_next(gallery, leaves, tmp_path, monkeypatch):
    list(gallery.enroll(class_folders(leaves(n=3))))
    rust = write_leaf(tmp_path / "new-rust.png", LEAF_COLOURS["rust"], 900)
    given = []
    monkeypatch.setattr(batching, "IDLE_S", 0.1)
    with serving(gallery) as client:
        waiting = client.app.state.work.batcher
        monkeypatch.setattr(batching, "give_back_memory", lambda: given.append(waiting.n_waiting))
        assert client.post("/v1/query", files=files(rust)).status_code == 200
        eventually(lambda: given)
        time.sleep(0.3)
        for _ in range(3):
            given.clear()
            assert client.post("/v1/query", files=files(rust)).status_code == 200
            eventually(lambda: given)
            time.sleep(0.3)
            assert given == [0]  # nobody was waiting, and then it sleeps until the next photo
