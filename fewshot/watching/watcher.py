"""The watch itself: photos that came to rest are asked, their answers remembered, then handed over."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from fewshot import images
from fewshot.datasets import legible
from fewshot.errors import (
    DatabaseUnreachableError,
    DeliveryError,
    EmptyIndexError,
    ImageError,
    IndexLockedError,
    MissingFolderError,
    MixedEmbeddingsError,
)
from fewshot.gallery import Gallery
from fewshot.records import UNKNOWN, NamedBytes, Prediction, Question
from fewshot.watching.answers import BAD_IMAGE, Answer
from fewshot.watching.arrivals import Arrival, Arrivals, changes, signature_of
from fewshot.watching.memory import Finished, Memory
from fewshot.watching.places import Located, locate
from fewshot.watching.posting import Post
from fewshot.watching.routes import Routes
from fewshot.watching.sinks import Sink

BATCH = 16  # photos held in memory and asked at once
# A photo that cannot be read may be one whose writer pauses: it is called bad only after so many times the settling.
PATIENCE = 10
RETRY_S = 5.0
ONCE_WAIT_S = 30.0  # how long `once` waits for receivers that take no answers
QUESTION = Question(n_nearest=0)
# Others are at work on the index, or its server is away for a moment: photos wait for them.
WAITED_OUT = (EmptyIndexError, IndexLockedError, DatabaseUnreachableError)
Bar = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


@dataclass(slots=True)
class Tally:
    """What a watch did, in photos; `n_before` lay there at the start, dealt with by an earlier run."""

    n_answered: int = 0
    n_bad: int = 0
    n_copies: int = 0
    n_before: int = 0


@dataclass(slots=True)
class _Retry:
    """A sink that failed: what was said of it, and when it is tried again."""

    told: str = ""
    not_before: float = field(default=0.0)


class Watcher:
    """Answers each photo that comes into a folder once.

    A photo is its content and its place: a copy under another name is not answered again, unless that name tells other
    coordinates; a photo that replaces another under the same name is answered. What lies in the folder at the start and
    is not answered yet is answered first.

    Args:
        gallery: the index asked; classes enrolled by others meanwhile count at once.
        folder: the watched folder, with its sub-folders; see `watched_folder`.
        routes: who goes where.
        memory: see `Memory`.
        sinks: get every answer; files and screens.
        posts: get every answer, in threads of their own.
        report: gets what is said of photos that cannot be read.
        settle_s: a file that has not changed for so many seconds is finished.
        poll_s: see `changes`.
        enrolled: the labels at the start, whose routes have been looked at (`Routes.doubts`); of others it is told.
        on_warning: told what a user should look at, in sentences.
        on_note: told what a user may want to know.
        bar: makes a progress bar for so many photos.
    """

    def __init__(
        self,
        gallery: Gallery,
        folder: Path,
        routes: Routes,
        memory: Memory,
        *,
        sinks: Sequence[Sink],
        posts: Sequence[Post] = (),
        report: Sink | None = None,
        settle_s: float = 1.0,
        poll_s: float | None = None,
        enrolled: Collection[str] = (),
        on_warning: Callable[[str], None] = lambda _: None,
        on_note: Callable[[str], None] = lambda _: None,
        bar: Bar = lambda _what, _n: nullcontext(lambda: None),
    ) -> None:
        self.folder = folder
        self.tally = Tally()
        self._gallery, self._routes, self._memory = gallery, routes, memory
        self._sinks, self._posts, self._report = sinks, posts, report
        self._poll_s, self._enrolled = poll_s, frozenset(enrolled)
        self._on_warning, self._on_note, self._bar = on_warning, on_note, bar
        self._retries: dict[str, _Retry] = {}
        self._told: defaultdict[str, set[str]] = defaultdict(set)  # of each topic, until it is in order again
        self._arrivals = Arrivals(folder, settle_s)
        for path, signature in memory.files().items():
            self._arrivals.done(path, signature)

    def run(self, stop: threading.Event, *, once: bool = False) -> Tally:
        """Watch until `stop` is set; with `once`, until everything that lies there is answered.

        Raises:
            WatchStateError: the memory failed; photos not answered yet will be at the next start.
            FewshotError: the index failed in a way that waiting does not mend.
        Exception: whatever ended a thread that posts.
        """
        for post in self._posts:
            post.start(self._memory, self._on_warning)
        self._deliver()  # what an earlier run left
        tick_s = min(0.5, max(0.01, self._arrivals.settle_s / 2))
        try:
            for turn, paths in enumerate(changes(self.folder, self._poll_s, tick_s, stop, self._on_warning)):
                for path in paths:
                    self._look(path)
                if turn == 0:
                    self.tally.n_before = self._arrivals.n_unchanged
                arrived = self._arrivals.settled()
                with self._bar("answering", len(arrived)) as on_photo:
                    for start in range(0, len(arrived), BATCH):
                        if stop.is_set():
                            break
                        batch = arrived[start : start + BATCH]
                        self._answer(batch)
                        self._deliver()
                        for _ in batch:
                            on_photo()
                self._deliver()
                if once and not self._arrivals.n_waiting:
                    break
            for post in self._posts if once else ():
                post.wait_until_done(self._memory, ONCE_WAIT_S, stop)
        finally:
            for post in self._posts:
                post.close()
        return self.tally

    # ---- photos

    def _look(self, path: Path | None) -> None:
        try:
            self._arrivals.look(path)
        except MissingFolderError as error:
            self._tell_once("folder", f"{error.message} Waiting for it to come back.")
        else:
            if path is None:
                self._told["folder"].clear()

    def _answer(self, batch: Sequence[Arrival]) -> None:
        """Ask the photos that are new, and remember all that is finished; the others are looked at again."""
        asked: dict[str, tuple[Arrival, bytes, Located]] = {}
        copies: list[tuple[Arrival, str]] = []
        unread: list[tuple[Arrival, ImageError]] = []
        for arrival in batch:
            try:
                data = images.read_bytes(arrival.path)
            except ImageError as error:
                if signature_of(arrival.path) is not None:  # else it was deleted: nothing to say
                    unread.append((arrival, error))
                continue
            located = locate(data, arrival.path.name, self._gallery.gps_tags)
            key = self._key(images.content_hash(data), located)
            original = self._memory.answer(key)
            if original is not None and not original.is_bad:
                copies.append((arrival, original.file))
            elif key in asked:  # whether it is a copy, the answer of the first decides
                self._arrivals.look_again(arrival, arrival.quiet_s)
            else:
                asked[key] = (arrival, data, located)
        photos = [NamedBytes(arrival.path.name, data) for arrival, data, _ in asked.values()]
        try:
            predictions = self._predictions(photos) if photos else []
        except WAITED_OUT as error:
            self._tell_once("index", f"{error.said} Photos wait.")
            for arrival in batch:
                self._arrivals.look_again(arrival, arrival.quiet_s + RETRY_S)
            return
        if photos:
            self._told["index"].clear()
        finished = [self._copied(arrival, original) for arrival, original in copies]
        for (key, (arrival, _, located)), prediction in zip(asked.items(), predictions, strict=True):
            if prediction.reason != BAD_IMAGE:
                finished.append(self._finished(arrival, key, prediction, located))
            elif self._is_ripe(arrival):
                finished.append(
                    self._refused(arrival, prediction, located) or Finished(arrival.path, arrival.signature)
                )
        for arrival, problem in unread:
            if self._is_ripe(arrival):
                said = Prediction("", UNKNOWN, BAD_IMAGE, problem.said)
                finished += filter(None, [self._refused(arrival, said, Located(None))])
        self._memory.finish(finished)
        for photo in finished:
            self._arrivals.done(photo.path, photo.signature)

    def _predictions(self, photos: Sequence[NamedBytes]) -> list[Prediction]:
        try:
            return list(self._gallery.query(photos, QUESTION))
        except MixedEmbeddingsError:  # another process gave the index a new backbone meanwhile: ask with that one
            return list(self._gallery.query(photos, QUESTION))

    def _copied(self, arrival: Arrival, original: str) -> Finished:
        """A photo whose content was answered before; told, unless it is the same file, saved anew."""
        if original != self._shown(arrival.path):
            self.tally.n_copies += 1
            self._on_note(f"{self._shown(arrival.path)} is the same photo as {original}: not answered again")
        return Finished(arrival.path, arrival.signature)

    def _refused(self, arrival: Arrival, prediction: Prediction, located: Located) -> Finished | None:
        """A photo that could not be read, with its answer; None if that was told before.

        It is known by its file as it stands and not by its content, which may be sound and have met a moment in which
        the machine had no time or memory for it: sent once more, it is asked once more.
        """
        seen = images.content_hash(os.fsencode(arrival.path) + repr(arrival.signature).encode())
        key = self._key(f"unread-{seen}", Located(None))
        return None if self._memory.answer(key) else self._finished(arrival, key, prediction, located)

    def _is_ripe(self, arrival: Arrival) -> bool:
        """Whether a photo that cannot be read has been at rest for long; else it is looked at again."""
        patience_s = PATIENCE * self._arrivals.settle_s
        if arrival.quiet_s >= patience_s:
            return True
        self._arrivals.look_again(arrival, patience_s)
        return False

    def _finished(self, arrival: Arrival, key: str, prediction: Prediction, located: Located) -> Finished:
        """A photo with its answer, and who gets that."""
        answer = Answer(
            key=key,
            file=self._shown(arrival.path),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            answer=prediction.answer,
            reason=prediction.reason,
            message=legible(prediction.message),
            probability=_probability(prediction),
            units=self._routes.units_for(prediction),
            latitude=located.place.latitude if located.place else None,
            longitude=located.place.longitude if located.place else None,
            place_from=located.place.source if located.place else None,
            note=located.note,
            matches=tuple(match.as_dict() for match in prediction.matches),
        )
        sinks = [*(sink.name for sink in self._sinks), *(post.name for post in self._posts)]
        if answer.is_bad:
            self.tally.n_bad += 1
            self._on_warning(f"{answer.file}: {answer.message}")
            if self._routes.bad_image is None:
                sinks = []
            if self._report is not None:
                sinks.append(self._report.name)
        else:
            self.tally.n_answered += 1
            if answer.reason == "match" and answer.answer not in self._routes.units.keys() | self._enrolled:
                who = ", ".join(answer.units) or "nobody"
                self._tell_once("routes", f"no route for {answer.answer!r}, enrolled meanwhile: {who} is sent.")
        return Finished(arrival.path, arrival.signature, answer, tuple(sinks))

    def _key(self, content: str, located: Located) -> str:
        """What makes two photos one: content, place if only the name tells it, and index; in ASCII, for HTTP."""
        by_name = located.place is not None and located.place.source == "name"
        place = f"-{located.place.latitude}_{located.place.longitude}" if located.place and by_name else ""
        return f"{content}{place}-{quote(self._gallery.name, safe='')}"

    def _shown(self, path: Path) -> str:
        """A path as answers name it: below the folder, in letters that every receiver can read."""
        return legible(str(path.relative_to(self.folder)))

    # ---- answers

    def _deliver(self) -> None:
        reports = [] if self._report is None else [self._report]
        for sink in [*self._sinks, *reports]:
            retry = self._retries.setdefault(sink.name, _Retry())
            if time.monotonic() < retry.not_before:
                continue
            try:
                sink.deliver(self._memory)
            except DeliveryError as error:
                if error.message != retry.told:
                    self._on_warning(error.said)
                retry.told, retry.not_before = error.message, time.monotonic() + RETRY_S
            else:
                retry.told = ""
        for post in self._posts:
            if post.failure is not None:
                raise post.failure
            post.wake()

    def _tell_once(self, topic: str, sentence: str) -> None:
        if sentence not in self._told[topic]:
            self._told[topic].add(sentence)
            self._on_warning(sentence)


def _probability(prediction: Prediction) -> float | None:
    """Of the label that was answered: where that is `unknown`, the likeliest class's would say nothing of it."""
    is_label = prediction.reason in ("match", "ambiguous")
    return round(prediction.matches[0].probability, 4) if is_label else None
