"""Every file of an index, cut or changed at many places: noticed, named, made anew or repaired?

    python benchmarks/campaign_damage.py [--files 600] [--seed 0]

The files: the index itself, its log, its three caches, and a backup. The damage: one bit, a page of 4 KB overwritten
with noise, or the end cut off. What is checked is said in tests/damage.py.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import damage
import faults
from common import keep
from oracle import at_home

from fewshot.cli.output import progress


def main() -> None:
    """Damage, look, repair, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*damage.FILES, "a backup")}
    wrong: list[str] = []
    # The record itself has the most that can go wrong.
    order = ["index.sqlite", "index.sqlite-wal", "index.sqlite", "a backup", "index.sqlite", *damage.FILES[2:]]
    with tempfile.TemporaryDirectory() as folder, progress("damaged files", given.files) as step:
        work = Path(folder)
        at_home(work)
        faults.patch()
        sound = damage.made_sound(work)
        for number in range(given.files):
            file, kind = order[number % len(order)], damage.KINDS[number // len(order) % len(damage.KINDS)]
            seed = f"{given.seed} {number}"
            if file == "a backup":
                became, problems = damage.backup_judged(work, kind, seed)
            else:
                became, problems = damage.judged(sound, work, file, kind, seed)
            counts[file][f"{kind}: {became}" if became else f"{kind}: wrong"] += 1
            wrong += [f"{file}, {kind}, {seed}: {each}" for each in problems]
            step()
    result = {"files": given.files, "by_file": {name: dict(sorted(each.items())) for name, each in counts.items()}}
    result |= {"wrong": wrong}
    print(json.dumps(result, indent=1))
    keep("damage", result)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
