"""Cold start: `fewshot query` of one photo against `python -c "import torch, timm"`, and what its imports cost.

    python benchmarks/cold_start.py [--runs 9]

Whole processes, in turn, after one uncounted pair. CPU seconds are given beside the wall's, because a machine that has
other work stretches the latter. The photo is one that the program renders.
"""

import argparse
import os
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from common import FEWSHOT, Run, fewshot, keep, pairs, run, wall

LARGEST = 10
LINE = re.compile(r"import time:\s+(-?\d+) \|\s+\d+ \|\s+(\S+)")


def imports(*command: str | Path) -> dict[str, Any]:
    """What a command imports: how many modules, their milliseconds, and the libraries that take most of them.

    Python's own clock (`-X importtime`), which itself costs about as much again.
    """
    done = run(sys.executable, "-X", "importtime", *command)
    spent: dict[str, float] = defaultdict(float)
    n = 0
    for microseconds, module in LINE.findall(done.stderr):
        spent[module.split(".")[0]] += int(microseconds) / 1000
        n += 1
    largest = sorted(spent, key=lambda name: -spent[name])[:LARGEST]
    return {"modules": n, "ms": sum(spent.values()), "largest_ms": {name: round(spent[name], 1) for name in largest}}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        run(FEWSHOT, "sample-data", Path(folder) / "leaves")
        index = Path(folder) / "index"
        fewshot("enroll", "--each", Path(folder) / "leaves" / "support", index=index)
        photo = Path(folder) / "leaves" / "query" / "rust" / "rust-00.jpg"

        def ours() -> Run:
            return fewshot("query", photo, index=index)

        def rival() -> Run:
            return run(sys.executable, "-c", "import torch, timm")

        queries, rivals = pairs(given.runs, ours, rival)
        helps, _ = pairs(given.runs, lambda: run(FEWSHOT, "--help"), lambda: run(sys.executable, "-c", ""))
        profile = imports(FEWSHOT, "query", photo, "--index", index)
    result = {
        "query": {"wall_s": wall(queries), "cpu_s": _cpu(queries), "peak_mb": max(one.peak_mb for one in queries)},
        "import_torch_timm": {"wall_s": wall(rivals), "cpu_s": _cpu(rivals), "peak_mb": max(r.peak_mb for r in rivals)},
        "help": {"wall_s": wall(helps), "cpu_s": _cpu(helps), "peak_mb": max(one.peak_mb for one in helps)},
        "imports": profile,
        "n_runs": given.runs,
        "load": load,
    }
    result["ratio"] = {
        key: median(getattr(a, key) / getattr(b, key) for a, b in zip(queries, rivals, strict=True))
        for key in ("wall_s", "cpu_s", "peak_mb")
    }
    for what in ("query", "import_torch_timm", "help"):
        row = result[what]
        print(f"{what:18} {row['wall_s']:6.2f} s wall {row['cpu_s']:6.2f} s CPU {row['peak_mb']:6.0f} MB")
    print("ratio             ", " ".join(f"{key} {value:.3f}" for key, value in result["ratio"].items()))
    print(f"imports: {profile['modules']} modules; {profile['largest_ms']}")
    keep("cold-start", result)


def _cpu(runs: list[Run]) -> float:
    return median(one.cpu_s for one in runs)


if __name__ == "__main__":
    main()
