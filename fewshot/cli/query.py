"""`fewshot query`."""

from pathlib import Path

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
from fewshot.cli.output import NAME_WIDTH, json_line, prediction_heading, prediction_lines, progress, short_names
from fewshot.cli.terminal import echo


@click.command()
@click.argument("photos", nargs=-1, required=True, metavar="IMAGE_OR_FOLDER...")
@click.option("--top", type=click.IntRange(1, 1000), default=3, show_default=True, help="Classes an answer lists.")
@click.option(
    "--nearest", type=click.IntRange(0, 1000), default=3, show_default=True, help="Enrolled photos an answer lists."
)
@click.option("--within", multiple=True, metavar="PATTERN", help="Answer only with classes that fit, as 'corn-*'.")
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
    ):
        if not as_json:  # what only the table needs is not looked up for programs
            names = short_names(files)
            if together:
                names[" + ".join(map(str, files))] = f"{len(files)} photos together"
            file_width = max(len("photo"), *map(len, names.values()))
            label_width = min(NAME_WIDTH, max([len("unknown"), *(len(each.label) for each in gallery.classes())]))
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
                name = names.get(prediction.file, "the others together")
                for line in prediction_lines(prediction, name, file_width=file_width, label_width=label_width):
                    echo(line)
    if n_answered == 0:
        warn("no photo could be read.")
        click.get_current_context().exit(1)
