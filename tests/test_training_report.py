"""A report says what was measured, and leaves out what could not have come out otherwise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fewshot.evaluation.metrics import prototype_accuracy
from fewshot.recipes import resolve
from fewshot.training.networks import Origin
from fewshot.training.progress import EpochRow, Scores
from fewshot.training.report import Report, markdown

CROPS = ("apple-scab", "corn-healthy", "corn-rust")
SCENES = ("accident", "fire", "smoke")
WITHIN = "among the classes of the photo's crop"


def report(labels: tuple[str, ...] = CROPS, weights: str = "imagenet", keep: str = "last", **facts: Any) -> Report:
    """Of a training of two epochs of both parts, the second the better."""
    unit = np.eye(3, dtype=np.float32)
    rows = tuple(EpochRow(i, 1.0, Scores(), None, Scores(0.5, share)) for i, share in ((1, 0.6), (2, 0.8), (3, 0.7)))
    given = {
        "name": "small",
        "cell": "",
        "folder": Path("small"),
        "recipe": resolve({"backbone": "lite0", "keep": keep}),
        "origin": Origin("lite0", "tf_efficientnet_lite0", weights),
        "labels": labels,
        "n_photos": {"train": 30, "validation": 0, "test": 3},
        "n_cut_out": 0,
        "backbone_rows": rows,
        "head_rows": rows,
        "classifier": None,
        "test": None,
        "prototype": prototype_accuracy(unit, labels, unit, labels),
        "n_shot": 20,
        "embed_seconds": 1.0,
        "machine": {},
        "n_train": (10, 10, 10),
    }
    return Report(**{**given, **facts})


@pytest.mark.parametrize(
    ("n_train", "said"),
    [((40, 25, 20), "20"), ((40, 7, 20), "7 to 20"), ((12, 12, 12), "12"), ((3, 12, 5), "3 to 12")],
)
def test_the_photos_of_a_prototype_are_those_there_were(n_train: tuple[int, ...], said: str) -> None:
    made = report(n_train=n_train)
    assert f"| nearest prototype ({said} photos a class) |" in markdown(made)
    assert made.as_dict()["n_train"] == list(n_train)


def test_accuracy_within_a_crop_is_told_where_a_crop_has_two_classes() -> None:
    assert WITHIN in markdown(report(CROPS))
    assert WITHIN not in markdown(report(SCENES))
    assert "right among the first three" in markdown(report(SCENES))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("imagenet", "ImageNet weights"),
        ("trained", "its trained weights"),
        ("file", "the file's weights"),
        ("random", "random weights"),
    ],
)
def test_the_first_weights_are_named(weights: str, said: str) -> None:
    assert f"starting from **{said}**" in markdown(report(weights=weights))


def test_the_best_epoch_is_marked_where_it_is_the_one_kept() -> None:
    kept = markdown(report(keep="best"))
    assert kept.count("(best)") == kept.count("| 2 (best) |") == 2  # the backbone's and the head's
    assert "(best)" not in markdown(report(keep="last"))


def test_the_figures_that_chose_the_epoch_are_shown() -> None:
    rows = tuple(
        EpochRow(i, 1.0, Scores(0.4, 0.91), Scores(0.3, watched), Scores(0.5, tested))
        for i, watched, tested in ((1, 0.82, 0.6), (2, 0.81, 0.99))
    )
    lines = markdown(report(keep="best", backbone_rows=rows)).splitlines()
    backbone, head = (i for i, line in enumerate(lines) if line.startswith("| epoch | s |"))
    assert [name for name in lines[backbone].split(" | ") if "loss" in name] == [
        "train loss",
        "validation loss",
        "test loss",
    ]
    assert lines[backbone + 2] == (
        "| 1 (best) | 1.00 | 0.400 | 0.910 | - | - | - | 0.300 | 0.820 | - | - | - | 0.500 | 0.600 | - | - | - |"
    )
    assert {line.count("|") for line in lines[backbone : backbone + 4]} == {18}
    assert "validation" not in lines[head]
    assert {line.count("|") for line in lines[head : head + 5]} == {13}


def test_the_recipe_in_a_report_is_the_recipe() -> None:
    recipe = resolve({"seed": 20260807, "learning_rate": 0.000123456789, "loss": "cosface", "held_out_classes": ["a"]})
    text = markdown(report(recipe=recipe))
    assert resolve(yaml.safe_load(text.split("```")[1].removeprefix("yaml"))) == recipe
