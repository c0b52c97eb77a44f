"""`fewshot enroll`."""

import shlex
from collections.abc import Iterator, Sequence
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
from fewshot.cli.output import json_line, progress
from fewshot.cli.terminal import echo
from fewshot.errors import EmptyFolderError, FewshotError, NestedFolderError, OtherLabelError, StrictError, UsageError

if TYPE_CHECKING:
    from fewshot.datasets import ClassFolder
    from fewshot.records import Refused


@click.command()
@click.argument("label_and_folder", nargs=-1, metavar="LABEL FOLDER | --each FOLDER")
@click.option("--each", is_flag=True, help="Every sub-folder of FOLDER is a class, named after it.")
@click.option(
    "--strict",
    is_flag=True,
    help="All or nothing: where a photo is refused or not read, or a class has none, nothing is enrolled.",
)
@click.option(
    "--keep-metadata",
    is_flag=True,
    help="Keep each photo's EXIF block (place, time, camera) in the small picture that the index holds.",
)
@guarding
@spreading
@embedding
@common
def enroll(
    label_and_folder: tuple[str, ...],
    each: bool,
    strict: bool,
    keep_metadata: bool,
    guarded: bool,
    index: str,
    as_json: bool,
    embedder: EmbedderOptions,
    ray: str | None,
) -> None:
    """Enroll a class from a folder of photos, or add photos to it.

    5 to 20 photos of different plants, in the light and at the distance of the photos to come, are a good start.
    Enrolling a folder again adds only the photos that are new. A photo that cannot be used is refused with its
    reason, and the others go in.
    """
    folders, left_out = _folders(label_and_folder, each)
    for sentence in left_out:
        warn(sentence)
    if strict and left_out:
        raise StrictError(
            f"nothing was enrolled: {left_out[0]}",
            hint="Mend the folder as the warnings say, or leave --strict out.",
        )
    if not any(folder.photos for folder in folders):
        raise EmptyFolderError(
            f"none of the {len(folders)} folders in {label_and_folder[0]} holds a photo; nothing was enrolled.",
            hint="Put 5 to 20 photos of each class into its folder.",
        )

    n_usable, n_enrolled = 0, 0
    new_ids: list[int] = []
    with (
        open_cluster(ray, embedder, guarded=guarded) as cluster,
        open_gallery(index, embedder, create=True, guarded=guarded) as gallery,
    ):
        try:
            with progress("enrolling", sum(len(folder.photos) for folder in folders)) as on_photo:
                for report in gallery.enroll(
                    folders, strict=strict, keep_metadata=keep_metadata, on_photo=on_photo, cluster=cluster
                ):
                    n_usable += report.enrolled + report.already_there
                    n_enrolled += report.enrolled
                    new_ids += report.support_ids
                    if as_json:
                        json_line({**report.as_dict(), "warnings": gallery.doubts(report.support_ids)})
                    else:
                        echo(_sentence(report.label, report.enrolled, report.already_there, len(report.refused)))
                    for sentence in _refusals(report.refused):
                        warn(sentence)
        except KeyboardInterrupt:
            done = f"{n_enrolled} photos are enrolled and kept" if n_enrolled else "nothing new is enrolled yet"
            warn(f"interrupted; {done}. The same command goes on from here.")
            raise
        for sentence in gallery.doubts(new_ids):
            warn(sentence)
    if n_usable == 0:
        warn("no photo could be used; nothing was enrolled.")
        click.get_current_context().exit(1)


def _folders(words: tuple[str, ...], each: bool) -> tuple[list["ClassFolder"], list[str]]:
    """The classes that the words of the command name, and sentences about what in their folders is not read."""
    from fewshot.datasets import class_folder, class_folders

    left_out: list[str] = []
    if each:
        if len(words) != 1:
            raise click.UsageError("--each takes one FOLDER, whose sub-folders name the classes.")
        folders = class_folders(Path(words[0]), enrolling=True, on_warning=left_out.append, on_passed_over=warn)
    else:
        if len(words) != 2:
            raise UsageError("give a LABEL and a FOLDER, or --each and a FOLDER.", hint=_meant(words))
        folders = [class_folder(words[0], Path(words[1]), on_passed_over=warn)]
    for folder in folders:
        n = folder.n_sub_folders
        inside = f"{n} {'sub-folder, which is' if n == 1 else 'sub-folders, which are'} not read"
        if not folder.photos:
            left_out.append(f"the folder of class {folder.label!r} holds no photos{f' but {inside}' if n else ''}.")
        elif n:
            left_out.append(f"the folder of class {folder.label!r} has {inside}.")
    return folders, left_out


def _meant(words: tuple[str, ...]) -> str:
    """A hint for words that are not two: a lone folder is a class of its own name, or holds classes."""
    from fewshot.datasets import class_folder

    if len(words) == 1:
        folder = Path(words[0])
        label = folder.resolve().name
        try:
            if class_folder(label, folder).photos != (folder,):  # a folder, not a photo
                return f"Did you mean `{shlex.join(['fewshot', 'enroll', label, words[0]])}`?"
        except NestedFolderError:
            return f"Did you mean `{shlex.join(['fewshot', 'enroll', '--each', words[0]])}`?"
        except FewshotError:
            pass
    return "See `fewshot enroll --help`."


def _refusals(photos: Sequence["Refused"]) -> Iterator[str]:
    """A sentence a photo, but one for all that are enrolled under one other label: as after a class was renamed."""
    alike: dict[str, list[Refused]] = {}
    for photo in photos:
        is_elsewhere = photo.code == OtherLabelError.code
        why = photo.message.removeprefix(f"{Path(photo.file).name} ") if is_elsewhere else photo.file
        alike.setdefault(why, []).append(photo)
    for why, found in alike.items():
        if len(found) == 1:
            yield f"refused {found[0].file}: {found[0].message}"
        else:
            names = ", ".join(Path(photo.file).name for photo in found[:3])
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            yield f"refused {len(found)} photos ({names}{more}): each {why}"


def _sentence(label: str, n_enrolled: int, n_already: int, n_refused: int) -> str:
    parts = [f"{n_enrolled} enrolled"]
    if n_already:
        parts.append(f"{n_already} already there")
    if n_refused:
        parts.append(click.style(f"{n_refused} refused", fg="yellow"))
    return f"{click.style(label, bold=True)}: {', '.join(parts)}"
