"""Pictures of one or two spaces -> figures fit for a paper: PNG and SVG."""

import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import patheffects, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from mpl_toolkits.mplot3d.proj3d import proj_transform

from fewshot.projection.coordinates import NAMES
from fewshot.projection.marks import N_MARKS, UNLABELLED, Mark, marks
from fewshot.projection.numbers import Numbers
from fewshot.projection.pictures import Picture
from fewshot.projection.spaces import Space
from fewshot.records import Float32s

PANEL_INCHES = 6.6
LEGEND_ROWS = 34
# More labels would cover the points; the largest classes get theirs.
MOST_LABELS = 60
MOST_CONFUSION_ROWS = 60
# An SVG with more single marks is slow to open: they go into it as one picture.
RASTER_FROM = 3000
DPI = 150
MOST_LETTERS = 40
# Legends and titles stay text in an SVG; its names are not random, so that the same points give the same file; and "$"
# in a label is a dollar and no formula.
_FONT = "DejaVu Sans"  # comes with matplotlib
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "fewshot", "text.parse_math": False, "font.family": _FONT}
_HALO = [patheffects.withStroke(linewidth=1.8, foreground="white")]


@contextmanager
def _drawing() -> Iterator[None]:
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # `missing_letters` tells of them
        yield


def missing_letters(labels: Iterable[str]) -> list[str]:
    """The labels with letters that the figures' font does not have: boxes stand in their place."""
    known = get_font(findfont(_FONT)).get_charmap()
    return [label for label in labels if any(ord(letter) not in known for letter in label)]


@_drawing()
def scatter(spaces: Sequence[Space], pictures: Sequence[Picture]) -> dict[str, bytes]:
    """One picture of each space, side by side, with one legend.

    Classes are named at their centres; up to 63 also in a legend outside. Supports are filled, queries hollow,
    prototypes stars; a ring is around a photo that lies nearer to another class. What is drawn and how far it can be
    trusted stands below.

    Args:
        spaces: one or two.
        pictures: of each space one, of the same method and dimensions.

    Returns:
        "png" and "svg": the files.
    """
    labels = sorted({label for space in spaces for label in space.labels})
    styles = marks(labels)
    n_columns = math.ceil(len(labels) / LEGEND_ROWS) if len(labels) <= N_MARKS else 0
    legend_inches = 0.2 + n_columns * (0.3 + 0.047 * max(len(_short(label)) for label in labels))
    figure = Figure(figsize=(PANEL_INCHES * len(spaces) + max(legend_inches, 2.3), PANEL_INCHES + 0.5))
    FigureCanvasAgg(figure)
    width = PANEL_INCHES / figure.get_figwidth()
    is_flat = pictures[0].n_dims == 2
    for number, (space, picture) in enumerate(zip(spaces, pictures, strict=True)):
        box = (number * width + 0.02 * width, 0.085, 0.96 * width, 0.86)
        axes: Any = figure.add_axes(box) if is_flat else figure.add_axes(box, projection="3d")
        _draw_points(axes, space, picture, styles)
        _name_classes(figure, axes, space, picture, styles)
        axes.set_title(f"{space.name}: {NAMES[picture.method]}", fontsize=10, pad=6 if is_flat else -4)
        note = textwrap.fill(_note(space, picture), round(95 * (1 if len(spaces) == 1 else 0.92)))
        figure.text(box[0], 0.072, note, fontsize=7, va="top", color="#333333")
    _legend(figure, labels, styles, spaces, n_columns, left=len(spaces) * width)
    return _files(figure)


@_drawing()
def confusion(spaces: Sequence[Space], numbers: Sequence[Numbers]) -> dict[str, bytes]:
    """How often photos of one class lie nearest to another: a matrix a space, rows in percent.

    Of more than 60 classes those that are confused most are shown. Returns "png" and "svg".
    """
    labels = sorted({label for each in numbers for label in each.labels})
    matrices = [_in_order(each, labels) for each in numbers]
    shown = np.arange(len(labels))
    if len(labels) > MOST_CONFUSION_ROWS:
        wrong = sum(
            matrix.sum(axis=1) - matrix.diagonal() + matrix.sum(axis=0) - matrix.diagonal() for matrix in matrices
        )
        shown = np.sort(np.argsort(-np.asarray(wrong), kind="stable")[:MOST_CONFUSION_ROWS])
    side = max(3.0, 0.13 * len(shown))
    margin = 0.3 + 0.065 * max(len(_short(labels[i])) for i in shown)
    figure = Figure(figsize=(len(spaces) * side + margin + 0.9, side + margin + 0.6))
    FigureCanvasAgg(figure)
    wide, high = figure.get_size_inches()
    size = 5.5 if len(shown) > 20 else 8
    for number, (space, matrix) in enumerate(zip(spaces, matrices, strict=True)):
        part = matrix[np.ix_(shown, shown)]
        share = 100 * part / np.maximum(matrix[shown].sum(axis=1, keepdims=True), 1)
        box = ((margin + number * side) / wide, margin / high, (side - 0.15) / wide, side / high)
        axes: Any = figure.add_axes(box)
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        names = [_short(labels[i]) for i in shown]
        axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(shown)), names if number == 0 else [], fontsize=size)
        axes.tick_params(length=0)
        of = "" if len(shown) == len(labels) else f"; the {len(shown)} of {len(labels)} classes confused most"
        axes.set_title(f"{space.name}: nearest class, in % of a row{of}", fontsize=8)
        axes.set_xlabel("nearest class", fontsize=7)
    figure.axes[0].set_ylabel("own class", fontsize=7)
    bar = figure.add_axes(((margin + len(spaces) * side) / wide, margin / high, 0.12 / wide, side / high))
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=6)
    return _files(figure)


