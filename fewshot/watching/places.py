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

_MINUSES = str.maketrans(dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}\N{FIGURE DASH}\N{HYPHEN}", "-"))
# Signs that NFKC would turn into letters or accents, and those of minutes and seconds in one form.
_MARKS = str.maketrans(
    {
        **dict.fromkeys("\N{MASCULINE ORDINAL INDICATOR}\N{RING ABOVE}", "°"),
        **dict.fromkeys("\N{PRIME}\N{RIGHT SINGLE QUOTATION MARK}\N{LEFT SINGLE QUOTATION MARK}\N{ACUTE ACCENT}`", "'"),
        **dict.fromkeys("\N{DOUBLE PRIME}\N{RIGHT DOUBLE QUOTATION MARK}\N{LEFT DOUBLE QUOTATION MARK}", '"'),
    }
)
# One coordinate. A hemisphere stands before or behind the number, never beside another letter; `gap` is what stands
# between the two.
_NUMBER = re.compile(
    r"""
    (?:(?<![^\W\d_])(?P<word>latitude|longitude|lat|lon|lng|long)\s*[=:_]?\s*)?
    (?:(?<![^\W\d_])(?P<before>north|south|east|west|[nsew])(?P<gap_before>[\s_]*))?
    (?P<minus>-)?
    (?<![\d.])(?P<number>\d{1,4}[.,]\d+)(?![\d.]*\d)
    (?:\s*°)?
    (?(before)|(?:(?P<gap_after>[\s_]*)(?P<after>north|south|east|west|[nsew])(?![^\W_]))?)
    """,
    re.VERBOSE | re.IGNORECASE,
)
# What may stand around two numbers without making the name "longer": separators, a copy's number.
_AROUND = re.compile(r"[\s_,;()\[\]+-]*(?:\(\d+\)|[_\s-]\d{1,6})?[\s_,;()\[\]+-]*$")
# What would change a number's meaning if it belonged to it: no coordinate is read beside these.
_FOREIGN = re.compile(r"""[^\W_]|[°'"]""")
_SIGN_WORDS = (
    "minus|neg|negative|north|south|east|west|nord|norte|sud|süd|sued|sur|sul|est|este|ost|oest|oeste|ouest|[nsewo]"
)
_AXIS_WORDS = "latitude|longitude|lat|lon|lng|long"
_SPOILED_BEFORE = re.compile(
    rf"""(?:[^\W\d_]|[°'"][\s_]*|(?<![^\W_])(?:{_SIGN_WORDS})[\W_]*|^[\s_(\[]*-[\s_]+)$""", re.IGNORECASE
)
_SPOILED_BEHIND = re.compile(rf"""[^\W\d_]|[\s_]*[°'"]|[\W_]*(?:{_SIGN_WORDS})(?![^\W_])""", re.IGNORECASE)
_AXIS_BEHIND = re.compile(rf"[\W_]*(?:{_AXIS_WORDS})(?![^\W_])", re.IGNORECASE)
HOW_TO_WRITE = "write 33.8568S_151.2153E or lat-33.8568_lon151.2153"


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
    A name in which something stands beside the numbers that could change their meaning (degrees and minutes, a letter
    of nobody's) is refused.

    >>> place_of_name("33.8568_151.2153.jpg").place
    Place(latitude=33.8568, longitude=151.2153, source='name')
    >>> place_of_name("133.8568_151.2153.jpg").note
    'file name: latitude 133.8568 is not between -90 and 90.'
    """
    stem = unicodedata.normalize("NFKC", PurePath(name).stem.translate(_MARKS)).translate(_MINUSES)
    found = list(_NUMBER.finditer(stem))
    if len(found) < 2:
        return Located(None)
    marked = [match for match in found if _is_marked(match)]
    pair = marked if len(marked) == 2 else found[:2]
    if len(marked) < 2 and not _is_whole_name(stem, *pair) and len(found) < 4 and "°" not in stem:
        decimals = sorted(len(re.split("[.,]", match["number"])[1]) for match in found)
        if decimals[-2] < MIN_DECIMALS_IN_A_LONGER_NAME:  # no two of them look like coordinates
            return Located(None)
    problem = _choice_problem(found, marked) or _surroundings_problem(stem, *pair) or _letters_problem(found, *pair)
    if problem:
        return Located(None, f"file name: {problem}")
    values = {}
    for match, unmarked in zip(pair, ("latitude", "longitude"), strict=True):
        axis, value, problem = _coordinate(match, unmarked)
        if problem:
            return Located(None, f"file name: {problem}")
        if axis in values:
            return Located(None, f"file name: two numbers for {axis}.")
        values[axis] = value
    return _checked(values["latitude"], values["longitude"], "name", "file name")


def _is_marked(match: re.Match[str]) -> bool:
    """Whether letters or a word say which axis a number is of."""
    return bool(match["word"] or match["before"] or match["after"])


def _choice_problem(found: list[re.Match[str]], marked: list[re.Match[str]]) -> str:
    """Why it is not known which two of a name's numbers are the coordinates; nothing if it is.

    A height or a score may stand beside them. Of three numbers without axes the first two are taken only where the last
    two could be no place.
    """
    n = len(found)
    if n == 2 or len(marked) == 2:
        return ""
    if n == 3 and not marked:
        second, third = (float(match["number"].replace(",", ".")) for match in found[1:])
        begins_the_name = not found[0].string[: found[0].start()].strip(" _([+")
        if begins_the_name and (second > 90 or third > 180):
            return ""
    return f"{n} numbers with decimals; wanted latitude and longitude alone, or exactly two with their axis."


def _surroundings_problem(stem: str, first: re.Match[str], second: re.Match[str]) -> str:
    """What stands between or beside the two numbers and may belong to them; nothing if nothing does."""
    if any(_is_doubtful_dash(stem, match) for match in (first, second)):
        return "a dash before a number may be a minus or not; separate with _."
    between = stem[first.end() : second.start()]
    if _FOREIGN.search(between):
        return f"{between.strip()!r} between the two numbers is not understood; {HOW_TO_WRITE}."
    before, behind = _SPOILED_BEFORE.search(stem[: first.start()]), _SPOILED_BEHIND.match(stem, second.end())
    if behind is None and second["word"] and not first["word"]:  # 33.8568lat_151.2153lon: whose is which?
        behind = _AXIS_BEHIND.match(stem, second.end())
    spoiled = before or behind
    if spoiled:
        return f"{spoiled.group().strip()!r} beside the numbers may be part of them; {HOW_TO_WRITE}."
    return ""


def _letters_problem(found: list[re.Match[str]], first: re.Match[str], second: re.Match[str]) -> str:
    """Why it is not sure which number a hemisphere belongs to; nothing if it is.

    A letter that stands apart, as in `33.8568_S_151.2153_E`, counts only where both numbers have one on the same side
    and there is no third number that it could belong to.
    """
    pair = (first, second)
    apart = [(bool(match["gap_before"]), bool(match["gap_after"])) for match in pair]
    if any(map(any, apart)) and (apart[0] != apart[1] or len(found) > 2):
        shown = next((match["before"] or match["after"]) for match, each in zip(pair, apart, strict=True) if any(each))
        return f"{shown!r} stands apart from its number; {HOW_TO_WRITE}."
    if second["before"] and not second["word"] and not _is_marked(first):
        touching = first.string[first.end("number") : second.start("before")]
        if not touching.strip("°"):  # 33.8568W70.5000
            return f"{second['before']!r} stands between two numbers; {HOW_TO_WRITE}."
    return ""


def _is_whole_name(stem: str, first: re.Match[str], second: re.Match[str]) -> bool:
    around = stem[: first.start()].strip(" _([")
    return not around and bool(_AROUND.match(stem, second.end()))


def _is_doubtful_dash(stem: str, match: re.Match[str]) -> bool:
    """Whether a dash may separate or be a sign: in `33.8568-151.2153` the two places are half a world apart."""
    return bool(match["minus"]) and not _is_marked(match) and stem[: match.start()][-1:].isalnum()


def _coordinate(match: re.Match[str], unmarked: str) -> tuple[str, float, str]:
    """Axis, value in degrees and what is wrong with it, of one number of a name."""
    value = float(match["number"].replace(",", "."))
    letters = {letter[0].upper() for letter in (match["before"], match["after"]) if letter}
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
