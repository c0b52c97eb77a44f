"""What of a damaged index file its checksums and second copies prove sound, read row by row around the damage."""

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.errors import IndexDamagedError
from fewshot.records import Float32s
from fewshot.store.reading import checksum
from fewshot.store.schema import GUARDS, about, classes, embeddings, history, supports, thumbnails
from fewshot.store.writing import Writer

# What holds a table's columns besides the table itself (SQLite names the index of a unique column).
_COPIES: dict[str, dict[str, tuple[str, ...]]] = {
    "classes": {"sqlite_autoindex_classes_1": ("label",)},
    "supports": {"sqlite_autoindex_supports_1": ("sha256",), "ix_supports_class_id": ("class_id",)},
    "about": {},
    "history": {},
}
for _index, (_table, _columns) in GUARDS.items():
    _COPIES.setdefault(_table, {})[_index] = _columns
_COLUMNS = {table: max(copies.values(), key=len) for table, copies in _COPIES.items()}
_KEYS = {"classes": "class_id", "supports": "support_id", "about": "one", "history": "event_id"}
_BLOBS = {"embeddings": "vector", "thumbnails": "webp"}
# sqlite3 decodes its own messages: one that quotes damaged bytes is no sqlite3.Error.
_UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
MOST_IDS = 50_000_000  # a sequence beyond this is damage, not a count

Rows = dict[int, dict[str, Any]]


@dataclass
class SavedPhoto:
    """A photo that can be kept: `vector` or `webp` is None where that is lost, but not both."""

    support_id: int
    label: str
    row: dict[str, Any]
    vector: Float32s | None
    webp: bytes | None


@dataclass
class Salvaged:
    """What a damaged file still holds.

    Attributes:
        about: the index's own facts, None if they are lost.
        photos: what can be kept, in order of enrolment.
        lost: what cannot, as (support id, what is known of it, why).
        doubts: what was kept although a part of it is unsure, in sentences.
        sequences: the highest id ever given, by table.
    """

    about: dict[str, Any] | None
    classes: Rows
    photos: list[SavedPhoto]
    history: list[dict[str, Any]]
    lost: list[tuple[int, str, str]] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    sequences: dict[str, int] = field(default_factory=dict)


def salvage(file: Path, model: Path) -> Salvaged:
    """Read what is sound.

    Args:
        file: a copy of the damaged file, with its log beside it; it is changed.
        model: a new, empty index.

    Raises:
        IndexDamagedError: not even its list of tables can be read.
    """
    if not _opens(file):
        _made_readable(file, model)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.text_factory = bytes
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except _UNREADABLE as error:
            raise IndexDamagedError(f"its list of tables cannot be read ({error})") from error
        return _Salvage(connection).all()


def joined(sound: Salvaged, behind: Salvaged) -> Salvaged:
    """What a log holds up to its damage, and what only the pages behind the damage hold.

    Those pages may be of a change that never counted, and older than what they replaced. So nothing that is sound
    without them is dropped or changed for them.

    Args:
        sound: read without the pages behind the damage.
        behind: read with them.
    """
    if behind.about is None:
        return sound
    facts = sound.about if sound.about is not None and sound.about["fingerprint"] is not None else behind.about
    same = all(facts[name] == behind.about[name] for name in ("fingerprint", "precision", "dim"))
    others = {photo.support_id: photo for photo in behind.photos}
    photos = {photo.support_id: _completed(photo, others.get(photo.support_id), same) for photo in sound.photos}
    kept = {photo.row["class_id"]: sound.classes[photo.row["class_id"]] for photo in sound.photos}
    doubts = list(sound.doubts)
    if n := len(set(photos) - set(others)):
        doubts.append(f"{n} photos are missing behind the damage in the log, removed or damaged; they are kept")
    for class_id in sorted(set(kept) & set(behind.classes)):
        name, later_name = kept[class_id]["label"], behind.classes[class_id]["label"]
        if name != later_name:
            doubts.append(f"class {name} is called {later_name} behind the damage in the log; it keeps its name")
    n_removed = _take_later(sound, behind, photos, kept, same)
    if n_removed:
        doubts.append(
            f"{n_removed} photos stand only behind the damage in the log, but were given before it: taken for removed"
        )
    taken = set(photos) - {photo.support_id for photo in sound.photos}
    doubts += [each for each in behind.doubts if any(f"(support {number})" in each for number in taken)]
    lost = {each[0]: each for each in (*behind.lost, *sound.lost) if each[0] not in photos}
    last = max((row["event_id"] for row in sound.history), default=0)
    newest = max((row["generation"] for row in sound.history), default=0)
    later = [row for row in behind.history if row["event_id"] > last and row["generation"] > newest]
    return Salvaged(
        {**facts, "generation": max(facts["generation"], behind.about["generation"])},
        kept,
        [photos[number] for number in sorted(photos)],
        [*sound.history, *later],
        [*lost.values()],
        doubts,
        {
            name: max(each.sequences.get(name, 0) for each in (sound, behind))
            for name in {**sound.sequences, **behind.sequences}
        },
    )


