"""Which photos make a batch, and how chance changes them: the same for the same seed and epoch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms

from fewshot.recipes import Recipe
from fewshot.records import Int64s, Pixels

_LUMA = (0.299, 0.587, 0.114)


def n_batches(n_photos: int, batch_size: int) -> int:
    """Batches in an epoch: as many as hold every photo once, the same for every loss."""
    return max(1, math.ceil(n_photos / batch_size))


def shuffled_batches(n_photos: int, batch_size: int, rng: np.random.Generator) -> Iterator[Int64s]:
    """Every photo once, in random order; the sizes of the batches differ by at most one."""
    yield from np.array_split(rng.permutation(n_photos), n_batches(n_photos, batch_size))


def class_batches(
    class_index: Int64s, batch_size: int, photos_per_class: int, rng: np.random.Generator
) -> Iterator[Int64s]:
    """P x K batches: K = `photos_per_class` different photos of each of P = `batch_size` / K classes.

    Where there are fewer than P classes, a batch holds all of them, with as many more photos of each as fill it and
    as the smallest class has. Classes and photos are dealt like cards: none comes twice before all came once.

    Args:
        class_index: (n_photos,) int64; every class in [0, max] has at least K photos.
        batch_size: photos a batch.
        photos_per_class: K.
        rng: source of chance.

    Yields:
        (P * K,) int64 positions in `class_index`.

    Source:
        Hermans et al. 2017, arXiv 1703.07737. pytorch-metric-learning's sampler draws photos again before all were
        seen, and takes its chance from a global generator; this one does neither.
    """
    members = [np.flatnonzero(class_index == i) for i in range(int(class_index.max()) + 1)]
    n_way = min(len(members), batch_size // photos_per_class)
    k = max(photos_per_class, min(batch_size // n_way, min(len(rows) for rows in members)))
    decks: list[list[int]] = [[] for _ in members]
    classes: list[int] = []
    for _ in range(n_batches(len(class_index), batch_size)):
        chosen: list[int] = []
        while len(chosen) < n_way:
            if not classes:
                classes = [int(i) for i in rng.permutation(len(members))]
            # A class already in the batch waits for the next one.
            nearest = next((i for i in classes if i not in chosen), None)
            if nearest is None:
                classes += [int(i) for i in rng.permutation(len(members))]
                continue
            classes.remove(nearest)
            chosen.append(nearest)
        rows: list[int] = []
        for i in chosen:
            dealt: list[int] = []
            while len(dealt) < k:
                if not decks[i]:  # what is in this batch already goes to the bottom; the top is the list's end
                    decks[i] = dealt + [int(row) for row in rng.permutation(members[i]) if row not in dealt]
                dealt.append(decks[i].pop())
            rows += dealt
        yield np.array(rows, np.int64)


def plain_batch(pixels: Pixels) -> torch.Tensor:
    """(n, size, size, 3) uint8 -> (n, 3, size, size) float32 in [0, 1], channels last in memory."""
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return batch.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class Changes:
    """What chance decided for each photo of a batch, before any pixel is touched.

    `crops` holds (top, left, height, width); `factors` (n, 1 or 3, 1, 1) float32, by the change that they are for.
    """

    crops: tuple[tuple[int, int, int, int], ...]
    mirrored: tuple[bool, ...]
    turns: tuple[int, ...]
    factors: dict[str, torch.Tensor]


def drawn_changes(decoded: Sequence[Pixels], recipe: Recipe, rng: np.random.Generator) -> Changes:
    """Let chance decide for a whole batch, so that processes that share it decide the same.

    A random crop has an aspect ratio of 3:4 to 4:3 and at least `crop_min_share` of the photo's area; at 1 it is the
    largest centred square.
    """
    crops, mirrored, turns = [], [], []
    for pixels in decoded:
        crops.append(_crop(pixels.shape[0], pixels.shape[1], recipe.crop_min_share, rng))
        mirrored.append(recipe.flips and bool(rng.random() < 0.5))
        turns.append(int(rng.integers(4)) if recipe.quarter_turns else 0)
    return Changes(tuple(crops), tuple(mirrored), tuple(turns), _drawn_factors(len(decoded), recipe, rng))


def changed(decoded: Sequence[Pixels], image_size_px: int, changes: Changes, wanted: Int64s) -> torch.Tensor:
    """The photos at `wanted`, changed as was decided: (n_wanted, 3, image_size_px, image_size_px) float32 in [0, 1]."""
    views = []
    for i in wanted.tolist():
        top, left, height, width = changes.crops[i]
        view = torch.from_numpy(np.ascontiguousarray(decoded[i])).permute(2, 0, 1)
        size = [image_size_px, image_size_px]
        view = transforms.resized_crop(view, top, left, height, width, size, antialias=True)
        if changes.mirrored[i]:
            view = view.flip(2)
        if changes.turns[i]:
            view = view.rot90(changes.turns[i], (1, 2))
        views.append(view)
    batch = torch.stack(views).float() / 255
    batch = _coloured(batch, {name: factor[wanted] for name, factor in changes.factors.items()})
    return batch.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def _crop(height: int, width: int, min_share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop."""
    side = min(height, width)
    if min_share < 1:
        for _ in range(10):
            area = height * width * rng.uniform(min_share, 1.0)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                return int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1)), high, wide
    return (height - side) // 2, (width - side) // 2, side, side


def _drawn_factors(n: int, recipe: Recipe, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    by = recipe.colour_jitter

    def factor(low: float, high: float, n_channels: int = 1) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (n, n_channels, 1, 1)).astype(np.float32))

    factors = {}
    if by > 0:
        for name in ("brightness", "contrast", "saturation"):
            factors[name] = factor(1 - by, 1 + by)
        factors["white"] = factor(1 - by / 3, 1 + by / 3, 3)
    if recipe.grey_share > 0:
        factors["grey"] = (factor(0, 1) < recipe.grey_share).float()
    return factors


def _coloured(batch: torch.Tensor, factors: dict[str, torch.Tensor]) -> torch.Tensor:
    luma = torch.tensor(_LUMA).view(1, 3, 1, 1)
    if "brightness" in factors:
        batch = batch * factors["brightness"]
        mean = batch.mean((1, 2, 3), keepdim=True)
        batch = (batch - mean) * factors["contrast"] + mean
        grey = (batch * luma).sum(1, keepdim=True)
        batch = (batch - grey) * factors["saturation"] + grey
        batch = batch * factors["white"]
    if "grey" in factors:
        grey = (batch * luma).sum(1, keepdim=True).expand_as(batch)
        batch = torch.where(factors["grey"] > 0, grey, batch)
    return batch


def drawn_partners(n: int, alpha: float, rng: np.random.Generator) -> tuple[Int64s, float]:
    """What chance decides of a mixup, which blends each photo of a batch with another.

    Returns:
        (n,) int64, the position of each photo's partner; the photo's own share, at least one half.
    """
    share = float(rng.beta(alpha, alpha))
    share = max(share, 1 - share)
    return rng.permutation(n), share
