"""How answers look: JSON lines for programs, aligned lines with bars for people, a progress bar for long work."""

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fewshot.cli.terminal import drawn, json_safe, line_length, visible, write_line
from fewshot.records import Prediction

BAR_WIDTH = 12
NAME_WIDTH = 40
NO_LABEL = "no label; enrolled photos lead by more, so take the answer as unsure"
FIGURES = f"{'probability':<{5 + BAR_WIDTH}} similarity"
LEAST_WIDTH = 10  # of a column that is narrowed to fit a terminal
IF_NOT_UNKNOWN = "if it is one of the enrolled classes after all:"
# A bar for work that is over at once would only flicker.
PROGRESS_FROM = 8


def json_line(value: dict[str, Any]) -> None:
    """One JSON object on a line of stdout, at once."""
    write_line(json_safe(json.dumps(value, ensure_ascii=False)))


@contextmanager
def progress(what: str, n: int) -> Iterator[Callable[[], None]]:
    """A bar with the time left, on stderr and only on a terminal; gives the function to call after each step."""
    if n < PROGRESS_FROM or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left", Left())
    # What rich redirects it prints on its own console: lines of stdout would end on stderr.
    bars = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
    task = bars.add_task(what, total=n)
    with drawn(bars):
        yield lambda: bars.advance(task)


def short_names(files: list[Path]) -> dict[str, str]:
    """How photos are called on screen: as much of each path as tells it from the others, in at most 40 characters."""
    whole = {str(file): file.absolute() for file in files}  # some may be named from the root, others from here
    shared = Path(os.path.commonpath([path.parent for path in whole.values()]))
    return {name: shortened(str(path.relative_to(shared)), NAME_WIDTH) for name, path in whole.items()}


def fitted(widths: Sequence[int], room: int | None, fixed: Sequence[int] = ()) -> list[int]:
    """Widths of columns that fit side by side into `room`: the widest is narrowed first, those in `fixed` never.

    >>> fitted([30, 8, 3], 30, fixed=[2]), fitted([30, 8], None)
    ([15, 8, 3], [30, 8])
    """
    widths = list(widths)
    flexible = [i for i in range(len(widths)) if i not in fixed]
    while room is not None and flexible and sum(widths) + 2 * (len(widths) - 1) > room:
        widest = max(flexible, key=widths.__getitem__)
        if widths[widest] <= LEAST_WIDTH:
            break
        widths[widest] -= 1
    return widths


def prediction_widths(names: Sequence[str], labels: Sequence[str]) -> tuple[int, int]:
    """How wide the photos' names and the labels are shown, so that the figures find room beside them."""
    file_width = max(len("photo"), *map(len, names))
    label_width = min(NAME_WIDTH, max(map(len, ["unknown", *labels])))
    file_width, label_width, _ = fitted([file_width, label_width, len(FIGURES)], line_length(), fixed=[2])
    return file_width, label_width


def prediction_heading(*, file_width: int, label_width: int) -> str:
    """The line above the answers."""
    return click.style(f"{'photo':<{file_width}}  {'answer':<{label_width}}  {FIGURES}", bold=True)


def prediction_lines(prediction: Prediction, name: str, *, file_width: int, label_width: int) -> Iterator[str]:
    """An answer for people: the photo, its classes with probability bars, and the nearest enrolled photos."""
    name = f"{shortened(name, file_width):<{file_width}}"
    aside = " " * (file_width + 2)
    if prediction.reason == "bad_image":
        first, *more = _lines(visible(prediction.message), file_width + 2 + len("not readable  "))
        yield f"{name}  {click.style('not readable', fg='red')}  {first}"
        yield from more
        return
    color = "green" if prediction.reason == "match" else "yellow"
    for i, match in enumerate(prediction.matches):
        label = shortened(match.label, label_width)
        bar = _bar(match.probability)
        figures = f"{match.probability:4.0%} {bar} {match.similarity:.2f}"
        if i == 0:
            answer = click.style(f"{shortened(prediction.answer, label_width):<{label_width}}", fg=color, bold=True)
            if prediction.reason == "unknown":
                first, *more = _lines(visible(prediction.message), len(aside) + label_width + 2)
                yield f"{name}  {answer}  {first}"
                yield from more
                # The shares are among the classes asked: they do not say how likely it is that it is any of them.
                for line in _beside(aside, IF_NOT_UNKNOWN):
                    yield click.style(line, dim=True)
                yield click.style(f"{aside}{label:<{label_width}}  {figures}", dim=True)
            else:
                yield f"{name}  {answer}  {figures}"
        else:
            yield click.style(f"{aside}{label:<{label_width}}  {figures}", dim=True)
    if prediction.reason == "ambiguous":
        for line in _beside(aside, "ambiguous: less likely than the others together"):
            yield click.style(line, fg="yellow")
    if prediction.covering is not None:
        left = ", ".join(map(visible, prediction.covering)) or NO_LABEL
        yield from _beside(aside, f"cannot be ruled out: {left}")
    if prediction.nearest:
        near = (
            f"{fit_name(photo.label)}/{fit_name(photo.file)} {photo.similarity:.2f}" for photo in prediction.nearest
        )
        for line in _beside(aside, f"nearest: {', '.join(near)}"):
            yield click.style(line, dim=True)


def _beside(aside: str, text: str) -> Iterator[str]:
    """A text that begins right of `aside`, on as many lines as a terminal needs for it."""
    first, *more = _lines(text, len(aside))
    yield aside + first
    yield from more


def _lines(text: str, n_before: int) -> list[str]:
    """A text as it fits right of `n_before` characters: one line but on a terminal; all but the first are indented."""
    room = line_length()
    if room is None:
        return [text]
    first, *more = textwrap.wrap(text, max(2 * LEAST_WIDTH, room - n_before), break_on_hyphens=False) or [""]
    return [first, *(" " * n_before + line for line in more)]


def fit_name(name: str) -> str:
    """A name as it is shown within a line, visible: whole, but no longer than 40 characters on a terminal."""
    return visible(name) if line_length() is None else shortened(name, NAME_WIDTH)


def table(headings: list[str], rows: list[list[str]], *, right: tuple[int, ...] = ()) -> Iterator[str]:
    """Aligned columns under headings, those in `right` right-aligned; on a terminal the others are narrowed to fit."""
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    widths = fitted(widths, line_length(), fixed=right)
    for number, row in enumerate([headings, *rows]):
        row = [shortened(cell, width) for cell, width in zip(row, widths, strict=True)]
        cells = [cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        line = "  ".join(cells).rstrip()
        yield click.style(line, bold=True) if number == 0 else line


def _bar(share: float) -> str:
    n_eighths = round(share * BAR_WIDTH * 8)
    full, rest = divmod(n_eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(BAR_WIDTH)


def shortened(text: str, width: int) -> str:
    """As much of both ends of a text as fits, with a … between; what a terminal would obey is shown as its number."""
    text = visible(text)
    return text if len(text) <= width else text[: width // 2] + "…" + text[len(text) - (width - width // 2 - 1) :]
