"""`fewshot evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fewshot.cli.options import EmbedderOptions, common, embedding, notice, warn
from fewshot.cli.output import json_line, progress, table
from fewshot.cli.terminal import echo

if TYPE_CHECKING:
    from fewshot.evaluation.episodes import Mean


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--n-way", type=click.IntRange(2), default=5, show_default=True, help="Classes of an episode.")
@click.option("--n-shot", type=click.IntRange(1), default=5, show_default=True, help="Photos enrolled of each class.")
@click.option(
    "--n-query", type=click.IntRange(1), default=10, show_default=True, help="Other photos asked of each class."
)
@click.option(
    "--n-episode", type=click.IntRange(1), default=600, show_default=True, help="How many episodes are drawn."
)
@click.option(
    "--coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="The coverage that conformal sets are asked for.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed draws the same episodes."
)
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
    from fewshot.datasets import class_folders
    from fewshot.embedder import EmbedderChoice, open_embedder
    from fewshot.evaluation.episodes import EpisodePlan, asked_as_unknown, evaluate_episodes
    from fewshot.evaluation.labelled import read_labelled

    plan = EpisodePlan(n_way, n_shot, n_query, n_episode, coverage, seed)
    folders = class_folders(folder, on_warning=warn)
    opened = open_embedder(EmbedderChoice(*embedder), on_notice=notice)
    with progress("embedding", sum(len(each.photos) for each in folders)) as step:
        embeddings, class_index = read_labelled(folders, opened, on_photo=step, on_warning=warn)
    few = asked_as_unknown([each.label for each in folders], class_index, plan)
    if few:
        warn(few)
    with progress("episodes", n_episode) as step:
        report = evaluate_episodes(embeddings, class_index, plan, on_episode=step)
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