def _take_later(sound: Salvaged, behind: Salvaged, photos: dict[int, SavedPhoto], kept: Rows, same: bool) -> int:
    """Add the photos that only the pages behind the damage hold, and their classes.

    What cannot be added is noted as lost, unless it was removed before the damage: how many those were.
    """
    known = {photo.row["sha256"] for photo in photos.values()}
    ids = {row["label"]: class_id for class_id, row in kept.items()}
    damaged, n_removed = {number for number, _, _ in sound.lost}, 0
    for photo in behind.photos:
        number, class_id = photo.support_id, photo.row["class_id"]
        if number in photos or photo.row["sha256"] in known:
            continue
        if number <= sound.sequences.get("supports", 0) and number not in damaged:
            n_removed += 1
            continue
        if class_id not in kept and photo.label not in ids:
            kept[class_id], ids[photo.label] = behind.classes[class_id], class_id
        if ids.get(photo.label) != class_id:
            why = f"its class is unsure: class {class_id} has another name before the damage in the log"
            behind.lost.append((number, f"{photo.label}/{photo.row['file']}", why))
            continue
        photos[number] = photo if same else replace(photo, vector=None)
        known.add(photo.row["sha256"])
    return n_removed


def _completed(photo: SavedPhoto, other: SavedPhoto | None, same: bool) -> SavedPhoto:
    """A photo, with what is damaged of it taken from its other reading, if that is of the same photo."""
    if other is None or other.row["sha256"] != photo.row["sha256"]:
        return photo
    vector = other.vector if photo.vector is None and same else photo.vector
    return replace(photo, vector=vector, webp=photo.webp if photo.webp is not None else other.webp)


def format_of(file: Path) -> int | None:
    """The format version that a copy of an index file names; None where SQLite cannot open it."""
    with contextlib.closing(sqlite3.connect(file)) as connection, contextlib.suppress(*_UNREADABLE):
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    return None


def _opens(file: Path) -> bool:
    with contextlib.closing(sqlite3.connect(file)) as connection, contextlib.suppress(*_UNREADABLE):
        connection.execute("SELECT count(*) FROM sqlite_master, about").fetchone()
        return True
    return False


