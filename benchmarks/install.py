"""What installing costs: the base (`pip install fewshot`) against everything (`fewshot[all]`).

    python benchmarks/install.py [--runs 3]

Each goes into an environment of its own, from this project's source, in turn, after one uncounted time that fills pip's
cache: what is timed is pip's own work and the disk's, and not the network's. Bytes are those of the files installed.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from common import ROOT, keep, run

WHAT = {"base": str(ROOT), "everything": f"{ROOT}[all]"}
LARGEST = 8


def install(what: str, folder: Path) -> tuple[float, Path]:
    """Install into a new environment at `folder`; the seconds that pip took, and where the packages are."""
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "venv", folder)
    pip = folder / "bin" / "pip"
    done = run(pip, "install", "--quiet", "--disable-pip-version-check", WHAT[what])
    return done.wall_s, next((folder / "lib").glob("python3*")) / "site-packages"


def n_bytes(folder: Path) -> int:
    """The size of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def measure(packages: Path) -> dict[str, Any]:
    """Bytes of an environment's packages without pip's own, how many there are, and the largest of them in MB."""
    sizes = {path.name: n_bytes(path) if path.is_dir() else path.stat().st_size for path in packages.iterdir()}
    sizes = {name: size for name, size in sizes.items() if not name.startswith(("pip", "setuptools"))}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:LARGEST]
    return {
        "bytes": sum(sizes.values()),
        "n_packages": sum(name.endswith(".dist-info") for name in sizes),
        "largest_mb": {name: round(sizes[name] / 1e6, 1) for name in largest},
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {what: [] for what in WHAT}
    found: dict[str, dict[str, Any]] = {}
    load = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for number in range(given.runs + 1):
            for what in WHAT:
                load.append(os.getloadavg()[0])
                took, packages = install(what, Path(folder) / what)
                print(f"{what}: {took:.0f} s{'' if number else ' (not counted)'}", flush=True)
                if number == 0:
                    found[what] = measure(packages)
                else:
                    seconds[what].append(took)
                shutil.rmtree(Path(folder) / what)
    result = {what: {**found[what], "seconds": median(seconds[what])} for what in WHAT}
    ratios = {key: result["base"][key] / result["everything"][key] for key in ("bytes", "seconds")}
    for what, figures in result.items():
        print(
            f"{what:11} {figures['bytes'] / 1e6:8.0f} MB {figures['n_packages']:4} packages {figures['seconds']:7.1f} s"
        )
    print(f"ratio       {ratios['bytes']:8.3f} x bytes {'':12} {ratios['seconds']:7.3f} x seconds")
    keep("install", {**result, "ratio": ratios, "n_runs": given.runs, "load": max(load)})


if __name__ == "__main__":
    main()
