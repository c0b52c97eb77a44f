"""Embedders that workers of a test's cluster open, importable by them: the machines find this folder on PYTHONPATH."""

import os
import time
from pathlib import Path

import numpy as np
from conftest import ColourEngine, colour_embedder, eventually

from fewshot.embedder import Embedder
from fewshot.errors import EngineError

SLEEP_S = 0.05
NOTES = "FEWSHOT_TEST_NOTES"  # a folder in which workers leave a file each time they open an embedder


def colours(choice, source):
    note("opened")
    return colour_embedder(source.name)


def broken(choice, source):
    raise EngineError("there is no engine here.", hint="Put one in.")


def other(choice, source):
    return colour_embedder(source.name, 32)


def slow(choice, source):
    """Colours that take as long as a backbone would, without taking the cores from other tests."""
    note("opened")
    like = colour_embedder(source.name)
    return Embedder(like.backbone, like.source, "f32", lambda bulk: SlowEngine())


def slow_pair(choice, source):
    """As `slow`, but no photo is done before two workers are at one."""
    note("opened")
    like = colour_embedder(source.name)
    return Embedder(like.backbone, like.source, "f32", lambda bulk: SlowEngine(n_workers=2))


class SlowEngine(ColourEngine):
    batch_size = 1
    n_parallel = 1

    def __init__(self, n_workers=1):
        self.n_workers = n_workers

    def run(self, pixels):
        note(f"embedded-{os.getpid()}-{time.monotonic_ns()}", repr(np.sum(pixels, dtype=np.int64)))
        eventually(lambda: len(at_work(os.environ[NOTES])) >= self.n_workers, 240)
        time.sleep(SLEEP_S * len(pixels))
        return super().run(pixels)


def at_work(folder):
    """The processes that have begun to embed."""
    return {note.name.split("-")[1] for note in Path(folder).glob("embedded-*")}


def note(name, text=""):
    folder = os.environ.get(NOTES)
    if folder:
        file = Path(folder) / (f"{name}-{os.getpid()}" if name == "opened" else name)
        file.write_text(text + os.environ.get("FEWSHOT_THREADS", ""))
