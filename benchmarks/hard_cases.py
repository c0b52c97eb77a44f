"""The hard cases, against peers on the same embeddings and photos in the same run, by the protocol.

    python benchmarks/hard_cases.py [--data DIR] [--backbone NAME]... [--checkpoints DIR]
    python benchmarks/hard_cases.py --enrolled DIR --asked DIR [--then DIR]
    python benchmarks/hard_cases.py --index NAME --asked DIR

The first asks the protocol's three query sets among its 50 classes, then the hard cases again after ten field photos of
each of six classes are enrolled; nothing is trained between enrolling and asking. The second does the same with your
own photos, a sub-folder a class: those in --asked are answered among the classes of --enrolled, and again after --then
is enrolled too. The third asks an index that you have, named as to `fewshot`. `fewshot` rows go through an index; peers
(benchmarks/peers.py) get the same embeddings. Writes tables (Markdown) and a JSON to benchmarks/results/, and, but for
--index, a picture of accuracy against the number of enrolled photos.

--checkpoints gives every backbone that `fewshot train` left below DIR a row without peers: the study's table
of backbones, losses and normalisations.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, data_folder, keep
from page.parts import STRATA, peer_tables
from peers import peers
from protocol import N_BASE_SUPPORTS, link_first

from fewshot.cli.main import show_error
from fewshot.cli.options import index_folder
from fewshot.datasets import ClassFolder, class_folders
from fewshot.embedder import Embedder, EmbedderChoice, open_embedder
from fewshot.errors import FewshotError
from fewshot.evaluation.episodes import learn_classes
from fewshot.evaluation.metrics import crop_of, ranks, wilson_interval
from fewshot.gallery import Gallery
from fewshot.records import EmbeddedPhoto, Question, Refused
from fewshot.store import Store

SHOTS = (1, 2, 5, 10, 20)
BACKBONES = ("plants-lite0", "lite0")


@dataclass
class Photos:
    """Embedded photos: (n, dim) float32 vectors, n labels, n file names."""

    vectors: Any
    labels: list[str]
    names: list[str]

    def __add__(self, other: "Photos") -> "Photos":
        return Photos(
            np.concatenate([self.vectors, other.vectors]), self.labels + other.labels, self.names + other.names
        )

    def first(self, n_shot: int) -> "Photos":
        """The first photos of each class."""
        seen: dict[str, int] = {}
        rows = []
        for row, label in enumerate(self.labels):
            seen[label] = seen.get(label, 0) + 1
            if seen[label] <= n_shot:
                rows.append(row)
        return Photos(self.vectors[rows], [self.labels[i] for i in rows], [self.names[i] for i in rows])


def embed(embedder: Embedder, folders: list[ClassFolder]) -> Photos:
    """Embed the photos of a folder of folders; those that cannot be read are left out, and said so."""
    files = [(photo, folder.label) for folder in folders for photo in folder.photos]
    outcomes = list(embedder.embed_photos([file for file, _ in files], n_photos=len(files)))
    for outcome in outcomes:
        if isinstance(outcome, Refused):
            print(f"left out: {outcome.file}: {outcome.message}")
    kept = [
        (outcome.embedding, label, file.name)
        for outcome, (file, label) in zip(outcomes, files, strict=True)
        if isinstance(outcome, EmbeddedPhoto)
    ]
    if not kept:
        raise SystemExit(f"hard_cases.py: none of the {len(files)} photos can be used.")
    return Photos(np.stack([row[0] for row in kept]), [row[1] for row in kept], [row[2] for row in kept])


def through_index(folders: list[ClassFolder], embedder: Embedder, asked: Photos, labels: list[str]) -> Any:
    """(n, n_way) similarities of an index with these classes, as `fewshot query` gives them."""
    with tempfile.TemporaryDirectory() as folder, Gallery(Path(folder) / "index", create=True, embedder=embedder) as g:
        for _ in g.enroll(folders):
            pass
        return asked_index(g, asked, labels)


def asked_index(gallery: Gallery, asked: Photos, labels: list[str]) -> Any:
    """(n, n_way) similarities of an opened index."""
    answers = gallery.predict(asked.vectors, Question(top=len(labels), n_nearest=0))
    place = {label: i for i, label in enumerate(labels)}
    scores = np.full((len(answers), len(labels)), -np.inf)
    for row, answer in enumerate(answers):
        for match in answer.matches:
            scores[row, place[match.label]] = match.similarity
    return scores


def figures(scores: Any, asked: Photos, labels: list[str]) -> dict[str, Any]:
    """Top-1, top-3 and top-1 within the crop, in percent with 95 % intervals; and the same of each stratum, if any."""
    true = np.array([labels.index(label) for label in asked.labels])
    rank = ranks(scores, true)
    crops = np.array([crop_of(label) for label in labels])
    inside = crops[None] == crops[true][:, None]
    within = ranks(np.where(inside, scores, -np.inf), true)

    def shares(rows: Any) -> dict[str, Any]:
        return {"top1": _share(rank[rows] < 1), "top3": _share(rank[rows] < 3), "within": _share(within[rows] < 1)}

    strata = np.array([name[0] for name in asked.names])
    apart = {each: shares(strata == each) for each in STRATA} if set(strata) == set(STRATA) else {}
    return {**shares(slice(None)), **apart}


def ours(support: Photos, asked: Photos, labels: list[str]) -> Any:
    """The classifier alone: what an index computes, without the index."""
    rows = [[each == label for each in support.labels] for label in labels]
    return learn_classes([support.vectors[own] for own in rows]).similarities(asked.vectors)


def peer_scores(peer: Any, support: Photos, asked: Photos, labels: list[str]) -> Any:
    """A peer's (n, n_way) scores."""
    index = np.array([labels.index(label) for label in support.labels])
    return np.asarray(peer(support.vectors, index, asked.vectors, len(labels)))


