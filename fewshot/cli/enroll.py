"""`fewshot enroll`."""

from pathlib import Path

import click

from fewshot.cli.options import EmbedderOptions, common, embedding, open_gallery, warn
from fewshot.cli.output import json_line, progress
from fewshot.cli.terminal import echo


@click.command()
@click.argument("label_and_folder", nargs=-1, metavar="LABEL FOLDER | --each FOLDER")
@click.option("--each", is_flag=True, help="Every sub-folder of FOLDER is a class, named after it.")
@click.option("--strict", is_flag=True, help="All or nothing: one refused photo, and nothing is enrolled.")
@embedding
@common
def enroll(
    label_and_folder: tuple[str, ...],
    each: bool,
    strict: bool,
    index: str,
    as_json: bool,
    embedder: EmbedderOptions,
) -> None:
    """Enroll a class from a folder of photos, or add photos to it.

    5 to 20 photos of different plants, in the light and at the distance of the photos to come, are a good start.
    Enrolling a folder again adds only the photos that are new. A photo that cannot be used is refused with its
    reason, and the others go in.
    """
    from fewshot.datasets import class_folder, class_folders

    if each:
        if len(label_and_folder) != 1:
            raise click.UsageError("--each takes one FOLDER, whose sub-folders name the classes.")
        folders = class_folders(Path(label_and_folder[0]))
    else:
        if len(label_and_folder) != 2:
            raise click.UsageError("give a LABEL and a FOLDER, or --each and a FOLDER.")
        folders = [class_folder(label_and_folder[0], Path(label_and_folder[1]))]
    for folder in folders:
        if not folder.photos:
            warn(f"the folder of class {folder.label!r} holds no photos.")
        elif folder.n_sub_folders:
            warn(f"the folder of class {folder.label!r} has {folder.n_sub_folders} sub-folders; they are not read.")

    n_usable, n_enrolled = 0, 0
    new_ids: list[int] = []
    with open_gallery(index, embedder, create=True) as gallery:
        try:
            with progress("enrolling", sum(len(folder.photos) for folder in folders)) as on_photo:
                for report in gallery.enroll(folders, strict=strict, on_photo=on_photo):
                    n_usable += report.enrolled + report.already_there
                    n_enrolled += report.enrolled
                    new_ids += report.support_ids
                    if as_json:
                        json_line(report.as_dict())
                    else:
                        echo(_sentence(report.label, report.enrolled, report.already_there, len(report.refused)))
                    for refused in report.refused:
                        warn(f"refused {refused.file}: {refused.message}")
        except KeyboardInterrupt:
            warn(f"interrupted; {n_enrolled} photos are enrolled and kept. The same command goes on from here.")
            raise
        for sentence in gallery.doubts(new_ids):
            warn(sentence)
    if n_usable == 0:
        warn("no photo could be used; nothing was enrolled.")
        click.get_current_context().exit(1)


def _sentence(label: str, n_enrolled: int, n_already: int, n_refused: int) -> str:
    parts = [f"{n_enrolled} enrolled"]
    if n_already:
        parts.append(f"{n_already} already there")
    if n_refused:
        parts.append(click.style(f"{n_refused} refused", fg="yellow"))
    return f"{click.style(label, bold=True)}: {', '.join(parts)}"
