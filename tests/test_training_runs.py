"""What holds a folder, and what a grid does when one of its trainings fails."""

import json
import shutil

import pytest
import timm
import torch
from conftest import LEAF_COLOURS, write_leaf
from PIL import Image
from safetensors.torch import save_file
from training_steps import SMALLEST

from fewshot import losses
from fewshot.errors import ImageError, NotFiniteError, TrainingError, TrainingStoppedError, WeightsUnreachableError
from fewshot.training import report, runs
from fewshot.training.runs import train

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {**SMALLEST, "epochs": 1, "batch_size": 6, "test_folder": "test"}


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """It takes longer than training here."""
    monkeypatch.setattr(report, "_write_curves", lambda report, file: None)


@pytest.fixture
def data(tmp_path):
    for part, n in (("train", 5), ("test", 2)):
        for label in ("rust", "healthy"):
            for i in range(n):
                write_leaf(tmp_path / "data" / part / label / f"{i}.png", LEAF_COLOURS[label], i)
    return tmp_path / "data"


@pytest.fixture
def no_weights(monkeypatch):
    """The baseline `cnn-basic` as a backbone whose weights are nowhere."""
    build = runs.build_trainee

    def without(recipe):
        if recipe.backbone == "cnn-basic":
            raise WeightsUnreachableError("the weights of cnn-basic are not on this machine.", hint="Connect once.")
        return build(recipe)

    monkeypatch.setattr(runs, "build_trainee", without)


def recipe_file(tmp_path, **settings):
    file = tmp_path / "small.yaml"
    file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in {**SMALL, **settings}.items()))
    return file


# ---- what holds a folder


def test_a_training_without_its_weights_leaves_the_folder_to_another(tmp_path, data, no_weights):
    file = recipe_file(tmp_path, backbone="cnn-basic")
    with pytest.raises(WeightsUnreachableError):
        train(file, data, tmp_path / "out")
    (trained,) = train(file, data, tmp_path / "out", only="backbone=ann-basic")
    assert trained.folder == tmp_path / "out" / "small"
    with pytest.raises(TrainingError, match="another backbone"):
        train(file, data, tmp_path / "out")


def test_a_broken_photo_removed_leaves_the_folder_free(tmp_path, data):
    file = recipe_file(tmp_path)
    broken = data / "train" / "rust" / "9.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(ImageError):
        train(file, data, tmp_path / "out")
    broken.unlink()
    assert len(train(file, data, tmp_path / "out")) == 1