def seconds_beyond_embedding(enrolled: list[ClassFolder], later: list[ClassFolder], embedder: Embedder) -> float:
    """How long enrolling more photos and asking one takes beyond embedding them, in an index of the rest.

    The median over the classes of `later`; each embeds its photos once alone, then enrolls them and asks.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder, Gallery(Path(folder) / "index", create=True, embedder=embedder) as g:
        for _ in g.enroll(enrolled):
            pass
        for each in later:
            started = time.perf_counter()
            photos = embed(embedder, [each])
            embedded = time.perf_counter()
            list(g.enroll([each]))
            g.predict(photos.vectors[:1])
            found.append((time.perf_counter() - embedded) - (embedded - started))
    return float(np.median(found))


def enrolled_ones(asked: list[ClassFolder], labels: list[str]) -> list[ClassFolder]:
    """The folders whose class is enrolled, of at least two; the others are left out, and said so."""
    if len(labels) < 2:
        raise SystemExit(f"hard_cases.py: {len(labels)} class is enrolled; wanted at least 2, to be told apart.")
    strangers = sorted({folder.label for folder in asked} - set(labels))
    if strangers:
        print(f"not enrolled, left out: {', '.join(strangers)}")
    known = [folder for folder in asked if folder.label not in strangers]
    if not known:
        raise SystemExit(f"hard_cases.py: no photo is asked of an enrolled class. Enrolled: {', '.join(labels)}.")
    return known


def measure_index(index: Path, asked: list[ClassFolder]) -> dict[str, Any]:
    """An index as it is, and peers with the embeddings that it holds, on other photos of its classes."""
    with Store(index).read() as reader:
        labels = reader.labels()
        ids, vectors = reader.changed_vectors("support", since=-1)
        records = reader.supports(ids.tolist())
    support = Photos(vectors, [records[i].label for i in ids.tolist()], [records[i].file for i in ids.tolist()])
    with Gallery(index) as gallery:
        query = embed(gallery.embedder(), enrolled_ones(asked, labels))
        table = {f"fewshot, {gallery.name}": {"asked": figures(asked_index(gallery, query, labels), query, labels)}}
    for name, peer in peers().items():
        table[name] = {"asked": figures(peer_scores(peer, support, query, labels), query, labels)}
    return {"table": table}


def measure(
    enrolled: list[ClassFolder],
    later: list[ClassFolder],
    asked: dict[str, list[ClassFolder]],
    backbones: list[str],
    checkpoints: list[Path],
) -> dict[str, Any]:
    """Every method on every query set, before and (the last set only) after `later` is enrolled."""
    opened = {name: open_embedder(EmbedderChoice(name, "f32")) for name in [*backbones, *map(str, checkpoints)]}
    supports = {name: embed(embedder, enrolled) for name, embedder in opened.items()}
    labels = sorted(set(supports[backbones[0]].labels))  # a class of which no photo can be read is not enrolled
    asked = {name: enrolled_ones(folders, labels) for name, folders in asked.items()}
    later = enrolled_ones(later, labels) if later else []
    last = list(asked)[-1]
    table: dict[str, Any] = {}
    by_shots: dict[str, Any] = {name: {} for name in asked}
    rounds: dict[str, dict[str, tuple[Photos, Photos]]] = {}
    # All indexes first: pytorch-metric-learning's nearest neighbours replace faiss's search in the whole process by one
    # that takes no parameters.
    for backbone, embedder in opened.items():
        support = supports[backbone]
        queries = {name: embed(embedder, folders) for name, folders in asked.items()}
        rounds[backbone] = {name: (support, query) for name, query in queries.items()}
        folders = dict.fromkeys(queries, enrolled)
        if later:
            name = f"{last} + more photos"
            rounds[backbone][name] = (support + embed(embedder, later), queries[last])
            folders[name] = [*enrolled, *later]
        row = table.setdefault(f"fewshot, {backbone}", {})
        for name, (_, query) in rounds[backbone].items():
            row[name] = figures(through_index(folders[name], embedder, query, labels), query, labels)
            print(f"fewshot, {backbone}: {name} done", flush=True)
        if later and backbone == backbones[0]:
            beyond_s = seconds_beyond_embedding(enrolled, later, embedder)
    methods = {"fewshot": ours, **{name: partial(peer_scores, peer) for name, peer in peers().items()}}
    for backbone in backbones:
        sets = rounds[backbone]
        for method, answer in methods.items():
            for name, (support, query) in sets.items():
                if method != "fewshot":
                    row = table.setdefault(f"{method}, {backbone}", {})
                    row[name] = figures(answer(support, query, labels), query, labels)
                if name in asked:
                    shots = [figures(answer(support.first(n), query, labels), query, labels) for n in SHOTS]
                    found = {str(n): each["top1"]["share"] for n, each in zip(SHOTS, shots, strict=True)}
                    by_shots[name][f"{method}, {backbone}"] = found
            print(f"{method}, {backbone}: done", flush=True)
    return {"table": table, "by_shots": by_shots, **({"seconds_beyond_embedding": beyond_s} if later else {})}


def picture(by_shots: dict[str, Any], backbone: str, file: Path) -> None:
    """Accuracy against the number of enrolled photos, a panel a query set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown, axes = pyplot.subplots(1, len(by_shots), figsize=(5 * len(by_shots), 4.6), squeeze=False, sharey=True)
    colours = pyplot.get_cmap("tab10").colors
    for axis, (name, rows) in zip(axes[0], by_shots.items(), strict=True):
        for i, (method, at) in enumerate((m, a) for m, a in rows.items() if m.endswith(f", {backbone}")):
            thick = 2.6 if i == 0 else 1.2
            axis.plot(
                [int(n) for n in at], list(at.values()), "o-", lw=thick, ms=4, color=colours[i % 10], label=method
            )
        axis.set_xscale("log")
        axis.set_xticks(SHOTS, [str(n) for n in SHOTS])
        axis.minorticks_off()
        axis.set_title(name)
        axis.set_xlabel("photos enrolled of each class, at most")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("top-1 accuracy, %")
    handles, names = axes[0][0].get_legend_handles_labels()
    shown.legend(handles, [n.removesuffix(f", {backbone}") for n in names], loc="lower center", ncol=3, frameon=False)
    shown.tight_layout(rect=(0, 0.14, 1, 1))
    shown.savefig(file, dpi=110)


