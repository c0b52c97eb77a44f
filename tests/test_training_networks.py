"""A network's parts are its stages, and what is known of a backbone is what it is: its weights, its own size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from fewshot.classifier.prototypes import class_prototypes
from fewshot.recipes import read_plan, resolve
from fewshot.training import networks
from fewshot.transforms import unit_rows

CONFIGS = Path(__file__).parents[1] / "configs"
FIVE = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "resnet10t",
    "regnetx_016",
    "convnext_small",
)
NINE = (
    *("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2", "efficientnet_b3"),
    *("mobilenetv2_100", "mobilenetv3_large_100", "mnasnet_140"),
)
N_PARTS = {
    **dict.fromkeys(FIVE, 5),
    **dict.fromkeys(NINE, 9),
    "densenet121": 8,  # the first convolution, four blocks, three transitions
    "inception_v3": 16,  # these two do not group their blocks
    "legacy_xception": 16,
}


def untrained(architecture: str) -> nn.Module:
    """A timm network that holds no numbers: only how it is put together."""
    with torch.device("meta"):
        network: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0)
    return network


def part_names(network: nn.Module) -> list[list[str]]:
    names = {module: name for name, module in network.named_modules()}
    return [[names[module] for module in part] for part in networks.parts(network)]


def trainee(**settings: Any) -> networks.Trainee:
    torch.manual_seed(0)
    return networks.build_trainee(resolve(settings))


# ---- parts


@pytest.mark.parametrize(("architecture", "n"), N_PARTS.items())
def test_a_part_is_a_stage_and_all_parts_hold_all_weights(architecture: str, n: int) -> None:
    network = untrained(architecture)
    parts = networks.parts(network)
    assert len(parts) == n
    held = [parameter for part in parts for module in part for parameter in module.parameters()]
    assert [id(parameter) for parameter in held] == [id(parameter) for parameter in network.parameters()]


def test_a_resnet_has_its_first_convolution_and_four_layers() -> None:
    layers = [["layer1"], ["layer2"], ["layer3"], ["layer4"]]
    assert part_names(untrained("resnet34")) == [["conv1", "bn1"], *layers]
    deep_stem = part_names(untrained("resnet10t"))  # a sequence of three convolutions; its layers hold one block each
    assert deep_stem == [["conv1", "bn1"], *layers]


def test_lite0_has_its_stem_seven_stages_and_last_convolution() -> None:
    stages = [[f"blocks.{i}"] for i in range(7)]
    assert part_names(untrained("tf_efficientnet_lite0")) == [["conv_stem", "bn1"], *stages, ["conv_head", "bn2"]]


def test_a_normalisation_belongs_to_the_part_before_it_also_in_a_head() -> None:
    names = part_names(untrained("convnext_small"))
    assert names == [["stem.0", "stem.1"], ["stages.0"], ["stages.1"], ["stages.2"], ["stages.3", "head"]]


def test_the_emergency_recipe_freezes_the_first_convolution_and_two_of_four_layers() -> None:
    (cell,) = read_plan(CONFIGS / "emergency.yaml", "weights=random").cells
    network = networks.build_trainee(cell.recipe)
    networks.parameter_groups(cell.recipe, network)
    still = {name.split(".")[0] for name, weight in network.network.named_parameters() if not weight.requires_grad}
    learning = {name.split(".")[0] for name, weight in network.network.named_parameters() if weight.requires_grad}
    assert still == {"conv1", "bn1", "layer1", "layer2"}
    assert learning == {"layer3", "layer4"}


# ---- what a backbone starts from


def test_weights_of_a_file_are_the_files(tmp_path: Path) -> None:
    given = trainee(backbone="lite0", weights="random")
    assert given.origin.weights == "random"
    save_file(
        {name: tensor.contiguous() for name, tensor in given.network.state_dict().items()},
        tmp_path / "mine.safetensors",
    )
    name = f"tf_efficientnet_lite0:{tmp_path / 'mine.safetensors'}"
    found = trainee(backbone=name)
    assert (found.origin.name, found.origin.weights) == (name, "file")
    assert all(torch.equal(one, two) for one, two in zip(found.parameters(), given.parameters(), strict=True))
    assert trainee(backbone=name, weights="random").origin.weights == "random"


@pytest.mark.parametrize(
    ("settings", "learning_px", "testing_px"),
    [
        ({}, 224, 224),
        ({"image_size_px": 96}, 96, 96),
        ({"test_image_size_px": 288}, 224, 288),
        ({"image_size_px": 96, "test_image_size_px": 288}, 96, 288),
        ({"backbone": "cnn-basic", "image_size_px": 96, "test_image_size_px": 288}, 80, 80),
    ],
)
def test_a_size_for_tests_leaves_the_size_in_training(
    settings: dict[str, Any], learning_px: int, testing_px: int
) -> None:
    recipe = resolve({"backbone": "lite0", "weights": "random", **settings})
    network = networks.build_trainee(recipe)
    assert networks.training_size_px(recipe, network) == learning_px
    assert network.preprocessing.image_size_px == testing_px


# ---- what a step destroyed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(value: float) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert networks.first_not_finite(network) is None
    network[1].running_var[1] = value
    assert networks.first_not_finite(network) == "1.running_var"
    with torch.no_grad():
        network[0].weight[0, 1] = value
    assert networks.first_not_finite(network) == "0.weight"


# ---- where a class lies


def test_prototypes_are_those_of_an_index_and_a_class_of_zeros_has_one_too() -> None:
    rng = np.random.default_rng(0)
    class_index = rng.permutation(np.repeat(np.arange(4), 5))
    embeddings = (9 * rng.normal(size=(20, 8))).astype(np.float32)
    found = networks.prototypes(torch.from_numpy(embeddings), class_index, 4)
    assert np.allclose(found, class_prototypes(unit_rows(embeddings), class_index, 4), atol=1e-6)
    embeddings[class_index == 2] = 0
    assert not networks.prototypes(torch.from_numpy(embeddings), class_index, 4)[2].any()
