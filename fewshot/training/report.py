"""A finished training -> results.json, report.md, curves as PNG, and TensorBoard logs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewshot.evaluation.metrics import Interval, Metrics, PrototypeAccuracy, crop_of
from fewshot.recipes import Recipe
from fewshot.training.checkpoints import as_write_error, write_whole
from fewshot.training.networks import Origin
from fewshot.training.progress import EpochRow, Scores, best_row


@dataclass(frozen=True, slots=True)
class Report:
    """What one training came to. `test` is of the head, else of the loss's own classifier, else None."""

    name: str
    cell: str
    folder: Path
    recipe: Recipe
    origin: Origin
    labels: tuple[str, ...]
    n_photos: dict[str, int]
    n_cut_out: int  # training photos whose leaf may be put in front of other surroundings
    backbone_rows: tuple[EpochRow, ...]
    head_rows: tuple[EpochRow, ...]
    classifier: str | None  # "head", "loss" or None
    test: Metrics | None
    prototype: PrototypeAccuracy | None
    n_shot: int  # photos of a class in its prototype, or all there are where a class has fewer
    embed_seconds: float  # once through the backbone, all photos: what a frozen backbone costs instead of epochs
    machine: dict[str, str]
    n_train: tuple[int, ...]  # training photos of each class
    no_prototype: str = ""  # why there is no `prototype`, though there are test photos

    @property
    def support(self) -> str:
        """How many photos of a class made its prototype: one number, or the least to the most."""
        least, most = (min(self.n_shot, n) for n in (min(self.n_train), max(self.n_train)))
        return str(most) if least == most else f"{least} to {most}"

    @property
    def mean_epoch_seconds(self) -> float | None:
        """Mean training time of an epoch: of the backbone, or of the head where the backbone had none."""
        rows = self.backbone_rows or self.head_rows
        return sum(row.seconds for row in rows) / len(rows) if rows else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: what results.json holds."""
        return {
            "name": self.name,
            "cell": self.cell,
            "recipe": self.recipe.as_dict(),
            "backbone": self.origin.name,
            "architecture": self.origin.architecture,
            "first_weights": self.origin.weights,
            "labels": list(self.labels),
            "n_photos": self.n_photos,
            "n_cut_out": self.n_cut_out,
            "mean_epoch_seconds": self.mean_epoch_seconds,
            "embed_seconds": self.embed_seconds,
            "classifier": self.classifier,
            "test": self.test.as_dict() if self.test else None,
            "prototype": self.prototype.as_dict() if self.prototype else None,
            "no_prototype": self.no_prototype,
            "n_shot": self.n_shot,
            "n_train": list(self.n_train),
            "backbone_epochs": [row.as_dict() for row in self.backbone_rows],
            "head_epochs": [row.as_dict() for row in self.head_rows],
            "machine": self.machine,
        }


def write_report(report: Report) -> None:
    """Write the four forms of a report into its folder.

    Raises:
        TrainingDiskFullError: no space left.
    """
    folder = report.folder
    text = json.dumps(report.as_dict(), indent=1) + "\n"
    write_whole(folder / "results.json", text.encode())
    write_whole(folder / "report.md", markdown(report).encode())
    _write_curves(report, folder / "curves.png")
    try:
        _write_tensorboard(report, folder / "tensorboard")
    except OSError as error:
        raise as_write_error(folder / "tensorboard", error) from error


def markdown(report: Report) -> str:
    """The report as a page to read."""
    recipe, origin = report.recipe, report.origin
    weights = {
        "imagenet": "ImageNet weights",
        "trained": "its trained weights",
        "file": "the file's weights",
        "random": "random weights",
    }[origin.weights]
    title = f"# {report.name}" + (f": {report.cell}" if report.cell else "")
    counts = ", ".join(f"{n} {part}" for part, n in report.n_photos.items() if n)
    lines = [title, "", f"Backbone {origin.name} ({origin.architecture}, starting from **{weights}**)."]
    lines += [f"{len(report.labels)} classes; photos: {counts}."]
    if report.n_cut_out:
        lines.append(f"Of the training photos {report.n_cut_out} show a leaf on a plain ground that could be cut out.")
    lines.append("")
    lines += _summary(report)
    if report.no_prototype:
        lines += ["", f"No nearest-prototype accuracy could be measured: {report.no_prototype}"]
    if recipe.keep == "best" or recipe.patience:
        by = "validation photos" if report.n_photos.get("validation") else "test photos themselves, which flatters them"
        lines += ["", f"The epoch was chosen by the {by}."]
    for heading, rows in (("Backbone", report.backbone_rows), ("Head", report.head_rows)):
        if rows:
            lines += ["", f"## {heading}, epoch by epoch", "", *_epoch_table(rows, recipe.keep)]
    if report.test:
        lines += ["", "## Per class", "", "| class | photos | precision | recall | F1 |", "|---|---:|---:|---:|---:|"]
        lines += [
            f"| {c.label} | {c.n} | {c.precision:.3f} | {c.recall:.3f} | {c.f1:.3f} |" for c in report.test.classes
        ]
        lines += ["", "## Confusion", "", *_confusion(report.test, report.labels)]
    lines += ["", "## Recipe", "", "```yaml"]
    lines += [f"{key}: {json.dumps(value)}" for key, value in recipe.as_dict().items()]
    lines += ["```", "", "Machine: " + ", ".join(f"{key} {value}" for key, value in report.machine.items()) + ".", ""]
    return "\n".join(lines)


def _summary(report: Report) -> list[str]:
    lines = ["| measure | value |", "|---|---|"]
    if report.test:
        who = "head (two linear layers)" if report.classifier == "head" else "the loss's own classifier"
        lines += [
            f"| accuracy, {who} | {_percent(report.test.accuracy)} |",
            f"| precision, recall, F1 (weighted) | {report.test.precision:.3f}, {report.test.recall:.3f}, "
            f"{report.test.f1:.3f} |",
        ]
    if report.prototype:
        lines += [
            f"| nearest prototype ({report.support} photos a class) | {_percent(report.prototype.top1)} |",
            f"| the same, right among the first three | {_percent(report.prototype.top3)} |",
        ]
        if len({crop_of(label) for label in report.labels}) < len(report.labels):  # else it is always right
            within = _percent(report.prototype.within_crop)
            lines.append(f"| the same, among the classes of the photo's crop | {within} |")
    if report.mean_epoch_seconds is not None:
        part = "backbone" if report.backbone_rows else "head"
        lines.append(f"| mean epoch processing time ({part}) | {report.mean_epoch_seconds:.2f} s |")
    if report.head_rows:
        lines.append(f"| embedding every photo once, for the head | {report.embed_seconds:.1f} s |")
    return lines


def _epoch_table(rows: Sequence[EpochRow], keep: str) -> list[str]:
    chosen = best_row(rows).epoch if keep == "best" else None
    parts = ["train", "validation", "test"] if any(row.validation for row in rows) else ["train", "test"]
    lines = ["| epoch | s |" + "".join(f" {part} loss | acc | prec | rec | F1 |" for part in parts)]
    lines.append("|---:|---:|" + "---:|" * 5 * len(parts))
    for row in rows:
        cells = [f"{row.epoch}{' (best)' if row.epoch == chosen else ''}", f"{row.seconds:.2f}"]
        for part in parts:
            scores = getattr(row, part) or Scores()
            values = (scores.loss, scores.accuracy, scores.precision, scores.recall, scores.f1)
            cells += ["-" if value is None else f"{value:.3f}" for value in values]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _confusion(metrics: Metrics, labels: Sequence[str]) -> list[str]:
    """Up to 12 classes as a matrix; beyond, the pairs that are taken for each other, most frequent first."""
    if len(labels) <= 12:
        lines = ["| true \\ answered | " + " | ".join(labels) + " |", "|---|" + "---:|" * len(labels)]
        rows = zip(labels, metrics.confusion, strict=True)
        return lines + [f"| {label} | " + " | ".join(str(count) for count in row) + " |" for label, row in rows]
    wrong = [
        (count, labels[i], labels[j])
        for i, row in enumerate(metrics.confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    wrong.sort(key=lambda entry: -entry[0])
    lines = ["The 20 most frequent mistakes; results.json holds the whole matrix.", ""]
    lines += ["| photos | true | answered |", "|---:|---|---|"]
    return lines + [f"| {count} | {true} | {answered} |" for count, true, answered in wrong[:20]]


def _percent(interval: Interval) -> str:
    return f"{100 * interval.share:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f}, n = {interval.n})"


def _write_curves(report: Report, file: Path) -> None:
    import io

    from matplotlib.figure import Figure

    phases = [(name, rows) for name, rows in (("backbone", report.backbone_rows), ("head", report.head_rows)) if rows]
    if not phases:
        return
    figure = Figure(figsize=(10, 3.6 * len(phases)), layout="constrained")
    axes = figure.subplots(len(phases), 2, squeeze=False)
    for (name, rows), (loss_axis, accuracy_axis) in zip(phases, axes, strict=True):
        epochs = [row.epoch for row in rows]
        for axis, measured in ((loss_axis, "loss"), (accuracy_axis, "accuracy")):
            for part in ("train", "validation", "test"):
                values = [getattr(getattr(row, part), measured, None) for row in rows]
                if any(value is not None for value in values):
                    numbers = [float("nan") if value is None else value for value in values]
                    axis.plot(epochs, numbers, label=part, marker="." if len(rows) < 3 else "")
            axis.set(title=f"{name}: {measured}", xlabel="epoch")
            axis.grid(alpha=0.3)
            if axis.has_data():
                axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_whole(file, buffer.getvalue())


def _write_tensorboard(report: Report, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.*"):  # a resumed run writes all its epochs again
        old.unlink()
    writer = SummaryWriter(str(folder))
    try:
        for phase, rows in (("backbone", report.backbone_rows), ("head", report.head_rows)):
            for row in rows:
                for part in ("train", "validation", "test"):
                    scores = getattr(row, part)
                    for measured in ("loss", "accuracy", "precision", "recall", "f1"):
                        value = getattr(scores, measured, None)
                        if value is not None:
                            writer.add_scalar(f"{phase}/{measured}/{part}", value, row.epoch)
                writer.add_scalar(f"{phase}/seconds", row.seconds, row.epoch)
    finally:
        writer.close()
