"""What the sections are made of: a kept result, where it was measured, a table."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def result(name: str) -> dict[str, Any]:
    """A kept result."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def kept(name: str) -> dict[str, Any] | None:
    """A kept result; None if there is none."""
    return result(name) if (RESULTS / f"{name}.json").exists() else None


def stamp(facts: dict[str, Any]) -> str:
    """Where and when a result was measured."""
    machine = facts["machine"]
    features = ", ".join(machine["features"]) or "no vector extensions known"
    return f"{machine['cores']} cores of {machine['cpu']} ({features}); commit {facts['commit']}, {facts['date']}."


def peer_rows(found: dict[str, Any]) -> list[list[str]]:
    """Of each method its name, and of each query set top-1 with its interval, top-3, and top-1 within the crop."""
    return [
        [method]
        + [
            f"{at['top1']['share']:.1f} ({at['top1']['low']:.0f}-{at['top1']['high']:.0f}), "
            f"{at['top3']['share']:.0f}, {at['within']['share']:.0f}"
            for at in row.values()
        ]
        for method, row in found.items()
    ]


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers right-aligned."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
