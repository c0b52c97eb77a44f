"""A recipe file -> one training a cell, each in its own folder with its report."""

import dataclasses
import hashlib
import json
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from fewshot import __version__
from fewshot.backbones import FACTS_FILE, PORTABLE_FILE, STATISTICS_FILE, WEIGHTS_FILE, resolve, source_key
from fewshot.errors import (
    FewshotError,
    NotFiniteError,
    PrototypeError,
    TrainingError,
    TrainingStoppedError,
    WeightsUnreachableError,
)
from fewshot.evaluation.metrics import Metrics, PrototypeAccuracy, measure, prototype_accuracy
from fewshot.networks import load
from fewshot.portable import export_onnx
from fewshot.recipes import BASELINES, Cell, Recipe, read_plan
from fewshot.records import Float32s
from fewshot.training.backbone_phase import N_SHOT, BackbonePhase, Prepared
from fewshot.training.checkpoints import write_whole
from fewshot.training.grounds import find_grounds
from fewshot.training.head_phase import Features, head_logits, train_head
from fewshot.training.networks import Head, Trainee, build_trainee, training_size_px
from fewshot.training.photos import (
    DecodedPhotos,
    Photos,
    Split,
    channel_statistics,
    first_rows,
    fit_all,
    read_split,
)
from fewshot.training.processes import Processes, joined
from fewshot.training.progress import EpochRow, OnProgress, Progress
from fewshot.training.report import Report, write_report
from fewshot.training.teachers import load_teachers
from fewshot.transforms import measure_statistics, pack_statistics

_DEFAULTS = Recipe().as_dict()
_DECODE_MARGIN = 1.15  # training photos keep this much more than the network's input, for crops


