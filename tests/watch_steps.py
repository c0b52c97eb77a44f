"""A watch of a folder, for the tests of watching: what it is told, shows and writes."""

import json
import threading

from conftest import LEAF_COLOURS, write_leaf

from fewshot.watching.memory import Memory
from fewshot.watching.routes import Routes
from fewshot.watching.sinks import AnswerFile, Screen
from fewshot.watching.watcher import Watcher

ROUTES = Routes("farm", {"rust": ("Sprayer",), "healthy": (), "mildew": ("Sprayer", "Adviser"), "blight": ("Adviser",)})


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
