"""Hostile pictures through `fewshot serve` and the command line: who crashes, what it costs, what is said.

    python benchmarks/hostile.py [--seed 0] [--every 1] [--photos FOLDER]

Measures what guarding costs where photos are sound. Then serves an index of rendered leaves and sends every
picture of `hostile_images.corpus` to it, by POST to the query route and every tenth batch to the enrolling
route too, while health is asked; then by `fewshot enroll --guarded` and by `fewshot query`, guarded and, but
for those made to be slow or large, which take an unguarded command minutes, not. Counts what was refused and
how it was said, and takes the most memory that the service and each of its decoding processes held.
"""

import argparse
import json
import queue
import re
import subprocess
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from common import FEWSHOT, ROOT, json_lines, keep, memory_mb, run
from hostile_images import corpus

from fewshot.datasets import PHOTO_SUFFIXES
from fewshot.samples import write_samples
from fewshot.service.settings import Settings
from fewshot.service.tokens import TokenFile

A_REQUEST = 8
PAIRS = 3


def main() -> None:
    """Send, ask, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="only every so-manieth picture, to try this out")
    parser.add_argument("--photos", type=Path, help="sound photos to measure the cost with; else rendered ones")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        leaves, index = folder / "leaves", folder / "index"
        write_samples(leaves, n_support=10, n_query=40, seed=given.seed)
        run(FEWSHOT, "enroll", "--each", leaves / "support", "--index", index)
        hostile = folder / "hostile"
        hostile.mkdir()
        names = []
        for number, (made, content) in enumerate(corpus(given.seed)):
            if number % given.every == 0:
                shown = f"{number:04d}-{re.sub('[^A-Za-z0-9.-]', '_', made)}"
                names.append(shown if Path(shown).suffix in PHOTO_SUFFIXES else f"{shown}.jpg")
                (hostile / names[-1]).write_bytes(content)
        print(f"{len(names)} hostile pictures", flush=True)
        result: dict[str, Any] = {"pictures": len(names), "kinds": len({name.split("-")[1] for name in names})}
        result["cost"] = cost(index, given.photos or leaves / "query")
        print(json.dumps(result["cost"], indent=1), flush=True)
        result["service"] = through_service(index, hostile, names, next((leaves / "query").glob("*/*")))
        print(json.dumps(result["service"], indent=1), flush=True)
        quick = folder / "quick"
        quick.mkdir()
        for each in names:
            if each.split("-")[1] not in ("bomb", "slow"):
                (quick / each).symlink_to(hostile / each)
        result["command_line"] = {
            "guarded": {**by_query(index, hostile, ["--guarded"]), **by_enroll(folder / "index-2", hostile)},
            "unguarded": by_query(index, quick, []),
        }
        print(json.dumps(result["command_line"], indent=1), flush=True)
    keep("hostile", result)


def through_service(index: Path, hostile: Path, names: list[str], sound: Path) -> dict[str, Any]:
    """Every picture by POST; what was said, and what the processes came to."""
    word = TokenFile(index).create("benchmark", ("write",))[1]
    words = ["serve", "--index", index, "--port", "0", "--json", "--rate", "0"]
    service = subprocess.Popen(
        [str(word) for word in (FEWSHOT, *words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert service.stdout is not None
    url = json.loads(service.stdout.readline())["url"]
    memory = Memory(service.pid)
    codes: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    unclear: list[str] = []
    workers: set[int] = set()
    waits, work = [], queue.SimpleQueue()
    lock = threading.Lock()
    for start in range(0, len(names), A_REQUEST):
        work.put(names[start : start + A_REQUEST])

    def send() -> None:
        with httpx.Client(base_url=url, timeout=600, headers={"Authorization": f"Bearer {word}"}) as client:
            while True:
                try:
                    batch = work.get_nowait()
                except queue.Empty:
                    return
                photos = [("photos", (name, (hostile / name).read_bytes())) for name in batch]
                answer = client.post("/v1/query", files=photos)
                with lock:
                    statuses[answer.status_code] += 1
                    for found in answer.json().get("predictions", []):
                        said = found["message"] if found["reason"] == "bad_image" else "answered"
                        codes[kind_of(said)] += 1
                        if found["reason"] == "bad_image" and len(found["message"]) < 20:
                            unclear.append(found["file"])
                if int(batch[0][:4]) % 10 == 0:
                    enrolled = client.post("/v1/classes/hostile/supports", files=photos)
                    with lock:
                        statuses[enrolled.status_code] += 1

    with httpx.Client(base_url=url, timeout=600) as client:
        while client.get("/v1/health/ready").status_code != 200:
            time.sleep(0.2)
        photo = [("photos", (sound.name, sound.read_bytes()))]
        before = client.post("/v1/query", files=photo).json()["predictions"][0]["answer"]
        rest_mb = memory.sampled()
        senders = [threading.Thread(target=send) for _ in range(2)]
        began = time.perf_counter()
        for sender in senders:
            sender.start()
        while any(sender.is_alive() for sender in senders):
            asked = time.perf_counter()
            assert client.get("/v1/health").json()["live"]
            waits.append(time.perf_counter() - asked)
            memory.sample()
            workers |= memory.workers
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        asked = time.perf_counter()
        after = client.post("/v1/query", files=photo).json()["predictions"][0]["answer"]
        after_s = time.perf_counter() - asked
        end_mb = memory.sampled()
    alive = service.poll() is None
    service.terminate()
    _, stderr = service.communicate(timeout=60)
    return {
        "seconds": seconds,
        "said": dict(codes.most_common()),
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        "without_a_clear_sentence": len(unclear),
        "service_alive": alive,
        "tracebacks": stderr.count("Traceback"),
        "decoding_processes": len(workers),
        "replaced": max(0, len(workers) - Settings().n_decoders),
        "same_answer_before_and_after": before == after,
        "answer_after_s": after_s,
        "health_s": {"median": median(waits), "longest": max(waits)},
        "memory_mb": {"service_at_rest": rest_mb, "service_most": memory.service_mb, "service_after": end_mb},
        "decoder_most_mb": memory.worker_mb,
        "decoder_bound_mb": bound_mb(),
    }


def bound_mb() -> float:
    """What the guard lets a decoding process take at 50 megapixels, in MB."""
    from fewshot.decoding.guard import GuardLimits

    return GuardLimits.for_pixels(Settings().max_pixels).memory_bytes / 1e6


def kind_of(said: str) -> str:
    """The words of a refusal that are the same whatever the picture."""
    for code, words in {
        "stopped: memory": "needs more memory",
        "stopped: time": "of a processor to decode",
        "stopped: deadline": "was not decoded in",
        "stopped: crash": "made the process",
        "cut short": "is cut short",
        "too large": "megapixels are read",
        "too small": "on the short side",
        "no picture": "is not a picture",
        "empty": "is empty",
        "damaged": "cannot be decoded",
        "answered": "answered",
    }.items():
        if words in said:
            return code
    return said


class Memory:
    """What a service and the processes it decodes in hold, from /proc."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.service_mb = self.worker_mb = 0.0
        self.workers: set[int] = set()

    def sample(self) -> None:
        """Look once."""
        self.service_mb = max(self.service_mb, self.sampled())
        self.workers = set()
        for task in Path(f"/proc/{self._pid}/task").iterdir():
            try:
                self.workers |= set(map(int, (task / "children").read_text().split()))
            except OSError:
                continue  # a thread that has just ended
        for worker in self.workers:
            with suppress(OSError, IndexError):  # it has just been replaced, or is ending and holds nothing
                self.worker_mb = max(self.worker_mb, memory_mb(worker, "VmHWM"))

    def sampled(self) -> float:
        """What the service holds now, in MB."""
        return memory_mb(self._pid)


