"""`fewshot backbones`, `doctor` and `sample-data`: the machine and what is on it."""

import importlib.metadata
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fewshot.cli.options import common, index_place, notice, open_gallery
from fewshot.cli.output import json_line, progress, table
from fewshot.cli.terminal import echo
from fewshot.errors import FewshotError
from fewshot.extras import EXTRAS, missing, need

if TYPE_CHECKING:
    from fewshot.gallery.repair import Repaired


@click.command()
@click.argument("pattern", required=False)
@common
def backbones(pattern: str | None, index: str, as_json: bool) -> None:
    """List the backbones that can be used: those installed, and with PATTERN (such as 'resnet*') those of timm too.

    A timm model's weights are taken from its hub the first time, which needs a network. A local file works as
    `--backbone ARCHITECTURE:FILE.safetensors`.
    """
    from fewshot.backbones import DEFAULT_BACKBONE, available
    from fewshot.errors import UsageError

    hub_models: list[str] = []
    if pattern is not None:
        need("train", "a PATTERN, which looks through timm's models,", ("torch", "timm"))
        from fewshot.networks import matching_models

        hub_models = matching_models(pattern)
    rows = available(pattern, hub_models)
    if not rows:
        raise UsageError(f"no backbone fits {pattern!r}.", hint="Put a * where more may follow: 'resnet*'.")
    if as_json:
        for row in rows:
            json_line({**row, "default": row["name"] == DEFAULT_BACKBONE})
        return
    cells = [
        [row["name"] + (" (default)" if row["name"] == DEFAULT_BACKBONE else ""), row["architecture"], row["weights"]]
        for row in rows
    ]
    for line in table(["backbone", "architecture", "weights"], cells):
        echo(line)


@click.command()
@click.option("--repair", is_flag=True, help="Save what is sound of a damaged index into a new file in its place.")
@common
def doctor(repair: bool, index: str, as_json: bool) -> None:
    """Show what runs here (engine, CPU, GPU, weights) and check the index, reading all of it.

    Exits with 1 if the index is damaged; what is no damage (a newer format, a lock) is an error as of any command. An
    index that does not exist yet is no fault.

    --repair keeps what checksums and second copies prove sound, embeds photos anew whose embedding is damaged, makes
    prototypes and caches anew, and lists what is lost, photo by photo. The damaged file stays beside the new one. Stop
    what has the index open first. It exits with 1 if a photo was lost.
    """
    from fewshot.store import shown_place

    facts = _machine()
    place = index_place(index)
    is_there = place.exists() if isinstance(place, Path) else True
    try:
        facts["index"] = index_facts(index) if is_there else None
    except FewshotError:  # what runs here does not depend on it
        if not as_json:
            _print_facts(facts, shown_place(place))
        raise
    if repair and facts["index"] and facts["index"]["problems"]:
        _repair(index, facts["index"]["problems"], as_json)
        return
    if as_json:
        json_line(facts)
    else:
        _print_facts(facts, shown_place(place))
    if facts["index"] and facts["index"]["problems"]:
        click.get_current_context().exit(1)


@click.command(name="sample-data")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--support", "n_support", type=click.IntRange(1), default=10, show_default=True, help="Photos to enroll, a class."
)
@click.option(
    "--query", "n_query", type=click.IntRange(1), default=5, show_default=True, help="Photos to ask, a class."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed renders the same pictures."
)
@common
def sample_data(folder: Path, n_support: int, n_query: int, seed: int, index: str, as_json: bool) -> None:
    """Render pictures of leaves into FOLDER/support/CLASS and FOLDER/query/CLASS, to try the program with.

    Six classes (healthy, rust, powdery mildew, blight, mosaic, shot hole), each leaf with its own shape, light,
    angle and background. They are drawings: good for a first try and for tests, no measure of accuracy.
    """
    from fewshot.samples import CLASSES, write_samples

    with progress("rendering", len(CLASSES) * (n_support + n_query)) as step:
        files = write_samples(folder, n_support=n_support, n_query=n_query, seed=seed, on_photo=lambda _: step())
    if as_json:
        json_line({"folder": str(folder), "classes": list(CLASSES), "photos": len(files)})
        return
    echo(f"{len(files)} pictures of {len(CLASSES)} classes are in {folder}. Now try:")
    echo(f"  fewshot enroll --each {folder / 'support'}\n  fewshot query {folder / 'query'}")


