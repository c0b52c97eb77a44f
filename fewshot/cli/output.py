"""How answers look: JSON lines for programs, aligned lines with bars for people, a progress bar for long work."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fewshot.cli.terminal import json_safe, visible, write_line
from fewshot.records import Prediction

BAR_WIDTH = 12
NAME_WIDTH = 40
NO_LABEL = "no label: enrolled photos lead by more, so take the answer as unsure"
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
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=n)
        yield lambda: bars.advance(task)


def short_names(files: list[Path]) -> dict[str, str]:
    """How photos are called on screen: as much of each path as tells it from the others, in at most 40 characters."""
    whole = {str(file): file.absolute() for file in files}  # some may be named from the root, others from here
    shared = Path(os.path.commonpath([path.parent for path in whole.values()]))
    return {name: shortened(str(path.relative_to(shared)), NAME_WIDTH) for name, path in whole.items()}


def prediction_heading(*, file_width: int, label_width: int) -> str:
    """The line above the answers."""
    line = f"{'photo':<{file_width}}  {'answer':<{label_width}}  {'probability':<{5 + BAR_WIDTH}} similarity"
    return click.style(line, bold=True)


def prediction_lines(prediction: Prediction, name: str, *, file_width: int, label_width: int) -> Iterator[str]:
    """An answer for people: the photo, its classes with probability bars, and the nearest enrolled photos."""
    name = visible(name)
    if prediction.reason == "bad_image":
        yield f"{name:<{file_width}}  {click.style('not readable', fg='red')}  {visible(prediction.message)}"
        return
    color = "green" if prediction.reason == "match" else "yellow"
    for i, match in enumerate(prediction.matches):
        label = shortened(match.label, label_width)
        bar = _bar(match.probability)
        figures = f"{match.probability:4.0%} {bar} {match.similarity:.2f}"
        if i == 0:
            answer = click.style(f"{shortened(prediction.answer, label_width):<{label_width}}", fg=color, bold=True)
            if prediction.reason == "unknown":
                yield f"{name:<{file_width}}  {answer}  {visible(prediction.message)}"
                # The shares are among the classes asked: they do not say how likely it is that it is any of them.
                yield click.style(f"{'':<{file_width}}  {IF_NOT_UNKNOWN}", dim=True)
                yield click.style(f"{'':<{file_width}}  {label:<{label_width}}  {figures}", dim=True)
            else:
                yield f"{name:<{file_width}}  {answer}  {figures}"
        else:
            yield click.style(f"{'':<{file_width}}  {label:<{label_width}}  {figures}", dim=True)
    if prediction.reason == "ambiguous":
        yield click.style(f"{'':<{file_width}}  ambiguous: less likely than the others together", fg="yellow")
    if prediction.covering is not None:
        left = ", ".join(map(visible, prediction.covering)) or NO_LABEL
        yield f"{'':<{file_width}}  cannot be ruled out: {left}"
    near = ", ".join(visible(f"{photo.label}/{photo.file} {photo.similarity:.2f}") for photo in prediction.nearest)
    if near:
        yield click.style(f"{'':<{file_width}}  nearest: {near}", dim=True)


def table(headings: list[str], rows: list[list[str]], *, right: tuple[int, ...] = ()) -> Iterator[str]:
    """Aligned columns under headings; the columns numbered in `right` are right-aligned."""
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    for number, row in enumerate([headings, *rows]):
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
