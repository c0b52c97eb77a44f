"""`fewshot train`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fewshot.cli.options import common, warn
from fewshot.cli.output import json_line
from fewshot.cli.terminal import echo
from fewshot.extras import need
from fewshot.memory import keep_freed_memory
from fewshot.recipes import read_plan

if TYPE_CHECKING:
    from fewshot.errors import FewshotError
    from fewshot.training.progress import Progress
    from fewshot.training.report import Report


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default="here",
    help="The folder in which the recipe's folders of photos are.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where results go, a folder a recipe.",
)
@click.option("--only", metavar="KEY=VALUE,...", help="Pick cells of a grid, or replace values of the recipe.")
@common
def train(recipe: Path, data: Path, out: Path, only: str | None, index: str, as_json: bool) -> None:
    """Train a backbone from RECIPE, a YAML file such as those in configs/, and write a report.

    A stopped or killed training goes on from its last whole epoch when the same command is given again, to the same
    result. docs/training.md says what can stand in a recipe and what comes out.
    """
    need("train", "training a backbone")
    read_plan(recipe, only)  # a mistake in it is told before torch is loaded, which takes seconds
    keep_freed_memory()
    from fewshot.training.runs import train as run

    on_cell = json_report if as_json else say_report
    with _bar() as on_progress:
        run(
            recipe,
            data,
            out,
            only=only,
            on_progress=on_progress,
            on_cell=on_cell,
            on_failed=say_failed,
            on_warning=warn,
        )


def json_report(report: "Report") -> None:
    """A finished training as a line of JSON; all of it is in its results.json."""
    json_line(
        {
            "name": report.name,
            "cell": report.cell,
            "folder": str(report.folder),
            "backbone": report.origin.name,
            "first_weights": report.origin.weights,
            "mean_epoch_seconds": report.mean_epoch_seconds,
            "classifier": report.classifier,
            "accuracy": report.test.accuracy.share if report.test else None,
            "prototype_top1": report.prototype.top1.share if report.prototype else None,
        }
    )


def say_report(report: "Report") -> None:
    """A finished training in a few lines."""
    echo(click.style(report.name + (f" ({report.cell})" if report.cell else ""), bold=True))
    rows = [("backbone", f"{report.origin.name}, {report.origin.weights} weights")]
    if report.test is not None:
        accuracy = report.test.accuracy
        rows.append(
            (
                f"{report.classifier} accuracy",
                f"{accuracy.share:.1%} ({accuracy.low:.1%} to {accuracy.high:.1%}), precision "
                f"{report.test.precision:.3f}, recall {report.test.recall:.3f}, F1 {report.test.f1:.3f}",
            )
        )
    if report.prototype is not None:
        top1 = report.prototype.top1
        rows.append(("nearest prototype", f"{top1.share:.1%} ({top1.low:.1%} to {top1.high:.1%})"))
    if report.mean_epoch_seconds is not None:
        rows.append(("an epoch", f"{report.mean_epoch_seconds:.1f} s"))
    rows.append(("report", str(report.folder / "report.md")))
    for name, value in rows:
        echo(f"  {name:<18} {value}")


def say_failed(cell: str, error: "FewshotError") -> None:
    """That a cell of a grid failed, at once; the next one is trained."""
    warn(f"{cell}: {error.said}")


@contextmanager
def _bar() -> Iterator[Callable[["Progress"], None]]:
    """A bar with the time left of the running phase, on stderr and only on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    text = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}")
    console = Console(stderr=True)
    with Bars(*text, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("reading photos", total=None, state="")

        def on_progress(progress: "Progress") -> None:
            n = progress.n_epochs * progress.n_batches
            done = (progress.epoch - 1) * progress.n_batches + progress.batch
            what = f"{progress.cell or 'training'}: {progress.phase}, epoch {progress.epoch} of {progress.n_epochs}"
            left = "" if progress.seconds_left is None else f"{_duration(progress.seconds_left)} left"
            state = f"loss {progress.loss:.3f}  {left}"
            bars.update(task, description=what, total=n, completed=done, state=state)

        yield on_progress


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds as a clock shows them.

    >>> _duration(3725.4)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
