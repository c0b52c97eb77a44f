"""What the sections are made of: a kept result, where it was measured, a table."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def result(name: str) -> dict[str, Any]:
    """A kept result."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def stamp(facts: dict[str, Any]) -> str:
    """Where and when a result was measured."""
    machine = facts["machine"]
    features = ", ".join(machine["features"]) or "no vector extensions known"
    return f"{machine['cores']} cores of {machine['cpu']} ({features}); commit {facts['commit']}, {facts['date']}."


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers right-aligned."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
