"""What the benchmarks share: where the program and the photographs are, and how a result is kept."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
# A trial at small sizes keeps its results elsewhere: $FEWSHOT_RESULTS.
RESULTS = Path(os.environ.get("FEWSHOT_RESULTS") or ROOT / "benchmarks" / "results")
FEWSHOT = Path(sys.executable).with_name("fewshot")
KIB_MB = 1024 / 1e6  # the system counts memory in KiB; here a MB is a million bytes, as it is of files
SAMPLE_S = 0.5
QUIET = 0.2  # processors that the system and what waits in it may take


def data_folder(given: str | None = None) -> Path:
    """The protocol's photographs: as given, $FEWSHOT_DATA, or the folder beside the project."""
    folder = Path(given or os.environ.get("FEWSHOT_DATA") or ROOT.parent / "shared" / "data" / "fieldleaf")
    if not (folder / "novel" / "support").is_dir():
        sys.exit(f"error: {folder} holds no novel/support; give --data or set FEWSHOT_DATA to the protocol's photos.")
    return folder


@dataclass(frozen=True)
class Run:
    """One finished process: its output, wall and CPU seconds, and the most memory it held, in MB."""

    stdout: str
    stderr: str
    wall_s: float
    cpu_s: float
    peak_mb: float


def run(*command: str | Path, check: bool = True, cwd: Path | None = None) -> Run:
    """Run a command as a process of its own and measure it."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        started = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], stdout=stdout, stderr=stderr, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        done = Run(stdout.read(), stderr.read(), wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * KIB_MB)
    if check and process.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} ended with {process.returncode}:\n{done.stderr}")
    return done


def fewshot(*words: str | Path, index: Path, check: bool = True) -> Run:
    """Run the program's command line with JSON output."""
    return run(FEWSHOT, *words, "--index", index, "--json", check=check)


def json_lines(text: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines output."""
    return [json.loads(line) for line in text.splitlines()]


def pairs(n: int, first: Callable[[], Run], second: Callable[[], Run]) -> tuple[list[Run], list[Run]]:
    """Run two commands in turn, n times each after one uncounted time, so that both meet the same machine."""
    first(), second()
    done = [(first(), second()) for _ in range(n)]
    return [pair[0] for pair in done], [pair[1] for pair in done]


def wall(runs: list[Run]) -> float:
    """The median wall time in seconds."""
    return median(run.wall_s for run in runs)


def in_turn(n: int, *calls: Callable[[int], object]) -> list[list[float]]:
    """Seconds of n calls each (each is given its number), in turn after three uncounted rounds."""
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(-3, n):
        for call, found in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            call(number % n)
            if number >= 0:
                found.append(time.perf_counter() - started)
    return seconds


def environment(name: str, *packages: str) -> Path:
    """The Python of an environment of its own with packages that are no part of ours; made at its first use.

    Raises:
        subprocess.CalledProcessError: a package cannot be installed; its output says why.
    """
    folder = Path(os.environ.get("FEWSHOT_CACHE") or tempfile.gettempdir()) / "benchmark-environments" / name
    python, done = folder / "bin" / "python", folder / "installed.json"
    if not done.exists() or json.loads(done.read_text()) != list(packages):
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run(install, check=True, capture_output=True, text=True)
        done.write_text(json.dumps(packages))
    return python


def memory_mb(pid: int | str = "self", what: str = "VmRSS") -> float:
    """What a process holds in memory now (`VmHWM`: at the most until now), pages of mapped files included."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) * KIB_MB


# How many processors are at work before a benchmark is: what it does itself is no other work, and an average of load
# would still tell of what has ended. Processes of its own are told, and do not look again.
if "FEWSHOT_BUSY_BEFORE" not in os.environ:
    os.environ["FEWSHOT_BUSY_BEFORE"] = f"{sum(psutil.cpu_percent(SAMPLE_S, percpu=True)) / 100:.2f}"
BUSY_BEFORE = float(os.environ["FEWSHOT_BUSY_BEFORE"])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    flags = next((line for line in _cpuinfo() if line.startswith("flags")), "")
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if f" {flag}" in flags]
    found = {"cpu": cpu, "cores": os.cpu_count(), "features": known, "python": platform.python_version()}
    if BUSY_BEFORE > QUIET:
        found["busy"] = f"other work took {BUSY_BEFORE:.1f} processors before the start"
    return found


def whence() -> dict[str, Any]:
    """Of what a result is measured: commit, date and machine."""
    commit = run("git", "-C", ROOT, "rev-parse", "--short", "HEAD", check=False).stdout.strip()
    changed = run("git", "-C", ROOT, "status", "--porcelain", "--", "fewshot", check=False).stdout.strip()
    return {
        "commit": f"{commit}{' with changes' if changed else ''}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }


def keep(name: str, result: dict[str, Any]) -> None:
    """Write a result beside the others, with machine, commit and date."""
    write(name, {**result, **whence()})


def keep_part(name: str, part: str, result: dict[str, Any]) -> None:
    """Write one part of a result with machine, commit and date of its own; the other parts stay as they were."""
    file = RESULTS / f"{name}.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    write(name, {**kept, part: {**result, **whence()}})


def write(name: str, result: dict[str, Any]) -> None:
    """Write a result beside the others as it is."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