def by_query(index: Path, pictures: Path, options: list[str]) -> dict[str, Any]:
    """Every picture by `fewshot query`."""
    asked = run(FEWSHOT, "query", pictures, "--index", index, "--json", *options)
    codes: Counter[str] = Counter()
    for found in json_lines(asked.stdout):
        codes[kind_of(found["message"] if found["reason"] == "bad_image" else "answered")] += 1
    return {
        "said": dict(codes.most_common()),
        "tracebacks": asked.stderr.count("Traceback"),
        "query_s": asked.wall_s,
        "query_mb": asked.peak_mb,
    }


def by_enroll(index: Path, pictures: Path) -> dict[str, Any]:
    """Every picture by `fewshot enroll --guarded`."""
    enrolled = run(FEWSHOT, "enroll", "hostile", pictures, "--index", index, "--json", "--guarded", check=False)
    (report,) = json_lines(enrolled.stdout)
    return {
        "enroll_tracebacks": enrolled.stderr.count("Traceback"),
        "enrolled": report["enrolled"],
        "enroll_refused": len(report["refused"]),
        "enroll_s": enrolled.wall_s,
        "enroll_mb": enrolled.peak_mb,
    }


def cost(index: Path, photos: Path) -> dict[str, Any]:
    """What guarding costs where photos are sound: `fewshot query` with and without, in turn."""
    seconds: dict[str, list[float]] = {"guarded": [], "unguarded": []}
    cpu: dict[str, list[float]] = {"guarded": [], "unguarded": []}
    n = 0
    for _ in range(PAIRS):
        for name, options in (("guarded", ["--guarded"]), ("unguarded", [])):
            done = run(FEWSHOT, "query", photos, "--index", index, "--json", *options)
            n = len(json_lines(done.stdout))
            seconds[name].append(done.wall_s)
            cpu[name].append(done.cpu_s)
    return {
        "photos": n,
        "seconds": {name: median(found) for name, found in seconds.items()},
        "cpu_s": {name: median(found) for name, found in cpu.items()},
        "ratio": median(guarded / plain for guarded, plain in zip(*seconds.values(), strict=True)),
    }


if __name__ == "__main__":
    main()
