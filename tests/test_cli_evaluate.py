"""`fewshot evaluate`: a folder of folders in, episodes out, and what cannot be drawn refused."""

import shutil

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
    monkeypatch.setattr("fewshot.subjects.subjects", lambda support: np.arange(len(support)) // 2)
    result = run("evaluate", leaves(n=7), "--n-way", 3, "--n-shot", 3, "--n-query", 4, "--n-episode", 1)
    assert "12 of 28 photos look like further shots of a plant, or place, that another photo" in result.stderr
    assert result.exit_code == 0


def test_evaluate_refuses_what_cannot_be_drawn_before_it_embeds_anything(leaves, monkeypatch):
    monkeypatch.setattr("fewshot.embedder.open_embedder", lambda *_, **__: pytest.fail("opened"))
    for wrong in (("--n-way", 1), ("--n-shot", 0), ("--seed", -1)):
        result = run("evaluate", leaves(n=3), *wrong)
        assert result.exit_code == 2
        assert "at least 2 classes" in result.stderr
