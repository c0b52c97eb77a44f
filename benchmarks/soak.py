"""An index beside a plain dictionary for a long time: every change and every answer is compared (`make soak`).

    python benchmarks/soak.py [--operations 100000] [--seed 0] [--work DIR] [--anew]

The operations are those of tests/oracle.py: enroll, replace, rename, remove a class or a photo (also such as must be
refused), by this process, by a second one, by both at once; SIGKILL of the second in a change; closing and opening;
lost caches; reindex; backup; restore over the open index or into a new folder; questions about photos, answered against
brute force; and now and then a check of every checksum and of the answers of an index made anew. What runs is kept in
DIR (by default runs/soak-SEED) every few thousand operations: interrupted or killed, the same command goes on from
there. Put DIR on a RAM disk, and it is not the disk that is measured.
"""

import argparse
import json
import os
import pickle
import shutil
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # many small questions: threads would only wait for each other
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import oracle
from common import ROOT, keep

from fewshot.cli.output import progress

PART = 5000  # operations between two savings
KEPT = ("content", "which", "n_operations", "n_kills", "counts", "from_kept", "backups", "_number", "_used_ids")


def main() -> None:
    """Go on where the last run stopped; print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--anew", action="store_true", help="Forget what an earlier run did.")
    given = parser.parse_args()
    work = given.work or ROOT / "runs" / f"soak-{given.seed}"
    if given.anew:
        shutil.rmtree(work, ignore_errors=True)
    (work / "live").mkdir(parents=True, exist_ok=True)
    oracle.at_home(work)
    world, seconds = resumed(work)
    with progress("operations", given.operations) as step:
        for _ in range(world.n_operations):
            step()
        while world.n_operations < given.operations and not world.problems:
            started = time.process_time()
            before = world.n_operations
            rng = np.random.default_rng([given.seed, before])
            while world.n_operations < min(before + PART, given.operations) and not world.problems:
                done = world.n_operations
                oracle.seeded_step(world, rng)
                for _ in range(world.n_operations - done):
                    step()
            world.check_all()
            seconds += time.process_time() - started
            save(world, work, seconds)
            if not sys.stderr.isatty():
                print(
                    f"{world.n_operations:,} operations, {world.n_kills} kills, {len(world.problems)} wrong", flush=True
                )
    world.close()
    tell(given, world, seconds)
    if world.problems:
        sys.exit(f"error: {world.problems[0]}")


def resumed(work: Path) -> tuple[oracle.World, float]:
    """The world as it was saved last, or a new one; and the CPU seconds that it has cost."""
    live, saved, old = work / "live", work / "saved", work / "old"
    shutil.rmtree(live)
    if old.exists() and not saved.exists():  # killed between the two names
        old.rename(saved)
    if not (saved / "state").exists():
        live.mkdir()
        return oracle.World(live), 0.0
    shutil.copytree(saved / "files", live)
    state: dict[str, Any] = pickle.loads((saved / "state").read_bytes())  # written by `save`
    world = oracle.World(live, which=state["which"])
    for name in KEPT:
        setattr(world, name, state[name])
    return world, state["seconds"]


def save(world: oracle.World, work: Path, seconds: float) -> None:
    """Keep index, backups and dictionary, as a whole."""
    new, saved, old = work / "new", work / "saved", work / "old"
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    world.reopen()  # a closed index is one file
    shutil.copytree(world.folder, new / "files")
    (new / "state").write_bytes(pickle.dumps({**{name: getattr(world, name) for name in KEPT}, "seconds": seconds}))
    if saved.exists():
        saved.rename(old)
    new.rename(saved)


def tell(given: argparse.Namespace, world: oracle.World, seconds: float) -> None:
    """Print and keep."""
    result = {
        "seed": given.seed,
        "operations": world.n_operations,
        "by_kind": dict(sorted(world.counts.items())),
        "kills": world.n_kills,
        "wrong": world.problems,
        "photos_ever_enrolled": len(world._used_ids),
        "cpu_s": round(seconds, 1),
    }
    print(json.dumps(result, indent=1))
    keep(f"soak-{given.seed}", result)


if __name__ == "__main__":
    main()
