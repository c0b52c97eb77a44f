"""Leaves photographed on a plain ground -> the same leaves in front of what other photos show."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fewshot.errors import RecipeError
from fewshot.recipes import Recipe
from fewshot.records import Int64s, Pixels
from fewshot.training.photos import Photos

# What a photo must show for its leaf to be cut out; lightness and colour in units of CIELAB.
_LEAST_APART = 10.0  # leaf and ground, by their mean leafness
_MOST_LEAFNESS = 8.0  # of the ground, its median
_MOST_TEXTURE = 1.6  # of the ground, mean absolute Laplacian of the lightness
_LEAF_SHARES = (0.08, 0.93)  # of the photo's area
_LEAST_GROUND = 0.05  # of the photo's area, before small parts are dropped
_LEAST_PART = 0.1  # of the largest part's area; smaller ones are dirt
_CLOSED_PX = 10  # gaps narrower than about twice this are closed
_ZERO_LEVEL = 64  # a leafness of 0, among the 256 levels that a threshold is looked for in
# How the leaf is placed anew, and what is taken from the lender.
_SCALES = (0.7, 1.3)
_DEGREES = 30.0
_SHIFT = 0.15  # of each side
_LENT_AREA = (0.2, 1.0)
_BLUR_PX = (1.0, 6.0)
_BRIGHTNESS = (0.5, 1.1)


@dataclass(frozen=True, slots=True)
class NewGround:
    """What chance decided for one photo: which photo lends the ground, and how the two are put together."""

    lender: int
    scale: float
    degrees: float
    shift: tuple[float, float]
    lent_area: float
    lent_corner: tuple[float, float]
    turns: int
    mirrored: bool
    blur_px: float
    brightness: float


@dataclass(frozen=True, slots=True)
class Grounds:
    """Where the leaf is in each training photo, and whose photos lend grounds.

    `masks` has an entry a photo: (height, width) uint8, 255 on the leaf, or None where nothing could be cut out.
    `lenders` are rows of training photos.
    """

    masks: tuple[Pixels | None, ...]
    lenders: Int64s

    @property
    def n_cut_out(self) -> int:
        """In how many photos there is a leaf that can be put elsewhere."""
        return sum(mask is not None for mask in self.masks)

    def drawn(self, rows: Int64s, share: float, rng: np.random.Generator) -> list[NewGround | None]:
        """Let chance decide for a whole batch, so that processes that share it decide the same."""
        return [self._drawn_one(rng) if self.masks[row] is not None and rng.random() < share else None for row in rows]

    def behind(self, pixels: Pixels, row: int, new: NewGround | None, decoded: Sequence[Pixels]) -> Pixels:
        """The photo at `row` with its new ground, or as it is where chance decided for none."""
        mask = self.masks[row]
        return pixels if new is None or mask is None else replaced(pixels, mask, decoded[new.lender], new)

    def _drawn_one(self, rng: np.random.Generator) -> NewGround:
        return NewGround(
            lender=int(rng.choice(self.lenders)),
            scale=float(rng.uniform(*_SCALES)),
            degrees=float(rng.uniform(-_DEGREES, _DEGREES)),
            shift=(float(rng.uniform(-_SHIFT, _SHIFT)), float(rng.uniform(-_SHIFT, _SHIFT))),
            lent_area=float(rng.uniform(*_LENT_AREA)),
            lent_corner=(float(rng.random()), float(rng.random())),
            turns=int(rng.integers(4)),
            mirrored=bool(rng.random() < 0.5),
            blur_px=float(rng.uniform(*_BLUR_PX)) if rng.random() < 0.5 else 0.0,
            brightness=float(rng.uniform(*_BRIGHTNESS)),
        )


def find_grounds(recipe: Recipe, photos: Photos, decoded: Sequence[Pixels]) -> Grounds | None:
    """Cut the leaves out of all photos but those of the recipe's `ground_classes`; None where no ground is replaced.

    Raises:
        RecipeError: there is no leaf to cut out.
    """
    if recipe.new_ground == 0:
        return None
    lends = np.isin(photos.class_index, [photos.labels.index(label) for label in recipe.ground_classes])
    masks = [None if lent else leaf_mask(pixels) for lent, pixels in zip(lends, decoded, strict=True)]
    if all(mask is None for mask in masks):
        raise RecipeError(
            "new_ground: no photo shows a leaf on a plain ground.",
            hint="Set new_ground to 0 and leave out ground_classes.",
        )
    return Grounds(tuple(masks), np.flatnonzero(lends))


def leaf_mask(pixels: Pixels) -> Pixels | None:
    """Where a photo shows a leaf, if the rest is a plain ground.

    Leaves, green to brown, are yellower than paper, cloth, a laboratory's bench or the dark: one threshold on that
    colour parts the two, and what the leaf encloses (a bleached spot, a powdery film) belongs to it.

    Args:
        pixels: (height, width, 3) uint8, RGB.

    Returns:
        (height, width) uint8, 255 on the leaf, softened at its edge; None where leaf and ground are not apart, or the
        ground has colour or texture of its own.

    Source:
        Otsu 1979, "A threshold selection method from gray-level histograms".
    """
    lightness, red, yellow = cv2.split(cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
    leafness = cv2.GaussianBlur(yellow - red / 2, (0, 0), 2)
    levels = np.clip(np.rint(leafness) + _ZERO_LEVEL, 0, 255).astype(np.uint8)
    _, found = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    ground, leaf = leafness[found == 0], leafness[found == 1]
    if len(ground) < _LEAST_GROUND * found.size or not len(leaf):
        return None
    if leaf.mean() - ground.mean() < _LEAST_APART or np.median(ground) > _MOST_LEAFNESS:
        return None
    whole = _without_holes(_large_parts(found))
    if not _LEAF_SHARES[0] <= whole.mean() <= _LEAF_SHARES[1]:
        return None
    away = cv2.dilate(whole, _disc(4)) == 0
    texture = np.abs(cv2.Laplacian(cv2.GaussianBlur(lightness, (0, 0), 1), cv2.CV_32F))
    if away.any() and texture[away].mean() > _MOST_TEXTURE:
        return None
    inner = cv2.erode(whole, _disc(1))
    return np.asarray(cv2.GaussianBlur(inner * np.uint8(255), (0, 0), 1))


def replaced(pixels: Pixels, mask: Pixels, lender: Pixels, new: NewGround) -> Pixels:
    """The photo's leaf, placed anew, in front of a part of the lender: (height, width, 3) uint8, as large as before."""
    height, width = mask.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), new.degrees, new.scale)
    turn[:, 2] += np.array(new.shift) * (width, height)
    leaf = cv2.warpAffine(pixels, turn, (width, height))
    cover = cv2.warpAffine(mask, turn, (width, height))[..., None].astype(np.float32) / 255
    side = max(1, round(min(lender.shape[:2]) * new.lent_area**0.5))
    top, left = (round(by * (length - side)) for by, length in zip(new.lent_corner, lender.shape, strict=False))
    lent = np.rot90(lender[top : top + side, left : left + side], new.turns)
    ground = cv2.resize(np.ascontiguousarray(lent[:, ::-1] if new.mirrored else lent), (width, height))
    if new.blur_px:
        ground = cv2.GaussianBlur(ground, (0, 0), new.blur_px)
    put = leaf * cover + ground * (np.float32(new.brightness) * (1 - cover))
    return np.asarray(np.clip(put, 0, 255).astype(np.uint8))


def _large_parts(found: Pixels) -> Pixels:
    """(height, width) uint8 of 0 and 1: the parts that are not small beside the largest."""
    opened = cv2.morphologyEx(found, cv2.MORPH_OPEN, _disc(2))
    n, part, facts, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    areas = facts[:, cv2.CC_STAT_AREA]
    kept = [i for i in range(1, n) if areas[i] >= _LEAST_PART * areas[1:].max()]
    return np.isin(part, kept).astype(np.uint8)


def _without_holes(found: Pixels) -> Pixels:
    """(height, width) uint8 of 0 and 1: gaps closed, and what is enclosed filled."""
    room = _CLOSED_PX + 2
    wide = cv2.copyMakeBorder(found, room, room, room, room, cv2.BORDER_CONSTANT, value=0)
    wide = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, _disc(_CLOSED_PX))
    outside = wide.copy()
    cv2.floodFill(outside, None, (0, 0), 2)
    return np.ascontiguousarray((outside != 2)[room:-room, room:-room]).astype(np.uint8)


def _disc(radius_px: int) -> Pixels:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1)))
