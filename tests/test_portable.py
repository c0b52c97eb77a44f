"""A backbone as ONNX: the same network, the same name, where torch is and where it is not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import LEAF_COLOURS, write_leaf
from safetensors.torch import save_file

from fewshot import engines, extras
from fewshot.backbones import FACTS_FILE, PORTABLE_FILE, WEIGHTS_FILE, read_portable, resolve
from fewshot.embedder import EmbedderChoice, open_embedder
from fewshot.errors import MissingExtraError, WeightsDamagedError
from fewshot.gallery import Gallery
from fewshot.networks import load
from fewshot.portable import export_onnx, onnx_weights
from fewshot.training.runs import train

pytestmark = pytest.mark.weights
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A backbone that `fewshot train` made, small and from random weights."""
    home = tmp_path_factory.mktemp("trained")
    for label in ("rust", "healthy"):
        for i in range(4):
            write_leaf(home / "train" / label / f"{i}.png", LEAF_COLOURS[label], i)
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0)
    save_file(network.state_dict(), home / "random.safetensors")
    backbone = f"mobilenetv3_small_050:{home / 'random.safetensors'}"
    settings = {"backbone": backbone, "image_size_px": 64, "batch_size": 4, "epochs": 1}
    recipe = home / "small.yaml"
    recipe.write_text("".join(f"{key}: {value}\n" for key, value in {**settings, "test_share": 0.0}.items()))
    (report,) = train(recipe, home, home / "runs")
    return report.folder


@pytest.fixture
def copied(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / trained.name))


def pixels_of(size_px, n=3):
    return np.random.default_rng(3).integers(0, 256, (n, size_px, size_px, 3), dtype=np.uint8)


def no_extras(monkeypatch):
    monkeypatch.setattr(extras, "_is_installed", lambda library: False)


def test_the_shipped_network_holds_the_weights_by_their_names_in_torch():
    source = resolve("plants-lite0")
    described, data = read_portable(source)
    backbone, network = load(source)
    state = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    weights = onnx_weights(data)
    assert set(weights) == set(state)
    assert all(np.array_equal(weights[name].astype(np.float32), tensor.numpy()) for name, tensor in state.items())
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float16)}
    assert described == backbone


def test_an_index_made_with_torch_opens_on_the_base_without_reindexing(tmp_path, monkeypatch):
    rust = [write_leaf(tmp_path / "rust" / f"{i}.png", LEAF_COLOURS["rust"], i) for i in range(3)]
    healthy = [write_leaf(tmp_path / "healthy" / f"{i}.png", LEAF_COLOURS["healthy"], i) for i in range(3)]
    made_by = open_embedder(EmbedderChoice("plants-lite0", "f32", "torch"))
    with Gallery(tmp_path / "index", create=True, embedder=made_by) as gallery:
        for label, photos in (("rust", rust), ("healthy", healthy)):
            gallery.add(label, list(made_by.embed_photos(photos, n_photos=3, keep=True)), made_by)
    no_extras(monkeypatch)
    with Gallery(tmp_path / "index") as gallery:
        (prediction,) = gallery.query(rust[:1])
        assert gallery.about().fingerprint == made_by.fingerprint
    assert prediction.answer == "rust"
    assert prediction.nearest[0].similarity > 0.9999, "the photo finds itself, embedded by the other engine"


