"""What a service took for a burst of photos goes back to the system when the burst is over, and not before."""

import ctypes
import mmap
import sys
import time
from pathlib import Path

import pytest
from conftest import LEAF_COLOURS, eventually, write_leaf
from service_client import files, serving

from fewshot.datasets import class_folders
from fewshot.service import batching
from fewshot.service.memory import give_back_memory

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