def _repair(index: str, problems: list[str], as_json: bool) -> None:
    """Repair, and say what became of it."""
    from fewshot.gallery.repair import Repaired, mend
    from fewshot.store import shown_place

    folder = index_place(index)
    if isinstance(folder, str):
        raise click.UsageError(
            "--repair makes a new file of a damaged one; a damaged database is restored by its server's own means, or "
            "from `fewshot backup`."
        )
    done = mend(folder, problems, on_notice=notice)
    if as_json:
        what = done.as_dict() if isinstance(done, Repaired) else done
        json_line({"index": str(folder), "problems": problems, "repaired": what})
    else:
        _print_repair(shown_place(folder), problems, done)
    if done is None or (isinstance(done, Repaired) and done.lost):
        click.get_current_context().exit(1)


def _print_repair(place: str, problems: list[str], done: "Repaired | str | None") -> None:
    if isinstance(done, str):
        echo(f"{place}: its caches were damaged and are made anew at the next use; nothing is lost")
        return
    for problem in problems:
        echo(f"{click.style('problem:', fg='red')} {problem}")
    if done is None:
        echo(
            f"{place}: changes are missing that no repair brings back; `fewshot restore FOLDER --replace` brings "
            "those in a backup. Nothing was changed, and the caches, which tell of it, are left."
        )
        return
    echo(f"{place}: {done.n_photos} photos saved, {len(done.lost)} lost; the damaged file is {done.damaged}")
    for doubt in done.doubts:
        echo(f"{click.style('note:', fg='yellow')} {doubt}")
    for number, what, why in done.lost:
        echo(f"{click.style('lost:', fg='red')} {what} (support {number}): {why}")


_WHITENED = "whitened by the statistics of the classes the backbone was trained on"
_PLAIN = "plain L2 between unit vectors: the backbone brings no class statistics to whiten by"


def _machine() -> dict[str, Any]:
    from fewshot import engines, tuning
    from fewshot.backbones import DEFAULT_BACKBONE, installed
    from fewshot.embedder import cache_folder

    cuda = engines.cuda_available()
    versions = {}
    for package in ("fewshot", "openvino", "faiss-cpu", "torch", "timm", "numpy", "psycopg", "pgvector"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "engine": "torch" if cuda else "openvino",
        "precision": "bf16" if cuda else engines.native_precision(),
        "cpu": engines.cpu_name(),
        "cpu_features": engines.cpu_capabilities(),
        "gpu": engines.gpu_name() if cuda else None,
        "python": platform.python_version(),
        "versions": versions,
        "extras": {extra: missing(extra) for extra in EXTRAS},
        "weights": {source.name: source.architecture for source in installed()},
        "default_backbone": DEFAULT_BACKBONE,
        "cache": str(cache_folder()),
        "bulk": [
            {key: found[key] for key in ("backbone", "prepared", "precision", "chosen", "photos_per_s")}
            for found in tuning.found_here(cache_folder() / "backbones")
        ],
    }


