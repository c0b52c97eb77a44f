"""An index, or a folder of folders -> the points of one space: vectors with label, file, role and nearest class."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fewshot import images
from fewshot.datasets import class_folders, legible, normal_label, query_photos
from fewshot.embedder import EmbedderChoice
from fewshot.errors import EmptyFolderError, EmptyIndexError, ImageError
from fewshot.gallery import Gallery
from fewshot.gallery.inspection import is_suspicious
from fewshot.records import ClassView, EmbeddedPhoto, Float32s, Int64s, Refused

Role = Literal["support", "query", "prototype"]
TILE_PX = 96


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a space.

    A support is held against the classes as if it were not enrolled. `nearest` is the class that it lies nearest to and
    `similarity` the cosine to that class's nearest prototype. `agrees` says whether that is its own class; None where
    it has none, or no other photo of its class is there to ask. `suspicious`: another class is nearer by the margin
    that `fewshot inspect` uses. A prototype is a class's own and has none of these.
    """

    role: Role
    label: str
    file: str
    nearest: str = ""
    similarity: float | None = None
    agrees: bool | None = None
    suspicious: bool = False
    support_id: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: what tables and files show of a point."""
        return {
            "label": self.label,
            "file": self.file,
            "role": self.role,
            "nearest": self.nearest,
            "similarity": None if self.similarity is None else round(self.similarity, 4),
            "agrees": self.agrees,
            "suspicious": self.suspicious,
        }


@dataclass(frozen=True)
class Space:
    """The points of one space: supports in order of label, then queries, then prototypes.

    `vectors` is (n_points, dim) float32, rows of unit length. `n_supports` and `n_queries` count what there was before
    some were chosen to be drawn; `n_shared`, in a comparison, how many of the supports the other space has too.
    """

    name: str
    embedder: str
    vectors: Float32s
    points: tuple[Point, ...]
    n_supports: int
    n_queries: int
    n_classes: int
    n_shared: int | None = None

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The classes that have a point, in order."""
        return tuple(sorted({point.label for point in self.points if point.label}))

    @property
    def n_photos(self) -> int:
        """How many of the points are photos; they come before the prototypes."""
        return sum(point.role != "prototype" for point in self.points)

    def rows(self, role: Role) -> Int64s:
        """The rows of the points of a role."""
        return np.array([row for row, point in enumerate(self.points) if point.role == role], np.int64)

    @property
    def stated(self) -> str:
        """What is drawn, in a sentence for below a picture."""
        drawn = {role: len(self.rows(role)) for role in ("support", "query", "prototype")}
        n_supports, enrolled = self.n_supports, "enrolled photos"
        if self.n_shared is not None and self.n_shared < n_supports:
            n_supports, enrolled = self.n_shared, "enrolled photos that both hold"
        parts = []
        for n, n_all, what in (
            (drawn["support"], n_supports, enrolled),
            (drawn["query"], self.n_queries, "query photos"),
        ):
            if n_all:
                parts.append(f"{n:,} of {n_all:,} {what}" if n < n_all else f"{n:,} {what}")
        n_labels = len({point.label for point in self.points if point.role == "support"})
        of = f" of {self.n_classes:,}" if n_labels < self.n_classes else ""
        text = f"{' and '.join(parts)}, {n_labels:,}{of} {'class' if self.n_classes == 1 else 'classes'}"
        thinned = drawn["support"] < n_supports or drawn["query"] < self.n_queries
        return text + (", chosen at random in proportion to the classes" if thinned else "")


