"""`fewshot evaluate`: a folder of folders in, episodes out, and what cannot be drawn refused."""

import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from cli_steps import lines, run
from conftest import colour_embedder
from PIL import Image


@pytest.mark.weights
def test_evaluate_measures_a_folder_of_folders(leaves, monkeypatch):
    folder = leaves(n=7)
    (folder / "rust" / "words.jpg").write_text("words")
    given = ("evaluate", folder, "--n-way", 3, "--n-shot", 3, "--n-query", 4, "--n-episode", 20)
    (report,) = lines(*given)
    assert report["backbone"].startswith("plants-lite0@")
    assert 0.5 < report["accuracy"]["mean"] <= 1
    assert (report["n_classes"], report["n_photos"]) == (4, 28)
    monkeypatch.setattr("fewshot.embedder.open_embedder", lambda *_, **__: colour_embedder())  # the rest is the same
    out = run(*given)
    assert "20 episodes of 3 classes" in out.stdout
    assert "words.jpg" in out.stderr
    result = run("evaluate", folder, "--n-way", 9)
    assert result.exit_code == 2
    assert "wanted 9" in result.stderr


def test_evaluate_asks_no_photo_that_is_enrolled_under_another_name(leaves, monkeypatch):
    folder = leaves(n=7)
    for label in ("rust", "healthy"):
        for i in range(2):
            shutil.copyfile(folder / "rust" / f"rust-{i:02d}.png", folder / label / f"copy-{i}.png")
    monkeypatch.setattr("fewshot.embedder.open_embedder", lambda *_, **__: colour_embedder())
    given = ("evaluate", folder, "--n-way", 3, "--n-shot", 3, "--n-query", 4, "--n-episode", 1)
    result = run(*given)
    assert "4 of 32 files hold the same bytes as one before" in result.stderr
    assert "nan" not in result.stdout
    (report,) = lines(*given)
    assert report["n_photos"] == 28
    assert report["accuracy"]["low"] is None


def test_evaluate_warns_of_photos_that_are_one_saved_twice(leaves, monkeypatch):
    folder = leaves(n=7)
    with Image.open(folder / "rust" / "rust-00.png") as photo:
        photo.save(folder / "rust" / "saved-again.png", compress_level=1)
    monkeypatch.setattr("fewshot.embedder.open_embedder", lambda *_, **__: colour_embedder())
    result = run("evaluate", folder, "--n-way", 3, "--n-shot", 3, "--n-query", 4, "--n-episode", 1)
    assert "1 of 29 photos are near-copies of one before, such as" in result.stderr
    assert "saved-again.png of" in result.stderr
    assert "flatter" in result.stderr


def test_evaluate_warns_of_several_shots_of_each_plant(leaves, monkeypatch):
    monkeypatch.setattr("fewshot.embedder.open_embedder", lambda *_, **__: colour_embedder())
    monkeypatch.setattr("fewshot.classifier.subjects.subjects", lambda support: np.arange(len(support)) // 2)
    result = run("evaluate", leaves(n=7), "--n-way", 3, "--n-shot", 3, "--n-query", 4, "--n-episode", 1)
    assert "12 of 28 photos look like further shots of a plant, or place, that another photo" in result.stderr
    assert result.exit_code == 0


def test_evaluate_names_the_classes_that_have_too_few_photos(leaves, monkeypatch):
    folder = leaves(n=7)
    leaves(n=4, labels=["rust"], name="few")
    shutil.rmtree(folder / "rust")
    (folder.parent / "few" / "rust").rename(folder / "rust")
    (folder / "rust" / "words.jpg").write_text("words")
    monkeypatch.setattr("fewshot.embedder.open_embedder", lambda *_, **__: colour_embedder())
    given = ("evaluate", folder, "--n-way", 3, "--n-shot", 3, "--n-episode", 1)
    assert "fewer usable photos" not in run(*given, "--n-query", 1).stderr
    result = run(*given, "--n-query", 4)
    assert result.exit_code == 0
    assert (
        "warning: 1 of 4 classes has fewer usable photos than the 7 that an episode draws, and is asked as unknown "
        "only: rust (4)." in result.stderr
    )
    assert "from 3 classes" in result.stdout
    result = run(*given, "--n-query", 9)  # none is left, and the warning says why
    assert result.exit_code == 2
    assert "asked as unknown only: blight (7), healthy (7), mildew (7), rust (4)." in result.stderr


def test_evaluate_shows_how_far_it_is_in_both_of_its_parts(leaves, monkeypatch):
    shown = []

    @contextmanager
    def counting(what, n):
        done = []
        yield lambda: done.append(1)
        shown.append((what, n, len(done)))

    monkeypatch.setattr("fewshot.cli.evaluate.progress", counting)
    monkeypatch.setattr("fewshot.embedder.open_embedder", lambda *_, **__: colour_embedder())
    lines("evaluate", leaves(n=5), "--n-way", 3, "--n-shot", 3, "--n-query", 2, "--n-episode", 9)
    assert shown == [("embedding", 20, 20), ("episodes", 9, 9)]


def test_evaluate_refuses_what_cannot_be_drawn_before_it_embeds_anything(leaves, monkeypatch):
    monkeypatch.setattr("fewshot.embedder.open_embedder", lambda *_, **__: pytest.fail("opened"))
    for wrong in (("--n-way", 1), ("--n-shot", 0), ("--n-query", 0), ("--n-episode", 0), ("--seed", -1)):
        result = run("evaluate", leaves(n=3), *wrong)
        assert result.exit_code == 2
        assert f"Invalid value for '{wrong[0]}': {wrong[1]} is not in the range" in result.stderr


def test_evaluate_of_too_few_photos_names_options_that_work(leaves, monkeypatch):
    monkeypatch.setattr("fewshot.embedder.open_embedder", lambda *_, **__: colour_embedder())
    folder = leaves(n=7)
    result = run("evaluate", folder)
    assert result.exit_code == 2
    options = result.stderr.split("These photos are enough for `")[1].split("`")[0]
    assert options == "--n-way 4 --n-shot 5 --n-query 2"
    assert run("evaluate", folder, *options.split(), "--n-episode", 1).exit_code == 0
