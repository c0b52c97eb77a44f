"""The emergency study's folder watcher, live: street scenes come in, units are sent, the process is killed meanwhile.

    python benchmarks/watch_demo.py [--backbone NAME] [--data DIR] [--kills 8] [--seed 0]

scenes/train is enrolled; the photos of scenes/test come into a watched folder in random order, under names that tell
coordinates, some renamed into place and some written in pieces, with a few cut short among them. Answers go to a
JSON-lines file and to a receiver that is down at first. In the second half the watch is killed with SIGKILL again and
again, and started anew. Then: was each photo answered once, with its coordinates, and were the right units sent?
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from common import FEWSHOT, ROOT, fewshot, json_lines, keep

from fewshot.watching.routes import read_routes

ROUTES = ROOT / "configs" / "routes-emergency.yaml"
EVERY_S = 0.15  # a photo comes so often
N_BAD = 5
CONTROL_ROOM = ("Control Room",)


def scenes_folder(given: str | None) -> Path | None:
    """The street scenes: as given, beside $FEWSHOT_DATA, or beside the project; None where there are none."""
    beside = Path(os.environ.get("FEWSHOT_DATA") or ROOT.parent / "shared" / "data" / "fieldleaf").parent
    folder = Path(given) if given else beside / "scenes"
    return folder if (folder / "train").is_dir() and (folder / "test").is_dir() else None


@dataclass
class Receiver:
    """A URL that takes answers, once it is opened; it counts keys as a receiver should."""

    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                receiver.seen[self.headers["Idempotency-Key"]] += 1
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.server_bind()
        self.url = f"http://127.0.0.1:{self._server.server_port}/answers"

    def open(self) -> None:
        """Begin to take answers."""
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


class Watch:
    """The process under test, and when each of its answers was first seen in its file."""

    def __init__(self, folder: Path, index: Path, receiver: Receiver) -> None:
        self.written = folder / "answers.jsonl"
        self.report = folder / "bad.jsonl"
        self._words: list[str | Path] = [FEWSHOT, "watch", folder / "inbox", "--routes", ROUTES, "--index", index]
        self._words += ["--state", folder / "state", "--report", self.report, "--settle", "0.3"]
        self._words += ["--to", self.written, "--to", receiver.url]
        self.first_seen: dict[str, float] = {}
        self.n_kills = 0
        self.start()

    def start(self) -> None:
        """Start the process."""
        self.process = subprocess.Popen(
            [str(word) for word in self._words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        """SIGKILL, and start anew."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.n_kills += 1
        self.start()

    def end(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=60)

    def look(self) -> None:
        """Note which answers are there by now."""
        for answer in self.answers():
            self.first_seen.setdefault(answer["file"], time.monotonic())

    def answers(self) -> list[dict[str, Any]]:
        """What stands in the file, but for a line that is being written."""
        return json_lines(self.written.read_text().rpartition("\n")[0]) if self.written.exists() else []


