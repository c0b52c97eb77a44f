"""A backbone's weights -> its network, and what is known of it. The only door to timm; needs the extra `train`."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file

from fewshot.backbones import (
    DEFAULT_BACKBONE,
    FOLDER_KINDS,
    PACKAGES,
    PORTABLE_FILE,
    Backbone,
    Preprocessing,
    WeightsSource,
    installed_names,
    read_backbone_facts,
    statistics_name,
    weights_file,
)
from fewshot.errors import (
    BackboneError,
    UnknownBackboneError,
    WeightsDamagedError,
    WeightsUnreachableError,
    did_you_mean,
)
from fewshot.portable import onnx_weights

# What the hub holds of a timm model, and how long it may take to say so.
HUB_FILE = "model.safetensors"
HUB_TIMEOUT_S = 10.0


def load(source: WeightsSource) -> tuple[Backbone, torch.nn.Module]:
    """Build the network with its weights, without a classifier: photos in, pooled features out.

    Returns:
        The backbone's description, and the network in eval mode: (n, 3, size, size) float32, normalised, to
        (n, dim) float32, not yet of unit length.

    Raises:
        UnknownBackboneError: timm has no such architecture; the message suggests the nearest.
        WeightsUnreachableError: the weights are on the hub and the hub cannot be reached.
        WeightsDamagedError: the file does not hold this architecture's weights.
    """
    check_architecture(source)
    if source.kind == "hub":
        network = _from_hub(source)
    else:
        network = timm.create_model(source.architecture, pretrained=False, num_classes=0)
        _load_weights(network, source)
    return _described(source, network), network


def load_untrained(source: WeightsSource) -> tuple[Backbone, torch.nn.Module]:
    """Build the network with random weights, drawn from torch's global generator; else as `load`.

    Raises:
        UnknownBackboneError: timm has no such architecture; the message suggests the nearest.
    """
    check_architecture(source)
    network: torch.nn.Module = timm.create_model(source.architecture, pretrained=False, num_classes=0)
    return _described(source, network), network


def _described(source: WeightsSource, network: torch.nn.Module) -> Backbone:
    """What is known of a network, its features' length read off a run; leaves it in eval mode."""
    network.eval()
    if source.kind in FOLDER_KINDS:
        preprocessing = Preprocessing.from_dict(read_backbone_facts(Path(source.location))["preprocessing"])
    else:
        preprocessing = _preprocessing(network, source.architecture)
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
        statistics_sha256=statistics_name(source),
    )


def is_model(architecture: str) -> bool:
    """Whether timm knows an architecture of this name."""
    return bool(timm.is_model(architecture))


def check_architecture(source: WeightsSource) -> None:
    """Refuse a source whose architecture timm does not know, before any weights are looked for.

    Raises:
        UnknownBackboneError: the message suggests the nearest.
    """
    if is_model(source.architecture):
        return
    names = timm.list_models()
    if source.kind in FOLDER_KINDS:
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
        hint=f"{did_you_mean(source.name, [*known, *names])} Installed: {installed_names()}.".strip(),
    )


def _from_hub(source: WeightsSource) -> torch.nn.Module:
    try:
        _look_on_hub(source.location)
        network: torch.nn.Module = timm.create_model(source.location, pretrained=True, num_classes=0)
    except Exception as error:  # hub clients raise errors of many libraries; all mean: no weights
        raise WeightsUnreachableError(
            f"the weights of timm model {source.location!r} are not on this machine, and the model hub cannot be "
            f"reached or does not have them as .safetensors ({type(error).__name__}).",
            hint=f"Connect once, give a local .safetensors, or use one that is installed: {installed_names()}.",
        ) from error
    return network


def _look_on_hub(model: str) -> None:
    """Ask once whether the hub has a model's safetensors file, unless it is on this machine.

    timm's own way asks for most of a minute where there is no network, and takes a pickle where there is no such file.
    """
    config = timm.get_pretrained_cfg(model)
    repository = None if config is None else config.hf_hub_id
    if repository is not None and not isinstance(try_to_load_from_cache(repository, HUB_FILE), str):
        get_hf_file_metadata(hf_hub_url(repository, HUB_FILE), timeout=HUB_TIMEOUT_S)


def _load_weights(network: torch.nn.Module, source: WeightsSource) -> None:
    path = weights_file(source)
    try:
        if source.kind == "package":
            # The one pickle that is ever opened: an installed package's, and only as plain tensors.
            state = _lite_names(torch.load(path, map_location="cpu", weights_only=True), network)
        elif path.name == PORTABLE_FILE:
            state = {name: torch.tensor(array) for name, array in onnx_weights(path.read_bytes()).items()}
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


def _lite_names(state: Mapping[str, torch.Tensor], network: torch.nn.Module) -> dict[str, torch.Tensor]:
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


def _hash_tensors(state: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _preprocessing(network: torch.nn.Module, architecture: str) -> Preprocessing:
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


def matching_models(pattern: str) -> list[str]:
    """The names of timm's pretrained models that fit a pattern such as `resnet18*`."""
    names: list[str] = timm.list_models(pattern, pretrained=True)
    return names