def _made_readable(file: Path, model: Path) -> None:
    """Mend what keeps SQLite from opening a file at all: pages cut off, and a list of tables with a flaw.

    Args:
        file: a copy of the damaged file; it is changed.
        model: a new, empty index, whose list of tables is as it ought to be.
    """
    with file.open("r+b") as opened, model.open("rb") as sound:
        head, right = opened.read(100), sound.read(100)
        if len(head) == len(right):
            kept = {*range(24, 28), *range(28, 40), *range(92, 96)}  # counters of this file: pages, changes, free pages
            opened.seek(0)
            opened.write(bytes(mine if i in kept else right[i] for i, mine in enumerate(head)))
            page_size = int.from_bytes(right[16:18], "big")
            n_bytes = page_size * max(int.from_bytes(head[28:32], "big"), -(-opened.seek(0, 2) // page_size))
            if n_bytes <= 2 * opened.tell() + (1 << 30):
                opened.truncate(n_bytes)
    with contextlib.closing(sqlite3.connect(model)) as connection:
        wanted = connection.execute("SELECT rowid, type, name, tbl_name, rootpage, sql FROM sqlite_master").fetchall()
    with contextlib.closing(sqlite3.connect(file)) as connection, contextlib.suppress(*_UNREADABLE):
        connection.execute("PRAGMA writable_schema = ON")
        for row_id, *facts in wanted:
            changed = (
                "UPDATE sqlite_master SET type = ?, name = ?, tbl_name = ?, sql = ? WHERE rowid = ? AND rootpage = ?"
            )
            kind, name, owner, page, sql = facts
            connection.execute(changed, (kind, name, owner, sql, row_id, page))
        connection.commit()


class _Salvage:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.found = Salvaged(None, {}, [], [])
        self._unsure: dict[str, dict[int, set[str]]] = {}

    def all(self) -> Salvaged:
        found = self.found
        found.sequences = self._sequences()
        facts = self._rows("about", {1}).get(1)
        if facts is not None and not self._unsure["about"].get(1, set()) - {"created_at", "generation"}:
            with contextlib.suppress(ValueError, TypeError):
                pinned = {name: json.loads(facts[name] or "null") for name in ("source", "backbone")}
                found.about = {**facts, **pinned, "generation": int(facts["generation"] or 0)}
        blobs = {table: self._blobs(table, name) for table, name in _BLOBS.items()}
        found.classes = self._rows("classes", set(range(1, found.sequences.get("classes", 0) + 1)))
        known = set(range(1, found.sequences.get("supports", 0) + 1)).union(*blobs.values())
        rows = self._rows("supports", known)
        for support_id in sorted(set(rows).union(*blobs.values())):
            self._photo(support_id, rows.get(support_id), blobs["embeddings"], blobs["thumbnails"])
        events = self._rows("history", set(range(1, found.sequences.get("history", 0) + 1)))
        for event_id, row in sorted(events.items()):
            if not self._unsure["history"].get(event_id):
                with contextlib.suppress(ValueError, TypeError):
                    found.history.append({"event_id": event_id, **row, "detail": json.loads(row["detail"])})
        return found

    def _photo(
        self, support_id: int, row: dict[str, Any] | None, vectors: dict[int, bytes], kept: dict[int, bytes]
    ) -> None:
        found, unsure = self.found, self._unsure["supports"].get(support_id, set())
        if row is None:
            found.lost.append((support_id, "a photo", "its record cannot be read"))
            return
        name = str(row["file"])
        label = found.classes.get(row["class_id"], {}).get("label")
        if "class_id" in unsure or label is None or "label" in self._unsure["classes"].get(row["class_id"], set()):
            found.lost.append((support_id, name, "its class is unsure: two places of the file contradict each other"))
            return
        if "sha256" in unsure or len(row["sha256"]) != 64:
            found.lost.append(
                (support_id, f"{label}/{name}", "which photo it is, is unsure: its content hash is damaged")
            )
            return
        vector, webp = vectors.get(support_id), kept.get(support_id)
        if vector is None and webp is None:
            found.lost.append((support_id, f"{label}/{name}", "embedding and kept picture are both damaged"))
            return
        if webp is None:
            found.doubts.append(f"{label}/{name} (support {support_id}) is kept without its picture, which is damaged")
        if unsure:
            found.doubts.append(f"{label}/{name} (support {support_id}): its {', '.join(sorted(unsure))} is unsure")
        array = None if vector is None else np.frombuffer(vector, "<f4").astype(np.float32)
        found.photos.append(SavedPhoto(support_id, label, row, array, webp))

    def _sequences(self) -> dict[str, int]:
        found = {}
        for row in self._around("SELECT rowid, name, seq FROM sqlite_sequence", "rowid"):
            with contextlib.suppress(UnicodeDecodeError):
                if isinstance(row[2], int) and 0 <= row[2] <= MOST_IDS:
                    found[row[1].decode()] = row[2]
        return found

    def _rows(self, table: str, ids: set[int]) -> Rows:
        """A table's rows, each column as most of its copies have it; where as many say otherwise, it is unsure."""
        key, names = _KEYS[table], _COLUMNS[table]
        votes: dict[int, dict[str, list[Any]]] = {}

        def count(columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
            for row_id, *values in rows:
                heard = votes.setdefault(row_id, {name: [] for name in names})
                for name, value in zip(columns, values, strict=True):
                    heard[name].append(value if name == "dhash" else _text(value))

        count(names, self._around(f"SELECT {key}, {', '.join(names)} FROM {table}", key, ids))  # noqa: S608
        for index, columns in _COPIES[table].items():
            count(columns, self._copy(table, index, key, columns))
        unsure = self._unsure.setdefault(table, {})
        rows: Rows = {}
        for row_id, heard in votes.items():
            rows[row_id] = {}
            for name, values in heard.items():
                ranked = Counter(values).most_common(2)
                rows[row_id][name] = ranked[0][0] if ranked else None
                if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
                    unsure.setdefault(row_id, set()).add(name)
        return rows

    def _copy(self, table: str, index: str, key: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """What an index holds of a table; nothing where there is none (an older file) or it cannot be read."""
        listed = ", ".join(columns)
        query = f"SELECT {key}, {listed} FROM {table} INDEXED BY {index}"  # noqa: S608 (names of ours)
        found: dict[int, tuple[Any, ...]] = {}
        for order in ("", " DESC"):
            ordered = ", ".join(f"{name}{order}" for name in columns)
            with contextlib.suppress(*_UNREADABLE):
                for row in self._connection.execute(f"{query} ORDER BY {ordered}"):
                    found.setdefault(row[0], row)
                break
        return list(found.values())

    def _blobs(self, table: str, name: str) -> dict[int, bytes]:
        """The vectors or pictures whose checksums fit."""
        most = self.found.sequences.get("supports", 0)
        query = f"SELECT support_id, {name}, xxh3 FROM {table}"  # noqa: S608
        rows = self._around(query, "support_id", set(range(1, most + 1)))
        return {row[0]: row[1] for row in rows if isinstance(row[1], bytes) and checksum(row[1]) == row[2]}

    def _around(self, query: str, key: str, ids: Iterable[int] = ()) -> Iterator[tuple[Any, ...]]:
        """Rows from the front until damage, from the back until damage, and those between one by one."""
        seen: set[int] = set()
        whole = False
        for order in ("", " DESC"):
            with contextlib.suppress(*_UNREADABLE):
                for row in self._connection.execute(f"{query} ORDER BY {key}{order}"):
                    if row[0] not in seen:
                        seen.add(row[0])
                        yield row
                whole = True
            if whole:
                return
        for row_id in sorted(set(ids) - seen):
            with contextlib.suppress(*_UNREADABLE):
                row = self._connection.execute(f"{query} WHERE {key} = ?", (row_id,)).fetchone()
                if row is not None:
                    yield row


def _text(value: Any) -> Any:
    """Text as text, unless its bytes are none."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def fill(writer: Writer, salvaged: Salvaged, photos: list[SavedPhoto]) -> None:
    """Put what was saved into a new, empty index, under the ids that it had; the caller learns the classes anew.

    Args:
        writer: a change of the new index.
        salvaged: what was saved.
        photos: of its photos, those to put in, each with a vector.
    """
    assert salvaged.about is not None
    connection = writer.connection
    before = max([salvaged.about["generation"], *(row["generation"] for row in salvaged.history)])
    connection.execute(about.update().values({**salvaged.about, "generation": before}))
    generation = writer.generation()
    for class_id in sorted({photo.row["class_id"] for photo in photos}):
        connection.execute(classes.insert().values(class_id=class_id, **salvaged.classes[class_id]))
    for photo in photos:
        assert photo.vector is not None
        row = {"support_id": photo.support_id, **photo.row, "generation": generation}
        connection.execute(supports.insert().values(**row))
        vector = photo.vector.astype("<f4").tobytes()
        ids = {"support_id": photo.support_id}
        connection.execute(embeddings.insert().values(**ids, vector=vector, xxh3=checksum(vector)))
        if photo.webp is not None:
            connection.execute(thumbnails.insert().values(**ids, webp=photo.webp, xxh3=checksum(photo.webp)))
    if salvaged.history:
        connection.execute(history.insert(), salvaged.history)
    for name, highest in salvaged.sequences.items():  # so that no id is ever given twice
        known = connection.exec_driver_sql(
            "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (highest, name)
        )
        if not known.rowcount:
            connection.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (name, highest))
