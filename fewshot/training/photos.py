"""Folders of photos -> training, validation and test photos, each decoded once."""

import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fewshot import images
from fewshot.datasets import class_folders
from fewshot.errors import RecipeError, TooFewPhotosError, did_you_mean
from fewshot.recipes import Recipe
from fewshot.records import Float32s, Int64s, Pixels


@dataclass(frozen=True, slots=True)
class Photos:
    """Some photos with their classes: `class_index[i]` is the class of `files[i]`, an index into `labels`."""

    files: tuple[Path, ...]
    class_index: Int64s
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, rows: Int64s) -> "Photos":
        """The photos at `rows`, in that order, with the same labels."""
        return Photos(tuple(self.files[row] for row in rows), self.class_index[rows], self.labels)


@dataclass(frozen=True, slots=True)
class Split:
    """Photos to learn from, to choose the epoch by (empty: none set apart) and to measure on."""

    train: Photos
    validation: Photos
    test: Photos


def read_split(recipe: Recipe, data: Path) -> Split:
    """List the photos of a recipe and split them as it says, the same way every time.

    Raises:
        FolderError: a folder is missing or empty.
        RecipeError: `held_out_classes` or `ground_classes` names no class, or the source pattern does not fit the
            files' names.
        TooFewPhotosError: a class has too few photos to be split, or for P x K batches.
    """
    train = _read_folder(data / recipe.train_folder, recipe)
    _check_labels("held_out_classes", recipe.held_out_classes, train)
    train = _with_labels(train, [label for label in train.labels if label not in recipe.held_out_classes])
    if recipe.epochs:
        _check_labels("ground_classes", recipe.ground_classes, train)  # before anything is decoded
    if recipe.test_folder:
        found = _read_folder(data / recipe.test_folder, recipe)
        test = _with_labels(found, train.labels)
    else:
        train, test = _split_off(train, recipe.test_share, recipe, salt=1)
    train, validation = _split_off(train, recipe.validation_share, recipe, salt=2)
    if len(train.labels) < 2:
        raise TooFewPhotosError(
            f"there is {len(train.labels)} class to learn in {recipe.train_folder!r}; wanted at least 2.",
            hint="Put the photos of each class into a folder of its own.",
        )
    _check_counts(train, recipe)
    return Split(train, validation, test)


def first_rows(photos: Photos, n_shot: int) -> Int64s:
    """The positions of the first `n_shot` photos of each class, by file name, class after class."""
    rows = [np.flatnonzero(photos.class_index == i)[:n_shot] for i in range(len(photos.labels))]
    return np.concatenate(rows)


def decode_all(photos: Photos, short_side_px: int, grey: bool) -> list[Pixels]:
    """Decode each photo, upright, scaled to a short side of `short_side_px`: (height, width, 3) uint8.

    Raises:
        ImageError: a photo cannot be used; a training set with a hole would not be the same set twice.
    """

    def decode(file: Path) -> Pixels:
        image, _ = images.decode(images.read_bytes(file), file.name, short_side_px)
        if grey:
            image = image.convert("L").convert("RGB")
        scale = short_side_px / min(image.size)
        size = (max(short_side_px, round(image.width * scale)), max(short_side_px, round(image.height * scale)))
        # A copy: torch refuses to share memory that it may not write.
        return np.array(image.resize(size, Image.Resampling.BICUBIC) if size != image.size else image)

    with ThreadPoolExecutor() as threads:
        return list(threads.map(decode, photos.files))


def fit_all(decoded: Sequence[Pixels], image_size_px: int, crop_pct: float) -> Pixels:
    """The plain view of decoded photos, as in use: centre crops, (n, image_size_px, image_size_px, 3) uint8."""
    views = np.empty((len(decoded), image_size_px, image_size_px, 3), np.uint8)
    for view, pixels in zip(views, decoded, strict=True):
        view[:] = images.fit_to_input(
            Image.fromarray(pixels), image_size_px=image_size_px, crop_pct=crop_pct, interpolation="bicubic"
        )
    return views


