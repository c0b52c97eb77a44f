"""`fewshot query`."""

from pathlib import Path

import click

from fewshot.cli.options import common, embedding, open_gallery, warn
from fewshot.cli.output import NAME_WIDTH, json_line, prediction_heading, prediction_lines, progress, short_names


@click.command()
@click.argument("photos", nargs=-1, required=True, metavar="IMAGE_OR_FOLDER...")
@click.option("--top", type=click.IntRange(1, 1000), default=3, show_default=True, help="Classes an answer lists.")
@click.option(
    "--nearest", type=click.IntRange(0, 1000), default=3, show_default=True, help="Enrolled photos an answer lists."
)
@embedding
@common
def query(
    photos: tuple[str, ...],
    top: int,
    nearest: int,
    index: str,
    as_json: bool,
    backbone: str | None,
    precision: str | None,
    engine: str,
) -> None:
    """Recognise photos: for each its class, how probable that is, and the enrolled photos it is nearest to.

    A photo that resembles no enrolled class enough is answered `unknown`. Folders are searched with all their
    sub-folders.
    """
    from fewshot.datasets import query_photos

    files = query_photos([Path(photo) for photo in photos])
    n_answered = 0
    with open_gallery(index, backbone=backbone, precision=precision, engine=engine) as gallery:
        if not as_json:  # what only the table needs is not looked up for programs
            names = short_names(files)
            file_width = max(len("photo"), *map(len, names.values()))
            label_width = min(NAME_WIDTH, max([len("unknown"), *(len(each.label) for each in gallery.classes())]))
        with progress("asking", len(files)) as on_photo:
            if not as_json:
                click.echo(prediction_heading(file_width=file_width, label_width=label_width))
            for prediction in gallery.query(files, top=top, n_nearest=nearest, on_photo=on_photo):
                n_answered += prediction.reason != "bad_image"
                if as_json:
                    json_line(prediction.as_dict())
                    if prediction.reason == "bad_image":
                        warn(f"{prediction.file}: {prediction.message}")
                    continue
                name = names[prediction.file]
                for line in prediction_lines(prediction, name, file_width=file_width, label_width=label_width):
                    click.echo(line)
    if n_answered == 0:
        warn("no photo could be read.")
        click.get_current_context().exit(1)