def train(
    recipe_file: Path,
    data: Path,
    out: Path,
    *,
    only: str | None = None,
    on_progress: OnProgress | None = None,
    on_cell: Callable[[Report], None] | None = None,
    on_failed: Callable[[str, FewshotError], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> list[Report]:
    """Train every cell of a recipe file, or those that `only` picks. Epochs already trained are not trained again.

    Args:
        recipe_file: the YAML.
        data: the folder in which the recipe's folders are.
        out: where results go: one folder a recipe, in it one a cell of a grid.
        only: `key=value,key=value`, see `recipes.read_plan`.
        on_progress: called after every batch.
        on_cell: called with each cell's report as it is finished.
        on_failed: called with the name of each cell of a grid that fails, and its error.
        on_warning: told once, whatever the number of cells, of each folder in which photos lie that are of no class.

    Returns:
        One report a cell, in order; of several processes that torchrun started, the first alone gets them.

    Raises:
        RecipeError, FolderError, TooFewPhotosError: it cannot start.
        TrainingStoppedError: Ctrl-C; the same call goes on from the last whole epoch, if there is one.
        WeightsUnreachableError, NotFiniteError: it cannot start or go on; the last good epoch is kept. In a grid the
            other cells are trained first, then a TrainingError names those that failed.
        TrainingDiskFullError: it cannot go on; the last good epoch is kept.
    """
    plan = read_plan(recipe_file, only)
    reports = []
    failed: list[str] = []
    told: set[str] = set()
    decoded = DecodedPhotos()
    with joined() as processes:

        def warn_once(sentence: str) -> None:
            if on_warning is not None and processes.is_first and sentence not in told:
                told.add(sentence)
                on_warning(sentence)

        for cell in plan.cells:
            folder = out / plan.name / _folder_name(cell.name) if cell.name else out / plan.name
            shown = on_progress if on_progress is not None and processes.is_first else _unseen
            try:
                split = read_split(cell.recipe, data, warn_once)
                report = train_cell(plan.name, cell, split, folder, shown, processes, decoded)
            except KeyboardInterrupt as error:
                raise _stopped(plan.name, cell.name, folder) from error
            except (WeightsUnreachableError, NotFiniteError) as error:
                # Of several processes one may fail alone, and must not begin the next cell while the others wait.
                if len(plan.cells) == 1 or processes.n > 1:
                    raise
                failed.append(f"{cell.name}: {error.message}")
                if on_failed is not None:
                    on_failed(cell.name, error)
                continue
            if report is None:
                continue
            reports.append(report)
            if on_cell is not None:
                on_cell(report)
    if failed:
        raise TrainingError(
            f"{len(failed)} of the {len(plan.cells)} trainings of {plan.name} failed. {' '.join(failed)}",
            hint="Put this right, then pick these alone with --only; what is trained is kept.",
        )
    return reports


def train_cell(
    name: str,
    cell: Cell,
    split: Split,
    folder: Path,
    on_progress: OnProgress,
    processes: Processes,
    decoded: DecodedPhotos,
) -> Report | None:
    """One training, from photos to report, None in all processes but the first; see `train` for what it raises."""
    recipe = cell.recipe
    _claim(folder, recipe, split, processes)
    trainee, prepared = prepare(recipe, split, decoded)
    phase: BackbonePhase | None = None
    if recipe.epochs:
        phase = BackbonePhase(recipe, trainee, prepared, folder / "checkpoint", cell.name, processes)
        phase.run(on_progress)
    trainee.to(processes.device)
    started = time.monotonic()
    train_set, validation, test = (
        Features(processes.embed(trainee, pixels), photos.class_index)
        for photos, pixels in (
            (split.train, prepared.train),
            (split.validation, prepared.validation),
            (split.test, prepared.test),
        )
    )
    embed_seconds = time.monotonic() - started
    if not processes.is_first:
        return None
    head: Head | None = None
    head_rows: list[EpochRow] = []
    if recipe.head == "mlp" and recipe.head_epochs:
        head, head_rows = train_head(recipe, train_set, validation, test, split.train.labels, cell.name, on_progress)
    logits = None
    if len(split.test):
        if head is not None:
            logits = head_logits(head, test.embeddings)
        elif phase is not None and recipe.interpolation == 1:
            # Interpolated weights no longer fit the classifier that was trained with the loss.
            logits = phase.logits(test.embeddings)
    prototype, no_prototype = _prototypes(split, train_set, test)
    report = Report(
        name=name,
        cell=cell.name,
        folder=folder,
        recipe=recipe,
        origin=trainee.origin,
        labels=split.train.labels,
        n_photos={"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
        n_cut_out=prepared.grounds.n_cut_out if prepared.grounds else 0,
        backbone_rows=tuple(phase.rows) if phase else (),
        head_rows=tuple(head_rows),
        classifier=None if logits is None else ("head" if head is not None else "loss"),
        test=_metrics(logits, split.test),
        prototype=prototype,
        n_shot=N_SHOT,
        embed_seconds=embed_seconds,
        machine=_machine(processes),
        n_train=tuple(np.bincount(split.train.class_index).tolist()),
        no_prototype=no_prototype,
    )
    _write_backbone(folder, trainee, recipe, head, train_set, split.train.labels)
    write_report(report)
    return report


def prepare(recipe: Recipe, split: Split, kept: DecodedPhotos) -> tuple[Trainee, Prepared]:
    """The networks and the decoded photos; networks first, so that missing weights are told before the decoding."""
    torch.manual_seed(recipe.seed)  # random first weights
    trainee, teachers = build_trainee(recipe), load_teachers(recipe)
    short_side_px = trainee.preprocessing.short_side_px
    learning_px = round(training_size_px(recipe, trainee) * _DECODE_MARGIN)
    grey = recipe.backbone in BASELINES
    train_px = max(learning_px, short_side_px) if recipe.epochs else short_side_px
    wanted = [(split.train, train_px), (split.validation, short_side_px), (split.test, short_side_px)]
    decoded, *others = kept.of(wanted, grey)
    if recipe.normalisation == "dataset":
        trainee.normalise_by(*channel_statistics(decoded))
    size, crop_pct = trainee.preprocessing.image_size_px, trainee.preprocessing.crop_pct
    train, validation, test = (fit_all(each, size, crop_pct) for each in (decoded, *others))
    grounds = find_grounds(recipe, split.train, decoded) if recipe.epochs else None
    return trainee, Prepared(split, decoded, grounds, train, validation, test, teachers)


def _metrics(logits: Float32s | None, test: Photos) -> Metrics | None:
    if logits is None:
        return None
    return measure(test.class_index, logits.argmax(axis=1).astype(np.int64), test.labels)


def _prototypes(split: Split, train_set: Features, test: Features) -> tuple[PrototypeAccuracy | None, str]:
    """Nearest-prototype accuracy on the test photos, with the first photos of each class as its support; else why not.

    A baseline ends in ReLU and may embed a photo to zeros, which its head and its loss take: the training is kept.
    """
    if len(split.test) == 0:
        return None, ""
    rows = first_rows(split.train, N_SHOT)
    labels = split.train.labels
    supports, queries = ([labels[i] for i in index] for index in (train_set.class_index[rows], test.class_index))
    try:
        return prototype_accuracy(train_set.embeddings[rows], supports, test.embeddings, queries), ""
    except PrototypeError as error:
        return None, error.message


def _write_backbone(
    folder: Path, trainee: Trainee, recipe: Recipe, head: Head | None, train_set: Features, labels: tuple[str, ...]
) -> None:
    """What an index needs of the trained backbone: float16 weights, preprocessing, and the classes' statistics."""
    half = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in trainee.network.state_dict().items()
    }
    write_whole(folder / WEIGHTS_FILE, save(half, {"architecture": trainee.origin.architecture}))
    statistics = measure_statistics(train_set.embeddings, train_set.class_index)
    write_whole(folder / STATISTICS_FILE, pack_statistics(statistics))
    if head is not None:
        write_whole(folder / "head.safetensors", save(head.state_dict()))
    facts = {
        "architecture": trainee.origin.architecture,
        "started_from": dataclasses.asdict(trainee.origin),
        "preprocessing": trainee.preprocessing.as_dict(),
        "dim": trainee.dim,
        "labels": list(labels),
        "recipe": recipe.as_dict(),
        "fewshot": __version__,
    }
    write_whole(folder / FACTS_FILE, (json.dumps(facts, indent=1) + "\n").encode())
    if recipe.backbone not in BASELINES:  # which no index can use
        write_portable(folder)


def write_portable(folder: Path) -> None:
    """Put a trained backbone beside its weights as ONNX, and describe it, so that it can be used without torch."""
    backbone, network = load(resolve(f"{folder}/"))
    onnx = export_onnx(network, backbone.preprocessing.image_size_px)
    facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    facts |= {"weights_sha256": backbone.weights_sha256, "onnx_sha256": hashlib.sha256(onnx).hexdigest()}
    write_whole(folder / PORTABLE_FILE, onnx)
    write_whole(folder / FACTS_FILE, (json.dumps(facts, indent=1) + "\n").encode())


def _claim(folder: Path, recipe: Recipe, split: Split, processes: Processes) -> None:
    """Note what a folder is for; refuse one that holds another training.

    A folder without a whole epoch or a report holds none, whatever was tried there. Photos are known by their names and
    sizes, the weights that the recipe names by their content, each where an earlier version noted it.

    Raises:
        TrainingError: another recipe, from other weights or with other photos, was trained there, or other processes
            have others.
        WeightsUnreachableError: weights that the recipe names are not on this machine.
    """
    listing = [
        (f"{part}/{split_part.labels[i]}/{file.name}", str(_n_bytes(file)))
        for part, split_part in _parts(split)
        for file, i in zip(split_part.files, split_part.class_index, strict=True)
    ]
    names, sizes = (hashlib.sha256("\n".join(each).encode()).hexdigest() for each in zip(*listing, strict=True))
    settings = recipe.as_dict()
    weights = {name: source_key(resolve(name)) for name in _named_weights(recipe)}
    wanted = {"recipe": settings, "photos": names, "sizes": sizes, "weights": weights}
    processes.check_same("a recipe, weights or photos", json.dumps(wanted))
    if not processes.is_first:
        return
    file = folder / "run.json"
    is_trained = _has_whole_epoch(folder) or (folder / "results.json").exists()
    if not (is_trained and file.exists()):
        write_whole(file, (json.dumps(wanted, indent=1) + "\n").encode())
        return
    try:
        found = json.loads(file.read_text())
        before = found["recipe"]
        # What a recipe could not say yet was as it is now by default.
        changed = [key for key, value in settings.items() if before.get(key, _DEFAULTS[key]) != value]
    except (ValueError, KeyError, AttributeError) as error:
        raise TrainingError(f"{file} is damaged.", hint="Remove its folder, or choose another --out.") from error
    earlier = found.get("weights", weights)
    others = [name for name, key in weights.items() if earlier.get(name) != key]
    if changed:
        what = f"another {', '.join(changed)}"
    elif others:
        what = f"other weights of {', '.join(others)}"
    elif found.get("photos") != names or found.get("sizes", sizes) != sizes:
        what = "other photos"
    else:
        return
    raise TrainingError(
        f"{folder} holds a training with {what}.", hint="Choose another folder with --out, or remove this one."
    )


def _stopped(name: str, cell: str, folder: Path) -> TrainingStoppedError:
    """What to say of a stopped training: what of it is kept, and how it goes on."""
    where = f"{name} ({cell})" if cell else name
    if _has_whole_epoch(folder):
        return TrainingStoppedError(f"stopped in {where}; whole epochs are kept in {folder}.")
    return TrainingStoppedError(
        f"stopped in {where}; no epoch was finished.",
        hint="Run the same command again: it begins this training anew.",
    )


def _has_whole_epoch(folder: Path) -> bool:
    return (folder / "checkpoint" / "last.safetensors").exists()


def _named_weights(recipe: Recipe) -> list[str]:
    """The backbones whose weights a training begins with or learns from."""
    starts = [] if recipe.weights == "random" else [recipe.backbone]
    return [*starts, *(recipe.teachers if recipe.epochs else ())]


def _n_bytes(file: Path) -> int:
    """A photo's size; 0 where it cannot be found, which the decoding refuses with its reason."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _parts(split: Split) -> list[tuple[str, Photos]]:
    return [("train", split.train), ("validation", split.validation), ("test", split.test)]


def _folder_name(cell: str) -> str:
    """A cell's name as a folder: `loss=arcface normalisation=dataset` -> `loss-arcface_normalisation-dataset`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", cell.replace(" ", "_").replace("=", "-"))


def _machine(processes: Processes) -> dict[str, str]:
    device = processes.device
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "fewshot": __version__,
        **({"processes": str(processes.n)} if processes.n > 1 else {}),
    }


def _unseen(progress: Progress) -> None:
    """What is done with the progress of a training that nobody watches."""