def test_nan_in_the_first_epoch_leaves_the_folder_to_a_lower_rate(tmp_path, data, monkeypatch):
    file = recipe_file(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(losses.CosFace, "forward", lambda self, e, c: e.sum() * float("nan"))
        with pytest.raises(NotFiniteError):
            train(file, data, tmp_path / "out")
    (trained,) = train(file, data, tmp_path / "out", only="learning_rate=1e-5")
    assert trained.recipe.learning_rate == 1e-5


def test_an_epoch_holds_the_folder(tmp_path, data):
    def stop(progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(TrainingStoppedError):
        train(recipe_file(tmp_path, epochs=2), data, tmp_path / "out", on_progress=stop)
    with pytest.raises(TrainingError, match="another learning_rate"):
        train(recipe_file(tmp_path, epochs=2, learning_rate=1e-5), data, tmp_path / "out")


@pytest.mark.parametrize("at", [1, 2])
def test_a_stop_says_whether_there_is_an_epoch_to_go_on_from(at, tmp_path, data):
    def stop(progress):
        if progress.epoch == at:
            raise KeyboardInterrupt

    with pytest.raises(TrainingStoppedError) as caught:
        train(recipe_file(tmp_path, epochs=2), data, tmp_path / "out", on_progress=stop)
    said = f"{caught.value.message} {caught.value.hint}"
    assert ("no epoch was finished" in said) == (at == 1)
    assert ("begins this training anew" in said) == (at == 1)
    assert ("goes on from the last whole epoch" in said) == (at == 2)


def test_a_head_without_epochs_of_the_backbone_holds_the_folder(tmp_path, data):
    file = recipe_file(tmp_path, epochs=0, head="mlp", head_epochs=1)
    train(file, data, tmp_path / "out")
    with pytest.raises(TrainingError, match="another head_epochs"):
        train(file, data, tmp_path / "out", only="head_epochs=2")


def test_other_photos_of_the_same_names_are_refused(tmp_path, data):
    file = recipe_file(tmp_path)
    train(file, data, tmp_path / "out")
    train(file, data, tmp_path / "out")
    write_leaf(data / "train" / "rust" / "0.png", LEAF_COLOURS["rust"], 0, size=(90, 90))
    with pytest.raises(TrainingError, match="other photos"):
        train(file, data, tmp_path / "out")


def weights_of(seed, file):
    """A ResNet-18 with weights of its own, as a file that recipes can name."""
    torch.manual_seed(seed)
    save_file(timm.create_model("resnet18").state_dict(), file)


@pytest.mark.parametrize("what", ["backbone", "teacher"])
def test_other_weights_at_the_same_place_are_refused(tmp_path, data, what):
    file = tmp_path / "first.safetensors"
    weights_of(0, file)
    named = {"backbone": f"resnet18:{file}", "weights": "imagenet", "image_size_px": 32}
    if what == "teacher":
        shutil.copy(file, tmp_path / "teacher.safetensors")
        named |= {"teachers": [f"resnet18:{tmp_path / 'teacher.safetensors'}"], "distillation": 1.0}
        file = tmp_path / "teacher.safetensors"
    recipe = recipe_file(tmp_path, **named)
    train(recipe, data, tmp_path / "out")
    train(recipe, data, tmp_path / "out")
    weights_of(1, file)
    with pytest.raises(TrainingError, match=f"other weights of resnet18:.*{file.stem}"):
        train(recipe, data, tmp_path / "out")
    noted = tmp_path / "out" / "small" / "run.json"
    facts = json.loads(noted.read_text())
    del facts["weights"]  # as an earlier version left it
    noted.write_text(json.dumps(facts))
    train(recipe, data, tmp_path / "out")


def test_a_key_that_an_earlier_version_did_not_know_is_at_its_default(tmp_path, data):
    file = recipe_file(tmp_path)
    train(file, data, tmp_path / "out")
    noted = tmp_path / "out" / "small" / "run.json"
    facts = json.loads(noted.read_text())
    del facts["recipe"]["grey_share"]
    noted.write_text(json.dumps(facts))
    train(file, data, tmp_path / "out")
    with pytest.raises(TrainingError, match="another grey_share"):
        train(file, data, tmp_path / "out", only="grey_share=0.5")


def test_a_folder_of_an_earlier_version_knows_photos_by_their_names(tmp_path, data):
    file = recipe_file(tmp_path)
    train(file, data, tmp_path / "out")
    claim = tmp_path / "out" / "small" / "run.json"
    facts = json.loads(claim.read_text())
    assert facts.pop("sizes")
    claim.write_text(json.dumps(facts))
    assert len(train(file, data, tmp_path / "out")) == 1
    (data / "train" / "rust" / "0.png").unlink()
    with pytest.raises(TrainingError, match="other photos"):
        train(file, data, tmp_path / "out")


# ---- what is measured


@pytest.mark.parametrize(("part", "what"), [("train", "support"), ("test", "query")])
def test_a_photo_that_is_embedded_to_zeros_costs_the_prototypes_alone(tmp_path, data, monkeypatch, part, what):
    """Through ReLU a black photo is zeros, where the biases are and stay at zero."""
    build = runs.build_trainee

    def without_biases(recipe):
        trainee = build(recipe)
        trainee.network[2].bias.data.zero_()
        return trainee

    monkeypatch.setattr(runs, "build_trainee", without_biases)
    Image.new("RGB", (80, 80)).save(data / part / "rust" / "0.png")
    file = recipe_file(tmp_path, learning_rate=[0.0, 1e-30], head="mlp", head_epochs=2)
    reports = train(file, data, tmp_path / "out")
    assert [report.prototype for report in reports] == [None, None], "and the next of the grid is trained"
    for each in reports:
        assert each.test is not None
        assert {"backbone.safetensors", "head.safetensors", "results.json"} <= {
            file.name for file in each.folder.iterdir()
        }
        said = f"No nearest-prototype accuracy could be measured: the embedding of a {what} is of length zero"
        assert said in (each.folder / "report.md").read_text()
        assert "nearest prototype (" not in (each.folder / "report.md").read_text()


# ---- a grid


def test_a_picked_cell_is_that_of_the_whole_grid(tmp_path, data):
    file = recipe_file(tmp_path, loss=["cosface", "arcface"], margin=None)
    train(file, data, tmp_path / "out", only="loss=cosface")
    train(file, data, tmp_path / "out", only="loss=arcface")
    folder = tmp_path / "out" / "small"
    assert {cell.name for cell in folder.iterdir()} == {"loss-cosface", "loss-arcface"}
    seen = []
    reports = train(file, data, tmp_path / "out", on_progress=seen.append)
    assert [each.cell for each in reports] == ["loss=cosface", "loss=arcface"]
    assert not seen, "epochs of picked cells are not trained again"


def test_a_grid_goes_on_after_a_cell_without_weights_and_says_so_at_the_end(tmp_path, data, no_weights):
    file = recipe_file(tmp_path, backbone=["ann-basic", "cnn-basic", "ann-dense"])
    told = []
    with pytest.raises(TrainingError) as caught:
        train(
            file,
            data,
            tmp_path / "out",
            on_cell=lambda report: told.append(report.cell),
            on_failed=lambda cell, error: told.append((cell, error.hint)),
        )
    assert told == ["backbone=ann-basic", ("backbone=cnn-basic", "Connect once."), "backbone=ann-dense"]
    assert (tmp_path / "out" / "small" / "backbone-ann-dense" / "report.md").is_file()
    assert caught.value.message == (
        "1 of the 3 trainings of small failed. backbone=cnn-basic: the weights of cnn-basic are not on this machine."
    )
    assert (caught.value.code, caught.value.exit_code) == ("training", 1)
    assert "--only" in caught.value.hint


def test_a_grid_goes_on_after_a_loss_that_is_not_finite(tmp_path, data):
    settings = {"loss": "cross-entropy", "margin": None, "optimiser": "sgd", "epochs": 3}
    file = recipe_file(tmp_path, **settings, learning_rate=[1e30, 1e-3])
    with pytest.raises(TrainingError, match=r"1 of the 2 trainings .* learning_rate=1e\+30: the cross-entropy loss"):
        train(file, data, tmp_path / "out")
    assert (tmp_path / "out" / "small" / "learning_rate-0.001" / "report.md").is_file()


def test_a_grid_ends_with_what_concerns_every_cell(tmp_path, data):
    (data / "train" / "rust" / "0.png").write_bytes(b"not a picture")
    told = []
    with pytest.raises(ImageError):
        train(
            recipe_file(tmp_path, loss=["cosface", "arcface"], margin=None),
            data,
            tmp_path / "out",
            on_failed=lambda cell, error: told.append(cell),
        )
    assert not told
