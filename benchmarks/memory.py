"""What a service holds in memory: with large indexes, after a burst of large photos, over many queries.

    python benchmarks/memory.py [--sizes 10000,100000,1000000] [--dim 1280] [--n-queries 100000] [--skip burst]

Memory is the resident set of the process, pages of mapped files included. *Idle* is after its first answer, which has
mapped the caches; *asked* after 200 photos, each with its nearest enrolled photos. *Queries* is one process that asks
the index of 100,000 photos embeddings without end, 32 at once as `fewshot query FOLDER` does; ten moments of it are
compared. *Burst*: 64 clients send photos of 12 megapixels for 20 s to a service of a small index; what it holds at
most, and 30 s later.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import fewshot, keep, memory_mb, run
from made_up import MadeUp, fill
from service import clients, serving
from service_clients import request_bytes

N_EACH, N_ASKED, N_BURST, BURST_S, REST_S = 10, 200, 64, 20, 30


def service(n: int, photos: list[Path], work: Path) -> dict[str, Any]:
    """A service over n made-up photos."""
    from fewshot.embedder import EmbedderChoice, open_embedder

    embedder = open_embedder(EmbedderChoice())
    index = work / f"service-{n}"
    fill(index, MadeUp(n, N_EACH, embedder.dim), embedder.facts())
    fewshot("query", photos[0], index=index)  # leaves the caches as a used index has them
    requests = [request_bytes("127.0.0.1", photo) for photo in photos]
    with serving(index) as running:
        first = running.post(requests[0], "/v1/query")
        assert first[0] == 200, first
        idle = running.memory_mb()
        for number in range(N_ASKED):
            running.post(requests[number % len(requests)], "/v1/query")
        asked = running.memory_mb()
    row = {"n": n, "dim": embedder.dim, "idle_mb": idle, "asked_mb": asked}
    row["cache_mb"] = sum(path.stat().st_size for path in (index / "cache").iterdir()) / 1e6
    shutil.rmtree(index)
    return row


def child_queries(index: Path, n_queries: int) -> list[dict[str, float]]:
    """In a process of its own: ask, and note the memory ten times."""
    from fewshot.gallery import QUERY_CHUNK, Gallery

    with Gallery(index) as gallery:
        dim = gallery.about().dim
        assert dim is not None
        queries = MadeUp(1000, N_EACH, dim).queries(1000)
        noted = []
        tenth = max(QUERY_CHUNK, n_queries // 10)
        for start in range(0, n_queries, QUERY_CHUNK):
            gallery.predict(queries[np.arange(start, start + QUERY_CHUNK) % 1000])
            if start // tenth < (start + QUERY_CHUNK) // tenth:
                noted.append({"n": start + QUERY_CHUNK, "mb": memory_mb()})
    return noted


def queries(dim: int, n_queries: int, work: Path) -> list[dict[str, float]]:
    """Memory over many queries."""
    from made_up import steady_embedder

    index = work / "queries"
    fill(index, MadeUp(100_000, N_EACH, dim), steady_embedder(dim).facts())
    found: list[dict[str, float]] = json.loads(run(sys.executable, __file__, "--child", index, n_queries).stdout)
    shutil.rmtree(index)
    return found


def burst(work: Path) -> dict[str, float]:
    """Before, at most during, and after a burst of large photos."""
    from PIL import Image

    rng = np.random.default_rng(0)
    photos = []
    for number in range(4):
        small = Image.fromarray(rng.integers(0, 255, (150, 200, 3), dtype=np.uint8))
        photos.append(work / f"large-{number}.jpg")
        small.resize((4000, 3000), Image.Resampling.BICUBIC).save(photos[-1], quality=90)
    index = work / "small"
    fewshot("enroll", "--each", work / "leaves" / "support", index=index)
    with serving(index) as running:
        running.post(request_bytes("127.0.0.1", photos[0]), "/v1/query")
        before, most = running.memory_mb(), 0.0
        asking: subprocess.Popen[str] = clients(running, N_BURST, BURST_S, photos)
        while asking.poll() is None:
            most = max(most, running.memory_mb())
            time.sleep(0.1)
        asking.communicate()
        time.sleep(REST_S)
        after = running.memory_mb()
    return {"before_mb": before, "most_mb": most, "after_mb": after}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--dim", type=int, default=1280, help="of the queries without end")
    parser.add_argument("--n-queries", type=int, default=100_000)
    parser.add_argument("--skip", default="")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child_queries(Path(given.child[0]), int(given.child[1]))))
        return
    result: dict[str, Any] = {"sizes": []}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        work = Path(folder)
        run(Path(sys.executable).with_name("fewshot"), "sample-data", work / "leaves")
        photos = sorted((work / "leaves" / "query").rglob("*.jpg"))
        for n in map(int, filter(None, given.sizes.split(","))):
            result["sizes"].append(service(n, photos, work))
            print(json.dumps(result["sizes"][-1]), flush=True)
            keep("memory", result)
        for name, measure in (
            ("queries", lambda: queries(given.dim, given.n_queries, work)),
            ("burst", lambda: burst(work)),
        ):
            if name not in given.skip.split(","):
                result[name] = measure()
                print(name, json.dumps(result[name]), flush=True)
                keep("memory", result)


if __name__ == "__main__":
    main()
