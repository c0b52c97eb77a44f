"""One or two opened indexes -> a folder with everything: coordinates, figures, page, projector, numbers, report."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewshot.datasets import legible, query_photos
from fewshot.errors import ComparisonError, EmptyIndexError, TooFewPointsError, UnknownLabelError
from fewshot.gallery import Gallery
from fewshot.projection import figures, tables
from fewshot.projection.comparison import Photos, shared_photos
from fewshot.projection.coordinates import METHODS, MIN_POINTS, N_DIMS, neighbours_used
from fewshot.projection.folder import MARK, OutputFolder
from fewshot.projection.numbers import Numbers, measure, shared_neighbours
from fewshot.projection.page import page
from fewshot.projection.pictures import Painters, Picture
from fewshot.projection.projector import sprite_tile_px, write_projector
from fewshot.projection.report import MOST_SHOWN, Confusable, Doubt, report
from fewshot.projection.spaces import (
    Queries,
    Space,
    chosen,
    read_queries,
    read_space,
    read_tiles,
    small_pictures,
)
from fewshot.records import ClassInspection

MOST_PAIRS = 30


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be drawn, and how.

    Attributes:
        methods: of "pca", "tsne", "umap".
        max_photos: at most so many enrolled photos are drawn, and as many queries.
        seed: of what is chosen and of t-SNE's and UMAP's random numbers.
        n_neighbours: see `coordinates.coordinates`.
        queries: a folder of photos to draw beside the enrolled ones.
    """

    methods: tuple[str, ...] = METHODS
    max_photos: int = 5000
    seed: int = 0
    n_neighbours: int | None = None
    queries: Path | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """An opened index, and what pictures call it."""

    gallery: Gallery
    name: str


