"""Seeded pictures of leaves, healthy and sick, that the program renders itself."""

import io
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fewshot.datasets import LITTER
from fewshot.errors import FolderError, UsageError, did_you_mean

# A Field is float32, one value a pixel, (size_px, size_px); a Colours is linear light, (3, size_px, size_px) or, for
# one colour, (3, 1, 1). Lengths are fractions of the frame unless a name says px: a leaf looks alike at every size.
Field = NDArray[np.floating]  # float32 throughout; numpy's types would widen it at every plain number
Colours = NDArray[np.floating]

MIN_SIZE_PX, MAX_SIZE_PX = 64, 2048
JPEG_QUALITY = 90

# ---- fields: everything below is painted with these few tools


def _noise(rng: np.random.Generator, size_px: int, cell: float, octaves: int = 3, stretch: float = 1.0) -> Field:
    """Smooth noise of mean 0 and deviation 1; `cell` is its coarsest grain, `stretch` lengthens it along x."""
    total = np.zeros((2, 2), np.float32)
    for octave in range(octaves):
        rows = min(size_px, round(2**octave / cell) + 2)
        columns = max(2, round(rows / stretch))
        total = _resized(total, columns, rows) + rng.standard_normal((rows, columns), np.float32) * 0.55**octave
    total = _resized(total, size_px, size_px)
    standard: Field = (total - total.mean()) / (total.std() + 1e-6)
    return standard


def _resized(field: Field, columns: int, rows: int) -> Field:
    return np.asarray(Image.fromarray(field).resize((columns, rows), Image.Resampling.BICUBIC), np.float32)


def _blurred(field: Field, radius: float) -> Field:
    # Down and up again: at these radii it looks like a Gaussian and costs a tenth.
    size_px = field.shape[0]
    small = max(4, min(size_px, round(1 / radius)))
    return _resized(_resized(field, small, small), size_px, size_px)


