"""An index beside a plain dictionary: every operation goes to both, and whatever they disagree in is told.

Used by test_oracle.py in short sequences that hypothesis chooses, and by benchmarks/soak.py in long seeded ones.
"""

import hashlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from conftest import LEAF_COLOURS, colour_embedder
from PIL import Image

from fewshot.backup import Backup, backups_in, read_backup, restore
from fewshot.errors import EmptyIndexError, FewshotError, LabelTakenError, LastSupportError, UnknownLabelError
from fewshot.gallery import Gallery
from fewshot.records import EmbeddedPhoto, NamedBytes, Question

LABELS = ["healthy", "rust", "mildew", "blight", "mosaic", "leaf spot"]
N_PHOTOS = 48
EMBEDDERS = (("colours", 64), ("colours-32", 32))
CLOSE = 2e-3  # similarities nearer than this are taken for equal

Content = dict[str, dict[str, int]]  # label -> content hash -> support id


def made_photos(n: int = N_PHOTOS) -> list[NamedBytes]:
    """Small pictures of leaf colours, each of other noise: the same every time."""
    made = []
    for number in range(n):
        rng = np.random.default_rng(number)
        colour = list(LEAF_COLOURS.values())[number % len(LEAF_COLOURS)]
        field_colours = rng.normal(0, 25, (4, 4, 3)).repeat(18, 0).repeat(18, 1)
        pixels = np.clip(np.array(colour) + field_colours + rng.normal(0, 6, (72, 72, 3)), 0, 255).astype(np.uint8)
        file = BytesIO()
        Image.fromarray(pixels).save(file, "png")
        made.append(NamedBytes(f"{number:03d}.png", file.getvalue()))
    return made


def embedded(photos: list[NamedBytes], which: int) -> list[EmbeddedPhoto]:
    """The photos as an embedder makes them, with what an index keeps of them."""
    embedder = colour_embedder(*EMBEDDERS[which])
    try:
        outcomes = list(embedder.embed_photos(photos, n_photos=len(photos), keep=True))
    finally:
        embedder.close()
    assert all(isinstance(each, EmbeddedPhoto) for each in outcomes), outcomes
    return outcomes


@dataclass(frozen=True)
class Op:
    """A change: what, to which label, with which photos (their numbers)."""

    name: str
    label: str
    photos: tuple[int, ...] = ()
    other: str = ""


@dataclass
class Expected:
    """What a change must lead to: an error, or this content (ids of new photos are -1) and these numbers."""

    content: Content
    error: type[FewshotError] | None = None
    numbers: tuple[int, ...] = ()


def perform(gallery: Gallery, embedder: Any, pool: Sequence[EmbeddedPhoto], op: Op, support_id: int) -> tuple[int, ...]:
    """Make a change; the numbers that it reports."""
    photos = [pool[number] for number in op.photos]
    if op.name == "enroll":
        report = gallery.add(op.label, photos, embedder)
        return report.enrolled, report.already_there, len(report.refused)
    if op.name == "replace":
        report, n_removed = gallery.replace(op.label, photos, embedder)
        return report.enrolled, report.already_there, len(report.refused), n_removed
    if op.name == "remove":
        return (gallery.remove(op.label),)
    if op.name == "remove_photo":
        gallery.remove_support(support_id)
        return ()
    gallery.rename(op.label, op.other)
    return ()


def expected(content: Content, pool: Sequence[EmbeddedPhoto], op: Op) -> Expected:
    """What the dictionary says of a change."""
    after = {label: dict(photos) for label, photos in content.items()}
    owner = {sha256: label for label, photos in content.items() for sha256 in photos}
    hashes = list(dict.fromkeys(pool[number].sha256 for number in op.photos))
    if op.name in ("remove", "rename") and op.label not in content:
        return Expected(content, UnknownLabelError)
    if op.name == "remove":
        return Expected(after, None, (len(after.pop(op.label)),))
    if op.name == "rename":
        if op.other in content and op.other != op.label:
            return Expected(content, LabelTakenError)
        after[op.other] = after.pop(op.label)
        return Expected(after)
    if op.name == "remove_photo":
        if len(content[op.label]) == 1:
            return Expected(content, LastSupportError)
        del after[op.label][hashes[0]]
        return Expected(after)
    new = [sha256 for sha256 in hashes if sha256 not in owner]
    already = [sha256 for sha256 in hashes if owner.get(sha256) == op.label]
    numbers = (len(new), len(op.photos) - len(new) - _n_elsewhere(op, pool, owner), _n_elsewhere(op, pool, owner))
    if op.name == "enroll":
        if new:
            after.setdefault(op.label, {}).update(dict.fromkeys(new, -1))
        return Expected(after, None, numbers)
    if not new and not already:
        return Expected(content, FewshotError)
    kept = {sha256: i for sha256, i in content.get(op.label, {}).items() if sha256 in already}
    after[op.label] = {**kept, **dict.fromkeys(new, -1)}
    return Expected(after, None, (*numbers, len(content.get(op.label, {})) - len(kept)))


