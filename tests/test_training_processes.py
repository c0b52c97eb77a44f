"""Two processes that torchrun starts train what one process trains, and one of them writes it down."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fewshot.errors import TrainingError
from fewshot.training import report, runs
from fewshot.training.processes import Processes
from fewshot.training.runs import train

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = Path(__file__).parent
COLOURS = {"corn-rust": (190, 110, 40), "corn-healthy": (60, 150, 50), "apple-scab": (30, 40, 25)}
SMALL = {
    "backbone": "ann-basic",  # nothing in it is drawn by chance: dropout would draw other masks in each process
    "weights": "random",
    "epochs": 2,
    "learning_rate": 0.003,
    "normalisation": "none",
    "optimiser": "sgd",  # Adam's first steps turn differences in the last digit into signs
    "test_folder": "test",
}
# Chance in every place where a batch is changed, and batches that two processes cannot share evenly.
CLASS_VECTORS = {
    **SMALL,
    "loss": "cosface",
    "scale": 8.0,
    "margin": 0.1,
    "batch_size": 13,
    "mixup": 0.4,
    "colour_jitter": 0.2,
    "grey_share": 0.2,
    "crop_min_share": 0.5,
    "quarter_turns": True,
    "projection_dim": 32,
}
IN_COLOUR = {
    **SMALL,
    "backbone": "lite0",
    "epochs": 1,  # a unit that rounding takes over a kink changes its gradient: the more steps, the likelier
    "image_size_px": 48,
    "frozen_batch_norm": True,
    "loss": "cross-entropy",
    "batch_size": 13,
    "new_ground": 0.5,
    "ground_classes": ["corn-rust"],
}
RECIPES = {
    "grounds": IN_COLOUR,
    "vectors": CLASS_VECTORS,
    "pairs": {**SMALL, "loss": "triplet", "mining": "hard", "photos_per_class": 4, "batch_size": 12},
    "few": {**SMALL, "loss": "cross-entropy", "batch_size": 2},  # 39 photos: one batch holds a single one
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Photos and recipes, and what two processes and one made of them; the first two entries are what the two said."""
    folder = tmp_path_factory.mktemp("together")
    rng = np.random.default_rng(0)
    for part, n in (("train", 13), ("test", 5)):
        for label, colour in COLOURS.items():
            (folder / "data" / part / label).mkdir(parents=True)
            for i in range(n):
                noise = 10 if label == "corn-healthy" else 40
                pixels = rng.normal(colour, noise, (84, 100, 3)).clip(0, 255).astype(np.uint8)
                if label == "corn-healthy":  # a leaf on a plain ground
                    pixels[:, :30] = pixels[:, 70:] = pixels[:20] = pixels[64:] = 150
                Image.fromarray(pixels).save(folder / "data" / part / label / f"{i:02}.png")
    shutil.copytree(folder / "data", folder / "less")
    (folder / "less" / "train" / "corn-rust" / "12.png").unlink()
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items()))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(HERE / "train_together.py"), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


def said(work, rank):
    return json.loads((work / f"{rank}.json").read_text())


def assert_same(one, two):
    """Weights, class vectors, momentum and losses, but for the last digits: sums are added up in another order."""
    weights, others = (load_file(folder / "checkpoint" / "last.safetensors") for folder in (one, two))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(
            others[name], tensor, atol=5e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    expected, results = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    assert results["prototype"] == expected["prototype"]
    for row, wanted in zip(results["backbone_epochs"], expected["backbone_epochs"], strict=True):
        assert row["train"]["loss"] == pytest.approx(wanted["train"]["loss"], abs=1e-5)
        assert row["train"]["accuracy"] == wanted["train"]["accuracy"]
        assert row["test"] == pytest.approx(wanted["test"], abs=1e-5)


@pytest.mark.parametrize("recipe", ["vectors", "pairs", "grounds"])
def test_two_processes_train_what_one_trains(work, tmp_path, monkeypatch, recipe):
    # Drawing, and writing the network as ONNX, take longer than training here.
    monkeypatch.setattr(report, "_write_curves", lambda report, file: None)
    monkeypatch.setattr(runs, "write_portable", lambda folder: None)
    train(work / f"{recipe}.yaml", work / "data", tmp_path)
    assert_same(tmp_path / recipe, work / "two" / recipe)
    facts = json.loads((work / "two" / recipe / "results.json").read_text())
    assert facts["machine"]["processes"] == "2"


def test_stopped_and_started_again_they_come_to_the_same(work):
    assert "whole epochs are kept" in said(work, 0)["stopped"]
    assert_same(work / "two" / "vectors", work / "resumed" / "vectors")


def test_the_first_process_alone_reports(work):
    names = ("vectors", "pairs", "grounds", "resumed")
    assert [said(work, 0)[name] for name in names] == [1, 1, 1, 1]
    assert [said(work, 1)[name] for name in names] == [0, 0, 0, 0]


def test_what_processes_cannot_share_is_told_by_each(work):
    for rank in (0, 1):
        told = said(work, rank)
        assert "process 1 of 2 has a recipe, weights or photos other than the first" in told["other photos"]
        assert "batches of 1 photos cannot be shared among 2 processes" in told["few"]


def test_batch_norms_that_learn_are_refused_and_frozen_ones_are_not():
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    with pytest.raises(TrainingError, match="batch norms learn") as caught:
        Processes(0, 2, torch.device("cpu")).parallel(network)
    assert "frozen_batch_norm: true" in caught.value.hint
    still = network.eval().requires_grad_(False)
    assert Processes(0, 2, torch.device("cpu")).parallel(still) is still


def test_alone_nothing_is_shared():
    alone = Processes()
    rows = torch.rand(5, 3)
    assert alone.is_first
    assert alone.share(5).tolist() == [0, 1, 2, 3, 4]
    assert alone.gathered(rows, 5) is rows
    assert alone.from_first("mine") == "mine"
    alone.check_same("anything", "at all")


def test_the_command_can_be_started_as_a_module():
    done = subprocess.run([sys.executable, "-m", "fewshot.cli", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "fewshot")
