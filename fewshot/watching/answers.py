"""One photo's answer as the world outside gets it: what is there, where, and who is to go."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CSV_COLUMNS = (
    "at",
    "file",
    "answer",
    "reason",
    "probability",
    "units",
    "latitude",
    "longitude",
    "place_from",
    "note",
    "key",
    "message",
)
BAD_IMAGE = "bad_image"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one photo.

    Attributes:
        key: names this answer for ever: the photo's content (SHA-256), the coordinates in its name, if those count, and
            the index asked; of a photo that could not be read, its path, size and times instead of its content. Who
            gets one key twice got one answer twice.
        file: the photo's path below the watched folder.
        at: when it was answered, ISO 8601 in UTC.
        answer: a label or "unknown".
        reason: "match", "ambiguous", "unknown" or "bad_image"; see `records.Prediction`.
        message: in words, why.
        probability: of the label answered; None for `unknown` and for a bad photo.
        units: who is to go.
        latitude: degrees, north positive; None if the photo does not tell.
        longitude: degrees, east positive; None if the photo does not tell.
        place_from: "exif", "name" or None.
        note: what is wrong with the photo's coordinates, if anything.
        matches: the likeliest classes, as `records.Match.as_dict`.
    """

    key: str
    file: str
    at: str
    answer: str
    reason: str
    message: str
    probability: float | None
    units: tuple[str, ...]
    latitude: float | None
    longitude: float | None
    place_from: str | None
    note: str
    matches: tuple[dict[str, Any], ...] = ()

    @property
    def is_bad(self) -> bool:
        """Whether the photo could not be read."""
        return self.reason == BAD_IMAGE

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {**asdict(self), "units": list(self.units), "matches": list(self.matches)}

    def as_line(self) -> str:
        """The JSON object on a line, without its end."""
        return json.dumps(self.as_dict(), ensure_ascii=False)

    def as_row(self) -> list[str]:
        """The cells of a CSV row, under `CSV_COLUMNS`; units are separated by `; `."""
        cells = {**self.as_dict(), "units": "; ".join(self.units)}
        return ["" if cells[column] is None else str(cells[column]) for column in CSV_COLUMNS]


def answer_from(facts: Mapping[str, Any]) -> Answer:
    """The answer that `Answer.as_dict` described."""
    return Answer(**{**facts, "units": tuple(facts["units"]), "matches": tuple(facts["matches"])})
