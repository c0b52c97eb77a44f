"""How cost grows with the work: a picture of what the other scripts kept, and the exponent of each curve.

    python benchmarks/growth.py

Reads benchmarks/results/{search,large-index,memory,embedding}.json, those that are there, and writes growth.png and
growth.json beside them. The exponent is the slope of a straight line through the points, both axes logarithmic: 1 is
linear, 0 is flat.
"""

import json
from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
from common import RESULTS, keep

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Curve = tuple[str, list[float], list[float]]

LEGEND_LINE = 1.8  # how much higher, on a logarithmic axis, a line of the legend reaches


def kept(name: str) -> dict[str, Any]:
    """A kept result; empty if there is none."""
    file = RESULTS / f"{name}.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def curve(name: str, rows: Iterable[dict[str, Any]], value: str) -> Curve:
    """One line of a picture."""
    rows = list(rows)
    return name, [row["n"] for row in rows], [row[value] for row in rows]


def panels() -> dict[str, list[Curve]]:
    """Title with unit -> its curves."""
    search, large, memory, embedding = (kept(name) for name in ("search", "large-index", "memory", "embedding"))
    found: dict[str, list[Curve]] = {}
    lines: list[Curve] = []
    for dim in sorted({row["dim"] for row in search.get("rows", [])}):
        rows = [row for row in search["rows"] if row["dim"] == dim]
        lines.append(curve(f"prototypes, {dim} dims", [row for row in rows if row["what"] == "prototypes"], "p50_ms"))
        for n_each in sorted({row["n_each"] for row in rows if "n_each" in row}):
            chosen = [row for row in rows if row.get("n_each") == n_each]
            lines.append(curve(f"photos, {dim} dims, {n_each:,} a class", chosen, "p50_ms"))
    found["one search, ms"] = lines
    rows = large.get("large", [])
    found["opening and the first answer, s"] = [curve("caches there", rows, "first_answer_s")]
    found["enrolling 20 photos, s"] = [
        curve("into an index of n", rows, "into_large_process_s"),
        curve("into an empty one, in turn", rows, "into_empty_process_s"),
    ]
    found["bulk enrolling beside embedding, photos/s"] = [curve("", large.get("bulk", []), "photos_per_s")]
    found["memory of the service, MB"] = [
        curve("after its first answer", memory.get("sizes", []), "idle_mb"),
        curve("after 200", memory.get("sizes", []), "asked_mb"),
    ]
    found["embedding, photos/s"] = [
        curve("from files' bytes", embedding.get("many", []), "from_bytes"),
        curve("from pixels", embedding.get("many", []), "from_pixels"),
    ]
    some = {title: [line for line in lines if len(line[1]) > 1] for title, lines in found.items()}
    return {title: lines for title, lines in some.items() if lines}


def exponent(sizes: list[float], values: list[float]) -> float:
    """The slope of the straight line through the points, both axes logarithmic."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main() -> None:
    """Draw, print, keep."""
    found = panels()
    n_across = min(3, max(1, len(found)))
    n_down = -(-len(found) // n_across)
    size = (4.4 * n_across, 3.8 * n_down)
    figure, axes = plt.subplots(n_down, n_across, figsize=size, squeeze=False, layout="constrained")
    rows = []
    for place in axes.ravel()[len(found) :]:
        place.axis("off")
    for place, (title, lines) in zip(axes.ravel(), found.items(), strict=False):
        for name, sizes, values in lines:
            slope = exponent(sizes, values)
            rows.append({"what": title, "of": name, "n": sizes, "values": values, "exponent": slope})
            place.loglog(sizes, values, marker="o", label=f"{name} (n^{slope:.2f})".strip())
        place.set_title(title, fontsize=10, loc="left")
        place.set_xlabel("n")
        low, high = place.get_ylim()
        # What is flat shall look flat, and the legend stand above the lines.
        place.set_ylim(min(low, high / 10), high * 1.5 * LEGEND_LINE ** len(lines))
        place.grid(alpha=0.3)
        place.legend(fontsize=7, frameon=False, loc="upper left")
    figure.savefig(RESULTS / "growth.png", dpi=110)
    for row in rows:
        print(f"{row['what']:45}{row['of']:38}n^{row['exponent']:.2f}")
    keep("growth", {"rows": rows})


if __name__ == "__main__":
    main()