def chosen(photos: Mapping[str, Sequence[int]], n_most: int, seed: int) -> dict[str, list[int]]:
    """At most `n_most` photos, drawn at random from each class in proportion to its size, at least one of each.

    Where there are more classes than photos wanted, so many classes are drawn, with a photo each.

    Args:
        photos: label -> ids of its photos.
        n_most: how many in all.
        seed: the same seed chooses the same photos.

    >>> picked = chosen({"a": range(90), "b": range(100, 109), "c": [200]}, 12, 0)
    >>> [len(ids) for ids in picked.values()]
    [10, 1, 1]
    """
    rng = np.random.default_rng(seed)
    # Every photo gets a place in [0, 1), evenly spread within its class, and the first of each class one before all
    # others: the photos with the lowest places are then a sample in proportion.
    places, owners, ids = [], [], []
    for owner, members in enumerate(photos.values()):
        order: Int64s = np.array(members, np.int64)[rng.permutation(len(members))]
        place = (np.arange(len(order)) + rng.random()) / max(1, len(order))
        place[:1] = rng.random() - 1.0
        places.append(place)
        owners.append(np.full(len(order), owner))
        ids.append(order)
    if not ids:
        return {}
    first = np.argsort(np.concatenate(places), kind="stable")[:n_most]
    all_owners, all_ids = np.concatenate(owners)[first], np.concatenate(ids)[first]
    found = {label: sorted(all_ids[all_owners == owner].tolist()) for owner, label in enumerate(photos)}
    return {label: members for label, members in found.items() if members}


def read_space(
    gallery: Gallery,
    photos: Mapping[str, Sequence[int]],
    *,
    name: str | None = None,
    queries: "Queries | None" = None,
    n_shared: int | None = None,
) -> Space:
    """The space of an index: chosen photos, queries, and the prototypes of the classes they are of.

    Only the vectors that are drawn are read, a class at a time: memory follows what is drawn and not the index.
    Photos and classes that were removed since they were chosen are left out.

    Args:
        gallery: the index.
        photos: label -> ids of the supports to draw, as `chosen` gives them.
        name: what pictures call it; by default the index's name.
        queries: photos to draw beside them.
        n_shared: of how many photos `photos` were chosen, where those are not all: in a comparison.

    Raises:
        EmptyIndexError: no class is enrolled.
    """
    summaries = gallery.classes()
    if not summaries:
        raise EmptyIndexError(f"index {gallery.name!r} holds no class yet.")
    points: list[Point] = []
    vectors: list[Float32s] = []
    prototypes: list[tuple[str, Float32s]] = []
    labels = {each.label for each in summaries}
    for view in gallery.views({label: ids for label, ids in photos.items() if label in labels}):
        points += _supports(view)
        vectors.append(view.vectors)
        prototypes.append((view.label, view.prototypes))
    if queries is not None:
        points += queries.points
        vectors.append(queries.vectors)
    for label, rows in prototypes:
        points += [Point("prototype", label, f"prototype {i + 1} of {len(rows)}") for i in range(len(rows))]
        vectors.append(rows)
    return Space(
        name=name or gallery.name,
        embedder=gallery.about().fingerprint or "",
        vectors=np.concatenate(vectors),
        points=tuple(points),
        n_supports=sum(each.supports for each in summaries),
        n_queries=queries.n_all if queries is not None else 0,
        n_classes=len(summaries),
        n_shared=n_shared,
    )


def _supports(view: ClassView) -> Iterator[Point]:
    for support, other in zip(view.supports, view.nearest_other, strict=True):
        own = support.own_similarity
        doubted = other is not None and is_suspicious(own, other[1])
        if other is None or (own is not None and own >= other[1]):
            nearest, similarity = view.label, own
        else:
            nearest, similarity = other
        agrees = None if own is None else nearest == view.label
        yield Point("support", view.label, support.file, nearest, similarity, agrees, doubted, support.support_id)


@dataclass(frozen=True, slots=True)
class Queries:
    """Query photos as points, with their vectors (n, dim) and small pictures; `n_all` counts those not drawn too."""

    points: tuple[Point, ...]
    vectors: Float32s
    tiles: tuple[bytes | None, ...]
    n_all: int
    refused: tuple[Refused, ...]