@dataclass(frozen=True, slots=True)
class Result:
    """What was written and measured; `notes` are sentences that a user must know."""

    folder: Path
    spaces: tuple[Space, ...]
    numbers: tuple[Numbers, ...]
    pictures: tuple[Picture, ...]
    doubts: tuple[Doubt, ...]
    confusable: tuple[Confusable, ...]
    shared: tuple[int, float] | None
    notes: tuple[str, ...]
    n_neighbours: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: what numbers.json holds."""
        spaces = []
        for number, (space, numbers) in enumerate(zip(self.spaces, self.numbers, strict=True)):
            trust = {
                f"{each.method}_{each.n_dims}d": round(each.trust, 4) for each in self.pictures if each.space == number
            }
            facts = {"name": space.name, "embedder": space.embedder, "drawn": space.stated, "classes": space.n_classes}
            counts = {"supports": space.n_supports, "queries": space.n_queries, "points": len(space.points)}
            spaces.append({**facts, **counts, "trustworthiness": trust, **numbers.as_dict()})
        return {
            "folder": legible(str(self.folder)),
            "seed": self.seed,
            "n_neighbours": self.n_neighbours,
            "metric": "cosine",
            "spaces": spaces,
            "shared_neighbours": None if self.shared is None else {"k": self.shared[0], "share": self.shared[1]},
            "suspicious": [
                {
                    "label": each.label,
                    "file": each.file,
                    "own_similarity": round(each.own_similarity, 4),
                    "looks_like": each.looks_like,
                    "similarity": round(each.similarity, 4),
                }
                for each in self.doubts
            ],
            "confusable": [
                {"classes": [each.first, each.second], "similarity": round(each.similarity, 4)}
                for each in self.confusable
            ],
            "notes": list(self.notes),
        }


def n_steps(sources: Sequence[Source], plan: Plan) -> int:
    """How often `project` will call `on_step`."""
    n_classes = len(sources[0].gallery.classes())
    n_pictures = len(plan.methods) * len(N_DIMS)
    n_queries = 0 if plan.queries is None else min(plan.max_photos, len(query_photos([plan.queries])))
    return len(sources) * (n_queries + 1) + n_classes + (len(sources) + 1) * n_pictures + 1


def project(
    out: OutputFolder,
    sources: Sequence[Source],
    plan: Plan,
    *,
    on_step: Callable[[], None] | None = None,
) -> Result:
    """Draw one index, or two side by side, and write all of it.

    The same index, plan and versions of the libraries give the same files. Interrupted, it leaves whole files, and
    the next run writes all of them again.

    Args:
        out: where.
        sources: one index, or two that hold the same photos; of two, the photos that both hold are drawn.
        plan: see there.
        on_step: called `n_steps` times, for progress.

    Raises:
        EmptyIndexError: no class is enrolled.
        TooFewPointsError: fewer than 4 photos to draw.
        NeighbourCountError: more neighbours asked for than there are photos.
        ComparisonError: two indexes hold no photo in common, or lose one that both held while they are read.
        OutputFolderError: a file cannot be written.
    """
    step = on_step or (lambda: None)
    photos, n_shared, notes = _photos(sources, plan)
    n_drawn = sum(len(ids) for ids in photos[0].values())
    if n_drawn < MIN_POINTS:
        raise TooFewPointsError(
            f"{sources[0].name!r} has {n_drawn} {'photo' if n_drawn == 1 else 'photos'} to draw; wanted at least "
            f"{MIN_POINTS}."
        )
    k = neighbours_used(n_drawn, plan.n_neighbours)
    queries = [_queries(source, plan, step) for source in sources]
    notes += [f"{each.file} is not drawn: {each.message}" for each in (queries[0].refused if queries[0] else ())]
    spaces = []
    with Painters(plan.methods, plan.seed, k) as painters:
        for number, (source, some) in enumerate(zip(sources, photos, strict=True)):
            space = read_space(source.gallery, some, name=source.name, queries=queries[number], n_shared=n_shared)
            painters.begin(number, space.vectors, space.n_photos)
            spaces.append(space)
            step()
        if len(spaces) > 1 and any(len(space.rows("support")) < n_drawn for space in spaces):
            raise ComparisonError(
                "photos were removed from one of the two indexes while they were read.", hint="Run the command again."
            )
        tiles = [
            read_tiles(source.gallery, space, asked)
            for source, space, asked in zip(sources, spaces, queries, strict=True)
        ]
        notes += _thinning_notes(spaces) + _font_notes(spaces)
        numbers = [measure(space) for space in spaces]
        doubts, pairs, inspections = _inspected(sources[0].gallery, numbers[0], step)
        shared = _shared(spaces, k)
        write_projector(out, spaces, tiles)
        out.write_figures("confusion", figures.confusion(spaces, numbers))
        pictures = _drawn(out, spaces, painters, step)
    result = Result(
        out.path,
        tuple(spaces),
        tuple(numbers),
        tuple(pictures),
        tuple(doubts),
        tuple(pairs),
        shared,
        tuple(notes),
        k,
        plan.seed,
    )
    _write_tables(out, result, inspections)
    title = " and ".join(space.name for space in spaces)
    out.write("space.html", page(title, spaces, pictures, tiles))
    out.write("index.html", report(title, spaces, pictures, numbers, doubts, pairs, shared, notes))
    # Last: it marks the folder as finished.
    out.write(MARK, json.dumps(result.as_dict(), indent=1, ensure_ascii=False) + "\n")
    step()
    return result


def _photos(sources: Sequence[Source], plan: Plan) -> tuple[list[Photos], int | None, list[str]]:
    """Which photos of each index are drawn, how many both of two hold, and what a user must know of that."""
    for source in sources:
        if not source.gallery.classes():
            raise EmptyIndexError(f"index {source.name!r} holds no class yet.")
    if len(sources) == 1:
        members = {label: list(hashes) for label, hashes in sources[0].gallery.photo_hashes()}
        return [chosen(members, plan.max_photos, plan.seed)], None, []
    both = shared_photos(sources[0].gallery, sources[1].gallery, plan.max_photos, plan.seed)
    notes = []
    if both.n_only_one:
        notes.append(
            f"{both.n_shared:,} photos are in both under the same label and are compared; {both.n_only_one:,} are in "
            "one only, or under another label, and are left out."
        )
    return [both.first, both.second], both.n_shared, notes


def _queries(source: Source, plan: Plan, step: Callable[[], None]) -> Queries | None:
    if plan.queries is None:
        return None
    return read_queries(source.gallery, plan.queries, plan.max_photos, plan.seed, step)


def _thinning_notes(spaces: Sequence[Space]) -> list[str]:
    space = spaces[0]
    notes = []
    if len(space.rows("support")) < space.n_supports and len(spaces) == 1:
        notes.append(
            f"Pictures, silhouettes, the confusion matrix and the counts of photos nearer to another class are of "
            f"{space.stated}; which photos are doubtful and which classes alike comes from all of them."
        )
    side_px = sprite_tile_px(len(space.points))
    if side_px < sprite_tile_px(1):
        notes.append(f"Thumbnails in TensorBoard are {side_px} px: more would not fit into a picture of 8192 px.")
    return notes


def _font_notes(spaces: Sequence[Space]) -> list[str]:
    boxed = figures.missing_letters(sorted({label for space in spaces for label in space.labels}))
    if not boxed:
        return []
    n = len(boxed)
    return [
        f"{n} {'label has' if n == 1 else 'labels have'} letters that the figures' font does not have, such as "
        f"{boxed[0]!r}: the figures show boxes there; space.html shows the letters."
    ]


def _shared(spaces: Sequence[Space], k: int) -> tuple[int, float] | None:
    if len(spaces) < 2:
        return None
    first, second = (space.vectors[space.rows("support")] for space in spaces)
    return k, shared_neighbours(first, second, k)


def _drawn(out: OutputFolder, spaces: Sequence[Space], painters: Painters, step: Callable[[], None]) -> list[Picture]:
    """The pictures; each is drawn as a figure when it is there for every space."""
    waiting: dict[tuple[str, int], dict[int, Picture]] = {}
    pictures = []
    for picture in painters.pictures():
        step()
        pictures.append(picture)
        beside = waiting.setdefault((picture.method, picture.n_dims), {})
        beside[picture.space] = picture
        if len(beside) == len(spaces):
            together = [beside[number] for number in range(len(spaces))]
            out.write_figures(f"{picture.method}-{picture.n_dims}d", figures.scatter(spaces, together))
            step()
    return sorted(pictures, key=lambda each: (each.space, METHODS.index(each.method), each.n_dims))


def _inspected(
    gallery: Gallery, numbers: Numbers, step: Callable[[], None]
) -> tuple[list[Doubt], list[Confusable], list[ClassInspection]]:
    """What the whole index, drawn or not, says of doubtful photos and classes that are alike."""
    inspections, doubts, ids = [], [], []
    alike: dict[tuple[str, str], float] = {}
    for each in gallery.inspect():
        step()
        inspections.append(each)
        for photo in each.suspicious:
            doubts.append(Doubt(each.label, photo.file, photo.own_similarity, photo.looks_like, photo.similarity))
            ids.append(photo.support_id)
        for other, similarity in each.confusable:
            pair = (min(each.label, other), max(each.label, other))
            alike[pair] = max(similarity, alike.get(pair, -1.0))
    order = sorted(range(len(doubts)), key=lambda i: doubts[i].own_similarity - doubts[i].similarity)
    doubts, ids = [doubts[i] for i in order], [ids[i] for i in order]
    nearest_pairs = sorted(alike.items(), key=lambda item: (-item[1], item[0]))[:MOST_PAIRS]
    shown = doubts[:MOST_SHOWN]
    named = {each.label for each in shown} | {each.looks_like for each in shown}
    typical = _typical(gallery, sorted(named | {label for pair, _ in nearest_pairs for label in pair}))
    photos = small_pictures(gallery.thumbnails(ids[:MOST_SHOWN]))
    for i, (doubt, tile) in enumerate(zip(shown, photos, strict=True)):
        doubts[i] = replace(doubt, pictures=(tile, typical[doubt.label], typical[doubt.looks_like]))
    place = {label: i for i, label in enumerate(numbers.labels)}

    def count(own: str, other: str) -> int:
        return int(numbers.confusion[place[own], place[other]]) if own in place and other in place else 0

    pairs = [
        Confusable(
            first, second, similarity, count(first, second), count(second, first), (typical[first], typical[second])
        )
        for (first, second), similarity in nearest_pairs
    ]
    return doubts, pairs, inspections


def _typical(gallery: Gallery, labels: Sequence[str]) -> dict[str, bytes | None]:
    """A small picture of each class's most typical photo: the one most like the rest of its class."""
    ids = {}
    for label in labels:
        try:
            records = gallery.supports(label)
        except UnknownLabelError:  # removed since it was inspected
            continue
        ids[label] = max(records, key=lambda record: record.own_similarity or -1.0).support_id
    found = dict(zip(ids, small_pictures(gallery.thumbnails(ids.values())), strict=True))
    return {label: found.get(label) for label in labels}