def test_a_trained_backbone_works_where_torch_cannot_be_imported(trained, tmp_path):
    photos = [write_leaf(tmp_path / "photos" / f"{i}.png", LEAF_COLOURS["rust"], i) for i in range(3)]
    away = tmp_path / "elsewhere" / trained.name
    shutil.copytree(trained, away, ignore=shutil.ignore_patterns(WEIGHTS_FILE, "checkpoint", "tensorboard"))
    script = (
        "import json, sys\n"
        "for name in ('torch', 'timm', 'onnx'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from fewshot.embedder import EmbedderChoice, open_embedder\n"
        "embedder = open_embedder(EmbedderChoice(sys.argv[1], 'f32'))\n"
        "rows = embedder.embed_photos([Path(each) for each in sys.argv[2:]], n_photos=3)\n"
        "print(json.dumps([embedder.fingerprint, [row.embedding.tolist() for row in rows]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(away), *map(str, photos)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fingerprint, rows = json.loads(done.stdout)
    here = open_embedder(EmbedderChoice(str(trained), "f32", "torch"))
    assert fingerprint == here.fingerprint
    wanted = np.stack([photo.embedding for photo in here.embed_photos(photos, n_photos=3)])
    assert (np.array(rows) * wanted).sum(axis=1).min() > 0.9999


def test_a_training_from_before_needs_torch_and_says_so(copied, monkeypatch):
    (copied / PORTABLE_FILE).unlink()
    assert read_portable(resolve(str(copied))) is None
    no_extras(monkeypatch)
    with pytest.raises(MissingExtraError, match="does not come as ONNX") as caught:
        open_embedder(EmbedderChoice(str(copied), "f32"))
    assert "fewshot[train]" in caught.value.hint


def test_a_backbone_prepared_before_is_used_without_torch(monkeypatch):
    before = open_embedder(EmbedderChoice("lite0", "f32")).fingerprint
    no_extras(monkeypatch)
    embedder = open_embedder(EmbedderChoice("lite0", "f32"))
    assert embedder.fingerprint == before
    assert np.isfinite(embedder.embed_pixels(pixels_of(224))).all()


# ---- what does not fit


def test_another_network_than_described_is_refused(copied):
    data = bytearray((copied / PORTABLE_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / PORTABLE_FILE).write_bytes(data)
    with pytest.raises(WeightsDamagedError, match=r"model\.onnx is not the one that backbone\.json"):
        open_embedder(EmbedderChoice(str(copied), "f32"))


def test_a_description_of_another_input_size_is_refused(copied):
    facts = json.loads((copied / FACTS_FILE).read_text())
    facts["preprocessing"]["image_size_px"] = 96
    (copied / FACTS_FILE).write_text(json.dumps(facts))
    with pytest.raises(WeightsDamagedError, match=r"\(1, 3, 64, 64\); its description says .*\(1, 3, 96, 96\)"):
        open_embedder(EmbedderChoice(str(copied), "f32"))


def test_a_description_without_what_the_network_needs_is_refused(copied):
    facts = json.loads((copied / FACTS_FILE).read_text())
    del facts["weights_sha256"]
    (copied / FACTS_FILE).write_text(json.dumps(facts))
    with pytest.raises(WeightsDamagedError, match="does not describe a trained backbone"):
        resolve(str(copied))


@pytest.mark.parametrize("data", [b"", b"no network", bytes(100)])
def test_bytes_that_are_no_network_are_refused(trained, tmp_path, data):
    backbone, _ = read_portable(resolve(str(trained)))
    with pytest.raises(WeightsDamagedError, match="ONNX network"):
        engines.export_openvino(backbone, data, tmp_path / "model.ir", {})


def test_weights_in_a_damaged_network_are_refused(copied):
    (copied / WEIGHTS_FILE).unlink()
    (copied / PORTABLE_FILE).write_bytes(b"no network")
    with pytest.raises(WeightsDamagedError, match=r"model\.onnx cannot be read"):
        load(resolve(str(copied)))


# ---- what is written


def test_only_weights_that_are_halves_already_are_stored_so():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with torch.no_grad():
        network[0].weight.copy_(network[0].weight.half().float())
        network[0].bias.fill_(1 / 3)
    weights = onnx_weights(export_onnx(network.eval(), 8))
    assert weights["0.weight"].dtype == np.float16
    assert weights["0.bias"].dtype == np.float32
    assert np.array_equal(weights["0.weight"], network[0].weight.detach().numpy())
    assert np.array_equal(weights["0.bias"], network[0].bias.detach().numpy())