def index_facts(index: str) -> dict[str, Any] | None:
    """What an index says of itself and what is wrong with it, also when it is too damaged to be opened.

    None where a database holds none yet. What is no damage (a newer format, a lock, a wrong setting) is raised.
    """
    from fewshot.backbones import quality_of
    from fewshot.errors import IndexDamagedError, IndexMissingError, NotAnIndexError
    from fewshot.store import FILE_NAME, shown_place
    from fewshot.store.log import damaged_log

    place = index_place(index)
    facts: dict[str, Any] = {"folder": shown_place(place), "problems": []}
    # Before it is opened: SQLite cuts a damaged log off where the damage begins, and nothing would show it later.
    log_problem = damaged_log(place / FILE_NAME) if isinstance(place, Path) else None
    if log_problem is not None:
        facts["problems"] = [f"{log_problem}. Nothing opened it yet; `fewshot doctor --repair` saves what it can."]
        return facts
    try:
        with open_gallery(index) as gallery:
            about = gallery.about()
            summaries = gallery.classes()
            facts["backbone"], facts["precision"] = about.fingerprint, about.precision
            if about.backbone is not None:
                facts["whitened"] = about.backbone.get("statistics_sha256") is not None
                facts["quality"] = quality_of((about.source or {}).get("views", 1))
            facts["classes"], facts["supports"] = len(summaries), sum(summary.supports for summary in summaries)
            facts["generation"] = about.generation
            facts["problems"] = gallery.problems()
    except IndexMissingError as error:
        if isinstance(place, str):
            return None
        facts["problems"] = [error.said]
    except (IndexDamagedError, NotAnIndexError) as error:  # not to be opened: what a doctor is asked about
        facts["problems"] = [error.said]
    return facts


def _extra(name: str, absent: list[str]) -> str:
    return f"{name}, without {', '.join(absent)} (`pip install 'fewshot[{name}]'`)" if absent else name


_NOT_MEASURED = "as OpenVINO chooses; measured the first time that 500 photos or more are embedded"


def _bulk(found: dict[str, Any]) -> str:
    from fewshot.engines import BulkSettings

    settings, rates = BulkSettings(**found["chosen"]), found["photos_per_s"]
    spread = f"{rates[str(settings)]:.0f} photos/s, all tried {min(rates.values()):.0f} to {max(rates.values()):.0f}"
    return f"{found['prepared']} ({found['precision']}): {settings} ({spread})"


def _print_facts(facts: dict[str, Any], place: str) -> None:
    weights = ", ".join(f"{name} ({architecture})" for name, architecture in facts["weights"].items()) or "none"
    rows = [
        ["engine", f"{facts['engine']}, {facts['precision']}"],
        ["CPU", f"{facts['cpu']}: {', '.join(facts['cpu_features'])}"],
        ["GPU", facts["gpu"] or "none that torch can use"],
        ["weights", f"{weights}; default {facts['default_backbone']}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())],
        ["extras", "; ".join(_extra(name, absent) for name, absent in facts["extras"].items())],
        ["prepared backbones", facts["cache"]],
    ]
    measured = [_bulk(found) for found in facts["bulk"]] or [_NOT_MEASURED]
    rows += [["" if i else "many photos", line] for i, line in enumerate(measured)]
    index = facts.get("index")
    if "index" not in facts:
        rows.append(["index", f"{place}: cannot be used now"])
    elif index is None:
        rows.append(["index", f"none at {place} yet"])
    elif "generation" not in index:
        rows.append(["index", f"{place}: cannot be opened"])
    else:
        made = ", ".join(index[key] for key in ("precision", "quality") if index.get(key))
        pinned = f"{index['backbone']} ({made})" if index["backbone"] else "no backbone yet"
        rows.append(["index", f"{place}: {index['classes']} classes, {index['supports']} photos, {pinned}"])
    if index is not None and "whitened" in index:
        rows.append(["comparison", _WHITENED if index["whitened"] else _PLAIN])
    if index is not None:
        n = len(index["problems"])
        rows.append(["index health", "sound" if n == 0 else f"{n} problem{'s' if n > 1 else ''}"])
    width = max(len(row[0]) for row in rows)
    for name, value in rows:
        echo(f"{click.style(name.ljust(width), bold=True)}  {value}")
    for problem in (index or {}).get("problems", []):
        echo(f"{click.style('problem:', fg='red')} {problem}")
