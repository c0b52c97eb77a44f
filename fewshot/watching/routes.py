"""A routes YAML -> who is to go where a photo shows what, checked against the classes of an index."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewshot.datasets import checked_label
from fewshot.errors import LabelError, RoutesError, did_you_mean, nearest_name
from fewshot.recipes import read_yaml
from fewshot.records import Prediction

KEYS = ("routes", "unknown", "ambiguous", "unrouted", "bad_image")


@dataclass(frozen=True, slots=True)
class Routes:
    """Who goes where. None means that the file does not say.

    Attributes:
        name: the file's name without ending.
        units: label: the units that go there; an empty tuple sends nobody.
        unknown: who looks at a photo that is like no class; by default nobody.
        ambiguous: who goes *instead of* the label's units when the label is doubtful; by default the label's units.
        unrouted: who goes for a class that has no route; by default nobody.
        bad_image: who is told of a photo that cannot be read; by default it is in the report alone.
    """

    name: str
    units: dict[str, tuple[str, ...]]
    unknown: tuple[str, ...] | None = None
    ambiguous: tuple[str, ...] | None = None
    unrouted: tuple[str, ...] | None = None
    bad_image: tuple[str, ...] | None = None

    def units_for(self, prediction: Prediction) -> tuple[str, ...]:
        """The units that an answer sends.

        >>> routes = Routes("city", {"fire": ("Firefighters",)}, ambiguous=("Control room",))
        >>> routes.units_for(Prediction("a.jpg", "fire", "ambiguous", ""))
        ('Control room',)
        """
        if prediction.reason == "bad_image":
            return self.bad_image or ()
        if prediction.reason == "unknown":
            return self.unknown or ()
        if prediction.reason == "ambiguous" and self.ambiguous is not None:
            return self.ambiguous
        return self.units.get(prediction.answer, self.unrouted or ())

    def doubts(self, enrolled: Iterable[str]) -> list[str]:
        """Where the routes and the classes of an index do not meet, in sentences; a class may still be enrolled."""
        enrolled = list(enrolled)
        sentences = []
        waiting = []
        for label in sorted(self.units.keys() - set(enrolled)):
            near = nearest_name(label, enrolled)
            if near:
                sentences.append(f"{label!r} has a route and is not enrolled. Did you mean {near!r}?")
            else:
                waiting.append(label)
        if waiting:
            sentences.append(f"not enrolled, so nobody is sent for it yet: {_listed(waiting)}.")
        without = sorted(set(enrolled) - self.units.keys())
        if without:
            who = ", ".join(self.unrouted) if self.unrouted else "nobody"
            sentences.append(f"no route for {_listed(without)}: {who} will be sent.")
        return sentences


def _listed(labels: list[str]) -> str:
    """The first labels, and how many more there are."""
    return ", ".join(map(repr, labels[:5])) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


def read_routes(path: Path) -> Routes:
    """Read a routes file.

    Raises:
        RoutesError: not a YAML file with `routes:` and the known keys (an unknown one suggests the nearest); a label
            that no class can have; units that are not a list of names.
    """
    content = read_yaml(path, "routes file", RoutesError)
    for key in content:
        if key not in KEYS:
            # The likeliest slip is to write the labels one level too high.
            hint = did_you_mean(str(key), KEYS) or "A label's route stands indented under `routes:`."
            raise RoutesError(f"{path.name}: there is no key {key!r} (keys: {', '.join(KEYS)}).", hint=hint)
    table = content.get("routes")
    if not isinstance(table, dict) or not table:
        raise RoutesError(
            f"{path.name} holds no table of routes.",
            hint="Write `routes:`, and under it, indented, one `label: [unit, unit]` a line.",
        )
    units: dict[str, tuple[str, ...]] = {}
    for key, value in table.items():
        label = _label(path, key)
        if label in units:
            raise RoutesError(f"{path.name}: the label {label!r} stands there twice.")
        units[label] = _units(path, label, value)
    others = {key: _units(path, key, content[key]) for key in KEYS[1:] if key in content}
    return Routes(path.stem, units, **others)


def _label(path: Path, key: Any) -> str:
    if not isinstance(key, str):  # YAML reads `no:` as false and `2024:` as a number
        raise RoutesError(f"{path.name}: the label {key!r} is not text.", hint="Put it into quotes.")
    try:
        return checked_label(key)
    except LabelError as error:
        hint = f"`{key}:` stands beside `routes:`, not under it." if key in KEYS else error.hint
        raise RoutesError(f"{path.name}: {error.message}", hint=hint) from error


def _units(path: Path, label: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(unit, str) and unit.strip() for unit in value):
        raise RoutesError(
            f"{path.name}: the units of {label!r} are {value!r}; wanted a list of names.",
            hint="As in `fire: [Firefighters, Transit Police]`; `[]` sends nobody.",
        )
    units = tuple(unit.strip() for unit in value)
    if len(set(units)) < len(units):
        raise RoutesError(f"{path.name}: {label!r} names a unit twice: {', '.join(units)}.")
    return units