def _ramp(field: Field, low: float, high: float) -> Field:
    """0 at `low`, 1 at `high`, smooth between; falls where `low` is above `high`."""
    t: Field = np.clip((field - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _pick(rng: np.random.Generator, *choices: tuple[int, int, int]) -> Colours:
    """One colour between two neighbouring choices, which are named as a screen does: 0-255."""
    at = rng.uniform(0, len(choices) - 1)
    first = min(int(at), len(choices) - 2)
    low, high = np.asarray(choices[first]), np.asarray(choices[first + 1])
    return _linear(*(low + (high - low) * (at - first)).tolist())


def _linear(red: float, green: float, blue: float) -> Colours:
    # A gamma of 2, here and in `_exposed`: near sRGB's, and a square root is quick.
    return (np.asarray((red, green, blue), np.float32).reshape(3, 1, 1) / 255) ** 2


def _mix(under: Colours, over: Colours, amount: Field) -> Colours:
    return under + (over - under) * amount


def _spot_distance(size_px: int, spots: Field, reach: float) -> Field:
    """How far every pixel is from its nearest spot, in radii of that spot, up to `reach`.

    `spots` is (n_spots, 3): x, y and radius. Each is drawn in its own small window: hundreds stay cheap.
    """
    field = np.full((size_px, size_px), reach, np.float32)
    for x, y, radius in (spots * size_px).tolist():
        left, right = max(0, math.floor(x - reach * radius)), min(size_px, math.ceil(x + reach * radius))
        top, bottom = max(0, math.floor(y - reach * radius)), min(size_px, math.ceil(y + reach * radius))
        if left < right and top < bottom:
            across = (np.arange(left, right, dtype=np.float32) + 0.5 - x) / radius
            down = (np.arange(top, bottom, dtype=np.float32) + 0.5 - y) / radius
            window = field[top:bottom, left:right]
            np.minimum(window, np.sqrt(down[:, None] ** 2 + across**2), out=window)
    return field


# ---- the light and the leaf


@dataclass(frozen=True)
class Light:
    """Where the light comes from (x to the right, y down), how hard it is, and its colour."""

    x: float
    y: float
    hardness: float
    colour: Colours

    def on(self, height_px: Field, strength: float) -> Field:
        """How brightly a bumpy surface is lit; 1 where it is flat."""
        down, across = np.gradient(height_px)
        facing = -(across * self.x + down * self.y) * strength
        lit: Field = np.clip(1 + facing / np.sqrt(1 + (across**2 + down**2) * strength**2), 0.25, 1.9)
        return lit


def _light(rng: np.random.Generator) -> Light:
    angle, hardness = rng.uniform(0, 2 * math.pi), rng.uniform(0.35, 1.0)
    warmth, exposure = rng.normal(0, 0.09), math.exp(rng.normal(0.05, 0.16))
    colour = exposure * np.asarray((1 + warmth, 1.0, 1 - warmth), np.float32).reshape(3, 1, 1)
    return Light(math.cos(angle), math.sin(angle), hardness, colour)


@dataclass(frozen=True)
class Shape:
    """An outline: half width along the leaf goes as `u**base * (1 - u)**tip` and peaks at `width`."""

    width: float
    base: float
    tip: float
    vein_spacing: float
    teeth_per_vein: int = 0  # 1 makes lobes, more make a saw
    tooth_depth: float = 0.0

    def half_width(self, u: Field) -> Field:
        """Half width at `u` (0 at the stalk, 1 at the tip), in leaf lengths, without teeth."""
        peak = self.base / (self.base + self.tip)
        inside = np.clip(u, 0, 1)
        return self.width * (inside / peak) ** self.base * ((1 - inside) / (1 - peak)) ** self.tip


SHAPES = (
    Shape(width=0.31, base=0.52, tip=0.95, vein_spacing=0.105),  # ovate
    Shape(width=0.26, base=0.72, tip=0.75, vein_spacing=0.085),  # elliptic
    Shape(width=0.155, base=0.70, tip=1.05, vein_spacing=0.070),  # lanceolate
    Shape(width=0.29, base=0.95, tip=0.52, vein_spacing=0.095),  # obovate
    Shape(width=0.37, base=0.36, tip=0.95, vein_spacing=0.120),  # heart-shaped
    Shape(width=0.31, base=0.55, tip=0.90, vein_spacing=0.090, teeth_per_vein=3, tooth_depth=0.07),  # serrated
    Shape(width=0.27, base=0.80, tip=0.50, vein_spacing=0.170, teeth_per_vein=1, tooth_depth=0.24),  # lobed, as oak
)


@dataclass(frozen=True)
class Leaf:
    """One leaf's geometry: how it lies, and at every pixel its own coordinates, its margin and its veins."""

    shape: Shape
    centre: tuple[float, float]
    angle: float
    length: float
    bend: float
    u: Field  # 0 at the stalk, 1 at the tip
    v: Field  # across, in leaf lengths, 0 on the midrib
    inside_px: Field  # distance inside the margin; negative outside
    vein_phase: Field  # whole numbers are secondary veins
    vein_px: Field  # distance to the nearest secondary vein
    midrib_px: Field

    @property
    def size_px(self) -> int:
        """Side of the picture."""
        return len(self.u)

    def spots(self, u: Field, v: Field, radius: Field) -> Field:
        """Spots at leaf coordinates `u` and `v` in picture coordinates, (n_spots, 3): x, y, radius."""
        along = (u - 0.5) * self.length
        across = (v + self.bend * 4 * u * (1 - u)) * self.length
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        x, y = self.centre[0] + along * cos - across * sin, self.centre[1] + along * sin + across * cos
        return np.stack([x, y, radius], axis=1).astype(np.float32)

    def scattered(self, rng: np.random.Generator, n: int, radius: tuple[float, float], within: float = 0.92) -> Field:
        """`n` spots evenly over the blade, (n, 3); many small ones and few large."""
        steps = np.linspace(0.07, 0.95, 60, dtype=np.float32)
        widths = self.shape.half_width(steps).astype(np.float64)
        u = (rng.choice(steps, n, p=widths / widths.sum()) + rng.normal(0, 0.01, n)).astype(np.float32)
        v = rng.uniform(-within, within, n).astype(np.float32) * self.shape.half_width(u)
        return self.spots(u, v, radius[0] + (radius[1] - radius[0]) * rng.random(n, np.float32) ** 2)


def _leaf(rng: np.random.Generator, size_px: int) -> Leaf:
    drawn = SHAPES[rng.integers(len(SHAPES))]
    shape = replace(drawn, width=drawn.width * rng.uniform(0.85, 1.15))
    angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(0.82, 1.16) * (1.1 if shape.width < 0.2 else 1)
    centre = (0.5 + rng.uniform(-0.05, 0.05), 0.5 + rng.uniform(-0.05, 0.05))
    bend, slope = rng.normal(0, 0.04), rng.uniform(0.55, 1.0)

    steps = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    x, y = steps[None, :] - centre[0], steps[:, None] - centre[1]
    u = (x * math.cos(angle) + y * math.sin(angle)) / length + 0.5
    v = (y * math.cos(angle) - x * math.sin(angle)) / length - bend * 4 * u * (1 - u)
    offset = np.where(v > 0, np.float32(rng.choice((0.0, 0.5))), np.float32(0))  # veins opposite or alternate

    # A vein leaves the midrib at an angle and curves towards the tip; its teeth or lobe end where it does.
    def phase(across: Field) -> Field:
        leaves_midrib_at: Field = u - slope * across - 0.6 * across**2 / shape.width
        return leaves_midrib_at / shape.vein_spacing + offset

    plain = shape.half_width(u) * (1 + 0.02 * _noise(rng, size_px, 0.12))
    if shape.teeth_per_vein > 1:
        tooth = 1 - 2 * (phase(plain) * shape.teeth_per_vein % 1)
    else:
        tooth = np.cos(2 * math.pi * phase(0.55 * plain))  # not quite out at the margin: rounder lobes
    tooth = tooth * _ramp(u, 0.0, 0.15) * _ramp(u, 1.0, 0.8)
    edge = plain * (1 + shape.tooth_depth * tooth) - np.abs(v)
    down, across = np.gradient(edge)  # divides the slope out of `edge`: what is left is a distance in px
    vein_phase, spacing_px = phase(np.abs(v)), shape.vein_spacing * length * size_px
    return Leaf(
        shape=shape,
        centre=centre,
        angle=angle,
        length=length,
        bend=bend,
        u=u,
        v=v,
        inside_px=edge / np.maximum(np.sqrt(down**2 + across**2), 1e-5),
        vein_phase=vein_phase,
        vein_px=np.abs(vein_phase - np.round(vein_phase)) * (spacing_px / math.hypot(1, slope)),
        midrib_px=np.abs(v) * length * size_px,
    )


@dataclass
class Surface:
    """What the leaf is before light falls on it. A symptom changes these four fields and nothing else."""

    colour: Colours
    height_px: Field
    gloss: Field
    cover: Field  # 1 where the leaf hides the background


def _blade(rng: np.random.Generator, leaf: Leaf) -> Surface:
    """A healthy leaf: green that varies softly, midrib, secondary veins and the fine net between them."""
    size_px, scale = leaf.size_px, leaf.size_px / 288
    green = _pick(rng, (46, 82, 36), (66, 104, 38), (92, 128, 46), (112, 138, 58), (64, 100, 58))
    colour = green * np.clip(1 + 0.12 * _noise(rng, size_px, 0.25) + 0.06 * _noise(rng, size_px, 0.02, 2), 0.5, 1.6)
    reach = np.clip(np.abs(leaf.v) / (leaf.shape.half_width(leaf.u) + 1e-4), 0, 1)
    midrib = _ramp(leaf.midrib_px, scale * 2.4, scale * 0.6) * _ramp(leaf.u, 1.05, 0.7)
    secondary = _ramp(leaf.vein_px, scale * 1.7, scale * 0.3) * (1 - 0.7 * reach)
    net = np.exp(-((_noise(rng, size_px, 0.022, 1) / 0.3) ** 2))
    veins = np.clip(np.maximum(midrib, 0.7 * secondary) + 0.10 * net, 0, 1)
    colour = _mix(colour, _linear(158, 176, 104), veins * rng.uniform(0.35, 0.7))
    # Sunken veins, the blade bulging between them, a fold along the midrib and a wavy margin.
    bulge = 1.6 * _ramp(leaf.vein_px, 0, scale * 9) + 1.5 * _ramp(leaf.midrib_px, 0, scale * 10)
    wave = 5 * _noise(rng, size_px, 0.28, 2) * (0.4 + reach) + rng.uniform(0, 0.25) * leaf.midrib_px
    stalk_px = scale * (2.6 + 3 * np.clip(-leaf.u, 0, 1)) - leaf.midrib_px
    stalk = np.clip(stalk_px + 0.5, 0, 1) * (leaf.u < 0.05) * _ramp(leaf.u, -0.30, -0.29)
    colour = _mix(colour, _pick(rng, (120, 140, 70), (140, 96, 66)), stalk * _ramp(leaf.u, 0.05, -0.05))
    return Surface(
        colour=colour,
        height_px=scale * (bulge + wave - 0.35 * net),
        gloss=np.full_like(leaf.u, rng.uniform(0.05, 0.4)),
        cover=np.maximum(np.clip(leaf.inside_px + 0.5, 0, 1), stalk),
    )


# ---- the symptoms


def _healthy(rng: np.random.Generator, leaf: Leaf, surface: Surface) -> None:
    """Venation only."""


def _rust(rng: np.random.Generator, leaf: Leaf, surface: Surface) -> None:
    """Many small raised pustules, orange to brown, some in a yellow halo."""
    size_px = leaf.size_px
    spots = leaf.scattered(rng, int(rng.integers(150, 330)), (0.0050, 0.0130))
    distance = _spot_distance(size_px, spots, 3) * (1 + 0.12 * _noise(rng, size_px, 0.02, 1))
    haloed = spots[rng.random(len(spots)) < rng.uniform(0.15, 0.6)]
    halo = _ramp(_spot_distance(size_px, haloed, 3.2), 3.1, 1.0)
    surface.colour = _mix(surface.colour, _linear(186, 176, 70), 0.65 * halo)
    orange = _pick(rng, (198, 106, 36), (174, 86, 34), (138, 68, 34))
    orange = orange * (1 + 0.25 * np.clip(_noise(rng, size_px, 0.06), -2, 2))
    surface.colour = _mix(surface.colour, orange * 0.4, 0.6 * _ramp(distance, 1.5, 1.0))  # torn skin round it
    surface.colour = _mix(surface.colour, orange, _ramp(distance, 1.2, 0.75))
    surface.height_px = surface.height_px + 2.2 * size_px / 288 * _ramp(distance, 1.3, 0.2)
    surface.gloss = surface.gloss * _ramp(distance, 0.8, 1.4)


def _powdery_mildew(rng: np.random.Generator, leaf: Leaf, surface: Surface) -> None:
    """Soft white felt in round patches that run together and hide the veins."""
    size_px = leaf.size_px
    spots = leaf.scattered(rng, int(rng.integers(14, 32)), (0.03, 0.13), within=0.85)
    ragged = 0.20 * _noise(rng, size_px, 0.06, 4)
    felt = _ramp(_spot_distance(size_px, spots, 2) + ragged, 1.45, 0.25)
    dust = 0.18 * _ramp(_noise(rng, size_px, 0.1, 4), 0.0, 1.8)
    fibre = 0.88 + 0.08 * _noise(rng, size_px, 0.012, 2) + 0.08 * _noise(rng, size_px, 0.10, 2)
    amount = np.clip(np.maximum(felt, dust) * fibre * rng.uniform(0.8, 1.0), 0, 0.95)
    surface.colour = _mix(surface.colour, _linear(150, 160, 84), 0.35 * felt)  # the tissue below turns pale
    surface.colour = _mix(surface.colour, _pick(rng, (226, 228, 220), (206, 210, 204)), amount)
    grain = 0.2 * _noise(rng, size_px, 0.010, 1) * felt
    surface.height_px = surface.height_px * (1 - 0.3 * felt) + size_px / 288 * (felt + grain)
    surface.gloss = surface.gloss * (1 - amount)


def _blight(rng: np.random.Generator, leaf: Leaf, surface: Surface) -> None:
    """Large dead brown areas from the margin or tip, in concentric zones, with a yellow edge."""
    size_px, scale = leaf.size_px, leaf.size_px / 288
    n = int(rng.integers(2, 5))
    u = np.concatenate([[rng.choice((0.97, 0.7))], rng.uniform(0.2, 0.95, n - 1)]).astype(np.float32)
    v = rng.choice((-0.9, 0.9), n).astype(np.float32) * leaf.shape.half_width(u)
    radii = np.concatenate([[rng.uniform(0.2, 0.32)], rng.uniform(0.08, 0.2, n - 1)])
    radii *= leaf.length * (0.4 + 2 * leaf.shape.width)  # a narrow leaf is not to die whole
    distance = _spot_distance(size_px, leaf.spots(u, v, radii.astype(np.float32)), 2.2)
    lobed = distance + 0.055 * _noise(rng, size_px, 0.12, 4)
    dead = _ramp(lobed, 1.03, 0.97)
    # The zones are calmer than the front, and fade where the tissue died first.
    rings = np.cos(2 * math.pi * (0.7 * distance + 0.3 * lobed) * rng.uniform(4, 6)) * _ramp(distance, 0.1, 0.5)
    tone = np.clip(1 + 0.20 * rings + 0.16 * _noise(rng, size_px, 0.09, 4), 0.35, 1.8)
    brown = _pick(rng, (160, 122, 82), (126, 88, 58), (98, 70, 50)) * tone
    brown = _mix(brown, _linear(70, 46, 30), 0.65 * _ramp(np.abs(lobed - 0.96), 0.12, 0.0))  # dark front
    brown = _mix(brown, brown * 0.75, _ramp(leaf.vein_px, scale * 2, 0))  # the veins stay, dark
    surface.colour = _mix(surface.colour, _linear(186, 176, 70), 0.85 * _ramp(lobed, 1.42, 1.02))
    surface.colour = _mix(surface.colour, brown, dead)
    wrinkles = 1.2 * _noise(rng, size_px, 0.06) + 0.4 * rings
    surface.height_px = surface.height_px + scale * dead * wrinkles
    surface.gloss = surface.gloss * (1 - dead)


def _mosaic(rng: np.random.Generator, leaf: Leaf, surface: Surface) -> None:
    """Patches of pale and dark green with no order but the veins', the blade slightly puckered."""
    size_px, scale = leaf.size_px, leaf.size_px / 288
    # Noise looked up in vein coordinates, so that patches stop at veins and lie along them.
    chart = _noise(rng, 512, 0.05, 3)
    column = (np.abs(leaf.v) * rng.uniform(500, 900)).astype(np.int64)
    row = (np.floor(leaf.vein_phase) * 61 + (leaf.vein_phase % 1) * 30).astype(np.int64) + 256 * (leaf.v > 0)
    patches = 0.45 * chart[row % 512, column % 512] + 0.9 * _noise(rng, size_px, 0.08, 4)
    patches = patches - 0.9 * _ramp(np.minimum(leaf.vein_px, leaf.midrib_px), scale * 5, 0)  # dark along the veins
    patches = _blurred(patches, 0.008)
    pale = _ramp(patches, -0.7, 0.6)
    yellow = _pick(rng, (166, 182, 84), (150, 172, 84), (184, 192, 112))
    surface.colour = surface.colour * (1 - 0.35 * _ramp(patches, 0.1, -0.8))
    surface.colour = _mix(surface.colour, yellow, rng.uniform(0.6, 0.85) * pale)
    surface.height_px = surface.height_px + scale * rng.uniform(1.0, 3.0) * _blurred(-patches, 0.014)


def _shot_hole(rng: np.random.Generator, leaf: Leaf, surface: Surface) -> None:
    """Round holes with a brown rim, the background showing through; a few spots have not fallen out yet."""
    size_px = leaf.size_px
    spots = leaf.scattered(rng, int(rng.integers(18, 40)), (0.015, 0.040), within=0.85)
    ragged = 0.06 * _noise(rng, size_px, 0.04, 2)
    distance = _spot_distance(size_px, spots, 2.5) + ragged
    fallen = spots[rng.random(len(spots)) < rng.uniform(0.75, 0.97)]
    hole = _ramp(_spot_distance(size_px, fallen, 2.5) + ragged, 1.06, 0.94)
    surface.colour = _mix(surface.colour, _linear(160, 158, 66), 0.45 * _ramp(distance, 1.7, 1.2))
    rim = _pick(rng, (112, 66, 40), (96, 50, 38), (130, 88, 52))
    surface.colour = _mix(surface.colour, rim, 0.95 * _ramp(distance, 1.38, 1.2))
    surface.colour = _mix(surface.colour, _linear(150, 112, 70), 0.8 * _ramp(distance, 0.95, 0.7))  # dry, not fallen
    surface.cover = surface.cover * (1 - hole)


SYMPTOMS: dict[str, Callable[[np.random.Generator, Leaf, Surface], None]] = {
    "healthy": _healthy,
    "rust": _rust,
    "powdery-mildew": _powdery_mildew,
    "blight": _blight,
    "mosaic": _mosaic,
    "shot-hole": _shot_hole,
}
CLASSES: tuple[str, ...] = tuple(SYMPTOMS)


# ---- the backgrounds


def _soil(rng: np.random.Generator, size_px: int, light: Light) -> Colours:
    clods = _noise(rng, size_px, 0.08, 5)
    tone: Field = np.exp(0.25 * clods) * light.on(clods * size_px / 288, 0.9 * light.hardness)
    return _pick(rng, (84, 62, 46), (112, 86, 64), (146, 120, 94)) * tone


def _concrete(rng: np.random.Generator, size_px: int, light: Light) -> Colours:
    stains, grain = _noise(rng, size_px, 0.4, 3), _noise(rng, size_px, 0.012, 2)
    tone: Field = np.exp(0.10 * stains + 0.12 * grain - 0.5 * _ramp(grain, 1.9, 2.6))
    return _pick(rng, (118, 116, 112), (172, 168, 160)) * tone


def _paper(rng: np.random.Generator, size_px: int, light: Light) -> Colours:
    tone = 1 + 0.03 * _noise(rng, size_px, 0.7, 2) + 0.01 * _noise(rng, size_px, 0.01, 1)
    return _pick(rng, (214, 212, 206), (228, 226, 222), (206, 196, 176)) * tone


def _foliage(rng: np.random.Generator, size_px: int, light: Light) -> Colours:
    """Other plants, far out of focus, and the bright discs that a lens makes of gaps between them."""
    colour = _pick(rng, (52, 68, 40), (84, 102, 58)) * np.exp(0.5 * _noise(rng, size_px, 0.22, 2))
    discs = np.stack([rng.random(16), rng.random(16), rng.uniform(0.04, 0.10, 16)], axis=1).astype(np.float32)
    glow = _blurred(_ramp(_spot_distance(size_px, discs, 1.3), 1.05, 0.9), 0.02)
    return _mix(colour, _pick(rng, (120, 140, 80), (176, 184, 140)), rng.uniform(0.2, 0.5) * glow)


def _hand(rng: np.random.Generator, size_px: int, light: Light) -> Colours:
    """Skin: fingers side by side."""
    steps = np.linspace(-0.5, 0.5, size_px, dtype=np.float32)
    angle = rng.uniform(0, math.pi)
    across = steps[None, :] * math.cos(angle) + steps[:, None] * math.sin(angle)
    finger = (across / rng.uniform(0.26, 0.4) + 0.03 * _noise(rng, size_px, 0.5, 2) + rng.random()) % 1
    rounded = np.clip(1 - (2 * finger - 1) ** 2, 0.08, 1) ** 0.25
    tone = rounded * (1 + 0.06 * _noise(rng, size_px, 0.3) + 0.03 * _noise(rng, size_px, 0.015, 2))
    return _pick(rng, (112, 74, 56), (176, 128, 104), (214, 172, 150)) * tone


def _wood(rng: np.random.Generator, size_px: int, light: Light) -> Colours:
    grain = _noise(rng, size_px, 0.03, 3, stretch=14)
    tone: Field = np.exp(0.16 * (grain if rng.random() < 0.5 else grain.T))
    return _pick(rng, (112, 82, 56), (166, 130, 92)) * tone


BACKGROUNDS = (_soil, _concrete, _paper, _foliage, _hand, _wood)


# ---- the photograph


def render_leaf(label: str, rng: np.random.Generator, *, size_px: int = 288) -> Image.Image:
    """One picture of a leaf of class `label`: an RGB image, `size_px` a side.

    The leaf's shape, place, colour, light and background and the severity of its symptom are all drawn from `rng`.

    Raises:
        UsageError: `label` is not in `CLASSES`, or `size_px` is outside 64 to 2048.

    Example:
        >>> render_leaf("rust", np.random.default_rng(0), size_px=64).size
        (64, 64)
    """
    if label not in SYMPTOMS:
        known = ", ".join(CLASSES)
        hint = did_you_mean(label, CLASSES) or f"Give one of {known}."
        raise UsageError(f"there are no sample pictures of {label!r}; there are of {known}.", hint=hint)
    _check_range("size_px", size_px, MIN_SIZE_PX, MAX_SIZE_PX)
    light, leaf = _light(rng), _leaf(rng, size_px)
    surface = _blade(rng, leaf)
    SYMPTOMS[label](rng, leaf, surface)
    paint = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    background = paint(rng, size_px, light)
    if paint is not _foliage:  # too far away for a shadow to fall on
        background = background * _shadow(rng, surface.cover, light)
    return _exposed(rng, _mix(background, _lit(surface, light), surface.cover), light)


def _lit(surface: Surface, light: Light) -> Colours:
    """The leaf under the light: bumps shaded, and a waxy sheen where they face it."""
    relief = light.on(surface.height_px, 0.25 + 0.30 * light.hardness)
    sheen = surface.gloss * light.hardness * _ramp(relief, 1.0, 1.5)
    return _mix(surface.colour * relief, _linear(225, 232, 235), 0.6 * sheen)


def _shadow(rng: np.random.Generator, cover: Field, light: Light) -> Field:
    """How much light reaches the background: less where the leaf stands in its way."""
    size_px = cover.shape[0]
    away_px = rng.uniform(0.004, 0.025) * size_px  # short: a leaf lies nearly flat, and its holes stay bright
    moved = Image.fromarray(cover).transform(
        (size_px, size_px), Image.Transform.AFFINE, (1, 0, light.x * away_px, 0, 1, light.y * away_px)
    )
    soft = _blurred(np.asarray(moved, np.float32), 0.008 + 0.02 * (1 - light.hardness))
    return 1 - (0.25 + 0.45 * light.hardness) * np.clip(soft, 0, 1)


def _exposed(rng: np.random.Generator, scene: Colours, light: Light) -> Image.Image:
    """The scene as a small camera stores it: vignette, tone curve, slight blur, sensor noise."""
    size_px = scene.shape[1]
    steps = np.linspace(-1, 1, size_px, dtype=np.float32)
    falloff = 1 - rng.uniform(0.05, 0.28) * (steps[None, :] ** 2 + steps[:, None] ** 2) / 2
    slant = 1 + rng.uniform(0, 0.15) * (steps[None, :] * light.x + steps[:, None] * light.y)
    linear = np.maximum(scene * light.colour * (falloff * slant), 0)
    bright = np.maximum(linear - 0.7, 0)
    linear = np.minimum(linear, 0.7) + bright / (1 + bright / 0.3)  # highlights roll off instead of clipping
    screen = Image.fromarray((np.sqrt(linear) * 255).astype(np.uint8).transpose(1, 2, 0).copy())
    blurred = screen.filter(ImageFilter.BoxBlur(rng.uniform(0.1, 0.7) * size_px / 288))
    noise = rng.standard_normal((size_px, size_px, 1), np.float32) * rng.uniform(1.0, 4.0)  # grey, as JPEG leaves it
    return Image.fromarray(np.clip(np.asarray(blurred) + noise, 0, 255).astype(np.uint8))


# ---- the folder


def write_samples(
    folder: Path,
    *,
    n_support: int = 10,
    n_query: int = 5,
    seed: int = 0,
    size_px: int = 288,
    on_photo: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Fill `folder` with photos to enroll and photos to ask about: `support/<label>/<label>-00.jpg`, `query/...`.

    A photo depends on its seed, split, label, number and size alone: a larger set contains the smaller one, and the
    same call gives the same bytes (with the same numpy, Pillow and kind of processor). Running again over its own
    output is fine.

    Args:
        folder: made if missing. It may hold nothing but these very photos.
        n_support: photos a class in `support/`.
        n_query: photos a class in `query/`.
        seed: which pictures; 0 or more.
        size_px: side of each square photo.
        on_photo: called with each path once its photo is complete, for a progress bar.

    Returns:
        The paths in the order they were written.

    Raises:
        UsageError: a count below 1, a negative seed, a size outside 64 to 2048, `folder` is a file, or it holds
            something that this call would not write (other photos, or samples of another seed or size).
        FolderError: the system refuses to write there.
    """
    _check_range("n_support", n_support, 1)
    _check_range("n_query", n_query, 1)
    _check_range("seed", seed, 0)
    _check_range("size_px", size_px, MIN_SIZE_PX, MAX_SIZE_PX)
    folder = Path(folder)
    planned = {
        folder / split / label / f"{label}-{i:02d}.jpg": (split, label, i)
        for split, n in (("support", n_support), ("query", n_query))
        for label in CLASSES
        for i in range(n)
    }
    # Each photo says in its JPEG comment what it is: no photograph, and ours to overwrite.
    signatures = {
        path: f"rendered by fewshot samples: {split} {label} {i}, seed {seed}, {size_px} px".encode()
        for path, (split, label, i) in planned.items()
    }
    with _refusals_named(folder):
        _refuse_foreign(folder, signatures)
    for path, (split, label, i) in planned.items():
        # Names, not positions, seed a photo: adding a class or a photo leaves all others as they are.
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), zlib.crc32(label.encode()), i, size_px])
        picture = render_leaf(label, rng, size_px=size_px)
        with _refusals_named(path):
            _write_photo(path, picture, signatures[path])
        if on_photo is not None:
            on_photo(path)
    return list(planned)


def _check_range(name: str, found: int, low: int, high: int | None = None) -> None:
    if found < low or (high is not None and found > high):
        wanted = f"{low} or more" if high is None else f"{low} to {high}"
        raise UsageError(f"{name} is {found}; wanted {wanted}.", hint=f"Give {name} as a whole number, {wanted}.")


def _refuse_foreign(folder: Path, signatures: dict[Path, bytes]) -> None:
    """Raise unless everything in `folder` is a photo that this call would write, so that nothing else is lost."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"{place} is a file; the samples need a folder.", hint="Name a new or an empty folder.")
    our_folders = {parent for path in signatures for parent in path.parents}
    for found in folder.rglob("*"):
        is_litter = found.name == ".DS_Store" or found.name.lower() in LITTER  # of file managers: nobody's work
        if is_litter or (found in our_folders and found.is_dir() and not found.is_symlink()):
            continue
        if found in signatures and _comment(found) == signatures[found]:
            continue
        if found.suffix == ".part" and found.with_name(found.stem.removeprefix(".")) in signatures:  # of a killed run
            continue
        raise UsageError(
            f"{folder} already holds {found.relative_to(folder)}, which these settings would not write; "
            "samples are not mixed with other files.",
            hint="Name a new or an empty folder, or repeat the settings that filled this one.",
        )


def _comment(path: Path) -> bytes | None:
    """The comment in a JPEG, or None where there is none to read."""
    try:
        with Image.open(path) as image:
            comment = image.info.get("comment")
            return comment if isinstance(comment, bytes) else None
    except (OSError, Image.DecompressionBombError):
        return None


def _write_photo(path: Path, image: Image.Image, signature: bytes) -> None:
    """Write the whole JPEG or nothing: Ctrl-C leaves no half photo."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=JPEG_QUALITY, comment=signature)
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.write_bytes(encoded.getvalue())
        part.replace(path)  # atomic
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _refusals_named(path: Path) -> Iterator[None]:
    """Turn the system's refusal to read or write into an error that names `path`."""
    try:
        yield
    except OSError as error:
        hint = "Name a folder that you can write to, on a disk with room."
        raise FolderError(f"cannot write {path}: {error.strerror or error}.", hint=hint) from error