def _n_elsewhere(op: Op, pool: Sequence[EmbeddedPhoto], owner: dict[str, str]) -> int:
    return sum(owner.get(pool[number].sha256, op.label) != op.label for number in op.photos)


def content_of(gallery: Gallery) -> Content:
    """What an index holds."""
    return {label: {sha256: i for i, sha256 in photos.items()} for label, photos in gallery.photo_hashes()}


def named(content: Content) -> dict[str, set[str]]:
    """Content without ids."""
    return {label: set(photos) for label, photos in content.items()}


def peer(folder: Path, which: int, pool: list[EmbeddedPhoto], pipe: Connection) -> None:
    """Another process that has the index open and makes the changes that it is sent."""
    with Gallery(folder, embedder=colour_embedder(*EMBEDDERS[which])) as gallery:
        pipe.send("ready")
        while True:
            op, support_id = pipe.recv()
            try:
                pipe.send(perform(gallery, gallery.embedder(), pool, op, support_id))
            except FewshotError as error:
                pipe.send(type(error))


@dataclass
class World:
    """The index, the dictionary, and a second process.

    Attributes:
        problems: what the two disagreed in; must stay empty.
        n_operations: how many were made; a look at everything counts as one.
        from_kept: content hashes of photos whose embedding a reindex made, from what the index keeps of them.
        pools: the photos as each embedder makes them; `kept_pools`: as it makes them of the kept pictures.
    """

    folder: Path
    content: Content = field(default_factory=dict)
    which: int = 0
    problems: list[str] = field(default_factory=list)
    n_operations: int = 0
    n_kills: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    from_kept: set[str] = field(default_factory=set)
    backups: list[tuple[Backup, Content, int, set[str]]] = field(default_factory=list)
    pools: list[list[EmbeddedPhoto]] = field(default_factory=list)
    kept_pools: list[list[EmbeddedPhoto]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._number = 0
        self._peer: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._used_ids: set[int] = {i for photos in self.content.values() for i in photos.values()}
        if not self.pools:
            photos = made_photos()
            self.pools = [embedded(photos, which) for which in range(len(EMBEDDERS))]
        if not self.kept_pools:
            kept = [NamedBytes(photo.file, photo.thumbnail or b"") for photo in self.pools[0]]
            self.kept_pools = [embedded(kept, which) for which in range(len(EMBEDDERS))]
        self._by_hash = {photo.sha256: number for number, photo in enumerate(self.pools[0])}
        self._open()

    def _open(self, create: bool = True) -> None:
        self.embedder = colour_embedder(*EMBEDDERS[self.which])
        self.gallery = Gallery(self.folder / "index", create=create, embedder=self.embedder)

    @property
    def pool(self) -> list[EmbeddedPhoto]:
        """The photos as the present embedder makes them."""
        return self.pools[self.which]

    def number(self, sha256: str) -> int:
        """Which of the photos has this content."""
        return self._by_hash[sha256]

    def stored(self, sha256: str) -> EmbeddedPhoto:
        """A photo with the embedding that the index must hold of it."""
        number = self._by_hash[sha256]
        made = self.kept_pools if sha256 in self.from_kept else self.pools
        return replace(self.pool[number], embedding=made[self.which][number].embedding)

    def close(self) -> None:
        """Close files, end the second process."""
        self._end_peer()
        self.gallery.close()
        self.embedder.close()

    def _count(self, name: str, n: int = 1) -> None:
        self.n_operations += n
        self.counts[name] = self.counts.get(name, 0) + n

    def _differ(self, what: str, wanted: object, found: object) -> None:
        self.problems.append(f"operation {self.n_operations}, {what}: wanted {wanted}, found {found}")

    # ---- changes

    def change(self, op: Op) -> None:
        """Make a change in both."""
        self._count(op.name)
        wanted = expected(self.content, self.pool, op)
        try:
            found: object = perform(self.gallery, self.gallery.embedder(), self.pool, op, self._id_for(op))
        except FewshotError as error:
            found = type(error)
        self._judge(op, wanted, found)

    def change_elsewhere(self, op: Op, meanwhile: Op | None = None) -> None:
        """Make a change in the second process; at the same time another here, of other labels and photos."""
        self._count("by a second process")
        wanted = expected(self.content, self.pool, op)
        pipe = self._running_peer()
        pipe.send((op, self._id_for(op)))
        if meanwhile is not None:
            here = expected(self.content, self.pool, meanwhile)
            self._count("at the same time")
            try:
                done: object = perform(
                    self.gallery, self.gallery.embedder(), self.pool, meanwhile, self._id_for(meanwhile)
                )
            except FewshotError as error:
                done = type(error)
            self._judge_numbers(meanwhile, here, done)
        self._judge_numbers(op, wanted, pipe.recv())
        if meanwhile is not None:
            wanted = expected(here.content, self.pool, op)
        self._take(str(op), wanted.content)

    def kill_meanwhile(self, op: Op, after_s: float) -> None:
        """SIGKILL the second process in a change: it must be there as a whole or not at all."""
        self._count("killed meanwhile")
        self.n_kills += 1
        wanted = expected(self.content, self.pool, op)
        self._running_peer().send((op, self._id_for(op)))
        time.sleep(after_s)
        assert self._peer is not None
        self._peer.kill()
        self._end_peer()
        found = content_of(self.gallery)
        if named(found) == named(wanted.content):
            self._take(str(op), wanted.content)
        elif found != self.content:
            self._differ(f"killed in {op}", (self.content, wanted.content), found)
            self.content = found

    def _judge(self, op: Op, wanted: Expected, found: object) -> None:
        self._judge_numbers(op, wanted, found)
        if wanted.error is None:
            self._take(str(op), wanted.content)

    def _judge_numbers(self, op: Op, wanted: Expected, found: object) -> None:
        if wanted.error is not None:
            if not (isinstance(found, type) and issubclass(found, wanted.error)):
                self._differ(str(op), wanted.error, found)
        elif found != wanted.numbers:
            self._differ(str(op), wanted.numbers, found)

    def _take(self, what: str, wanted: Content) -> None:
        """Learn the ids of new photos from the index: never one that was used before."""
        if any(i == -1 for photos in wanted.values() for i in photos.values()):
            found = content_of(self.gallery)
            for label, photos in wanted.items():
                for sha256, support_id in photos.items():
                    there = found.get(label, {}).get(sha256)
                    if there is None:
                        self._differ(what, f"{sha256[:8]} in {label}", "nothing")
                    elif support_id == -1:
                        if there in self._used_ids:
                            self._differ(what, "an id never used before", there)
                        self._used_ids.add(there)
                        self.from_kept.discard(sha256)
                        photos[sha256] = there
        self.content = wanted

    def _id_for(self, op: Op) -> int:
        return self.content[op.label][self.pool[op.photos[0]].sha256] if op.name == "remove_photo" else 0

    # ---- looks

    def ask(self, numbers: Sequence[int], n_nearest: int = 5) -> None:
        """Ask about photos, each an operation: brute force over the dictionary must find the same nearest photos."""
        self._count("question", len(numbers))
        asked = np.stack([self.pool[number].embedding for number in numbers])
        question = Question(top=len(LABELS) + 2, n_nearest=n_nearest)
        try:
            answers = self.gallery.predict(asked, question, made_by=self.embedder)
        except EmptyIndexError:
            if self.content:
                self._differ("question", "an answer", EmptyIndexError)
            return
        owner = {i: (label, sha256) for label, photos in self.content.items() for sha256, i in photos.items()}
        ids = list(owner)
        truth = asked @ np.stack([self.stored(owner[i][1]).embedding for i in ids]).T
        best = -np.sort(-truth, axis=1)[:, :n_nearest]
        for number, found, wanted, similarities in zip(numbers, answers, best, truth, strict=True):
            told = [photo.similarity for photo in found.nearest]
            if len(told) != len(wanted) or not np.allclose(told, wanted, atol=CLOSE):
                self._differ(f"nearest photos of {number}", wanted, told)
            similarity_of = dict(zip(ids, similarities.tolist(), strict=True))
            for photo in found.nearest:
                label, _ = owner.get(photo.support_id, ("", ""))
                if label != photo.label or abs(similarity_of[photo.support_id] - photo.similarity) > CLOSE:
                    self._differ(f"nearest photo of {number}", label, photo)
            if {match.label for match in found.matches} != set(self.content):
                self._differ(f"classes for {number}", sorted(self.content), found.matches)
            total = sum(match.probability for match in found.matches)
            if abs(total - 1) > 1e-3 or found.answer not in (*self.content, "unknown"):
                self._differ(f"answer to {number}", "probabilities of the classes", found)

    def look(self) -> None:
        """Compare all classes, photos and ids, and one kept picture."""
        self._count("look")
        found = content_of(self.gallery)
        if found != self.content:
            self._differ("content", self.content, found)
            self.content = found
        counts = {row.label: row.supports for row in self.gallery.classes()}
        if counts != {label: len(photos) for label, photos in self.content.items()}:
            self._differ("counts", {label: len(photos) for label, photos in self.content.items()}, counts)
        for photos in self.content.values():
            sha256, support_id = next(iter(photos.items()))
            kept = self.gallery.thumbnail(support_id)
            if kept != self.pools[0][self._by_hash[sha256]].thumbnail:
                self._differ(f"kept picture of {support_id}", "its bytes", hashlib.sha256(kept).hexdigest())
            break

    def _check_vectors(self, when: str) -> None:
        """Every embedding in the index is the one that its embedder makes."""
        wanted = {i: sha256 for photos in self.content.values() for sha256, i in photos.items()}
        _, records, vectors = self.gallery.embeddings(10**6)
        found = dict(zip([record.support_id for record in records], vectors, strict=True))
        if found.keys() != wanted.keys():
            self._differ(f"embeddings {when}", sorted(wanted), sorted(found))
        for support_id, vector in found.items():
            if support_id in wanted and not np.allclose(vector, self.stored(wanted[support_id]).embedding, atol=1e-5):
                self._differ(f"the embedding of {support_id} {when}", "that of its photo", "another")

    def check_all(self) -> None:
        """Every checksum, SQLite's own check, and the answers of an index made anew from the dictionary."""
        self._count("check of everything")
        self.look()
        self.problems += self.gallery.problems()
        self._check_vectors("at the check of everything")
        if not self.content:
            return
        anew = self.folder / "anew"
        shutil.rmtree(anew, ignore_errors=True)
        with Gallery(anew, create=True, embedder=self.embedder) as fresh:
            by_age = sorted(self.content.items(), key=lambda item: min(item[1].values()))
            for label, photos in by_age:
                ordered = sorted(photos.items(), key=lambda item: item[1])
                fresh.add(label, [self.stored(sha256) for sha256, _ in ordered], self.embedder)
            vectors = np.stack([self.pool[number].embedding for number in range(0, N_PHOTOS, 7)])
            question = Question(top=len(LABELS) + 2, n_nearest=0)
            for ours, theirs in zip(
                self.gallery.predict(vectors, question), fresh.predict(vectors, question), strict=True
            ):
                mine, other = ({m.label: (m.similarity, m.probability) for m in p.matches} for p in (ours, theirs))
                if mine.keys() != other.keys() or not all(
                    np.allclose(mine[label], other[label], atol=5e-3) for label in mine
                ):
                    self._differ("answer of an index made anew", theirs, ours)

    # ---- the index as a file

    def reopen(self) -> None:
        """Close it and open it again."""
        self._count("reopen")
        self.gallery.close()
        self.embedder.close()
        self._open(create=False)

    def lose_caches(self) -> None:
        """Delete all that is derived."""
        self._count("caches deleted")
        shutil.rmtree(self.folder / "index" / "cache", ignore_errors=True)

    def reindex(self) -> None:
        """Embed every photo with the other embedder, from what the index keeps."""
        if not self.content:
            return
        self._count("reindex")
        self._end_peer()
        self.gallery.close()
        self.embedder.close()
        self.which = 1 - self.which
        self._open(create=False)
        n_photos, _ = self.gallery.reindex()
        if n_photos != sum(map(len, self.content.values())):
            self._differ("reindex", sum(map(len, self.content.values())), n_photos)
        self.from_kept = set(self._by_hash)
        self._check_vectors("after reindex")

    def back_up(self) -> None:
        """Take a backup; the newest five stay."""
        self._count("backup")
        made = self.gallery.backup(self.folder / "backups" / f"{self._number:06d}.backup")
        self._number += 1
        if made.n_supports != sum(map(len, self.content.values())):
            self._differ("backup", sum(map(len, self.content.values())), made.n_supports)
        self.backups.append((made, self.content, self.which, set(self.from_kept)))
        while len(self.backups) > 5:
            self.backups.pop(0)[0].path.unlink()

    def go_back(self, which: int, anew: bool) -> None:
        """Restore one of the backups: over the open index, or into a new folder that takes its place."""
        if not self.backups:
            return
        self._count("restore")
        made, content, embedder, from_kept = self.backups[which % len(self.backups)]
        read_backup(made.path)
        if embedder != self.which:
            self._end_peer()
        if anew:
            self._end_peer()
            self.gallery.close()
            shutil.rmtree(self.folder / "index")
            restore(made, self.folder / "index")
            self._used_ids = {i for photos in content.values() for i in photos.values()}
            self.backups = [each for each in self.backups if each[0].event_id <= made.event_id]
        else:
            restore(made, self.folder / "index", replace=True)
            kept, damaged = backups_in(self.folder / "index" / "before-restore")
            if damaged or not kept or kept[-1].n_supports != sum(map(len, self.content.values())):
                self._differ("what was kept before a restore", self.content, (kept, damaged))
            shutil.rmtree(self.folder / "index" / "before-restore")
        self.content = {label: dict(photos) for label, photos in content.items()}
        self.from_kept = set(from_kept)
        if embedder != self.which or anew:
            self.gallery.close()
            self.embedder.close()
            self.which = embedder
            self._open(create=False)

    # ---- the second process

    def _running_peer(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["oracle"])
            self._pipe, theirs = context.Pipe()
            arguments = (self.folder / "index", self.which, self.pool, theirs)
            self._peer = context.Process(target=peer, args=arguments, daemon=True)
            self._peer.start()
            theirs.close()
            assert self._pipe.recv() == "ready"
        return self._pipe

    def _end_peer(self) -> None:
        if self._peer is not None and self._pipe is not None:
            self._peer.kill()
            self._peer.join()
            self._peer.close()
            self._pipe.close()
        self._peer = self._pipe = None


def seeded_step(world: World, rng: np.random.Generator) -> None:
    """One operation, chosen at random, and now and then something that takes long; behind it up to 24 questions."""
    draw = float(rng.random())
    if draw < 0.83:
        world.change(random_op(world, rng))
    elif draw < 0.90:
        world.look()
    elif draw < 0.96:
        op = random_op(world, rng)
        world.change_elsewhere(op, _beside(world, op, rng) if rng.random() < 0.5 else None)
    elif draw < 0.964:
        world.kill_meanwhile(random_op(world, rng), float(rng.uniform(0, 0.012)))
    elif draw < 0.973:
        world.reopen()
    elif draw < 0.978:
        world.lose_caches()
    elif draw < 0.985:
        world.back_up()
    elif draw < 0.993:
        world.go_back(int(rng.integers(5)), anew=bool(rng.random() < 0.1))
    elif draw < 0.997:
        world.check_all()
    else:
        world.reindex()
    n_asked = int(rng.integers(0, 25))
    if n_asked:
        world.ask(rng.integers(0, N_PHOTOS, n_asked).tolist())


def random_op(world: World, rng: np.random.Generator, labels: Sequence[str] = LABELS) -> Op:
    """A change that may succeed or must be refused; an index of a few dozen photos is what it tends to."""
    label = str(rng.choice(labels))
    there = list(world.content.get(label, ()))
    draw = float(rng.random())
    photos = tuple(int(i) for i in rng.integers(0, N_PHOTOS, int(rng.integers(1, 5))))
    if draw < 0.5:
        return Op("enroll", label, photos)
    if draw < 0.75 and there:
        return Op("remove_photo", label, (world.number(str(rng.choice(there))),))
    if draw < 0.85:
        return Op("replace", label, photos)
    if draw < 0.92:
        return Op("rename", label, (), str(rng.choice(labels)))
    return Op("remove", label)


def _beside(world: World, op: Op, rng: np.random.Generator) -> Op | None:
    """A change that touches neither the labels nor the photos of another, so that their order does not matter."""
    other = random_op(world, rng, [label for label in LABELS if label not in (op.label, op.other)])

    def touched(each: Op) -> set[int]:
        labels = (each.label, each.other)
        return set(each.photos) | {world.number(h) for label in labels for h in world.content.get(label, ())}

    return None if touched(op) & touched(other) else other


def at_home(folder: Path) -> None:
    """For a process that is not run by pytest: state goes nowhere but here."""
    for name in ("HOME", "XDG_CACHE_HOME", "FEWSHOT_CACHE"):
        os.environ[name] = str(folder)
    with suppress(ImportError):
        import faiss

        faiss.omp_set_num_threads(1)
