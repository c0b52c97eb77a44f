"""Figures, numbers and doubtful photos -> index.html: what a folder of results holds, in plain words."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from fewshot.projection.coordinates import NAMES
from fewshot.projection.numbers import Numbers
from fewshot.projection.pictures import Picture
from fewshot.projection.spaces import Space

MOST_SHOWN = 100
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 0 auto; padding: 16px 20px 60px; }
h1 { font-size: 24px; } h2 { font-size: 18px; margin-top: 36px; border-bottom: 1px solid #ddd; padding-bottom: 4px; }
table { border-collapse: collapse; margin: 10px 0; } caption { text-align: left; color: #555; padding-bottom: 4px; }
th, td { padding: 4px 10px; text-align: left; border-bottom: 1px solid #e4e4e4; vertical-align: middle; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td img { width: 96px; height: 96px; display: block; border-radius: 3px; }
img.figure { max-width: 100%; border: 1px solid #ddd; }
.note { color: #555; font-size: 13.5px; } .none { color: #777; }
a.button { display: inline-block; background: #0072B2; color: #fff; padding: 7px 14px; border-radius: 5px;
           text-decoration: none; margin: 4px 8px 4px 0; }
@media (max-width: 700px) { table { display: block; overflow-x: auto; } td img { width: 64px; height: 64px; } }
"""


@dataclass(frozen=True, slots=True)
class Doubt:
    """An enrolled photo that may carry a wrong label, with small pictures of it and of both classes' typical photos."""

    label: str
    file: str
    own_similarity: float
    looks_like: str
    similarity: float
    pictures: tuple[bytes | None, bytes | None, bytes | None] = (None, None, None)


@dataclass(frozen=True, slots=True)
class Confusable:
    """Two classes whose prototypes are alike, and how many drawn photos of each lie nearer to the other."""

    first: str
    second: str
    similarity: float
    n_first_to_second: int
    n_second_to_first: int
    pictures: tuple[bytes | None, bytes | None] = (None, None)