def bring(data: bytes, path: Path, rng: random.Random) -> None:
    """A photo comes into the folder: renamed into place, or written in two pieces."""
    if rng.random() < 0.5:
        hidden = path.with_name(f".{path.name}.part")
        hidden.write_bytes(data)
        hidden.rename(path)
        return
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        time.sleep(0.05)
        file.write(data[len(data) // 2 :])


def table(rows: list[list[str]]) -> None:
    """Print aligned rows."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def measure(scenes: Path, backbone: str, n_kills: int, seed: int) -> dict[str, Any]:
    """Run the demo; its result."""
    rng = random.Random(seed)
    photos = [(path, path.parent.name) for path in sorted((scenes / "test").glob("*/*.jpg"))]
    rng.shuffle(photos)
    truth: dict[str, tuple[str, float, float]] = {}
    brought: dict[str, float] = {}
    kill_at = set(rng.sample(range(len(photos) // 2, len(photos)), n_kills))
    receiver = Receiver()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "inbox").mkdir()
        fewshot("enroll", "--each", scenes / "train", "--backbone", backbone, index=folder / "index")
        watch = Watch(folder, folder / "index", receiver)
        for i, (path, label) in enumerate(photos):
            latitude = round(-33.8568 + rng.uniform(-0.1, 0.1), 4)
            longitude = round(151.2153 + rng.uniform(-0.1, 0.1), 4)
            file = f"{latitude:.4f}_{longitude:.4f}_{i:03}.jpg"
            truth[file] = (label, latitude, longitude)
            data = path.read_bytes()
            bring(data, folder / "inbox" / file, rng)
            brought[file] = time.monotonic()
            if i < N_BAD:
                (folder / "inbox" / f"cut-{i}.jpg").write_bytes(data[: len(data) // 3])
            if i == len(photos) * 3 // 4:
                receiver.open()
            until = time.monotonic() + EVERY_S
            while time.monotonic() < until or not watch.first_seen:  # the first waits for the program to start
                watch.look()
                time.sleep(0.02)
            if i in kill_at:
                watch.kill()
        give_up = time.monotonic() + 120
        while len(watch.answers()) < len(photos) or len(receiver.seen) < len(photos) or not watch.report.exists():
            if time.monotonic() > give_up:
                sys.exit(f"error: only {len(watch.answers())} of {len(photos)} photos were answered in time.")
            watch.look()
            time.sleep(0.05)
        time.sleep(4)  # ten times the settling, for the photos that are cut short
        exit_code = watch.end()
        watch.look()
        answers = watch.answers()
        n_reported = len(json_lines(watch.report.read_text()))
    receiver.close()
    undisturbed = list(brought)[
        1 : min([*kill_at, len(photos)]) - 10
    ]  # the photos of the last seconds before a kill wait
    waits = sorted(watch.first_seen[file] - brought[file] for file in undisturbed)
    return {
        "backbone": backbone,
        "photos": len(photos),
        "kills": watch.n_kills,
        "exit_code": exit_code,
        "answers": len(answers),
        "photos_unanswered": len(truth.keys() - {answer["file"] for answer in answers}),
        "answered_twice": len(answers) - len({answer["key"] for answer in answers}),
        "bad_photos": N_BAD,
        "bad_photos_reported": n_reported,
        "posted": len(receiver.seen),
        "posted_again_under_the_same_key": sum(receiver.seen.values()) - len(receiver.seen),
        "coordinates_right": sum((a["latitude"], a["longitude"]) == truth[a["file"]][1:] for a in answers),
        "seconds_from_file_to_answer": {"median": median(waits), "p95": waits[int(0.95 * len(waits))]},
        **routed(answers, {file: label for file, (label, *_) in truth.items()}),
    }


def routed(answers: list[dict[str, Any]], truth: dict[str, str]) -> dict[str, Any]:
    """How right the labels and the units were, for each true label."""
    routes = read_routes(ROUTES)
    by_label: dict[str, dict[str, int]] = {}
    confusion: dict[str, Counter[str]] = {}
    for answer in answers:
        label, units = truth[answer["file"]], tuple(answer["units"])
        row = by_label.setdefault(label, dict.fromkeys(("photos", "label_right", "units_right", "control_room"), 0))
        row["photos"] += 1
        row["label_right"] += answer["matches"][0]["label"] == label
        row["units_right"] += units == routes.units[label]
        row["control_room"] += units == CONTROL_ROOM
        confusion.setdefault(label, Counter())[answer["answer"]] += 1
    return {
        "by_label": dict(sorted(by_label.items())),
        "confusion": {label: dict(sorted(counts.items())) for label, counts in sorted(confusion.items())},
    }


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    plain = {name: value for name, value in result.items() if not isinstance(value, dict)}
    table([[name, str(value)] for name, value in plain.items()])
    waits = result["seconds_from_file_to_answer"]
    print(f"seconds from file to answer, before the first kill: median {waits['median']:.2f}, p95 {waits['p95']:.2f}\n")
    rows = [["label", "photos", "label right", "units right", "control room", "answers"]]
    for label, row in result["by_label"].items():
        found = ", ".join(f"{name} {n}" for name, n in result["confusion"][label].items())
        counts = [str(row[key]) for key in ("photos", "label_right", "units_right", "control_room")]
        rows.append([label, *counts, found])
    table(rows)


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="plants-lite0")
    parser.add_argument("--data", help="a folder with train/LABEL and test/LABEL in it")
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    scenes = scenes_folder(given.data)
    if scenes is None:
        print("skipped: no street scenes here; give --data, or set FEWSHOT_DATA to the folder beside them.")
        return
    result = measure(scenes, given.backbone, given.kills, given.seed)
    show(result)
    keep(f"watch-{Path(given.backbone).name}", json.loads(json.dumps(result)))


if __name__ == "__main__":
    main()
