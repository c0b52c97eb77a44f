"""Folders of photos -> training, validation and test photos, each decoded once."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fewshot import images
from fewshot.datasets import class_folders
from fewshot.errors import RecipeError, TooFewPhotosError, did_you_mean
from fewshot.recipes import Recipe, least_n_way
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


def read_split(recipe: Recipe, data: Path, on_warning: Callable[[str], None] | None = None) -> Split:
    """List the photos of a recipe and split them as it says, the same way every time.

    Args:
        recipe: the settings.
        data: the folder in which the recipe's folders are.
        on_warning: told of photos that lie beside the folders of the classes, and are of none.

    Raises:
        FolderError: a folder is missing or empty.
        RecipeError: `held_out_classes` or `ground_classes` names no class, the test folder holds one that the training
            folder lacks, or the source pattern does not fit the files' names.
        TooFewPhotosError: a class has too few photos to be split, or for P x K batches, or there are too few classes.
    """
    learnable = _read_folder(data / recipe.train_folder, on_warning, recipe.photos_per_class_max or None)
    _check_labels("held_out_classes", recipe.held_out_classes, learnable)
    train = _with_labels(learnable, [label for label in learnable.labels if label not in recipe.held_out_classes])
    if recipe.epochs:
        _check_labels("ground_classes", recipe.ground_classes, train)  # before anything is decoded
    if recipe.test_folder:
        found = _read_folder(data / recipe.test_folder, on_warning)
        _check_tested(found, learnable, recipe)
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


class DecodedPhotos:
    """Sets of photos as `decode_all` gives them, kept for the next training where it wants the same: a grid's cells."""

    def __init__(self) -> None:
        self._kept: dict[tuple[tuple[Path, ...], int, bool], list[Pixels]] = {}

    def of(self, wanted: Sequence[tuple[Photos, int]], grey: bool) -> list[list[Pixels]]:
        """Each set of photos at its short side in pixels; what was kept and is not wanted now is forgotten."""
        keys = [(photos.files, short_side_px, grey) for photos, short_side_px in wanted]
        self._kept = {key: decoded for key, decoded in self._kept.items() if key in keys}  # before more is decoded
        for key, (photos, short_side_px) in zip(keys, wanted, strict=True):
            if key not in self._kept:
                self._kept[key] = decode_all(photos, short_side_px, grey)
        return [self._kept[key] for key in keys]


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


def _read_folder(folder: Path, on_warning: Callable[[str], None] | None, n_max: int | None = None) -> Photos:
    """The photos of each sub-folder, in name order: all, or the first `n_max`."""
    files: list[Path] = []
    classes: list[int] = []
    labels: list[str] = []
    for found in class_folders(folder, on_warning=on_warning):
        chosen = found.photos[:n_max]
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


def _check_tested(tested: Photos, learnable: Photos, recipe: Recipe) -> None:
    """Refuse a class to test on that cannot be learned: left out, it would make the accuracy that of the others."""
    for label in tested.labels:
        if label not in learnable.labels:
            raise RecipeError(
                f"{recipe.test_folder!r} tests a class {label!r} of which {recipe.train_folder!r} has no photos.",
                hint=did_you_mean(label, learnable.labels) or "Add photos to learn it from, or test without it.",
            )


def _with_labels(photos: Photos, labels: Sequence[str]) -> Photos:
    """The photos of `labels`, with class indices into `labels`."""
    place = {label: i for i, label in enumerate(labels)}
    wanted = np.array([place.get(label, -1) for label in photos.labels], np.int64)
    kept = np.flatnonzero(wanted[photos.class_index] >= 0)
    files = tuple(photos.files[row] for row in kept)
    return Photos(files, wanted[photos.class_index[kept]], tuple(labels))


def _split_off(photos: Photos, share: float, recipe: Recipe, salt: int) -> tuple[Photos, Photos]:
    """Two parts, the second holding `share` of each class, by photo or by whole source.

    A source with photos of several classes stays together: where it goes is decided with the first of them.
    """
    rng = np.random.default_rng([recipe.seed, salt])
    sources = _sources(photos, recipe)
    goes_over: dict[str, bool] = {}
    for i, label in enumerate(photos.labels):
        counts = Counter(sources[row] for row in np.flatnonzero(photos.class_index == i))
        wanted = round(share * counts.total())
        n_taken = sum(n for source, n in counts.items() if goes_over.get(source))
        names = list(counts)
        for number in rng.permutation(len(names)):
            source, n = names[number], counts[names[number]]
            if source not in goes_over:
                # A source goes over whole, while that brings the part nearer to the share.
                goes_over[source] = abs(n_taken + n - wanted) < abs(n_taken - wanted)
                n_taken += n if goes_over[source] else 0
        if share > 0 and n_taken in (0, counts.total()):
            what = f"{counts.total()} photos" if recipe.split_by == "photo" else f"photos of {len(counts)} sources"
            raise TooFewPhotosError(f"class {label!r} has {what}: they cannot be split with a share of {share}.")
    apart = np.array([goes_over[source] for source in sources], bool)
    return photos.subset(np.flatnonzero(~apart)), photos.subset(np.flatnonzero(apart))


def _sources(photos: Photos, recipe: Recipe) -> list[str]:
    """The source of each photo; by photo, each its own."""
    if recipe.split_by == "photo":
        return [str(row) for row in range(len(photos))]
    found = []
    for file in photos.files:
        match = re.search(recipe.source_pattern, file.name)
        if match is None or match[1] is None:
            raise RecipeError(f"source_pattern {recipe.source_pattern!r} finds no source (group 1) in {file.name!r}.")
        found.append(match[1])
    return found


def _check_counts(train: Photos, recipe: Recipe) -> None:
    if not recipe.compares_photos or recipe.epochs == 0:
        return
    if len(train.labels) < least_n_way(recipe):
        raise TooFewPhotosError(
            f"there are {len(train.labels)} classes to learn in {recipe.train_folder!r}; the {recipe.quadruplet_form} "
            f"form of the quadruplet loss compares {least_n_way(recipe)}.",
            hint="Add a class, or set quadruplet_form: anchor.",
        )
    counts = np.bincount(train.class_index, minlength=len(train.labels))
    least = int(counts.argmin())
    if counts[least] < recipe.photos_per_class:
        raise TooFewPhotosError(
            f"class {train.labels[least]!r} has {counts[least]} photos to learn from; the {recipe.loss} loss is "
            f"given batches with {recipe.photos_per_class} of each class.",
            hint="Add photos, leave the class out (held_out_classes), or lower photos_per_class.",
        )