def read_queries(
    gallery: Gallery, folder: Path, n_most: int, seed: int, on_photo: Callable[[], None] | None = None
) -> Queries:
    """The photos of a folder, answered by an index.

    A photo in a sub-folder carries its name as the true label; one in the folder itself, or given alone, has none.

    Raises:
        MissingFolderError, EmptyFolderError: there is no such folder, or no photo in it.
    """
    files = query_photos([folder])
    by_label: dict[str, list[int]] = {}
    for number, file in enumerate(files):
        label = "" if folder in (file, file.parent) else legible(normal_label(file.parent.name))
        by_label.setdefault(label, []).append(number)
    picked = [(label, files[i]) for label, some in chosen(by_label, n_most, seed).items() for i in some]
    outcomes = gallery.embedder().embed_photos([file for _, file in picked], n_photos=len(picked), keep=True)
    embedded: list[tuple[str, EmbeddedPhoto]] = []
    refused = []
    for (label, _), outcome in zip(picked, outcomes, strict=True):
        if isinstance(outcome, EmbeddedPhoto):
            embedded.append((label, outcome))
        elif isinstance(outcome, Refused):
            refused.append(replace(outcome, file=legible(outcome.file), message=legible(outcome.message)))
        if on_photo is not None:
            on_photo()
    dim = gallery.embedder().dim
    vectors = np.stack([photo.embedding for _, photo in embedded]) if embedded else np.zeros((0, dim), np.float32)
    nearest = gallery.nearest_classes(vectors) if embedded else []
    points = []
    for (label, photo), (other, similarity) in zip(embedded, nearest, strict=True):
        agrees = None if not label else other == label
        points.append(Point("query", label, legible(Path(photo.file).name), other, similarity, agrees))
    tiles = small_pictures(photo.thumbnail for _, photo in embedded)
    return Queries(tuple(points), vectors, tuple(tiles), len(files) - len(refused), tuple(refused))


def read_tiles(gallery: Gallery, space: Space, queries: Queries | None) -> list[bytes | None]:
    """A small square picture of each point's photo: TILE_PX wide WebP files, None for prototypes."""
    support_ids = [point.support_id for point in space.points if point.support_id is not None]
    tiles = small_pictures(gallery.thumbnails(support_ids))
    if queries is not None:
        tiles += queries.tiles
    return tiles + [None] * (len(space.points) - len(tiles))


def small_pictures(kept: Iterator[bytes | None]) -> list[bytes | None]:
    """Kept photos made small and square, TILE_PX wide; None where there is none, or none that can be read."""

    def small(data: bytes | None) -> bytes | None:
        if data is None:
            return None
        try:
            return images.tile(data, "a kept photo", TILE_PX)
        except ImageError:  # kept by a program that kept it otherwise: the point is drawn, without its picture
            return None

    with ThreadPoolExecutor(os.cpu_count() or 1, "tile") as pool:
        return list(pool.map(small, kept))


@contextmanager
def folder_as_index(
    folder: Path,
    choice: EmbedderChoice,
    *,
    on_notice: Callable[[str], None],
    on_refused: Callable[[Refused], None],
    on_photo: Callable[[], None] | None = None,
) -> Iterator[Gallery]:
    """A folder of folders, enrolled into an index that is gone afterwards.

    Raises:
        MissingFolderError, EmptyFolderError, NestedFolderError, LabelError: the folder cannot be read as classes.
        EmptyFolderError: also where none of its photos can be used.
    """
    folders = class_folders(folder)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fewshot-"))) / folder.resolve().name
        gallery = stack.enter_context(Gallery(place, create=True, choice=choice, on_notice=on_notice))
        for report in gallery.enroll(folders, on_photo=on_photo):
            for refused in report.refused:
                on_refused(refused)
        if not gallery.classes():
            raise EmptyFolderError(
                f"no photo in the {len(folders)} folders of {folder} can be used.",
                hint="Put photos of each class into its folder, or name the folder whose sub-folders hold them.",
            )
        yield gallery
