"""The service against `fewshot query FOLDER`, under overload, and how soon it answers.

    python benchmarks/service.py [--data DIR] [--seconds 60] [--rounds 3] [--only load,overload,start]

Load: 32 clients ask one photo at a time; each round is preceded by `fewshot query` of the same photos, so that both
meet the same machine. Overload: 256 clients with photos of 12 megapixels, while one client enrolls photos; then the
service is killed, and every enrolment that it had acknowledged is looked for. Clients run on the same cores.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common import FEWSHOT, data_folder, fewshot, keep_part, memory_mb, run
from PIL import Image
from service_clients import BOUNDARY, request_bytes

N_PHOTOS = 500
N_CLIENTS = 32
N_OVERLOAD = 256
OVERLOAD_S = 45
REST_S = 10  # behind the overload, before the memory is looked at
BIG = (4000, 3000)
N_BIG = 12


@dataclass(frozen=True)
class Service:
    """A running `fewshot serve`."""

    process: "subprocess.Popen[str]"
    port: int

    def get(self, path: str) -> Any:
        """The JSON that a route answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=120) as answer:
            return json.load(answer)

    def post(self, request: bytes, path: str, word: str | None = None) -> tuple[int, Any]:
        """Send a photo; status and JSON."""
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        if word is not None:
            headers["Authorization"] = f"Bearer {word}"
        body = request.split(b"\r\n\r\n", 1)[1]
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
        try:
            with urllib.request.urlopen(asked, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def memory_mb(self) -> float:
        """What the process holds."""
        return memory_mb(self.process.pid)

    def cpu_s(self) -> float:
        """The CPU seconds that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(index: Path, *options: str) -> Iterator[Service]:
    """A service on a free port."""
    command = [FEWSHOT, "serve", "--index", index, "--port", "0", "--json", *options]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        yield Service(process, int(url.rsplit(":", 1)[1]))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def clients(service: Service, n: int, seconds: float, photos: list[Path]) -> "subprocess.Popen[str]":
    """So many clients, started."""
    script = Path(__file__).with_name("service_clients.py")
    words = [sys.executable, script, "127.0.0.1", service.port, n, seconds, *photos]
    return subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, text=True)


def load(index: Path, folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Images a second of the service against those of the command, in turn."""
    photos = sorted(folder.iterdir())
    rows, latencies, memory = [], [], []
    statuses: Counter[str] = Counter()
    with serving(index) as service:
        clients(service, N_CLIENTS, 5, photos).communicate()  # warm-up
        memory.append(service.memory_mb())
        for _ in range(rounds):
            one = fewshot("query", photos[0], index=index)
            query = fewshot("query", folder, index=index)
            before = service.cpu_s()
            found = json.loads(clients(service, N_CLIENTS, seconds, photos).communicate()[0])
            statuses.update(found["statuses"])
            statuses.update(found["failures"])
            n = len(found["seconds"])
            row = {
                "query_images_per_s": len(photos) / query.wall_s,
                "query_steady_images_per_s": (len(photos) - 1) / (query.wall_s - one.wall_s),
                "query_cpu_ms_an_image": 1000 * (query.cpu_s - one.cpu_s) / (len(photos) - 1),
                "service_images_per_s": n / found["wall_s"],
                "service_cpu_ms_an_image": 1000 * (service.cpu_s() - before) / n,
                "bad_images": found["bad"],
            }
            row["ratio"] = row["service_images_per_s"] / row["query_images_per_s"]
            row["steady_ratio"] = row["service_images_per_s"] / row["query_steady_images_per_s"]
            rows.append(row)
            latencies += found["seconds"]
            memory.append(service.memory_mb())
            print(json.dumps(row), f"{memory[-1]:.0f} MB", flush=True)
        batches = _metric(service, "fewshot_batch_photos_sum") / _metric(service, "fewshot_batch_photos_count")
    latencies.sort()
    return {
        "clients": N_CLIENTS,
        "seconds": seconds,
        "photos": len(photos),
        "rounds": rows,
        "ratio": median(row["ratio"] for row in rows),
        "steady_ratio": median(row["steady_ratio"] for row in rows),
        "statuses": dict(statuses),
        "p50_s": latencies[len(latencies) // 2],
        "p99_s": latencies[int(0.99 * len(latencies))],
        "memory_mb": memory,
        "photos_a_batch": batches,
    }


def overload(index: Path, folder: Path, work: Path) -> dict[str, Any]:
    """256 clients with big photos, one that enrolls, and a kill."""
    big = []
    for number, photo in enumerate(sorted(folder.iterdir())[:N_BIG]):
        big.append(work / f"big-{number}.jpg")
        with Image.open(photo) as image:
            image.convert("RGB").resize(BIG, Image.Resampling.BICUBIC).save(big[-1], quality=95)
    word = json.loads(run(FEWSHOT, "token", "create", "bench", "--index", index, "--json").stdout)["token"]
    acknowledged: list[int] = []
    enrolments: Counter[str] = Counter()
    peak = 0.0
    with serving(index) as service:
        asking = clients(service, N_OVERLOAD, OVERLOAD_S, big)
        until = time.monotonic() + OVERLOAD_S
        new = iter(sorted(folder.iterdir()))
        photo = next(new)
        while time.monotonic() < until:
            peak = max(peak, service.memory_mb())
            request = request_bytes("127.0.0.1", photo)
            status, body = service.post(request, "/v1/classes/under-load/supports", word)
            enrolments[str(status)] += 1
            if status == 201:
                acknowledged += body["support_ids"]
                photo = next(new)
            else:
                time.sleep(0.2)
        found = json.loads(asking.communicate()[0])
        started = time.monotonic()
        status, _ = service.post(request_bytes("127.0.0.1", photo), "/v1/query")
        after_s = time.monotonic() - started
        assert status == 200, status
        time.sleep(REST_S)
        memory_after = service.memory_mb()
        # Once more, to be killed right behind an acknowledgement.
        status, body = service.post(request_bytes("127.0.0.1", photo), "/v1/classes/under-load/supports", word)
        assert status == 201, body
        service.process.kill()
        service.process.wait()
        acknowledged += body["support_ids"]
    with serving(index) as service:
        there = {row["support_id"] for row in service.get("/v1/classes/under-load")["photos"]}
    return {
        "clients": N_OVERLOAD,
        "seconds": OVERLOAD_S,
        "megapixels": BIG[0] * BIG[1] / 1e6,
        "photo_mb": median(path.stat().st_size for path in big) / 1e6,
        "statuses": found["statuses"],
        "failures": found["failures"],
        "enrolments": dict(enrolments),
        "acknowledged": len(acknowledged),
        "lost": len(set(acknowledged) - there),
        "peak_memory_mb": peak,
        "memory_after_mb": memory_after,
        "memory_after_s": REST_S,
        "answer_after_s": after_s,
    }


def start(index: Path, photo: Path, n: int = 7) -> dict[str, Any]:
    """From the command to the first answer, in turn with `fewshot query` of the same photo."""
    request = request_bytes("127.0.0.1", photo)
    ours, theirs = [], []
    for _ in range(n + 1):
        started = time.perf_counter()
        with serving(index) as service:
            status, _ = service.post(request, "/v1/query")
            ours.append(time.perf_counter() - started)
        assert status == 200
        theirs.append(fewshot("query", photo, index=index).wall_s)
    return {"n": n, "serve_s": sorted(ours[1:]), "query_s": sorted(theirs[1:]), "median_s": median(ours[1:])}


def _metric(service: Service, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/metrics") as answer:
        return next(float(line.split()[1]) for line in answer.read().decode().splitlines() if line.split()[0] == name)


def main() -> None:
    """Run the parts, print and keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="start,load,overload")
    given = parser.parse_args()
    data = data_folder(given.data)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        index, photos = work / "index", work / "photos"
        fewshot("enroll", "--each", data / "novel" / "support", index=index)
        photos.mkdir()
        for number, photo in enumerate(sorted((data / "novel" / "query").rglob("*.jpg"))[:N_PHOTOS]):
            (photos / f"{number:04d}.jpg").symlink_to(photo.resolve())
        for name, measure in (
            ("start", lambda: start(index, next(photos.iterdir()))),
            ("load", lambda: load(index, photos, given.seconds, given.rounds)),
            ("overload", lambda: overload(index, photos, work)),
        ):
            if name in given.only.split(","):
                part = measure()
                print(f"{name}\n{json.dumps(part, indent=1)}", flush=True)
                keep_part("service", name, part)


if __name__ == "__main__":
    main()
