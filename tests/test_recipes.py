"""A recipe is read whole or refused with what is wrong in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fewshot.errors import RecipeError
from fewshot.recipes import BACKBONE_NAMES, LOSS_NAMES, Recipe, read_plan, recipe_help, resolve
from fewshot.training.runs import _folder_name

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(file for file in CONFIGS.glob("*.yaml") if not file.name.startswith("routes-"))


def plan_of(tmp_path: Path, text: str, only: str | None = None) -> tuple[Recipe, ...]:
    file = tmp_path / "try.yaml"
    file.write_text(text)
    return tuple(cell.recipe for cell in read_plan(file, only).cells)


def test_defaults_fill_what_is_not_said(tmp_path: Path) -> None:
    (recipe,) = plan_of(tmp_path, "loss: arcface\nlearning_rate: 1e-3\n")
    assert (recipe.loss, recipe.learning_rate, recipe.batch_size, recipe.backbone) == ("arcface", 0.001, 64, "lite0")


def test_an_empty_value_means_the_published_margin() -> None:
    assert resolve({"margin": None}).margin is None
    assert resolve({"loss": "arcface"}).loss_settings == {}


@pytest.mark.parametrize(
    ("settings", "suggestion"),
    [
        ({"batchsize": 3}, "batch_size"),
        ({"loss": "arc-face"}, "arcface"),
        ({"backbone": "resnet_50"}, "resnet50"),
        ({"optimiser": "Adam"}, "adam"),
        ({"teachers": ["plant-lite0"], "distillation": 1.0}, "plants-lite0"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(settings: dict[str, object], suggestion: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(settings)
    assert f"Did you mean {suggestion!r}?" in caught.value.hint


def test_a_baseline_teaches_nothing() -> None:
    with pytest.raises(RecipeError, match="'ann-basic' to train from"):
        resolve({"teachers": ["ann-basic"], "distillation": 1.0})


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 2.5},
        {"epochs": "many"},
        {"epochs": True},
        {"epochs": -1},
        {"flips": 1},
        {"learning_rate": "fast"},
        {"learning_rate": float("nan")},
        {"learning_rate": -0.1},
        {"mixup": float("inf")},
        {"interpolation": 1.5},
        {"backbone": 7},
        {"held_out_classes": "corn"},
        {"teachers": "lite0"},
        {"seed": None},
        {"epochs": 10**400},
        {"learning_rate": -(10**5000)},
        {"source_pattern": "("},
        {"source_pattern": "(a{99999999999999999999})"},
        {"source_pattern": "^H[0-9]+_"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_value_of_the_wrong_kind_is_refused_and_named(settings: dict[str, object]) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(settings)
    (key,) = settings
    assert key in caught.value.message


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"epochs": 0}, "neither"),
        ({"frozen_parts": -1, "head": "mlp"}, "frozen"),
        ({"loss": "triplet", "batch_size": 30}, "photos_per_class"),
        ({"loss": "triplet", "batch_size": 4}, "4 a class, holds 1 of the at least 2 classes"),
        (
            {"loss": "quadruplet", "quadruplet_form": "four-sample", "batch_size": 8},
            "holds 2 of the at least 3 classes",
        ),
        ({"loss": "triplet", "mixup": 0.2}, "mixup"),
        ({"loss": "triplet", "prototype_start": True}, "prototype"),
        ({"loss": "cosface", "prototype_start": True, "projection_dim": 64}, "projection_dim"),
        ({"loss": "quadruplet", "mining": "semihard"}, "all or hard"),
        ({"loss": "sphereface", "margin": 0.4}, "0.4 is no whole number"),
        ({"loss": "cross-entropy", "margin": 0.3}, "no margin"),
        ({"split_by": "source"}, "source_pattern"),
        ({"test_share": 0.0, "keep": "best"}, "need photos to choose the epoch by"),
        ({"test_share": 0.0, "patience": 3}, "need photos to choose the epoch by"),
        ({"grey": True}, "grey is for the baselines; lite0"),
        ({"backbone": "cnn-basic"}, "random"),
        ({"weights": "random", "interpolation": 0.5}, "random"),
        ({"teachers": ["lite0"]}, "need each other"),
        ({"distillation": 1.0}, "need each other"),
        ({"teachers": ["lite0"], "distillation": 1.0, "backbone": "cnn-basic", "weights": "random"}, "grey"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        resolve(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "triplet", "batch_size": 8},
        {"loss": "quadruplet", "quadruplet_form": "four-sample", "batch_size": 12},
        {"loss": "triplet", "batch_size": 4, "epochs": 0, "head": "mlp"},
        {"loss": "arcface", "quadruplet_form": "four-sample", "batch_size": 4},
        {"loss": "sphereface", "margin": 3},
        {"loss": "triplet", "mining": "semihard"},
        {"loss": "cross-entropy", "margin": 0.3, "epochs": 0, "head": "mlp"},
        {"test_share": 0.0},
        {"test_share": 0.0, "keep": "best", "validation_share": 0.2},
        {"test_share": 0.0, "keep": "best", "patience": 3, "test_folder": "test"},
        {"grey": True, "backbone": "cnn-basic", "weights": "random"},
        {"teachers": ["lite0", "runs/one/"], "distillation": 1.0, "weights": "random"},
    ],
)
def test_settings_that_go_together_are_not_refused(settings: dict[str, object]) -> None:
    resolve(settings)


def test_a_list_spans_a_grid_and_only_picks_cells(tmp_path: Path) -> None:
    text = "loss: [arcface, cosface, triplet]\nnormalisation: [imagenet, dataset]\nheld_out_classes: [a, b]\n"
    cells = plan_of(tmp_path, text)
    assert [(cell.loss, cell.normalisation) for cell in cells] == [
        (loss, how) for loss in ("arcface", "cosface", "triplet") for how in ("imagenet", "dataset")
    ]
    assert all(cell.held_out_classes == ("a", "b") for cell in cells)
    picked = plan_of(tmp_path, text, "loss=cosface,loss=triplet,normalisation=dataset,epochs=2")
    assert [(cell.loss, cell.normalisation, cell.epochs) for cell in picked] == [
        ("cosface", "dataset", 2),
        ("triplet", "dataset", 2),
    ]


def test_cells_are_named_after_the_grid(tmp_path: Path) -> None:
    file = tmp_path / "try.yaml"
    file.write_text("loss: [arcface, cosface]\nepochs: 3\n")
    plan = read_plan(file)
    assert plan.name == "try"
    assert plan.grid_keys == ("loss",)
    assert [cell.name for cell in plan.cells] == ["loss=arcface", "loss=cosface"]


def test_picked_cells_keep_the_names_that_they_have_in_the_whole_grid(tmp_path: Path) -> None:
    file = tmp_path / "try.yaml"
    file.write_text("loss: [arcface, triplet]\nnormalisation: [imagenet, dataset]\nepochs: 3\nheld_out_classes: [a]\n")

    def names(only: str) -> list[str]:
        return [cell.name for cell in read_plan(file, only).cells]

    whole = [cell.name for cell in read_plan(file).cells]
    assert names("loss=triplet") == [name for name in whole if "triplet" in name]
    assert names("loss=triplet,normalisation=dataset") == whole[-1:]
    assert names("loss=cosface,normalisation=dataset,epochs=2,held_out_classes=[b]") == [
        "loss=cosface normalisation=dataset"
    ]
    assert names("loss=triplet,normalisation=dataset,epochs=2,epochs=4") == [f"{whole[-1]} epochs={n}" for n in (2, 4)]
    (cell,) = read_plan(file, "loss=triplet,normalisation=dataset,epochs=2,held_out_classes=[b]").cells
    assert (cell.recipe.epochs, cell.recipe.held_out_classes) == (2, ("b",))


@pytest.mark.parametrize(
    ("line", "only", "name"),
    [
        ("learning_rate: [0.0001, 0.001]", "learning_rate=1e-4", "learning_rate=0.0001"),
        ("learning_rate: [1e-4, 0.001]", "learning_rate=0.00010", "learning_rate=1e-4"),
        ("learning_rate: [0.0001, 0.001]", "learning_rate=1e-2", "learning_rate=1e-2"),
        ("mixup: [0, 1]", "mixup=1.0", "mixup=1"),
        ("margin: [null, 0.3]", "margin=~", "margin=None"),
        ("flips: [yes, no]", "flips=false", "flips=False"),
        ("seed: [8, 9]", "seed=0x8", "seed=8"),
    ],
)
def test_another_spelling_of_a_value_picks_the_same_cell(tmp_path: Path, line: str, only: str, name: str) -> None:
    file = tmp_path / "try.yaml"
    file.write_text(f"loss: cosface\n{line}\n")
    assert [cell.name for cell in read_plan(file, only).cells] == [name]


@pytest.mark.parametrize(
    ("text", "only"),
    [
        ("seed: [0, 0]\n", None),
        ("learning_rate: [1e-4, 0.001, 0.0001]\n", None),
        ("loss: [arcface, cosface]\n", "loss=cosface,loss=cosface"),
        ("epochs: 3\n", "seed=1,seed=0x1"),
    ],
)
def test_a_value_that_a_grid_has_twice_is_refused(tmp_path: Path, text: str, only: str | None) -> None:
    """Both would be trained into one folder, or the same twice into two."""
    with pytest.raises(RecipeError, match=r"try\.yaml: .* twice"):
        plan_of(tmp_path, text, only)


@pytest.mark.parametrize("only", ["[a,b]", "a", "[a],held_out_classes=[b]", "a,held_out_classes=b"])
def test_a_list_can_be_given_in_only(tmp_path: Path, only: str) -> None:
    (recipe,) = plan_of(tmp_path, "epochs: 3\n", f"held_out_classes={only},seed=2")
    assert recipe.held_out_classes == (("a",) if only == "a" else ("a", "b"))
    assert recipe.seed == 2


WRONG = ["loss", "loss=", "los=arcface", "loss=arcfase", "seed=@1", "margin={", "epochs=2024-13-45"]


@pytest.mark.parametrize("only", [*WRONG, pytest.param(f"epochs={'[' * 3000}", id="deep")])
def test_a_wrong_only_is_refused(tmp_path: Path, only: str) -> None:
    with pytest.raises(RecipeError):
        plan_of(tmp_path, "loss: [arcface, cosface]\n", only)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("- a\n- b\n", "list"),
        ("", "NoneType"),
        ("train: {epochs: 3}\n", "flat"),
        ("loss: [arcface\n", "YAML"),
        ("epochs: 3\nepochs: 4\n", "twice"),
        ("loss: []\n", "empty"),
        ("lossses: []\n", "there is no recipe key 'lossses'"),
        ("lossses: [arcface]\n", "there is no recipe key 'lossses'"),
        pytest.param(f"epochs: {10**400}\n", "epochs", id="digits"),
        ("!!python/object/apply:os.system ['true']\n", "YAML"),
    ],
)
def test_a_broken_file_is_refused_with_its_name(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(RecipeError, match=word) as caught:
        plan_of(tmp_path, text)
    assert "try.yaml" in caught.value.message


def test_a_missing_recipe_suggests_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "tswv.yaml").write_text("epochs: 3\n")
    with pytest.raises(RecipeError) as caught:
        read_plan(tmp_path / "tsvw.yaml")
    assert "tswv.yaml" in caught.value.hint


def test_the_resolved_recipe_survives_json() -> None:
    recipe = resolve({"loss": "cosface", "held_out_classes": ["a"], "margin": 0.3})
    assert resolve(json.loads(json.dumps(recipe.as_dict()))) == recipe


def test_every_key_has_help() -> None:
    keys = [key for key, _, _ in recipe_help()]
    assert keys == list(Recipe.__dataclass_fields__)
    assert all(len(meaning) > 5 for _, _, meaning in recipe_help())


def test_loss_settings_are_what_the_losses_take() -> None:
    from fewshot.losses import LOSSES, build_loss

    assert tuple(LOSSES) == LOSS_NAMES
    for name in LOSS_NAMES:
        margin = None if name == "cross-entropy" else 2.0
        recipe = resolve({"loss": name, "margin": margin, "margin_2": 1.0, "scale": 8.0})
        if name == "cross-entropy":
            assert recipe.loss_settings == {}
        build_loss(name, n_classes=3, dim=4, **recipe.loss_settings)


def test_a_recipe_knows_whether_its_loss_compares_photos() -> None:
    from fewshot.losses import LOSSES

    assert {name: resolve({"loss": name}).compares_photos for name in LOSS_NAMES} == {
        name: loss.compares_photos for name, loss in LOSSES.items()
    }


def test_reading_recipes_loads_no_torch() -> None:
    code = "import sys, fewshot.recipes; assert not {'torch', 'faiss', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_config_resolves_and_opens_with_its_command(file: Path) -> None:
    plan = read_plan(file)
    trained = ("runs/plants-teachers/",)  # what another recipe here leaves
    assert all(
        cell.recipe.backbone.startswith(trained) or cell.recipe.backbone in BACKBONE_NAMES for cell in plan.cells
    )
    opening = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert opening[0].startswith(f"# fewshot train configs/{file.name}")
    assert any("Measured" in line for line in opening)


def test_the_studies_are_all_there() -> None:
    sizes = {file.stem: len(read_plan(file).cells) for file in RECIPES}
    assert sizes == {
        "doctorp-stage1": 9,
        "doctorp-stage2": 48,
        "tswv": 1,
        "emergency": 1,
        "defungi": 10,
        "defungi-baselines": 6,
        "plants-lite0": 1,
        "plants-teachers": 4,
    }


def test_the_teachers_of_a_recipe_are_what_another_one_leaves() -> None:
    (learner,) = read_plan(CONFIGS / "plants-lite0.yaml").cells
    first = read_plan(CONFIGS / "plants-teachers.yaml", "backbone=lite0")
    second = read_plan(CONFIGS / "plants-teachers.yaml", "backbone=mobilenetv2_100,seed=0")
    folders = [f"runs/{plan.name}/{_folder_name(cell.name)}" for plan in (first, second) for cell in plan.cells]
    assert list(learner.recipe.teachers) == folders
    assert learner.recipe.backbone == folders[0]


def test_every_key_is_documented() -> None:
    text = (CONFIGS.parent / "docs" / "training.md").read_text()
    for key, _, meaning in recipe_help():
        assert f"| `{key}` |" in text, key
        assert meaning in text, key
