"""A few of the faults of benchmarks/campaign_faults.py: killed, disk full, disk error and power cut at chosen calls."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPT = """
import gc, json, sys
from pathlib import Path
import faults, powercut
from oracle import at_home
work = Path(sys.argv[1])
at_home(work)
faults.patch()
gc.freeze()
for scenario in faults.SCENARIOS:
    if scenario.name not in sys.argv[2:]:
        continue
    ready = faults.made_ready(scenario, work / "scenario")
    part = lambda share: max(1, round(share * ready.n_steps))
    struck, wrong = 0, []
    asked = [(faults.kill(part(0.4)),), (faults.kill(part(0.9)), faults.kill(part(0.2)))]
    asked += [(faults.disk_full(3),), (faults.disk_error(part(0.6)),)]
    for each in asked:
        n, found = faults.disturbed(ready, work, *each)
        struck, wrong = struck + n, wrong + found
    folder, calls = powercut.recorded(ready, work)
    for share, kept in ((0.3, 0.5), (0.7, 0.0), (1.0, 0.0)):
        wrong += powercut.cut(ready, work, folder, calls, round(share * len(calls)), kept, again=False)
    print(json.dumps({"scenario": scenario.name, "struck": struck, "steps": ready.n_steps, "wrong": wrong}), flush=True)
"""


@pytest.fixture(scope="module")
def strace():
    """strace may hold processes here; where it is missing or forbidden, the test skips, but not in CI."""
    held = shutil.which("strace") and subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True)
    if not held or held.returncode:
        import os

        assert not os.environ.get("CI"), "CI must be able to run strace (`.ci/run` installs it)"
        pytest.skip("strace is not installed, or may not hold processes here: `apt-get install strace`")


# Of the ways to write: several transactions and caches, one transaction, a file that takes its place as a whole.
NAMES = ["enroll into a new index", "rename", "restore"]


def test_killed_full_failing_or_without_power_nothing_acknowledged_is_lost(strace, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), *NAMES],
        capture_output=True,
        text=True,
        cwd=HERE,
        env={"PYTHONPATH": f"{HERE}:{HERE.parent}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["scenario"] for row in rows] == NAMES
    assert [text for row in rows for text in row["wrong"]] == []
    assert all(row["struck"] >= 4 for row in rows), rows
    assert all(row["steps"] >= 20 for row in rows), rows


def test_a_disk_without_power_forgets_what_was_not_synced_and_keeps_what_was(tmp_path):
    """The played disk itself: without this it could pass by forgetting nothing."""
    from random import Random

    from powercut import Call, Disk

    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "old").write_bytes(b"old content")
    folder = Path("/played")
    calls = [
        Call("create", "/played/synced"), Call("write", "/played/synced", 0, b"a" * 600),
        Call("sync", "/played/synced"), Call("write", "/played/synced", 100, b"b"),
        Call("create", "/played/named"), Call("sync", "/played"), Call("write", "/played/named", 0, b"c"),
        Call("create", "/played/unnamed"), Call("write", "/played/old", 0, b"N"),
        Call("rename", "/played/old", to="/played/new"),
    ]  # fmt: skip
    disk = Disk(tmp_path / "before", folder)
    for call in calls:
        disk.play(call)
    disk.power_cut(tmp_path / "nothing", folder, Random(0), 0.0)
    disk.power_cut(tmp_path / "all", folder, Random(0), 1.0)
    left = {path.name: path.read_bytes() for path in (tmp_path / "nothing").iterdir()}
    assert left == {"old": b"old content", "synced": b"a" * 600, "named": b""}
    left = {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
    assert left["synced"] == b"a" * 100 + b"b" + b"a" * 499
    assert (left["new"], left["named"], left["unnamed"]) == (b"Nld content", b"c", b"")
