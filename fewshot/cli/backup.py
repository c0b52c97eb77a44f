"""`fewshot backup` and `restore`: an index kept elsewhere, and brought back."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fewshot.cli.options import common, index_place, open_gallery
from fewshot.cli.output import json_line, progress, table
from fewshot.cli.terminal import echo
from fewshot.errors import UsageError

if TYPE_CHECKING:
    from fewshot.backup import Backup

N_PARTS = 100


@click.command()
@click.argument("target", metavar="FOLDER_OR_FILE", type=click.Path(path_type=Path))
@common
def backup(target: Path, index: str, as_json: bool) -> None:
    """Write a backup of the index, also while it is served or changed.

    Into a folder (made if there is none) goes a new file named after index, time and generation, so that a daily
    backup makes a chain of points to go back to. A name that ends in .backup is one file, replaced each time. A backup
    is checked row by row before it gets its name, carries a checksum of all of its bytes, and is read back. Tokens
    are not in it.
    """
    with open_gallery(index) as gallery, progress("backing up", N_PARTS) as on_part:
        made = gallery.backup(target, on_part)
    if as_json:
        json_line({**made.as_dict(), "verified": True})
        return
    echo(f"{made.path}: {_held(made)}; verified")


@click.command()
@click.argument("source", metavar="FOLDER_OR_FILE", type=click.Path(path_type=Path))
@click.option(
    "--at",
    metavar="CHANGE_OR_TIME",
    help="In a folder of backups, the latest that holds no change after this one: its number in the history, or a "
    "time such as 2026-11-22T14:30 (UTC).",
)
@click.option("--replace", is_flag=True, help="Also where there is an index: it goes back to what the backup holds.")
@click.option("--list", "as_list", is_flag=True, help="Only show the points that can be restored.")
@common
def restore(source: Path, at: str | None, replace: bool, as_list: bool, index: str, as_json: bool) -> None:
    """Make an index from a backup, or with --replace take an index back to one of its earlier states.

    Every byte of the backup is checked first; a damaged one is refused and nothing is changed. --replace is one change
    like any other: whole or not at all, seen at once by a service that has the index open, and noted in the history.
    What the index held until then is kept as a backup in its folder, under before-restore/.
    """
    from fewshot.backup import backups_in, chosen_backup
    from fewshot.backup import restore as run

    if as_list:
        found, damaged = backups_in(source) if source.is_dir() else ([chosen_backup(source)], [])
        _show(found, source, as_json)
        for problem in damaged:
            echo(f"{click.style('damaged:', fg='red')} {problem.message}", err=True)
        return
    place = index_place(index)
    if isinstance(place, str):
        raise UsageError(
            "a backup is restored to a folder, and --index names a database.",
            hint="Restore to a new folder; `fewshot copy FOLDER DATABASE` brings it into an empty database.",
        )
    done = run(chosen_backup(source, at), place, replace=replace)
    if as_json:
        undone = [{name: each[name] for name in ("event_id", "at", "who", "action", "label")} for each in done.undone]
        kept = None if done.kept is None else str(done.kept)
        facts: dict[str, Any] = {"folder": str(done.folder), "backup": done.backup.as_dict(), "kept": kept}
        json_line({**facts, "undone": undone})
        return
    echo(f"{done.folder}: {_held(done.backup)}; restored from {done.backup.path}")
    for each in reversed(done.undone):
        echo(f"  undone: {each['event_id']} {each['at']} {each['who']}: {each['action']} {each['label'] or ''}")
    if done.kept is not None:
        echo(f"what was there before is kept as {done.kept}")


def _held(made: "Backup") -> str:
    return (
        f"{made.n_classes} classes, {made.n_supports} photos, "
        + (f"to change {made.event_id} of {made.event_at}" if made.event_id else "never changed")
    )  # fmt: skip


def _show(found: "list[Backup]", source: Path, as_json: bool) -> None:
    if as_json:
        for each in found:
            json_line(each.as_dict())
        return
    if not found:
        echo(f"{source} holds no backup that can be restored")
        return
    rows = [
        [str(each.event_id), each.event_at or "-", str(each.n_classes), str(each.n_supports), each.path.name]
        for each in found
    ]
    for line in table(["change", "of", "classes", "photos", "backup"], rows, right=(0, 2, 3)):
        echo(line)