def _draw_points(axes: Any, space: Space, picture: Picture, styles: dict[str, Mark]) -> None:
    n = len(space.points)
    size = float(np.clip(9000 / n, 4, 34))
    raster = n > RASTER_FROM
    rows_of: dict[tuple[str, str, str], list[int]] = {}  # many classes may share a mark
    for row, point in enumerate(space.points):
        mark = styles[point.label] if point.label else UNLABELLED
        rows_of.setdefault((point.role, mark.colour, mark.shape), []).append(row)
    for role in ("support", "query", "prototype"):  # in the order in which they cover each other
        for (its_role, colour, shape), rows in rows_of.items():
            if its_role != role:
                continue
            look = {
                "support": {"s": size, "c": colour, "marker": shape, "linewidths": 0, "alpha": 0.85},
                "query": {
                    "s": 1.3 * size,
                    "facecolors": "none",
                    "edgecolors": colour,
                    "marker": shape,
                    "linewidths": 0.9,
                },
                "prototype": {"s": 3 * size, "c": colour, "marker": "*", "edgecolors": "black", "linewidths": 0.5},
            }[role]
            axes.scatter(*picture.points[rows].T, **look, rasterized=raster)
    ringed = [row for row, point in enumerate(space.points) if point.agrees is False]
    if ringed:
        ring = {"s": 3 * size, "facecolors": "none", "edgecolors": "black", "linewidths": 0.7, "marker": "o"}
        axes.scatter(*picture.points[ringed].T, **ring, rasterized=raster)
    axes.tick_params(labelbottom=False, labelleft=False, length=0)
    if picture.n_dims == 3:
        axes.tick_params(labelright=False)
        axes.zaxis.set_ticklabels([])
        axes.set_box_aspect(None, zoom=1.1)
    else:
        axes.margins(0.04)
        for side in axes.spines.values():
            side.set_color("#bbbbbb")


def _name_classes(figure: Figure, axes: Any, space: Space, picture: Picture, styles: dict[str, Mark]) -> None:
    """Write each class's name above the middle of its enrolled photos; where names would cover each other, beside."""
    rows_of: dict[str, list[int]] = {}
    for row, point in enumerate(space.points):
        if point.role == "support":
            rows_of.setdefault(point.label, []).append(row)
    largest = sorted(rows_of, key=lambda label: -len(rows_of[label]))[:MOST_LABELS]
    figure.canvas.draw()  # in three dimensions the view is known only then
    pixels = _pixels(axes, picture)
    centres = np.array([np.median(pixels[rows_of[label]], axis=0) for label in largest])
    tops = np.array([np.percentile(pixels[rows_of[label], 1], 80) for label in largest])
    look: dict[str, Any] = {
        "fontsize": 8.5 if len(largest) <= 12 else 6.2,
        "ha": "center",
        "va": "center",
        "zorder": 10,
    }
    texts = [
        figure.text(0, 0, _short(label), color=_dark(styles[label].colour), path_effects=_HALO, **look)
        for label in largest
    ]
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [text.get_window_extent(renderer) for text in texts]
    half = np.array([[box.width / 2 + 1, box.height / 2 + 0.5] for box in boxes])
    above = np.column_stack([centres[:, 0], np.maximum(tops, centres[:, 1]) + half[:, 1] + 3])
    frame = axes.get_window_extent(renderer)
    places = _parted(above, half, np.array([frame.x0, frame.y0]) + half, np.array([frame.x1, frame.y1]) - half)
    to_figure = figure.transFigure.inverted().transform  # in fractions, which hold at every resolution
    for text, centre, place, size in zip(texts, centres, places, half, strict=True):
        x, y = to_figure(place)
        text.set_position((x, y))
        if np.linalg.norm(place - centre) > 3 * size[1] + 12:
            ends = to_figure(np.array([centre, place]))
            line = Line2D(*ends.T, color=text.get_color(), linewidth=0.4, alpha=0.7, transform=figure.transFigure)
            figure.add_artist(line)


