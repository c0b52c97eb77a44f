"""`fewshot evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fewshot.cli.options import EmbedderOptions, common, embedding, notice, warn
from fewshot.cli.output import json_line, progress, table
from fewshot.cli.terminal import echo

if TYPE_CHECKING:
    from fewshot.episodes import Mean

MOST_NAMED = 20


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--n-way", default=5, show_default=True, help="Classes of an episode.")
@click.option("--n-shot", default=5, show_default=True, help="Photos enrolled of each class.")
@click.option("--n-query", default=10, show_default=True, help="Other photos asked of each class.")
@click.option("--n-episode", default=600, show_default=True, help="How many episodes are drawn.")
@click.option(
    "--coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="The coverage that conformal sets are asked for.",
)
@click.option("--seed", default=0, show_default=True, help="The same seed draws the same episodes.")
@embedding
@common
def evaluate(
    folder: Path,
    n_way: int,
    n_shot: int,
    n_query: int,
    n_episode: int,
    coverage: float,
    seed: int,
    index: str,
    as_json: bool,
    embedder: EmbedderOptions,
) -> None:
    """Measure how well classes like those in FOLDER (a sub-folder each) are told apart from a few photos.

    Episodes are drawn at random: so many classes, so many photos of each enrolled, others asked. Each is answered as an
    index would answer it. No index is read or changed. Intervals are over other draws from these photos; other classes
    and photos differ by more.
    """
    import numpy as np

    from fewshot.datasets import class_folders
    from fewshot.embedder import EmbedderChoice, open_embedder
    from fewshot.episodes import EpisodePlan, evaluate_episodes
    from fewshot.inspection import near_copies
    from fewshot.records import EmbeddedPhoto, Refused
    from fewshot.subjects import first_shots, subjects_of_classes

    plan = EpisodePlan(n_way, n_shot, n_query, n_episode, coverage, seed)
    plan.check()
    folders = class_folders(folder, on_warning=warn)
    photos = [(photo, i) for i, each in enumerate(folders) for photo in each.photos]
    opened = open_embedder(EmbedderChoice(*embedder), on_notice=notice)
    vectors, classes, names, hashes = [], [], [], []
    seen, n_copies = set(), 0
    with progress("embedding", len(photos)) as step:
        outcomes = opened.embed_photos([photo for photo, _ in photos], n_photos=len(photos), keep=True)
        for outcome, (_, class_index) in zip(outcomes, photos, strict=True):
            step()
            if isinstance(outcome, EmbeddedPhoto) and outcome.sha256 in seen:
                n_copies += 1
            elif isinstance(outcome, EmbeddedPhoto):
                seen.add(outcome.sha256)
                vectors.append(outcome.embedding)
                classes.append(class_index)
                names.append(outcome.file)
                assert outcome.dhash is not None  # kept
                hashes.append(outcome.dhash)
            elif isinstance(outcome, Refused):
                warn(f"{outcome.file}: {outcome.message}")
    if n_copies:
        warn(f"{n_copies} of {len(photos)} files hold the same bytes as one before, as no index enrolls; left out.")
    bits = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), 16)
    alike = near_copies(bits, np.arange(len(bits)))
    if alike:
        copy, original = next(iter(alike.items()))
        warn(
            f"{len(alike)} of {len(photos)} photos are near-copies of one before, such as {names[copy]} of "
            f"{names[original]}. Episodes that enroll the one and ask the other flatter: leave one of them out."
        )
    embeddings = np.stack(vectors) if vectors else np.zeros((0, opened.dim), np.float32)
    of_class = np.array(classes, np.int64)
    n_further = len(embeddings) - len(first_shots(subjects_of_classes(embeddings, of_class)))
    if n_further:
        warn(
            f"{n_further} of {len(photos)} photos look like further shots of a plant, or place, that another photo of "
            "their class shows. Episodes that enroll the one and ask the other flatter: leave one of them out."
        )
    counts = np.bincount(of_class, minlength=len(folders)).tolist()
    few = [f"{each.label} ({n})" for each, n in zip(folders, counts, strict=True) if n < n_shot + n_query]
    if few:
        one = len(few) == 1
        warn(
            f"{len(few)} of {len(folders)} classes {'has' if one else 'have'} fewer usable photos than the "
            f"{n_shot + n_query} that an episode draws, and {'is' if one else 'are'} asked as unknown only: "
            f"{', '.join(few[:MOST_NAMED])}{f' and {len(few) - MOST_NAMED} more' if len(few) > MOST_NAMED else ''}."
        )
    with progress("episodes", n_episode) as step:
        report = evaluate_episodes(embeddings, of_class, plan, on_episode=step)
    if as_json:
        json_line({"backbone": opened.fingerprint, **report.as_dict()})
        return
    rows = [
        ["accuracy", *_with_interval(report.accuracy)],
        ["unknown told apart (AUROC)", *_with_interval(report.auroc, ".3f")],
        ["strangers let in at 95 % known", *_with_interval(report.fpr95)],
        ["expected calibration error", f"{report.calibration_error:.3f}", ""],
        [f"covered, of {coverage:.0%} asked", *_with_interval(report.covered)],
        ["labels in a set", f"{report.set_size:.2f}", ""],
    ]
    echo(
        f"{n_episode} episodes of {n_way} classes, {n_shot} photos enrolled and {n_query} asked of each, from "
        f"{report.n_classes} classes; {opened.fingerprint}"
    )
    for line in table(["measure", "value", "95 % over draws"], rows, right=(1,)):
        echo(line)


def _with_interval(found: "Mean | None", form: str = ".1%") -> tuple[str, str]:
    if found is None:
        return "-", ""
    if found.low is None or found.high is None:
        return format(found.mean, form), "-"
    return format(found.mean, form), f"{found.low:{form}} to {found.high:{form}}"
