"""A photo -> where it was taken: by its EXIF GPS tags, or else by its file name."""

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from fewshot import images

# EXIF tag numbers
LATITUDE_REF, LATITUDE, LONGITUDE_REF, LONGITUDE, STATUS = 1, 2, 3, 4, 9
# A name that is more than two numbers must give so many decimals (about 100 m) before they are read as a place:
# dates, versions and times of day are written with dots too.
MIN_DECIMALS_IN_A_LONGER_NAME = 3

_MINUSES = str.maketrans(dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{HYPHEN}", "-"))
# One coordinate. A hemisphere's letter stands before or behind the number, never beside another letter.
_NUMBER = re.compile(
    r"""
    (?:(?<![a-z])(?P<word>latitude|longitude|lat|lon|lng|long)\s*[=:_]?\s*)?
    (?:(?<![a-z])(?P<before>[nsew])\s*)?
    (?P<minus>-)?
    (?<![\d.])(?P<number>\d{1,4}[.,]\d+)(?![\d.]*\d)
    \s*°?\s*
    (?:(?P<after>[nsew])(?![a-z0-9]))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
# What may stand around two numbers without making the name "longer": separators, a copy's number.
_AROUND = re.compile(r"[\s_,;()\[\]+-]*(?:\(\d+\)|[_\s-]\d{1,6})?[\s_,;()\[\]+-]*$")


@dataclass(frozen=True, slots=True)
class Place:
    """A position in decimal degrees (WGS 84): latitude in [-90, 90], north positive; longitude in [-180, 180], east
    positive. `source` is "exif" or "name".
    """

    latitude: float
    longitude: float
    source: str


@dataclass(frozen=True, slots=True)
class Located:
    """Where a photo was taken, if that is known, and what was wrong with what it says of that (or nothing)."""

    place: Place | None
    note: str = ""


def locate(data: bytes, name: str, gps_tags: Callable[[bytes], dict[int, Any]] = images.gps_tags) -> Located:
    """Where a photo was taken: its GPS tags count first, then its file name. Nothing is guessed.

    Coordinates that cannot be (a latitude of 95 degrees) are no coordinates; the note says so.

    Args:
        data: the photo's file.
        name: its path or name; only the last part is read.
        gps_tags: reads the tags: here, or where strangers' photos are decoded.
    """
    by_tags = place_of_tags(gps_tags(data))
    if by_tags.place is not None:
        return by_tags
    by_name = place_of_name(name)
    return Located(by_name.place, " ".join(filter(None, (by_tags.note, by_name.note))))


def place_of_tags(tags: dict[int, Any]) -> Located:
    """The position that EXIF GPS tags give, if any; see `images.gps_tags`.

    >>> place_of_tags({1: "S", 2: (33, 51, 24.48), 3: "E", 4: (151, 12, 55.08)}).place
    Place(latitude=-33.8568, longitude=151.2153, source='exif')
    """
    if LATITUDE not in tags and LONGITUDE not in tags:
        return Located(None)
    if _text(tags.get(STATUS)) == "V":
        return Located(None, "EXIF: the GPS receiver had no fix.")
    latitude = _degrees(tags.get(LATITUDE), _text(tags.get(LATITUDE_REF)), "NS")
    longitude = _degrees(tags.get(LONGITUDE), _text(tags.get(LONGITUDE_REF)), "EW")
    if latitude is None or longitude is None:
        return Located(None, "EXIF: the GPS tags are incomplete or broken.")
    return _checked(latitude, longitude, "exif", "EXIF")


def place_of_name(name: str) -> Located:
    """The position that a file's name gives, if any.

    Latitude comes first, unless letters or words say otherwise: `33.8568_151.2153.jpg`, `-33.8568,151.2153.jpg`,
    `33.8568S_151.2153E.jpg`, `lon151.2153 lat-33.8568.png`, `33,8568_151,2153.jpg`, `cam7_-33.8568_151.2153_0042.jpg`.

    >>> place_of_name("33.8568_151.2153.jpg").place
    Place(latitude=33.8568, longitude=151.2153, source='name')
    >>> place_of_name("133.8568_151.2153.jpg").note
    'file name: latitude 133.8568 is not between -90 and 90.'
    """
    stem = unicodedata.normalize("NFKC", PurePath(name).stem).translate(_MINUSES)
    found = list(_NUMBER.finditer(stem))
    if len(found) < 2:
        return Located(None)
    if len(found) > 3:
        return Located(None, f"file name: {len(found)} numbers with decimals; wanted latitude and longitude alone.")
    first, second = found[:2]
    marked = all(match["word"] or match["before"] or match["after"] for match in (first, second))
    if not marked and not _is_whole_name(stem, first, second):
        decimals = min(len(re.split("[.,]", match["number"])[1]) for match in (first, second))
        if decimals < MIN_DECIMALS_IN_A_LONGER_NAME:
            return Located(None)
    if any(_is_doubtful_dash(stem, match) for match in (first, second)):
        return Located(None, "file name: a dash before a number may be a minus or not; separate with _.")
    values = {}
    for match, unmarked in ((first, "latitude"), (second, "longitude")):
        axis, value, problem = _coordinate(match, unmarked)
        if problem:
            return Located(None, f"file name: {problem}")
        if axis in values:
            return Located(None, f"file name: two numbers for {axis}.")
        values[axis] = value
    return _checked(values["latitude"], values["longitude"], "name", "file name")


def _is_whole_name(stem: str, first: re.Match[str], second: re.Match[str]) -> bool:
    around = stem[: first.start()].strip(" _([")
    return not around and bool(_AROUND.match(stem, second.end()))


def _is_doubtful_dash(stem: str, match: re.Match[str]) -> bool:
    """Whether a dash may separate or be a sign: in `33.8568-151.2153` the two places are half a world apart."""
    told = match["word"] or match["before"] or match["after"]
    return bool(match["minus"]) and not told and stem[: match.start()][-1:].isalnum()


def _coordinate(match: re.Match[str], unmarked: str) -> tuple[str, float, str]:
    """Axis, value in degrees and what is wrong with it, of one number of a name."""
    value = float(match["number"].replace(",", "."))
    letters = {letter.upper() for letter in (match["before"], match["after"]) if letter}
    axes = {"latitude" if letter in "NS" else "longitude" for letter in letters}
    if match["word"]:
        axes.add("latitude" if match["word"].lower().startswith("la") else "longitude")
    shown = match.group().strip()
    if len(axes) > 1 or len(letters) > 1 or (match["minus"] and letters):
        return unmarked, value, f"{shown!r} contradicts itself."
    negative = (match["minus"] or letters & {"S", "W"}) and value
    return axes.pop() if axes else unmarked, -value if negative else value, ""


def _degrees(parts: Any, hemisphere: str, letters: str) -> float | None:
    """Decimal degrees of an EXIF coordinate, (degrees, minutes, seconds) or fewer of these; None if it is broken.

    A coordinate without its hemisphere is broken: it may be on either side of the world.
    """
    try:
        numbers = [float(part) for part in (parts if isinstance(parts, tuple | list) else (parts,))]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    usable = 1 <= len(numbers) <= 3 and all(math.isfinite(number) and number >= 0 for number in numbers)
    if not usable or any(number >= 60 for number in numbers[1:]) or not hemisphere or hemisphere not in letters:
        return None
    value = math.fsum(number / 60**i for i, number in enumerate(numbers))
    return round(-value if hemisphere == letters[1] and value else value, 7)  # 7 decimals are a centimetre


def _text(value: Any) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    return text.strip("\0 ").upper()


def _checked(latitude: float, longitude: float, source: str, where: str) -> Located:
    for name, value, limit in (("latitude", latitude, 90), ("longitude", longitude, 180)):
        if abs(value) > limit:
            return Located(None, f"{where}: {name} {value!r} is not between -{limit} and {limit}.")
    if latitude == longitude == 0:  # what a camera writes that knows no position
        return Located(None, f"{where}: 0, 0 stands for no position.")
    return Located(Place(latitude, longitude, source))