def report(
    title: str,
    spaces: Sequence[Space],
    pictures: Sequence[Picture],
    numbers: Sequence[Numbers],
    doubts: Sequence[Doubt],
    confusable: Sequence[Confusable],
    shared: tuple[int, float] | None,
    notes: Sequence[str],
) -> str:
    """The page.

    Args:
        title: what stands above.
        spaces: one, or two that are compared.
        pictures: all of them.
        numbers: of each space.
        doubts: photos to check, worst first (of the first space).
        confusable: pairs of classes, most alike first (of the first space).
        shared: of a comparison, k and the share of k nearest neighbours that both spaces have in common.
        notes: sentences that a reader must know.
    """
    first = spaces[0]
    parts = [f"<h1>{_text(title)}</h1>"]
    parts += [f"<p>{_text(space.name)}: {_text(space.stated)}; {_text(space.embedder)}.</p>" for space in spaces]
    parts += [f'<p class="note">{_text(note)}</p>' for note in notes]
    parts.append(
        '<p><a class="button" href="space.html">Open the interactive picture</a></p>'
        "<p>Each point is a photo. Photos that the program finds alike lie together; a class that is easy to recognise "
        "is an island of one colour. Two classes that run into each other are easily confused. A photo that sits among "
        "another class, with a black ring, is the first to check for a wrong label.</p>"
    )
    best = max(pictures, key=lambda picture: (picture.n_dims == 2, picture.trust))
    parts.append(
        f'<img class="figure" src="figures/{best.method}-2d.png" alt="{NAMES[best.method]} picture of the classes">'
    )
    parts.append(_numbers(spaces, numbers, shared))
    parts.append(_doubts(doubts, first))
    parts.append(_confusable(confusable, first))
    parts.append(_trust(spaces, pictures))
    parts.append(_classes(spaces, numbers))
    parts.append(_files(pictures, len(spaces)))
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{_text(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _numbers(spaces: Sequence[Space], numbers: Sequence[Numbers], shared: tuple[int, float] | None) -> str:
    rows = [
        ["nearest class is the photo's own", *(_percent(each.class_agreement) for each in numbers)],
        ["nearest other photo is of the same class", *(_percent(each.neighbour_agreement) for each in numbers)],
        ["silhouette (-1 to 1; higher: classes stand apart)", *(_figure(each.silhouette) for each in numbers)],
    ]
    if any(each.query_agreement is not None for each in numbers):
        rows.append(["nearest class is the query's own", *(_percent(each.query_agreement) for each in numbers)])
    text = (
        "<h2>How well the classes stand apart</h2>"
        + _table(["", *(space.name for space in spaces)], rows, right=range(1, 1 + len(spaces)))
        + '<p class="note">Measured in the embedding itself, of the photos drawn, by plain cosine; each is asked as if '
        "it were not enrolled. <code>fewshot query</code> also uses what the index learnt of how its photos differ, "
        "and usually answers more of them right.</p>"
        '<p><img class="figure" src="figures/confusion.png" alt="own class against nearest class"></p>'
    )
    if shared is not None:
        text += (
            f"<p>Of a photo's {shared[0]} nearest neighbours the two spaces have {shared[1]:.0%} in common, "
            "over all photos drawn.</p>"
        )
    return text


def _doubts(doubts: Sequence[Doubt], space: Space) -> str:
    heading = "<h2>Photos to check for a wrong label</h2>"
    if not doubts:
        return f'{heading}<p class="none">None: no enrolled photo lies clearly nearer to another class.</p>'
    lines = [
        [_image(each.pictures[0]), _text(each.file), _text(each.label), f"{each.own_similarity:.2f}"]
        + [_image(each.pictures[1]), _text(each.looks_like), f"{each.similarity:.2f}", _image(each.pictures[2])]
        for each in doubts[:MOST_SHOWN]
    ]
    headings = ["photo", "file", "its label", "alike", "typical of its label", "looks like", "alike", "typical of that"]
    more = f" The worst {MOST_SHOWN} are shown; suspicious.csv lists all." if len(doubts) > MOST_SHOWN else ""
    return (
        f"{heading}<p>{len(doubts)} of {space.n_supports:,} enrolled photos lie clearly nearer to another class than "
        f"to the rest of their own, the clearest first.{more} Look at each beside a typical photo of both classes. If "
        "the label is wrong, remove the photo there and enroll it under the right one; if it is right, it shows its "
        "class as no other photo does, and more like it will help.</p>" + _raw_table(headings, lines, right=(3, 6))
    )


def _confusable(pairs: Sequence[Confusable], space: Space) -> str:
    heading = "<h2>Classes that are easily confused</h2>"
    if not pairs:
        return f'{heading}<p class="none">None: there is only one class.</p>'
    lines = [
        [_image(each.pictures[0]), _text(each.first), _text(each.second), _image(each.pictures[1])]
        + [f"{each.similarity:.2f}", str(each.n_first_to_second), str(each.n_second_to_first)]
        for each in pairs
    ]
    headings = ["", "class", "and class", "", "alike", "first nearer to second", "second nearer to first"]
    return (
        f"{heading}<p>Alike is the cosine between the classes' prototypes. The last columns count photos of one that "
        "lie nearer to the other. More photos that show the difference help; so does asking only within the crop "
        "(<code>--within</code>).</p>" + _raw_table(headings, lines, right=(4, 5, 6))
    )


def _trust(spaces: Sequence[Space], pictures: Sequence[Picture]) -> str:
    keys = list(dict.fromkeys((each.method, each.n_dims) for each in pictures))
    found = {(each.space, each.method, each.n_dims): each for each in pictures}
    rows = [
        [f"{NAMES[method]}, {n_dims}-D"]
        + [f"{found[number, method, n_dims].trust:.3f}" for number in range(len(spaces))]
        for method, n_dims in sorted(keys)
    ]
    return (
        "<h2>How far to trust the pictures</h2><p>Trustworthiness is 1 if photos that lie together in the picture are "
        "alike in the embedding too, and about 0.5 if the picture were chance. PCA shows the broad directions, t-SNE "
        "and UMAP the neighbourhoods; in the latter two, distances between far groups mean little.</p>"
        + _table(["picture", *(space.name for space in spaces)], rows, right=range(1, 1 + len(spaces)))
    )


def _classes(spaces: Sequence[Space], numbers: Sequence[Numbers]) -> str:
    labels = sorted({label for each in numbers for label in each.class_silhouette})
    n_photos = dict.fromkeys(labels, 0)
    for point in spaces[0].points:
        if point.role == "support":
            n_photos[point.label] += 1
    rows = [
        [label, str(n_photos[label]), *(_figure(each.class_silhouette.get(label)) for each in numbers)]
        for label in labels
    ]
    names = [f"silhouette, {space.name}" if len(spaces) > 1 else "silhouette" for space in spaces]
    table = _table(["class", "photos drawn", *names], rows, right=range(1, 2 + len(spaces)))
    return f"<h2>Every class</h2><details><summary>{len(labels)} classes</summary>{table}</details>"


def _files(pictures: Sequence[Picture], n_spaces: int) -> str:
    keys = sorted({(each.method, each.n_dims) for each in pictures})
    figures = ", ".join(
        f'{NAMES[method]} {n_dims}-D <a href="figures/{method}-{n_dims}d.png">PNG</a> '
        f'<a href="figures/{method}-{n_dims}d.svg">SVG</a>'
        for method, n_dims in keys
    )
    return (
        f"<h2>Files</h2><ul><li>Figures: {figures}; confusion "
        '<a href="figures/confusion.png">PNG</a> <a href="figures/confusion.svg">SVG</a></li>'
        '<li>Coordinates of every point: <a href="coordinates.csv">CSV</a>, '
        '<a href="coordinates.parquet">Parquet</a></li>'
        '<li>Tables: <a href="suspicious.csv">suspicious photos</a>, <a href="confusable.csv">confusable classes</a>, '
        '<a href="classes.csv">classes</a>; everything measured: <a href="numbers.json">numbers.json</a></li>'
        "<li>TensorBoard's projector: <code>tensorboard --logdir projector</code>, "
        "or <code>fewshot project --serve</code></li></ul>"
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] | range) -> str:
    return _raw_table([_text(each) for each in headings], [[_text(cell) for cell in row] for row in rows], right)


def _raw_table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] | range) -> str:
    def cells(row: Sequence[str], kind: str) -> str:
        shade = {True: ' class="n"', False: ""}
        return "".join(f"<{kind}{shade[i in right]}>{cell}</{kind}>" for i, cell in enumerate(row))

    head = f"<thead><tr>{cells(headings, 'th')}</tr></thead>"
    return f"<table>{head}<tbody>" + "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows) + "</tbody></table>"


def _image(tile: bytes | None) -> str:
    if tile is None:
        return ""
    return f'<img alt="" src="data:image/webp;base64,{base64.b64encode(tile).decode()}">'


def _text(text: str) -> str:
    return html.escape(text)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
