"""Every benchmark in turn, then docs/benchmarks.md from their results (`make bench`).

python benchmarks/all.py [--only-page]
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
COMMANDS = (
    ["protocol.py"],
    ["protocol.py", "--precision", "bf16"],
    ["speed.py"],
    ["kills.py"],
    ["constants.py"],
)


def result(name: str) -> dict[str, Any]:
    """A kept result."""
    return dict(json.loads((HERE / "results" / f"{name}.json").read_text()))


def stamp(facts: dict[str, Any]) -> str:
    """Where and when a result was measured."""
    machine = facts["machine"]
    features = ", ".join(machine["features"]) or "no vector extensions known"
    return f"{machine['cores']} cores of {machine['cpu']} ({features}); commit {facts['commit']}, {facts['date']}."


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers right-aligned."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def accuracy() -> str:
    """The protocol's section."""
    f32, bf16 = result("protocol-lite0-f32"), result("protocol-lite0-bf16")
    rows = [
        [name, str(row["n"]), *(f"{row[key]:.1f}" for key in ("top1", "top3", "within", "unknown"))]
        + [f"{bf16['sets'][name]['top1']:.1f}"]
        for name, row in f32["sets"].items()
    ]
    shares = [_overall(facts["sets"]) for facts in (f32, bf16)]
    headings = ["queries", "photos", "top-1", "top-3", "within the crop", "called unknown", "top-1 in bf16"]
    return f"""## Accuracy

`python benchmarks/protocol.py`: through the command line alone, with the frozen ImageNet EfficientNet-Lite0 at 224 px.
The gallery has 50 classes; every query is answered among all of them, in percent. Hard cases, x: photos from another
source than any enrolled; y: photos that other networks found hardest in their class. "+ field": after enrolling 10
field photos into each of six classes. Top-1 counts the first match, whether or not the answer is `unknown`.

{table(headings, rows)}

All {shares[0][1]:,} queries (base, novel, hard) together: {shares[0][0]:.2f} % in f32, {shares[1][0]:.2f} % in bf16
(computed in software, slowly, where the CPU has no bf16).

For comparison, cosine to the mean prototype of the same backbone outside this program: base 80.8, novel 70.5,
hard 16.0, hard + field 28.0.

{stamp(f32)}
"""


def _overall(sets: dict[str, Any]) -> tuple[float, int]:
    """Top-1 over base, novel and hard together, in percent, and of how many photos."""
    rows = [sets[name] for name in ("base", "novel", "hard")]
    n = sum(row["n"] for row in rows)
    return sum(row["top1"] * row["n"] for row in rows) / n, n


def speed() -> str:
    """The section on speed."""
    facts = result("speed")
    cold, bulk, enrol = facts["cold_start"], facts["bulk"], facts["enrolment"]
    rows = [
        ["cold `fewshot query` of one photo", f"{cold['query_one_photo_s']:.2f} s", "`import torch, timm`"]
        + [f"{cold['import_torch_timm_s']:.2f} s", f"{cold['ratio']:.2f} x the time"],
        [f"`fewshot query` of {bulk['n_photos']} photos, whole process", f"{bulk['ours_images_per_s']:.0f} images/s"]
        + ["plain script", f"{bulk['plain_images_per_s']:.1f} images/s", f"{bulk['ratio']:.1f} x the images/s"],
        ["the same without start-up", f"{bulk['ours_steady_images_per_s']:.0f} images/s", "plain script"]
        + [f"{bulk['plain_steady_images_per_s']:.1f} images/s", f"{bulk['steady_ratio']:.1f} x the images/s"],
        ["enrolling 20 photos, index of 10,000 classes", f"{enrol['into_10000_classes_s']:.2f} s"]
        + ["index of 10 classes", f"{enrol['into_10_classes_s']:.2f} s", f"{enrol['ratio']:.2f} x the time"],
    ]
    return f"""## Speed

`python benchmarks/speed.py`: whole processes, each pair run in turn, medians of {facts["n_runs"]}. The plain script is
what a user would write without this project (PIL, timm in float32 with batches of 32, scikit-learn's nearest
centroid; `benchmarks/plain_script.py`); the time it needs to enroll is taken off, as the index is there already for
ours. The index of 10,000 classes holds {enrol["supports_a_class"]} photos a class.

{table(["", "fewshot", "against", "", "ratio"], rows)}

`fewshot --help` answers in {cold["help_s"]:.2f} s. The most memory that the query of one photo held was
{cold["query_one_photo_peak_mb"]:.0f} MB; that of {bulk["n_photos"]} photos {bulk["ours_peak_mb"]:.0f} MB (plain script:
{bulk["plain_peak_mb"]:.0f} MB). Top-1 among the 15 novel classes on these photos: {bulk["ours_top1"]:.1f} % (plain
script: {bulk["plain_top1"]:.1f} %).

{stamp(facts)}
"""


def safety() -> str:
    """The section on kills."""
    facts = result("kills")
    return f"""## Killed while enrolling

`python benchmarks/kills.py`: SIGKILL at random moments of `fewshot enroll --each`, {facts["kills"]} times;
{facts["kills_between_two_classes"]} of them left some classes in and some out. After each, the index was opened and
checked whole: {facts["indexes_damaged"]} indexes damaged, {facts["half_classes"]} classes half there.

{stamp(facts)}
"""


def constants() -> str:
    """The section on the numbers in the code."""
    facts = result("constants")
    scales = [[key, f"{row['nll']:.3f}", f"{row['ece']:.3f}"] for key, row in facts["softmax_scale"].items()]
    parts = [[key, f"{row['known']:.1f}", f"{row['unknown']:.1f}"] for key, row in facts["rejected_part"].items()]
    bits = list(next(iter(facts["near_copies"].values())))
    found = [[name, *(f"{row[n]:.0f}" for n in bits)] for name, row in facts["near_copies"].items()]
    false = [f"different photos, pairs of {facts['n_pairs']:,}", *(str(facts["false_pairs"][n]) for n in bits)]
    return f"""## How the numbers in the code were chosen

`python benchmarks/constants.py`, on the protocol's `base/train` photos alone.

The softmax scale that turns cosines into probabilities: 48 gives the true class the highest likelihood.

{table(["scale", "mean negative log-likelihood", "calibration error"], scales)}

The part of enrolled photos whose similarity to the rest of their class lies below the `unknown` threshold: 0.05. With
this backbone the threshold catches far-away photos only; classes that resemble enrolled ones pass it.

{table(["part", "known called unknown, %", "unknown called unknown, %"], parts)}

Near-copies: photos whose 128-bit difference hashes differ in at most 10 bits. Percent of copies found:

{table(["copy", *(f"{n} bits" for n in bits)], [*found, false])}

{stamp(facts)}
"""


def main() -> None:
    """Run all, or only write the page."""
    if "--only-page" not in sys.argv:
        for command in COMMANDS:
            print(f"\n$ python benchmarks/{' '.join(command)}", flush=True)
            subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], check=True)
    head = "# Benchmarks\n\nWritten by `make bench` from `benchmarks/results/`; do not edit by hand.\n"
    PAGE.write_text("\n".join([head, accuracy(), speed(), safety(), constants()]))
    print(f"written: {PAGE.name}")


if __name__ == "__main__":
    main()