def _share(right: Any) -> dict[str, float]:
    found = wilson_interval(int(right.sum()), len(right))
    return {"share": 100 * found.share, "low": 100 * found.low, "high": 100 * found.high, "n": found.n}


def main() -> None:
    """Measure, print, keep; what is wrong with the words or the folders is said as the program says it."""
    try:
        run()
    except FewshotError as error:
        show_error(error, as_json=False)
        sys.exit(error.exit_code)


def run() -> None:
    """Measure, print, keep.

    Raises:
        FewshotError: a folder, an index or a backbone is not there or not as it must be.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--enrolled", type=Path)
    parser.add_argument("--asked", type=Path)
    parser.add_argument("--then", type=Path)
    parser.add_argument("--index", type=index_folder, metavar="NAME")
    parser.add_argument("--backbone", action="append", dest="backbones", metavar="NAME")
    parser.add_argument("--checkpoints", type=Path, metavar="DIR")
    given = parser.parse_args()
    backbones = given.backbones or list(BACKBONES)
    checkpoints = (
        sorted(file.parent for file in given.checkpoints.glob("**/backbone.json")) if given.checkpoints else []
    )
    if given.index:
        if not given.asked:
            parser.error("--index has no photos to ask; give --asked DIR too, with a folder of photos for each class")
        result, name = measure_index(given.index, class_folders(given.asked)), "my-hard-cases"
    elif given.enrolled or given.asked:
        if not (given.enrolled and given.asked):
            parser.error("--enrolled and --asked belong together")
        enrolled, later = class_folders(given.enrolled), class_folders(given.then) if given.then else []
        new = {folder.label for folder in later} - {folder.label for folder in enrolled}
        if new:
            parser.error(f"--then adds photos to classes of --enrolled, which has no {', '.join(sorted(new))}")
        asked = {"asked": class_folders(given.asked)}
        result = measure(enrolled, later, asked, backbones, checkpoints)
        name = "my-hard-cases"
    else:
        data = data_folder(given.data)
        asked = {name: class_folders(data / folder) for name, folder in SETS.items()}
        with tempfile.TemporaryDirectory() as folder:
            base = link_first(data / "base" / "train", Path(folder) / "base", N_BASE_SUPPORTS)
            enrolled = class_folders(base) + class_folders(data / "novel" / "support")
            result = measure(enrolled, class_folders(data / "field-support"), asked, backbones, checkpoints)
        name = "hard-cases"
    print(tables := peer_tables(result["table"]))
    keep(name, result)
    (RESULTS / f"{name}.md").write_text(tables)
    if "by_shots" in result:
        picture(result["by_shots"], backbones[0], RESULTS / f"{name}.png")


SETS = {"base": "base/test", "novel": "novel/query", "hard": "hard"}

if __name__ == "__main__":
    main()
