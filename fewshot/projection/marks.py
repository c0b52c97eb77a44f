"""Which colour and shape stands for which class, told apart by colour-blind readers too."""

from collections.abc import Sequence
from dataclasses import dataclass

# Okabe & Ito 2008 ("Color Universal Design"), without yellow, which cannot be seen on white, and with grey for black.
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
# No more hues can be told apart by everybody: beyond seven classes the shape tells.
# (matplotlib's name, plotly's name in two dimensions, plotly's in three, where it knows five)
SHAPES = (
    ("o", "circle", "circle"),
    ("s", "square", "square"),
    ("^", "triangle-up", "diamond"),
    ("D", "diamond", "cross"),
    ("v", "triangle-down", "x"),
    ("P", "cross", "circle"),
    ("X", "x", "square"),
    ("<", "triangle-left", "diamond"),
    (">", "triangle-right", "cross"),
)
N_MARKS = len(HUES) * len(SHAPES)


@dataclass(frozen=True, slots=True)
class Mark:
    """A class's colour, and its shape by the names of the libraries that draw it."""

    colour: str
    shape: str
    plotly_2d: str
    plotly_3d: str


# Of a query photo that no folder names, and of what is too much to be told apart.
UNLABELLED = Mark("#999999", "o", "circle", "circle")


def marks(labels: Sequence[str]) -> dict[str, Mark]:
    """A mark for each class: all different up to 63, from then on some again.

    Classes next to each other in the order given differ in colour: of a crop, whose classes stand together in the
    order of labels, up to seven do.

    >>> marks(["corn-blight", "corn-rust"])["corn-rust"].colour
    '#D55E00'
    """
    found = {}
    for number, label in enumerate(labels):
        matplotlib, plotly_2d, plotly_3d = SHAPES[number // len(HUES) % len(SHAPES)]
        found[label] = Mark(HUES[number % len(HUES)], matplotlib, plotly_2d, plotly_3d)
    return found
