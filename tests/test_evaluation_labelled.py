"""What is measured is read as an index would enroll it, and what flatters is told."""

import shutil

from conftest import colour_embedder
from PIL import Image

from fewshot.datasets import class_folders
from fewshot.evaluation.labelled import read_labelled


def test_each_content_is_read_once_under_its_first_class(leaves):
    folder = leaves(n=3)
    (folder / "empty").mkdir()
    shutil.copyfile(folder / "blight" / "blight-01.png", folder / "rust" / "copy.png")
    (folder / "rust" / "words.jpg").write_text("words")
    with Image.open(folder / "rust" / "rust-00.png") as photo:
        photo.save(folder / "rust" / "saved-again.png", compress_level=1)
    warnings, steps = [], []
    embeddings, class_index = read_labelled(
        class_folders(folder), colour_embedder(), on_photo=lambda: steps.append(1), on_warning=warnings.append
    )
    assert class_index.tolist() == [0] * 3 + [2] * 3 + [3] * 3 + [4] * 4  # the one without photos keeps its number
    assert len(embeddings) == 13
    assert len(steps) == 15
    refused, copies, near = warnings
    assert "words.jpg" in refused
    assert copies.startswith("1 of 15 files hold the same bytes")
    assert near.startswith("1 of 15 photos are near-copies")


def test_no_photo_at_all_is_no_failure(tmp_path):
    (tmp_path / "photos" / "rust").mkdir(parents=True)
    nothing = class_folders(tmp_path / "photos")
    embeddings, class_index = read_labelled(nothing, colour_embedder(), on_photo=list, on_warning=list)
    assert embeddings.shape == (0, colour_embedder().dim)
    assert len(class_index) == 0
