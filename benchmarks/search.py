"""Search among prototypes and photos: ours against faiss itself, and against usearch and hnswlib at equal recall.

    python benchmarks/search.py [--sizes 1000,10000,100000,1000000] [--dims 256,1280] [--rivals-most 1000000]

Prototypes are searched exactly; photos in the kind of index that the program chooses for their number, with the
vectors themselves at hand for the last comparison, as the store has them. Queries are other photos of the same classes
(`made_up.py`); recall is the part of them whose nearest photo by brute force is found first. One query a call.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
from common import environment, in_turn, keep, memory_mb, run
from made_up import MadeUp, unit

from fewshot.gallery.neighbours import EXACT_NUMBERS
from fewshot.search import Centres, VectorIndex

N_QUERIES, K = 200, 3
RIVALS = ("usearch", "hnswlib", "numpy")
# Photos a class: classes as small as the tool is meant for have no structure above them here, which is the hardest
# case for any index that does not read everything; a million photos are more likely many of each class.
SPREADS = {"10 a class": 10, "1,000 a class": 1000}


def truth(made: MadeUp, queries: np.ndarray) -> np.ndarray:
    """The nearest vector of each query, by brute force."""
    best, found = np.full(len(queries), -2.0, np.float32), np.full(len(queries), -1)
    for ids, vectors in made.parts():
        similarities = queries @ vectors.T
        place = similarities.argmax(axis=1)
        value = similarities[np.arange(len(queries)), place]
        nearer = value > best
        best[nearer], found[nearer] = value[nearer], ids[place[nearer]]
    return found


def measured(
    index: VectorIndex, queries: np.ndarray, nearest: np.ndarray, vectors: np.ndarray | None
) -> dict[str, Any]:
    """Ours against the faiss index inside it, in turn, each time with another query: the first would warm its cells."""
    raw = index._base

    def one(i: int) -> np.ndarray:
        return queries[i % len(queries)][None]

    vectors_of = None if vectors is None else lambda ids: np.asarray(vectors[ids])
    if index.facts["kind"] == "cells":
        raw.nprobe = index.facts["n_read"]
    ours, theirs, scored = in_turn(
        len(queries),
        lambda i: index.search(one(i), K),
        lambda i: raw.search(one(i + len(queries) // 3), K + 1),
        lambda i: index.search(one(i + len(queries) * 2 // 3), K, vectors_of=vectors_of),
    )
    found = index.search(queries, 1, vectors_of=vectors_of)[1][:, 0]
    return {
        **index.facts,
        "p50_ms": 1e3 * median(scored),
        "p95_ms": 1e3 * float(np.quantile(scored, 0.95)),
        "p50_without_vectors_ms": 1e3 * median(ours),
        "faiss_p50_ms": 1e3 * median(theirs),
        "ratio": median(ours) / median(theirs),
        "recall_at_1": float((found == nearest).mean()),
    }


def prototypes(n: int, dim: int) -> dict[str, Any]:
    """n classes of one prototype, searched exactly."""
    made = MadeUp(n, 1, dim)
    index = VectorIndex(dim, cells_limit=None)
    for ids, vectors in [(np.concatenate(c) for c in zip(*made.parts(), strict=True))]:
        index.build(ids, vectors)
    queries = made.queries(N_QUERIES)
    return {"what": "prototypes", "n": n, "dim": dim} | measured(index, queries, truth(made, queries), None)


def photos(n: int, n_each: int, dim: int, work: Path, rivals: bool) -> dict[str, Any]:
    """n photos in the index chosen for their number, and the rivals."""
    made = MadeUp(n, n_each, dim)
    vectors = np.lib.format.open_memmap(work / "vectors.npy", "w+", np.float32, (n, dim))
    for ids, part in made.parts():
        vectors[ids] = part
    vectors.flush()
    queries = made.queries(N_QUERIES)
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    nearest = truth(made, queries)
    index = VectorIndex(dim, exact_limit=EXACT_NUMBERS // dim)
    every = max(1, n // max(1, index.n_training(n)))
    sample = (np.arange(0, n, every), np.asarray(vectors[::every]))
    started, before = time.perf_counter(), memory_mb()
    index.build_from(
        n,
        sample,
        lambda: ((ids, np.asarray(vectors[ids])) for ids, _ in _ranges(n)),
        lambda: _prototypes(vectors, n_each),
    )
    build_s, held_mb = time.perf_counter() - started, memory_mb() - before
    faiss.omp_set_num_threads(1)  # one query uses one thread in all of them
    index.save(work / "ours.faiss", {})
    del index
    started = time.perf_counter()
    opened, _ = VectorIndex.open(work / "ours.faiss", {})
    opened.search(queries[:1], K)
    facts = {"open_s": time.perf_counter() - started, "build_s": build_s, "built_mb": held_mb}
    facts["file_mb"] = (work / "ours.faiss").stat().st_size / 1e6
    row = {"what": "photos", "n": n, "dim": dim, "n_each": n_each} | facts
    row |= measured(opened, queries, nearest, vectors)
    if rivals:
        np.savez(work / "asked.npz", queries=queries, nearest=nearest)
        script = Path(__file__).with_name("search_rivals.py")
        done = run(environment("search", *RIVALS), script, work / "vectors.npy", work / "asked.npz", row["recall_at_1"])
        row["rivals"] = json.loads(done.stdout)
    return row


def _prototypes(vectors: np.ndarray, n_each: int) -> Centres:
    """The classes' means, as the store has them."""
    step = n_each * max(1, 20_000 // n_each)
    sums = [
        np.add.reduceat(part, np.arange(0, len(part), n_each), axis=0)
        for part in (np.asarray(vectors[start : start + step]) for start in range(0, len(vectors), step))
    ]
    return unit(np.concatenate(sums)), lambda ids: ids // n_each


def _ranges(n: int) -> list[tuple[np.ndarray, None]]:
    return [(np.arange(start, min(n, start + 20_000)), None) for start in range(0, n, 20_000)]


def line(row: dict[str, Any]) -> str:
    """A row of the table on the screen."""
    shown = f"{row['what']:11}{row['n']:9}{row.get('n_each', 1):6}{row['dim']:6}  {row['kind']:10}"
    shown += f"{row['p50_ms']:9.3f}{row['faiss_p50_ms']:9.3f}{row['ratio']:7.2f}{row['recall_at_1']:8.3f}"
    for name, rival in row.get("rivals", {}).items():
        shown += f"  {name} {rival['p50_ms']:.3f} ms at {rival['recall_at_1']:.3f}, built in {rival['build_s']:.0f} s"
    return shown


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--dims", default="256,1280")
    parser.add_argument("--rivals-most", type=int, default=1_000_000, help="largest number of photos for the rivals")
    given = parser.parse_args()
    faiss.omp_set_num_threads(1)
    print(f"{'what':11}{'n':>9}{'each':>6}{'dim':>6}  {'kind':10}{'p50 ms':>9}{'faiss':>9}{'ratio':>7}{'recall':>8}")
    rows = []
    sizes = [int(n) for n in given.sizes.split(",")]
    for dim in map(int, given.dims.split(",")):
        for n in sizes:
            if n <= 100_000:
                rows.append(prototypes(n, dim))
                print(line(rows[-1]), flush=True)
            for n_each in SPREADS.values():
                if n < 10_000 or n_each * 10 > n:
                    continue
                rivals = n <= given.rivals_most and dim == 256
                with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
                    rows.append(photos(n, n_each, dim, Path(folder), rivals))
                print(line(rows[-1]), flush=True)
                keep("search", {"rows": rows, "n_queries": N_QUERIES, "k": K})
    keep("search", {"rows": rows, "n_queries": N_QUERIES, "k": K})


if __name__ == "__main__":
    main()
