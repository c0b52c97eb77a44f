"""`fewshot query`."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fewshot.cli.options import (
    EmbedderOptions,
    common,
    embedding,
    guarding,
    open_cluster,
    open_gallery,
    spreading,
    warn,
)
from fewshot.cli.output import json_line, prediction_heading, prediction_lines, prediction_widths, progress, short_names
from fewshot.cli.terminal import echo
from fewshot.errors import NoFittingClassError

if TYPE_CHECKING:
    from fewshot.gallery import Gallery

OTHERS = "the others together"  # where not all photos of one plant could be read


@click.command()
@click.argument("photos", nargs=-1, required=True, metavar="IMAGE_OR_FOLDER...")
@click.option("--top", type=click.IntRange(1, 1000), default=3, show_default=True, help="Classes an answer lists.")
@click.option(
    "--nearest", type=click.IntRange(0, 1000), default=3, show_default=True, help="Enrolled photos an answer lists."
)
@click.option(
    "--within",
    multiple=True,
    metavar="PATTERN",
    help="Answer only with classes that fit, as 'corn-*'; may be repeated.",
)
@click.option(
    "--coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Also list the labels that cover the truth in so many of all cases, as 0.9; the list may be empty.",
)
@click.option("--together", is_flag=True, help="All photos show one plant: give one answer.")
@guarding
@spreading
@embedding
@common
def query(
    photos: tuple[str, ...],
    top: int,
    nearest: int,
    within: tuple[str, ...],
    coverage: float | None,
    together: bool,
    guarded: bool,
    index: str,
    as_json: bool,
    embedder: EmbedderOptions,
    ray: str | None,
) -> None:
    """Recognise photos: for each its class, how probable that is, and the enrolled photos it is nearest to.

    A photo that resembles no enrolled class enough is answered `unknown`; one whose likeliest class is less likely than
    the others together is marked `ambiguous`. Folders are searched with all their sub-folders.

    What --coverage promises holds on average, for photos like the enrolled ones. Photos from elsewhere (another camera,
    the field instead of the laboratory) break the promise. An empty list is an answer too: the photo leads by less than
    so many of all enrolled photos do, so its label is unsure; a higher coverage lists more.
    """
    from fewshot.datasets import query_photos
    from fewshot.records import Question

    files = query_photos([Path(photo) for photo in photos], on_warning=warn)
    question = Question(top, nearest, within or None, coverage, together)
    n_answered = 0
    with (
        open_cluster(ray, embedder, guarded=guarded) as cluster,
        open_gallery(index, embedder, guarded=guarded) as gallery,
        _hints_for_typed(within, gallery),
    ):
        if not as_json:  # what only the table needs is not looked up for programs
            names = short_names(files)
            if together:
                names[" + ".join(map(str, files))] = f"{len(files)} photos together"
            shown = [*names.values(), *([OTHERS] if together else [])]
            file_width, label_width = prediction_widths(shown, [each.label for each in gallery.classes()])
        with progress("asking", len(files)) as on_photo:
            for i, prediction in enumerate(gallery.query(files, question, on_photo=on_photo, cluster=cluster)):
                n_answered += prediction.reason != "bad_image"
                if as_json:
                    json_line(prediction.as_dict())
                    if prediction.reason == "bad_image":
                        warn(f"{prediction.file}: {prediction.message}")
                    continue
                if i == 0:  # not before a question that cannot be answered is refused
                    echo(prediction_heading(file_width=file_width, label_width=label_width))
                name = names.get(prediction.file, OTHERS)
                echo("\n".join(prediction_lines(prediction, name, file_width=file_width, label_width=label_width)))
    if n_answered == 0:
        warn("no photo could be read.")
        click.get_current_context().exit(1)


@contextmanager
def _hints_for_typed(within: tuple[str, ...], gallery: "Gallery") -> Iterator[None]:
    """What was meant by a pattern that fits no class: several with commas between, or one in other letters."""
    try:
        yield
    except NoFittingClassError as error:
        labels = [each.label for each in gallery.classes()]
        for pattern in within:
            if "," in pattern:
                meant = " ".join(f"--within {shlex.quote(part.strip())}" for part in pattern.split(","))
                raise NoFittingClassError(error.message, hint=f"Give each its own: `{meant}`.") from error
            small = pattern.casefold()
            alike = [label for label in labels if fnmatchcase(label.casefold(), small)]
            if alike:
                meant = small if any(fnmatchcase(label, small) for label in alike) else alike[0]
                raise NoFittingClassError(error.message, hint=f"Did you mean {meant!r}?") from error
        raise
