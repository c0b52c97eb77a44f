"""`fewshot classes`, `remove`, `rename` and `inspect`: the classes of an index."""

import shlex

import click

from fewshot.cli.options import common, open_gallery, warn
from fewshot.cli.output import fit_name, json_line, progress, table
from fewshot.cli.terminal import echo, visible
from fewshot.datasets import checked_label
from fewshot.errors import EmptyIndexError, UsageError


@click.command()
@common
def classes(index: str, as_json: bool) -> None:
    """List the enrolled classes, with how many photos and prototypes each has."""
    with open_gallery(index) as gallery:
        summaries = gallery.classes()
    if as_json:
        for summary in summaries:
            json_line(summary.as_dict())
        return
    if not summaries:
        warn(f"no class is enrolled. {EmptyIndexError.hint}")
        return
    rows = [[summary.label, str(summary.supports), str(summary.prototypes)] for summary in summaries]
    for line in table(["class", "photos", "prototypes"], rows, right=(1, 2)):
        echo(line)


@click.command()
@click.argument("label")
@click.option(
    "--photo",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help="Only this photo, as `inspect LABEL --photos` numbers it.",
)
@common
def remove(label: str, photo: int | None, index: str, as_json: bool) -> None:
    """Remove a class and its photos from the index, or one photo (the files you enrolled from stay where they are)."""
    label = checked_label(label)
    if photo is not None:
        _remove_photo(label, photo, index, as_json)
        return
    with open_gallery(index) as gallery:
        n = gallery.remove(label)
    if as_json:
        json_line({"label": label, "removed": n})
    else:
        echo(f"{click.style(label, bold=True)}: removed, with {n} photo{'s' if n != 1 else ''}")


def _remove_photo(label: str, number: int, index: str, as_json: bool) -> None:
    with open_gallery(index) as gallery:
        found = gallery.support(number)
        if found.label != label:
            raise UsageError(
                f"photo {number} is {found.file} of {found.label!r}, not of {label!r}.",
                hint=f"`fewshot inspect {shlex.quote(label)} --photos` lists its photos with their numbers.",
            )
        removed = gallery.remove_support(number)
    if as_json:
        json_line({"label": removed.label, "removed": 1, "file": removed.file, "support_id": number})
    else:
        echo(f"{click.style(removed.label, bold=True)}: {visible(removed.file)} removed")


@click.command()
@click.argument("old")
@click.argument("new")
@common
def rename(old: str, new: str, index: str, as_json: bool) -> None:
    """Give a class another label."""
    old, new = checked_label(old), checked_label(new)
    with open_gallery(index) as gallery:
        warnings = gallery.rename(old, new)
    for sentence in warnings:
        warn(sentence)
    if as_json:
        json_line({"label": new, "was": old})
    else:
        echo(f"{click.style(old, bold=True)} is now {click.style(new, bold=True)}")


@click.command()
@click.argument("label", required=False)
@click.option("--photos", is_flag=True, help="List every photo of LABEL with its number, which `remove --photo` takes.")
@common
def inspect(label: str | None, photos: bool, index: str, as_json: bool) -> None:
    """Show how classes (or one) look from inside.

    For each class: how alike its photos are to each other (`alike`, the mean cosine of a photo to the prototype of
    the others) and how much that varies (`spread`), the classes it is most easily confused with, and the photos that
    lie nearer to another class than to their own, which are the first to check for a wrong label. --photos lists all
    photos of one class, each with its own similarity to the rest (`own`).
    """
    if photos:
        if label is None:
            raise click.UsageError("--photos lists the photos of one class; give its LABEL.")
        _list_photos(label, index, as_json)
        return
    with open_gallery(index) as gallery:
        n = 1 if label is not None else len(gallery.classes())
        found = []
        with progress("inspecting", n) as on_class:
            for inspection in gallery.inspect(label):
                found.append(inspection)
                if as_json:
                    json_line(inspection.as_dict())
                on_class()
    if as_json:
        return
    rows = [
        [
            each.label,
            str(each.supports),
            "-" if each.similarity is None else f"{each.similarity:.2f}",
            "-" if each.spread is None else f"{each.spread:.2f}",
            ", ".join(f"{other} {similarity:.2f}" for other, similarity in each.confusable[: 3 if label else 1]) or "-",
            str(len(each.suspicious)),
        ]
        for each in found
    ]
    headings = [
        "class",
        "photos",
        "alike",
        "spread",
        "nearest class" if label is None else "nearest classes",
        "suspicious",
    ]
    for line in table(headings, rows, right=(1, 2, 3, 5)):
        echo(line)
    suspicious = [(photo, each.label) for each in found for photo in each.suspicious]
    if suspicious:
        echo("\nPhotos that lie nearer to another class (right label?):")
    for photo, own_label in sorted(suspicious, key=lambda pair: pair[0].own_similarity - pair[0].similarity):
        name, other = f"{fit_name(own_label)}/{fit_name(photo.file)}", fit_name(photo.looks_like)
        echo(f"  {name}: own {photo.own_similarity:.2f}, {other} {photo.similarity:.2f} (photo {photo.support_id})")


def _list_photos(label: str, index: str, as_json: bool) -> None:
    """One class and all of its photos, in order of enrolment."""
    with open_gallery(index) as gallery:
        _, photos, found = gallery.describe(label)
    if as_json:
        json_line({**found.as_dict(), "photos": [photo.as_dict() for photo in photos]})
        return
    nearer = {photo.support_id: f"{photo.looks_like} {photo.similarity:.2f}" for photo in found.suspicious}
    rows = [
        [
            str(photo.support_id),
            photo.file,
            "-" if photo.own_similarity is None else f"{photo.own_similarity:.2f}",
            nearer.get(photo.support_id, ""),
        ]
        for photo in photos
    ]
    for line in table(["number", "file", "own", "nearer to"], rows, right=(0, 2)):
        echo(line)
