"""Where a run stands -> files that survive a crash, and back."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fewshot.errors import TrainingDiskFullError, TrainingError, is_disk_full

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run after a whole epoch: named tensors, and everything else as JSON-able facts."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


def save_checkpoint(folder: Path, name: str, checkpoint: Checkpoint) -> None:
    """Write `name`.safetensors with the facts inside, whole or not at all.

    Raises:
        TrainingDiskFullError: no space left. The earlier checkpoint stays.
    """
    metadata = {"format": str(_FORMAT), "facts": json.dumps(checkpoint.facts)}
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in checkpoint.tensors.items()}
    write_whole(folder / f"{name}.safetensors", save(tensors, metadata))
    write_whole(folder / f"{name}.json", (json.dumps(checkpoint.facts, indent=1) + "\n").encode())


def load_checkpoint(folder: Path, name: str) -> Checkpoint | None:
    """The checkpoint `name`, or None where there is none.

    The tensors' file holds the facts too, so that the two cannot be of different epochs; the JSON is for people.

    Raises:
        TrainingError: the file is damaged or of a newer format.
    """
    file = folder / f"{name}.safetensors"
    if not file.exists():
        return None
    data = file.read_bytes()
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        found, facts = int(header["format"]), json.loads(header["facts"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise TrainingError(
            f"the checkpoint {file} is damaged: {error}.", hint="Remove it to start again, or choose another --out."
        ) from error
    if found > _FORMAT:
        raise TrainingError(f"the checkpoint {file} has format {found}; this program reads up to {_FORMAT}.")
    return Checkpoint(tensors, facts)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and plain facts."""
    tensors: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {}
    for number, slots in optimiser.state_dict()["state"].items():
        for slot, value in slots.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{slot}"] = value
            elif value is not None:
                facts[f"{number}.{slot}"] = value
    return tensors, facts


def restore_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
) -> None:
    """Give an optimiser back the state that `optimiser_tensors` described."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *facts.items()]:
        number, slot = key.split(".", 1)
        state.setdefault(int(number), {})[slot] = value.clone() if isinstance(value, torch.Tensor) else value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def with_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under `prefix.name`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors named `prefix.name`, under `name`."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def write_whole(file: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part.

    Raises:
        TrainingDiskFullError: no space left.
        TrainingError: the folder cannot be written to.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        raise as_write_error(file, error) from error
    finally:
        partial.unlink(missing_ok=True)


def as_write_error(file: Path, error: OSError) -> TrainingError:
    """The error that a user meets when a file cannot be written."""
    if is_disk_full(error):
        return TrainingDiskFullError(f"there is no space left to write {file}.")
    return TrainingError(f"{file} cannot be written: {error.strerror}.", hint="Choose another folder with --out.")
