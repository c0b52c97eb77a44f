import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fewshot.cli import main

RECIPE = """
backbone: ann-basic
weights: random
loss: cosface
scale: 8.0
margin: 0.1
epochs: 2
batch_size: 6
normalisation: none
image_size_px: 32
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two classes of coloured squares, and a recipe that learns them in a moment."""
    for label, colour in {"corn-rust": (190, 110, 40), "corn-healthy": (60, 150, 50)}.items():
        for i in range(10):
            noise = np.random.default_rng([i, *colour]).normal(0, 15, (40, 40, 3))
            path = tmp_path / "photos" / ("train" if i < 7 else "test") / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)
    (tmp_path / "squares.yaml").write_text(RECIPE)
    return tmp_path / "squares.yaml"


def run(*words: object):
    return CliRunner().invoke(main, ["train", *map(str, words)])


def test_train_says_where_the_report_is(recipe, tmp_path):
    result = run(recipe, "--data", tmp_path / "photos", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "out" / "squares" / "report.md") in result.stdout
    assert (tmp_path / "out" / "squares" / "report.md").is_file()
    assert "nearest prototype" in result.stdout


def test_json_is_one_line_a_cell(recipe, tmp_path):
    words = (recipe, "--data", tmp_path / "photos", "--out", tmp_path / "out", "--json")
    result = run(*words, "--only", "seed=3")
    assert result.exit_code == 0, result.output
    (line,) = [json.loads(each) for each in result.stdout.splitlines()]
    assert line["name"] == "squares"
    assert 0 <= line["prototype_top1"] <= 1
    assert (Path(line["folder"]) / "backbone.safetensors").is_file()


def test_photos_beside_the_class_folders_are_told_once_for_all_cells(recipe, tmp_path):
    train_folder = tmp_path / "photos" / "train"
    (train_folder / "corn-rust" / "0.png").rename(train_folder / "0.png")
    result = run(recipe, "--data", tmp_path / "photos", "--out", tmp_path / "out", "--only", "seed=0,seed=1")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count(f"1 photo lies in {train_folder} itself, in no class; it is not read.") == 1


def test_a_cell_that_fails_is_told_and_the_others_are_trained(recipe, tmp_path):
    recipe.write_text(f"{RECIPE}learning_rate: [1e30, 1e-4]\n")
    words = (recipe, "--data", tmp_path / "photos", "--out", tmp_path / "out")
    result = run(*words, "--only", "loss=cross-entropy,margin=null,optimiser=sgd,epochs=3")
    assert result.exit_code == 1
    warning, error = result.stderr.index("warning: learning_rate=1e30: the"), result.stderr.index("error: 1 of the 2")
    assert warning < error
    assert "Lower learning_rate" in result.stderr
    assert str(tmp_path / "out" / "squares" / "learning_rate-1e-4" / "report.md") in result.stdout


def test_unknown_key_is_misuse_and_suggests_the_nearest(recipe, tmp_path):
    result = run(recipe, "--data", tmp_path / "photos", "--only", "epoch=3")
    assert result.exit_code == 2
    assert "epochs" in result.stderr


def test_a_wrong_recipe_is_told_before_torch_is_loaded(recipe, tmp_path):
    loaded = tmp_path / "loaded.txt"
    script = (
        "import sys\nfrom fewshot.cli import main\n"
        f"try: main(['train', {str(recipe)!r}, '--only', 'epoch=3'])\n"
        f"finally: open({str(loaded)!r}, 'w').write(str('torch' in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, "epochs" in done.stderr, loaded.read_text()) == (2, True, "False")


def test_missing_recipe_is_misuse(tmp_path):
    result = run(tmp_path / "nothing.yaml")
    assert result.exit_code == 2
    assert "nothing.yaml" in result.stderr
