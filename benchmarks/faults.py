"""Every command that writes, killed or failing at every one of its writing calls: is anything lost or half there?

    python benchmarks/faults.py [--points N] [--only kill,twice,full,errors,disk,power] [--work DIR] [--anew]

The commands and what is checked behind each fault are those of tests/faults.py. kill: SIGKILL in front of each writing
system call. twice: killed, run again, and killed again. full: no room from some write on (ENOSPC). errors: one call
fails (EIO). disk: a small file system with so much room (a tmpfs: needs root). power: the power is cut, as in
tests/powercut.py. The outcome of each point is kept in DIR, so that an interrupted run goes on where it stopped.
"""

import argparse
import gc
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import faults
import powercut
from common import ROOT, keep
from oracle import at_home

from fewshot.cli.output import progress

N_TWICE, N_FULL, N_ERRORS, N_DISK, N_POWER = 40, 15, 15, 10, 10  # points a command, where not every one is taken
AGAIN_EVERY = 4  # of the kills, those behind which the command is also run to its end
DISK_KB, ROOM_STEP_KB = 4096, 24


def points(ready: faults.Ready, kinds: list[str]) -> list[tuple[str, list[str]]]:
    """The faults of a command: their kind, and what strace is told (or how much room there is, in KB)."""
    rng = random.Random(ready.scenario.name)
    steps = list(range(1, ready.n_steps + 1))
    found = [("kill", [faults.kill(step)]) for step in steps]
    found += [("twice", [faults.kill(rng.choice(steps)), faults.kill(rng.choice(steps))]) for _ in range(N_TWICE)]
    found += [("full", [faults.disk_full(step)]) for step in rng.sample(steps, min(N_FULL, len(steps)))]
    found += [("errors", [faults.disk_error(step)]) for step in rng.sample(steps, min(N_ERRORS, len(steps)))]
    found += [("disk", [str(number * ROOM_STEP_KB)]) for number in range(N_DISK)]
    places = [f"{number / N_POWER:.3f}" for number in range(1, N_POWER + 1)]
    found += [("power", [place, part]) for place in places for part in ("0", "0.5")]
    return [each for each in found if each[0] in kinds]


def on_a_small_disk(ready: faults.Ready, work: Path, room_kb: int) -> tuple[int, list[str]]:
    """Run a command on a file system with so much room left."""
    disk = work / "disk"
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "tmpfs", disk], check=True)
    try:
        shutil.copytree(ready.template, disk, dirs_exist_ok=True)
        free_kb = shutil.disk_usage(disk).free // 1024
        (disk / "filler").write_bytes(bytes(1024 * max(0, free_kb - room_kb)))
        outcome = faults.run(disk, ready.scenario.words)
        (disk / "filler").unlink()
        wrong = faults.judged(ready, disk, [outcome])
        return int(outcome.code != 0), [f"{ready.scenario.name}, {room_kb} KB of room: {each}" for each in wrong]
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


class Recordings:
    """What each command did to files, recorded when first asked for."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._known: dict[str, tuple[Path, list[powercut.Call]]] = {}

    def power_cut(self, ready: faults.Ready, place: float, part: float) -> tuple[int, list[str]]:
        """Cut the power in some part of a command."""
        name = ready.scenario.name
        if name not in self._known:
            self._known[name] = powercut.recorded(ready, self._work)
        folder, calls = self._known[name]
        n_played = round(place * len(calls))
        return 1, powercut.cut(ready, self._work, folder, calls, n_played, part, again=n_played % AGAIN_EVERY == 0)


def main() -> None:
    """All points that are not done yet; then print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, help="At most so many, evenly chosen.")
    parser.add_argument("--only", default="kill,twice,full,errors,disk,power")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "faults")
    parser.add_argument("--anew", action="store_true", help="Forget what an earlier run did.")
    given = parser.parse_args()
    if given.anew:
        shutil.rmtree(given.work, ignore_errors=True)
    given.work.mkdir(parents=True, exist_ok=True)
    at_home(given.work)
    faults.patch()
    gc.freeze()
    kinds = [kind for kind in given.only.split(",") if kind != "disk" or os.geteuid() == 0]
    ready = []
    for number, scenario in enumerate(faults.SCENARIOS):
        ready.append(faults.made_ready(scenario, given.work / f"scenario-{number}"))
        print(f"{scenario.name}: {ready[-1].n_steps} steps", flush=True)
    todo = [(each, kind, told) for each in ready for kind, told in points(each, kinds)]
    random.Random(0).shuffle(todo)  # any part of them is a fair part
    todo = todo[: given.points]
    journal = given.work / "points.jsonl"
    done = {}
    if journal.exists():
        for line in journal.read_text().splitlines():
            row = json.loads(line)
            done[row["scenario"], row["kind"], tuple(row["told"])] = row
    now = given.work / "now"
    now.mkdir(exist_ok=True)
    recordings = Recordings(now)
    with journal.open("a") as file, progress("faults", len(todo)) as step:
        for number, (each, kind, told) in enumerate(todo):
            key = (each.scenario.name, kind, tuple(told))
            if key not in done:
                if kind == "disk":
                    n_struck, wrong = on_a_small_disk(each, now, int(told[0]))
                elif kind == "power":
                    n_struck, wrong = recordings.power_cut(each, *map(float, told))
                else:
                    again = kind != "kill" or number % AGAIN_EVERY == 0
                    n_struck, wrong = faults.disturbed(each, now, *told, again=again)
                done[key] = {"scenario": key[0], "kind": kind, "told": told, "struck": n_struck, "wrong": wrong}
                file.write(json.dumps(done[key]) + "\n")
                file.flush()
                if wrong:
                    print(wrong, flush=True)
            step()
            if number % 100 == 99 and not sys.stderr.isatty():
                print(f"{number + 1} of {len(todo)} points", flush=True)
    tell([done[each.scenario.name, kind, tuple(told)] for each, kind, told in todo], ready)


def tell(rows: list[dict], ready: list[faults.Ready]) -> None:
    """Print and keep."""
    struck: Counter[str] = Counter()
    for row in rows:
        struck[row["kind"]] += row["struck"]
    by_command = {
        each.scenario.name: {"steps": each.n_steps}
        | {
            kind: sum(row["struck"] for row in rows if (row["scenario"], row["kind"]) == (each.scenario.name, kind))
            for kind in struck
        }
        for each in ready
    }
    wrong = [text for row in rows for text in row["wrong"]]
    result = {
        "points": len(rows),
        "struck": dict(struck),
        "kills": struck["kill"] + struck["twice"],
        "disk_full": struck["full"] + struck["disk"],
        "io_errors": struck["errors"],
        "power_cuts": struck["power"],
        "by_command": by_command,
        "lost": sum("lost:" in text for text in wrong),
        "half_there": sum("half there:" in text for text in wrong),
        "unhandled": sum("unhandled:" in text for text in wrong),
        "wrong": wrong,
    }
    print(json.dumps(result, indent=1))
    keep("faults", result)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
