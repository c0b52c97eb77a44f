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


def stamps(measured: dict[str, dict[str, Any]]) -> str:
    """Where and when each was measured, by name; said once where that is the same."""
    by_stamp: dict[str, list[str]] = {}
    for name, facts in measured.items():
        by_stamp.setdefault(stamp(facts), []).append(name)
    if len(by_stamp) == 1:
        return next(iter(by_stamp))
    return "\n\n".join(f"{', '.join(names)}: {where}" for where, names in by_stamp.items())


MEASURES = {"top1": "Top-1", "top3": "Top-3", "within": "Top-1 within the crop"}
STRATA = ("x", "y")


def peer_tables(found: dict[str, Any]) -> str:
    """Markdown tables of methods by query sets, with 95 % intervals: one a measure, strata in columns of their own.

    Args:
        found: method -> query set -> "top1", "top3" and "within", and the same below the name of each stratum, if any.
    """
    columns = [
        (name, stratum)
        for name, at in next(iter(found.values())).items()
        for stratum in (None, *(each for each in STRATA if each in at))
    ]
    headings = [name if stratum is None else f"{name}, {stratum}" for name, stratum in columns]
    parts = []
    for measure, title in MEASURES.items():
        rows = []
        for method, row in found.items():
            shares = [(row[name] if stratum is None else row[name][stratum])[measure] for name, stratum in columns]
            rows.append([method, *map(_interval, shares)])
        parts.append(f"{title}, in percent (95 % interval):\n\n{table(['method, backbone', *headings], rows)}\n")
    return "\n".join(parts)


def _interval(share: dict[str, float]) -> str:
    return f"{share['share']:.1f} ({share['low']:.0f}-{share['high']:.0f})"


def unquiet(*measured: dict[str, Any]) -> str:
    """What times are worth that were taken while other work ran, to follow a sentence; nothing of a quiet machine."""
    busy = next((facts["machine"]["busy"] for facts in measured if "busy" in facts["machine"]), None)
    return (
        f" *Times of a machine that was not quiet ({busy}); ratios of pairs in turn hold, times do not.*"
        if busy
        else ""
    )


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers right-aligned."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
