"""usearch and hnswlib on the vectors of `search.py`, in their own environment: prints what each needs, as JSON.

    python benchmarks/search_rivals.py VECTORS.npy ASKED.npz RECALL

Each is a graph; how far a search walks in it is raised until the recall is reached, or to the last step.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import hnswlib
import numpy as np
from usearch.index import Index

LINKS, BUILDING_WIDTH, WIDTHS, K = 16, 100, (16, 32, 64, 128, 256, 512, 1024, 2048), 3


def memory_mb() -> float:
    """What this process holds now, without pages of mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024 / 1e6


def measured(
    build: Callable[[], Any],
    widen: Callable[[Any, int], None],
    ask: Callable[[Any, np.ndarray], np.ndarray],
    queries: np.ndarray,
    nearest: np.ndarray,
    wanted: float,
) -> dict[str, float]:
    """Build, then widen the search until the recall is there; one query a call."""
    before, started = memory_mb(), time.perf_counter()
    index = build()
    facts = {"build_s": time.perf_counter() - started, "memory_mb": memory_mb() - before}
    for width in WIDTHS:
        widen(index, width)
        seconds, found = [], []
        for query in queries:
            started = time.perf_counter()
            ids = ask(index, query)
            seconds.append(time.perf_counter() - started)
            found.append(int(ids[0]))
        facts |= {"width": width, "p50_ms": 1e3 * median(seconds), "recall_at_1": float(np.mean(found == nearest))}
        if facts["recall_at_1"] >= wanted:
            break
    return facts


def main() -> None:
    """Measure both and print."""
    vectors = np.load(sys.argv[1], mmap_mode="r")
    asked = np.load(sys.argv[2])
    wanted = min(0.99, float(sys.argv[3]))
    queries, nearest = asked["queries"], asked["nearest"]
    n, dim = vectors.shape

    def build_hnswlib() -> hnswlib.Index:
        index = hnswlib.Index("ip", dim)
        index.init_index(n, ef_construction=BUILDING_WIDTH, M=LINKS)
        for start in range(0, n, 50_000):
            index.add_items(np.asarray(vectors[start : start + 50_000]), np.arange(start, min(n, start + 50_000)))
        return index

    def build_usearch() -> Index:
        index = Index(ndim=dim, metric="ip", dtype="f32", connectivity=LINKS, expansion_add=BUILDING_WIDTH)
        for start in range(0, n, 50_000):
            index.add(np.arange(start, min(n, start + 50_000)), np.asarray(vectors[start : start + 50_000]))
        return index

    found = {
        "hnswlib": measured(
            build_hnswlib,
            lambda index, width: index.set_ef(width),
            lambda index, query: index.knn_query(query, K, num_threads=1)[0][0],
            queries,
            nearest,
            wanted,
        ),
        "usearch": measured(
            build_usearch,
            lambda index, width: setattr(index, "expansion_search", width),
            lambda index, query: index.search(query, K, threads=1).keys,
            queries,
            nearest,
            wanted,
        ),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
