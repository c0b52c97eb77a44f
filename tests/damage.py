"""An index with one of its files cut or flipped: is it noticed and named, what is saved, what is made anew?"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from conftest import LEAF_COLOURS, colour_embedder, write_leaf

from fewshot.backup import read_backup
from fewshot.cli.system import index_facts
from fewshot.datasets import class_folders
from fewshot.errors import FewshotError, IndexDamagedError
from fewshot.gallery import Gallery
from fewshot.gallery.repair import repair
from fewshot.records import Question

KINDS = ("one bit", "a page", "cut off")
FILES = ("index.sqlite", "index.sqlite-wal", "cache/prototypes.faiss", "cache/supports.faiss", "cache/calibration")
BACKUP = "whole.backup"


@dataclass
class Sound:
    """An index as it is before damage: its folder, its photos with their kept pictures, and its answers."""

    folder: Path
    photos: dict[int, tuple[dict[str, Any], bytes]]
    answers: list[Any]


def content(gallery: Gallery) -> dict[int, tuple[dict[str, Any], bytes]]:
    """Every photo's record and kept picture."""
    records = [each for row in gallery.classes() for each in gallery.supports(row.label)]
    return {each.support_id: (each.as_dict(), gallery.thumbnail(each.support_id)) for each in records}


def answers(gallery: Gallery, asked: Sequence[int] = ()) -> list[Any]:
    """What is answered to the vectors of a few photos of its own, or of these."""
    _, photos, vectors = gallery.embeddings(1000 if asked else 10)
    if asked:
        vectors = vectors[[photo.support_id in asked for photo in photos]]
    found = gallery.predict(vectors, Question(top=4, n_nearest=3))
    return [(each.answer, [m.label for m in each.matches], [n.support_id for n in each.nearest]) for each in found]


def made_sound(work: Path, n: int = 5) -> Sound:
    """An index of four classes as a killed process leaves it: its last changes in the log, its caches written."""
    photos, live, folder = work / "photos", work / "live", work / "sound"
    for label, colour in LEAF_COLOURS.items():
        for i in range(n):
            write_leaf(photos / label / f"{label}-{i}.png", colour, i)
    with Gallery(live, create=True, embedder=colour_embedder()) as gallery:
        list(gallery.enroll(class_folders(photos)[:2]))
    with Gallery(live, embedder=colour_embedder()) as gallery:  # what came before is in the file, not in the log
        list(gallery.enroll(class_folders(photos)[2:]))
        found = answers(gallery)
        list(gallery.inspect())  # which asks the prototypes as they are stored
        gallery.backup(work / BACKUP)
        shutil.copytree(live, folder, ignore=shutil.ignore_patterns("*-shm"))
        whole = content(gallery)
    assert all((folder / name).stat().st_size for name in FILES)
    return Sound(folder, whole, found)


def damaged(sound: bytes, kind: str, rng: Random) -> bytes:
    """The bytes of a file with one thing wrong."""
    changed = bytearray(sound)
    at = rng.randrange(len(changed))
    if kind == "one bit":
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "a page":
        at = at // 4096 * 4096
        changed[at : at + 4096] = rng.randbytes(len(changed[at : at + 4096]))
    else:
        del changed[at:]
    return bytes(changed)


def judged(sound: Sound, work: Path, file: str, kind: str, seed: str) -> tuple[str, list[str]]:
    """Damage a file: what became of it (harmless, noticed, repaired, ...), and what is wrong."""
    folder = work / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound.folder, folder)
    (folder / file).write_bytes(damaged((folder / file).read_bytes(), kind, Random(seed)))
    problems = index_facts(str(folder))["problems"]
    if any("-wal" in each for each in problems):  # not opened: SQLite would drop what stands behind the damage
        return _repaired(sound, folder, kind, problems)
    try:
        with Gallery(folder, embedder=colour_embedder()) as gallery:
            there, said = content(gallery), answers(gallery)
    except FewshotError as error:
        if not problems:
            return "", [f"not noticed: {error.message}"]
        there, said = None, None
    if (there, said) == (sound.photos, sound.answers):
        return ("noticed, nothing lost" if problems else "harmless"), []
    if not problems:
        return "", ["not noticed: content or answers differ"]
    if file.startswith("cache/"):
        return "", [f"a derived file was not made anew: {problems}"]
    return _repaired(sound, folder, kind, problems)


def _repaired(sound: Sound, folder: Path, kind: str, problems: list[str]) -> tuple[str, list[str]]:
    try:
        done = repair(folder)
    except IndexDamagedError as error:
        wrong = [f"one bit is beyond repair: {error.message}"] if kind == "one bit" else []
        return "beyond repair, left as it was", wrong
    wrong = []
    with Gallery(folder, embedder=colour_embedder()) as gallery:
        there = {row.label: gallery.supports(row.label) for row in gallery.classes()}
        wrong += gallery.problems()
    ids = {each.support_id: each for photos in there.values() for each in photos}
    for support_id, photo in ids.items():
        known = sound.photos.get(support_id)
        if known is None or known[0]["label"] != photo.label:
            wrong.append(f"support {support_id} became {photo}")
    named = {number for number, _, _ in done.lost}
    untold = set(sound.photos) - set(ids) - named
    if untold and kind == "one bit":
        wrong.append(f"lost without a word: {sorted(untold)}")
    if not done.damaged.exists():
        wrong.append("the damaged file is gone")
    return ("repaired, all photos saved" if len(ids) == len(sound.photos) else "repaired, some photos lost"), wrong


def backup_judged(work: Path, kind: str, seed: str) -> tuple[str, list[str]]:
    """Damage a backup: it must be refused."""
    path = work / "damaged.backup"
    path.write_bytes(damaged((work / BACKUP).read_bytes(), kind, Random(seed)))
    try:
        read_backup(path)
    except FewshotError:
        return "refused", []
    return "", ["a damaged backup was taken for sound"]
