"""Pictures of one or two spaces -> one interactive HTML page that needs no network."""

import base64
import html
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from fewshot.projection.coordinates import METHODS, NAMES
from fewshot.projection.marks import UNLABELLED, Mark, marks
from fewshot.projection.pictures import Picture
from fewshot.projection.spaces import Space

TEMPLATE = Path(__file__).with_name("page.html")
# A browser draws a trace a class; from some hundreds on it slows down. The classes beyond share one.
MOST_CLASSES = 200
KEY = (
    "Filled: enrolled photos. Hollow: query photos. Stars: prototypes. A black ring: nearer to another class than to "
    "its own. Point at a photo to see it; click a class in the legend to see it alone, and again for all. Scroll to "
    "zoom, drag to move, double-click to see all of it."
)


def page(
    title: str, spaces: Sequence[Space], pictures: Sequence[Picture], tiles: Sequence[Sequence[bytes | None]]
) -> str:
    """The page: each space's points in every picture, thumbnails, and plotly's own script.

    Args:
        title: what stands above.
        spaces: one or two; two are drawn side by side.
        pictures: of every space, every method and number of dimensions.
        tiles: of each space a small WebP picture of each point, or None.
    """
    labels = sorted({label for space in spaces for label in space.labels})
    own = labels
    if len(labels) > MOST_CLASSES:
        n_points = Counter(point.label for point in spaces[0].points)
        own = sorted(sorted(labels, key=lambda label: -n_points[label])[:MOST_CLASSES])
    styles = marks(own)
    classes = [_class(label, styles[label]) for label in own]
    place = {label: i for i, label in enumerate(own)} | {label: len(own) for label in labels if label not in styles}
    if len(own) < len(labels):
        classes.append(_class(f"the other {len(labels) - len(own):,} classes", UNLABELLED))
    if any(not point.label for space in spaces for point in space.points):
        place[""] = len(classes)
        classes.append(_class("", UNLABELLED))
    kept: dict[bytes, int] = {}
    content = {
        "methods": [{"key": method, "name": NAMES[method]} for method in METHODS if _has(pictures, method)],
        "key": KEY,
        "classes": classes,
        "spaces": [_space(number, space, pictures, place, tiles[number], kept) for number, space in enumerate(spaces)],
    }
    content["tiles"] = [base64.b64encode(tile).decode() for tile in kept]
    filling = {
        "TITLE": html.escape(title),
        # No part of the data can end the script element: JSON allows "<" to be written as its code.
        "DATA": json.dumps(content, ensure_ascii=False).replace("<", "\\u003c"),
        "PLOTLY": get_plotlyjs(),
    }
    return re.sub("__([A-Z]+)__", lambda match: filling[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def _class(label: str, mark: Mark) -> dict[str, str]:
    return {"label": label, "colour": mark.colour, "shape_2d": mark.plotly_2d, "shape_3d": mark.plotly_3d}


def _has(pictures: Sequence[Picture], method: str) -> bool:
    return any(picture.method == method for picture in pictures)


def _space(
    number: int,
    space: Space,
    pictures: Sequence[Picture],
    place: dict[str, int],
    tiles: Sequence[bytes | None],
    kept: dict[bytes, int],
) -> dict[str, Any]:
    rows: list[list[int]] = [[] for _ in range(max(place.values()) + 1)]
    for row, point in enumerate(space.points):
        rows[place[point.label]].append(row)
    views = {}
    for picture in pictures:
        if picture.space == number:
            of = "" if picture.n_trusted == space.n_photos else f" of {picture.n_trusted:,} photos"
            views[f"{picture.method}-{picture.n_dims}"] = {
                "xyz": [[round(float(value), 4) for value in axis] for axis in picture.points.T],
                "note": f"Trustworthiness{of}: {picture.trust:.3f}.",
            }
    return {
        "name": space.name,
        "embedder": space.embedder,
        "stated": space.stated,
        "points": [point.as_dict() for point in space.points],
        "rows": rows,
        "views": views,
        "tiles": [None if tile is None else kept.setdefault(tile, len(kept)) for tile in tiles],
    }
