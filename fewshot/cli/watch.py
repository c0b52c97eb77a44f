"""`fewshot watch`."""

import os
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import click

from fewshot.cli.options import EmbedderOptions, common, embedding, open_gallery, warn
from fewshot.cli.output import json_line, progress, shortened
from fewshot.cli.terminal import echo, visible
from fewshot.errors import EmptyIndexError, UsageError

if TYPE_CHECKING:
    from fewshot.watching.answers import Answer
    from fewshot.watching.posting import Post
    from fewshot.watching.sinks import AnswerFile

PHOTO_WIDTH, ANSWER_WIDTH = 36, 16


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--routes",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Who goes where: a YAML file, as configs/routes-emergency.yaml.",
)
@click.option(
    "--to",
    "targets",
    multiple=True,
    metavar="FILE_OR_URL",
    help="Also write answers to a .jsonl or .csv file, or POST each to a URL. Can be given several times.",
)
@click.option(
    "--poll",
    "poll_s",
    type=click.FloatRange(0.05, 3600),
    metavar="SECONDS",
    help="Look through the folder so often, instead of being told by the system: for network shares.",
)
@click.option(
    "--settle",
    "settle_s",
    type=click.FloatRange(0.05, 600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="A file is finished when it has not changed for so long; one that cannot be read gets ten times that.",
)
@click.option("--once", is_flag=True, help="Answer what lies there and end, instead of waiting for more.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where photos that cannot be read are listed (.jsonl or .csv); by default bad-photos.jsonl in --state.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where it is remembered which photos are answered and what is still to be delivered; by default a folder for "
    "this folder and index in your own folder for state.",
)
@click.option(
    "--token",
    envvar="FEWSHOT_POST_TOKEN",
    show_envvar=True,
    help="Sent to each URL as `Authorization: Bearer TOKEN`; better given in the environment, which others do not see.",
)
@embedding
@common
def watch(
    folder: Path,
    routes: Path,
    targets: tuple[str, ...],
    poll_s: float | None,
    settle_s: float,
    once: bool,
    report: Path | None,
    state: Path | None,
    token: str | None,
    index: str,
    as_json: bool,
    embedder: EmbedderOptions,
) -> None:
    """Answer each photo that comes into FOLDER once: what it shows, where it was taken, who is to go.

    Coordinates come from the photo's EXIF GPS tags, or else from its file name (33.8568_151.2153.jpg). What lies in
    FOLDER at the start and is not answered yet is answered first. Ctrl-C ends the watch; started again, it goes on
    where it stopped. Photos that cannot be read go to a report.

    docs/watching.md says what a routes file holds, what an answer looks like, and what a kill can and cannot do.
    """
    from fewshot.watching.arrivals import watched_folder
    from fewshot.watching.memory import Memory, default_folder
    from fewshot.watching.routes import read_routes
    from fewshot.watching.sinks import AnswerFile, Screen
    from fewshot.watching.watcher import Watcher

    watched = watched_folder(folder)
    known = read_routes(routes)
    files, posts = _targets(targets, token)
    with ExitStack() as stack:
        gallery = stack.enter_context(open_gallery(index, embedder, guarded=True))
        labels = [each.label for each in gallery.classes()]
        if not labels:
            raise EmptyIndexError(f"index {gallery.name!r} holds no class yet.")
        for doubt in known.doubts(labels):
            warn(doubt)
        gallery.embedder()  # now, and not when the first photo waits for it
        home = gallery.place.resolve() if isinstance(gallery.place, Path) else gallery.place
        place = default_folder(watched, home) if state is None else state
        memory = stack.enter_context(Memory(place, watched, home))
        bad_photos = AnswerFile(place / "bad-photos.jsonl" if report is None else report)
        for file in [*files, bad_photos]:
            file.check()
        screen = Screen(_show_json if as_json else Table())
        given = {screen.name, bad_photos.name, *(file.name for file in files), *(post.name for post in posts)}
        _say_what_is_left(memory.n_due(), given)
        watcher = Watcher(
            gallery,
            watched,
            known,
            memory,
            sinks=[screen, *files],
            posts=posts,
            report=bad_photos,
            settle_s=settle_s,
            poll_s=poll_s,
            enrolled=labels,
            on_warning=warn,
            on_note=_note,
            bar=progress,
        )
        stop = stack.enter_context(_stopped_by_signals())
        if not once:
            _note(f"watching {folder} with index {gallery.name!r}, memory in {place}; Ctrl-C ends")
        tally = watcher.run(stop, once=once)
        echo(
            f"{tally.n_answered} answered, {tally.n_bad} could not be read"
            + (f" (listed in {bad_photos.path})" if tally.n_bad else "")
            + (f", {tally.n_copies} copies passed over" if tally.n_copies else "")
            + (f"; {tally.n_before} were dealt with by an earlier run" if tally.n_before > 1 else "")
            + ("; 1 was dealt with by an earlier run" if tally.n_before == 1 else ""),
            err=True,
        )
        undelivered = {sink: n for sink, n in memory.n_due().items() if sink in given}
        for sink, n in undelivered.items():
            warn(f"{n} {'answer is' if n == 1 else 'answers are'} still due to {sink}; delivered at the next start.")
    if once and undelivered:
        click.get_current_context().exit(1)


def _targets(targets: Sequence[str], token: str | None) -> tuple[list["AnswerFile"], list["Post"]]:
    """The files and the URLs that `--to` names."""
    from fewshot.watching.posting import Post
    from fewshot.watching.sinks import FILE_SUFFIXES, AnswerFile

    files: list[AnswerFile] = []
    posts: list[Post] = []
    for target in targets:
        if "://" in target:
            posts.append(Post(target, token=token))
        elif Path(target).suffix.lower() in FILE_SUFFIXES:
            files.append(AnswerFile(Path(target)))
        else:
            raise UsageError(
                f"--to {target!r} is neither a file of answers nor a URL.",
                hint=f"A file ends in {', '.join(FILE_SUFFIXES)}; a URL begins with https:// or http://.",
            )
    names = [*(file.name for file in files), *(post.name for post in posts)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--to names {name} twice.", hint="Leave one out.")
    return files, posts


def _say_what_is_left(due: Mapping[str, int], given: Collection[str]) -> None:
    """Tell what an earlier run did not deliver: now it will be, or it waits for a target that is not given."""
    left = sum(n for sink, n in due.items() if sink in given)
    if left:
        _note(f"{left} {'answer' if left == 1 else 'answers'} of an earlier run {_are(left)} still to be delivered")
    for sink, n in due.items():
        if sink not in given:
            _note(f"{n} {'answer' if n == 1 else 'answers'} to {sink} {_are(n)} kept until it is given again")


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def _note(text: str) -> None:
    echo(click.style(visible(text), dim=True), err=True)


def _show_json(answers: Sequence["Answer"]) -> None:
    for answer in answers:
        json_line(answer.as_dict())


class Table:
    """Answers in columns, one a line, under a heading that comes with the first."""

    def __init__(self) -> None:
        self._began = False

    def __call__(self, answers: Sequence["Answer"]) -> None:
        """Show answers."""
        if not self._began:
            self._began = True
            echo(click.style(_row("time", "photo", "answer", "sure", "where", "who goes"), bold=True))
        for answer in answers:
            where = "-"
            if answer.latitude is not None and answer.longitude is not None:
                where = f"{answer.latitude:.5f} {answer.longitude:.5f}"
            named = {"bad_image": "not readable", "ambiguous": f"{answer.answer}?"}.get(answer.reason, answer.answer)
            line = _row(
                datetime.fromisoformat(answer.at).astimezone().strftime("%H:%M:%S"),
                visible(answer.file),
                visible(named),
                "-" if answer.probability is None else f"{answer.probability:.0%}",
                where,
                ", ".join(map(visible, answer.units)) or "-",
            )
            echo(click.style(line, fg="red", bold=True) if answer.units else line)


def _row(time: str, photo: str, answer: str, sure: str, where: str, units: str) -> str:
    photo, answer = shortened(photo, PHOTO_WIDTH), shortened(answer, ANSWER_WIDTH)
    return f"{time:<8}  {photo:<{PHOTO_WIDTH}}  {answer:<{ANSWER_WIDTH}}  {sure:>4}  {where:<21}  {units}"


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one ends the process as it always does.

    The event is set by a thread: a handler runs wherever the main thread is, and if that is inside `stop.wait()`, which
    holds the event's lock for moments, setting it there would wait for that lock for ever. A `SimpleQueue` is made for
    handlers.
    """
    stop = threading.Event()
    caught: SimpleQueue[int] = SimpleQueue()
    before: dict[int, object] = {}

    def wait() -> None:
        if caught.get():
            stop.set()

    def on_signal(number: int, _frame: object) -> None:
        caught.put(number)
        signal.signal(number, before[number])  # type: ignore[arg-type]
        os.write(2, b"\nstopping when the photos in hand are done; again to stop at once\n")

    waiting = threading.Thread(target=wait, name="signals", daemon=True)
    waiting.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)  # type: ignore[arg-type]
        caught.put(0)  # no signal: the thread has nothing to wait for any more
        waiting.join()