def _pixels(axes: Any, picture: Picture) -> Float32s:
    """Where the points of a picture are on the page, (n, 2)."""
    points = picture.points
    if picture.n_dims == 3:
        points = np.column_stack(proj_transform(*points.T, axes.get_proj())[:2])
    found: Float32s = axes.transData.transform(points)
    return found


def _parted(places: Float32s, half: Float32s, low: Float32s, high: Float32s) -> Float32s:
    """Boxes of half sizes `half` around `places`, moved until none covers another, held between `low` and `high`."""
    places = np.clip(places, low, high)
    itself = np.eye(len(places), dtype=bool)[..., None]
    # Of two at one place the first goes up.
    tie = np.where(np.arange(len(places))[:, None] < np.arange(len(places))[None], 1.0, -1.0)[..., None]
    for _ in range(1000):
        gap = places[:, None] - places[None]
        overlap = np.where(itself, -1.0, half[:, None] + half[None] - np.abs(gap))  # (n, n, 2)
        colliding: Any = (overlap > 0).all(axis=2)
        if not colliding.any():
            break
        shorter = overlap == overlap.min(axis=2, keepdims=True)  # they part where less is to go
        push = np.where(gap == 0, tie, np.sign(gap)) * overlap * 0.3
        places = np.clip(places + np.where(colliding[..., None] & shorter, push, 0.0).sum(axis=1), low, high)
    return places


def _legend(
    figure: Figure, labels: Sequence[str], styles: dict[str, Mark], spaces: Sequence[Space], n_columns: int, left: float
) -> None:
    roles = {point.role for space in spaces for point in space.points}
    plain: dict[str, Any] = {"linestyle": "", "markersize": 5.5}
    kinds = [("enrolled photo", {"marker": "o", "color": "#555555", "markeredgewidth": 0})]
    if "query" in roles:
        kinds.append(("query photo", {"marker": "o", "markerfacecolor": "none", "color": "#555555"}))
    if "prototype" in roles:
        kinds.append(("prototype of a class", {"marker": "*", "color": "#555555", "markersize": 9}))
    kinds.append(
        ("nearer to another class", {"marker": "o", "markerfacecolor": "none", "color": "black", "markersize": 9})
    )
    handles = [Line2D([], [], **(plain | look)) for _, look in kinds]
    common: dict[str, Any] = {"loc": "upper left", "fontsize": 6.5, "frameon": False}
    common |= {"handletextpad": 0.2, "borderaxespad": 0}
    figure.legend(handles, [text for text, _ in kinds], bbox_to_anchor=(left + 0.005, 0.99), **common)
    if not n_columns:
        text = f"{len(labels):,} classes: too many for a legend.\nThe largest {MOST_LABELS} are named."
        figure.text(left + 0.01, 0.85, text, fontsize=6.5, va="top")
        return
    solid = plain | {"markeredgewidth": 0}
    classes = [Line2D([], [], marker=styles[label].shape, color=styles[label].colour, **solid) for label in labels]
    common |= {"ncols": n_columns, "columnspacing": 0.8, "labelspacing": 0.45}
    legend = figure.legend(classes, ["-"] * len(classes), bbox_to_anchor=(left + 0.005, 0.875), **common)
    for text_of, label in zip(legend.get_texts(), labels, strict=True):
        text_of.set_text(_short(label))  # given to the legend itself, a label that begins with "_" would be left out


def _note(space: Space, picture: Picture) -> str:
    of = "" if picture.n_trusted == space.n_photos else f" (of {picture.n_trusted:,} photos)"
    return f"{space.stated}. {space.embedder}. Trustworthiness {picture.trust:.3f}{of}."


def _in_order(numbers: Numbers, labels: Sequence[str]) -> np.ndarray[Any, Any]:
    place = {label: i for i, label in enumerate(labels)}
    at = [place[label] for label in numbers.labels]
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    matrix[np.ix_(at, at)] = numbers.confusion
    return matrix


def _short(label: str) -> str:
    return label if len(label) <= MOST_LETTERS else label[: MOST_LETTERS - 1] + "…"


def _dark(colour: str) -> str:
    """The same hue, dark enough to read as text on white."""
    parts = [int(colour[i : i + 2], 16) * 0.62 for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part):02x}" for part in parts)


def _files(figure: Figure) -> dict[str, bytes]:
    found = {}
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
        found[kind] = buffer.getvalue()
    return found