def _write_tables(out: OutputFolder, result: Result, inspections: Sequence[ClassInspection]) -> None:
    for kind, content in tables.coordinates(result.spaces, result.pictures).items():
        out.write(f"coordinates.{kind}", content)
    doubts = [
        [each.label, each.file, f"{each.own_similarity:.4f}", each.looks_like, f"{each.similarity:.4f}"]
        for each in result.doubts
    ]
    out.write("suspicious.csv", tables.as_csv(["label", "file", "own_similarity", "looks_like", "similarity"], doubts))
    pairs = [
        [each.first, each.second, f"{each.similarity:.4f}", each.n_first_to_second, each.n_second_to_first]
        for each in result.confusable
    ]
    headings = ["first", "second", "similarity", "first_nearer_to_second", "second_nearer_to_first"]
    out.write("confusable.csv", tables.as_csv(headings, pairs))
    silhouettes = result.numbers[0].class_silhouette
    classes = [
        [each.label, each.supports, silhouettes.get(each.label), _round(each.similarity), _round(each.spread)]
        + [each.confusable[0][0] if each.confusable else "", len(each.suspicious)]
        for each in inspections
    ]
    headings = ["label", "photos", "silhouette", "alike", "spread", "nearest_class", "suspicious"]
    out.write("classes.csv", tables.as_csv(headings, classes))


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