def channel_statistics(decoded: Sequence[Pixels]) -> tuple[Float32s, Float32s]:
    """Mean and standard deviation of each RGB channel over all pixels, in [0, 1]; every photo weighs the same."""
    means = np.array([pixels.reshape(-1, 3).mean(axis=0) for pixels in decoded], np.float64) / 255
    squares = np.array([np.square(pixels.reshape(-1, 3), dtype=np.float32).mean(axis=0) for pixels in decoded]) / 255**2
    mean = means.mean(axis=0)
    variance = squares.mean(axis=0, dtype=np.float64) - mean**2
    return mean.astype(np.float32), np.sqrt(np.maximum(variance, 1e-6)).astype(np.float32)


def _read_folder(folder: Path, recipe: Recipe) -> Photos:
    files: list[Path] = []
    classes: list[int] = []
    labels: list[str] = []
    for found in class_folders(folder):
        chosen = found.photos[: recipe.photos_per_class_max or None]
        if chosen:
            files += chosen
            classes += [len(labels)] * len(chosen)
            labels.append(found.label)
    return Photos(tuple(files), np.array(classes, np.int64), tuple(labels))


def _check_labels(key: str, named: Sequence[str], photos: Photos) -> None:
    """Refuse classes that a recipe's key names and that there are not; suggest the nearest."""
    for label in named:
        if label not in photos.labels:
            raise RecipeError(f"{key}: there is no class {label!r}.", hint=did_you_mean(label, photos.labels))


def _with_labels(photos: Photos, labels: Sequence[str]) -> Photos:
    """The photos of `labels`, with class indices into `labels`."""
    place = {label: i for i, label in enumerate(labels)}
    wanted = np.array([place.get(label, -1) for label in photos.labels], np.int64)
    kept = np.flatnonzero(wanted[photos.class_index] >= 0)
    files = tuple(photos.files[row] for row in kept)
    return Photos(files, wanted[photos.class_index[kept]], tuple(labels))


def _split_off(photos: Photos, share: float, recipe: Recipe, salt: int) -> tuple[Photos, Photos]:
    """Two parts, the second holding `share` of each class, by photo or by whole source."""
    rng = np.random.default_rng([recipe.seed, salt])
    apart: list[int] = []
    for i, label in enumerate(photos.labels):
        rows = np.flatnonzero(photos.class_index == i)
        groups = _groups(photos, rows, recipe)
        wanted = round(share * len(rows))
        taken: list[int] = []
        for number in rng.permutation(len(groups)):
            # A source goes over whole, while that brings the part nearer to the share.
            if abs(len(taken) + len(groups[number]) - wanted) < abs(len(taken) - wanted):
                taken += groups[number]
        if share > 0 and (not taken or len(taken) == len(rows)):
            what = f"{len(rows)} photos" if recipe.split_by == "photo" else f"photos of {len(groups)} sources"
            raise TooFewPhotosError(f"class {label!r} has {what}: they cannot be split with a share of {share}.")
        apart += taken
    second = np.array(sorted(apart), np.int64)
    first = np.setdiff1d(np.arange(len(photos)), second)
    return photos.subset(first), photos.subset(second)


def _groups(photos: Photos, rows: Int64s, recipe: Recipe) -> list[list[int]]:
    """The rows of each source; by photo, each row alone."""
    if recipe.split_by == "photo":
        return [[int(row)] for row in rows]
    by_source: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        name = photos.files[row].name
        match = re.search(recipe.source_pattern, name)
        if match is None or not match.groups():
            raise RecipeError(f"source_pattern {recipe.source_pattern!r} finds no source (group 1) in {name!r}.")
        by_source[match.group(1)].append(int(row))
    return list(by_source.values())


def _check_counts(train: Photos, recipe: Recipe) -> None:
    if recipe.loss not in ("contrastive", "triplet", "quadruplet") or recipe.epochs == 0:
        return
    counts = np.bincount(train.class_index, minlength=len(train.labels))
    least = int(counts.argmin())
    if counts[least] < recipe.photos_per_class:
        raise TooFewPhotosError(
            f"class {train.labels[least]!r} has {counts[least]} photos to learn from; the {recipe.loss} loss is "
            f"given batches with {recipe.photos_per_class} of each class.",
            hint="Add photos, leave the class out (held_out_classes), or lower photos_per_class.",
        )
