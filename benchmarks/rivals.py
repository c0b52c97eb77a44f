"""Whole programs that people would use instead, on the same photos: seconds to the last answer, memory, accuracy.

    python benchmarks/rivals.py [--data DIR] [--photos 500] [--runs 5] [--only fewshot,plain,easyfsl,...]

Each is a process of its own that enrolls the novel support photos and answers photos of the same classes; the programs
take turns. fewshot enrolls and answers in two processes, as a user does, and is run with the shipped backbone and with
lite0, which the plain script, easyfsl and pytorch-metric-learning run too; adaptshot brings its own. A program that
does not run is reported with what it said.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from common import Run, data_folder, environment, fewshot, json_lines, keep, run
from speed import save_weights

HERE = Path(__file__).parent
# What a rival needs that does not stand beside us; None: it runs in our environment.
PACKAGES: dict[str, tuple[str, ...] | None] = {
    "plain": None,
    "easyfsl": None,
    "pml": None,
    "adaptshot": ("adaptshot==0.3.0",),
    "bioencoder": ("bioencoder==1.0.5",),
}
OURS = {"fewshot": "plants-lite0", "fewshot, lite0": "lite0"}


def ours(backbone: str, support: Path, photos: Path, work: Path) -> dict[str, Any]:
    """Enroll in one process, answer in another; an index of its own each time."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        index = Path(folder) / "index"
        first = fewshot("enroll", "--each", support, "--backbone", backbone, index=index)
        second = fewshot("query", photos, index=index)
    labels = [line["matches"][0]["label"] for line in json_lines(second.stdout)]
    return {
        "seconds": first.wall_s + second.wall_s,
        "answer_s": second.wall_s,
        "peak_mb": max(first.peak_mb, second.peak_mb),
        "labels": labels,
    }


def theirs(name: str, weights: Path, support: Path, photos: Path) -> dict[str, Any]:
    """One process; what it said, if it does not run."""
    packages = PACKAGES[name]
    try:
        python: Path | str = sys.executable if packages is None else environment(name, *packages)
    except subprocess.CalledProcessError as error:
        return {"error": f"cannot be installed: {_last_line(str(error.stderr))}"}
    script = [HERE / "plain_script.py"] if name == "plain" else [HERE / "rival_scripts.py", name]
    done: Run = run(python, *script, weights, support, photos, check=False)
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        return {"error": f"does not run: {_last_line(done.stderr)}"}
    return {
        "seconds": done.wall_s,
        "answer_s": json.loads(lines[-1])["answer_s"],
        "peak_mb": done.peak_mb,
        "labels": [line for line in lines[:-1] if not line.startswith("{")],
    }


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default=",".join([*OURS, *PACKAGES]).replace("fewshot, lite0", "fewshot-lite0"))
    given = parser.parse_args()
    data = data_folder(given.data)
    support = data / "novel" / "support"
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        work = Path(folder)
        photos = work / "photos"
        photos.mkdir()
        for number, photo in enumerate(sorted((data / "novel" / "query").rglob("*.jpg"))[: given.photos]):
            (photos / f"{number:04d}-{photo.parent.name}.jpg").symlink_to(photo.resolve())
        truth = [photo.stem.split("-", 1)[1] for photo in sorted(photos.iterdir())]
        weights = work / "lite0.safetensors"
        save_weights(weights)
        programs: dict[str, Callable[[], dict[str, Any]]] = {}
        for name, backbone in OURS.items():
            if name.replace(", ", "-") in given.only.split(","):
                programs[name] = lambda backbone=backbone: ours(backbone, support, photos, work)
        for name in PACKAGES:
            if name in given.only.split(","):
                programs[name] = lambda name=name: theirs(name, weights, support, photos)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
        for number in range(given.runs + 1):
            for name, program in programs.items():
                if number == 0 or "error" not in runs[name][0]:
                    runs[name].append(program())
    rows = {}
    for name, found in runs.items():
        if "error" in found[0]:
            rows[name] = {"error": found[0]["error"]}
        else:
            right = sum(a == b for a, b in zip(found[-1]["labels"], truth, strict=True))
            counted = found[1:] or found
            rows[name] = {
                "seconds": median(one["seconds"] for one in counted),
                "answer_s": median(one["answer_s"] for one in counted),
                "peak_mb": max(one["peak_mb"] for one in counted),
                "top1": 100 * right / len(truth),
            }
        print(f"{name:18}", {key: round(v, 2) if isinstance(v, float) else v for key, v in rows[name].items()})
    keep("rivals", {"rows": rows, "n_photos": len(truth), "n_runs": given.runs})


if __name__ == "__main__":
    main()
