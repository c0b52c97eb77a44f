"""The same vectors from every engine and at every precision, from a cache that may be damaged at any time."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import LEAF_COLOURS, write_leaf

from fewshot import engines
from fewshot.backbones import Backbone, Preprocessing, load_statistics, resolve, source_key
from fewshot.datasets import query_photos
from fewshot.embedder import EmbedderChoice, cache_folder, open_embedder
from fewshot.errors import CacheDamagedError, EngineError, FewshotError, UsageError
from fewshot.extras import EXTRAS
from fewshot.networks import load
from fewshot.portable import export_onnx
from fewshot.samples import CLASSES, render_leaf
from fewshot.sealed import verify, write_sealed
from fewshot.transforms import whitening

pytestmark = pytest.mark.weights

# Pinned: another value means that every index made before is refused, which is a change to announce.
LITE0_F32 = "lite0@df54840c8dca"


def lite0(precision="f32", engine="openvino", **settings):
    return open_embedder(EmbedderChoice("lite0", precision, engine), **settings)


def prepared(folder=None):
    return (folder or cache_folder()) / "backbones" / source_key(resolve("lite0")) / "model.ir"


def whitened(engine="openvino", **settings):
    return open_embedder(EmbedderChoice("plants-lite0", "f32", engine), **settings)


def rendered(n):
    """(n, 224, 224, 3) uint8: drawn leaves of all classes."""
    rng = np.random.default_rng(5)
    return np.stack([np.asarray(render_leaf(CLASSES[i % len(CLASSES)], rng, size_px=224)) for i in range(n)])


@pytest.fixture(scope="module")
def pixels():
    return rendered(6)


@pytest.fixture
def own_cache(tmp_path, monkeypatch, backbone_cache):
    """A cache folder of this test's own, with the prepared lite0 in it; gives the prepared file."""
    lite0()
    target = prepared(tmp_path / "cache")
    target.parent.mkdir(parents=True)
    target.write_bytes(prepared().read_bytes())
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "cache"))
    return target


def test_fingerprint_of_the_default_backbone_is_pinned():
    assert lite0().fingerprint == LITE0_F32
    assert lite0("bf16").fingerprint != LITE0_F32


def test_openvino_f32_equals_torch_f32(pixels):
    ours, theirs = lite0().embed_pixels(pixels), lite0(engine="torch").embed_pixels(pixels)
    assert (ours * theirs).sum(axis=1).min() >= 0.9999
    assert lite0().fingerprint == lite0(engine="torch").fingerprint
    assert np.abs(ours @ ours.T - np.eye(len(ours))).max() > 0.05, "the leaves must not all look the same"


def test_compiled_for_one_photo_and_for_many_gives_the_same_vectors(pixels):
    embedder = lite0()
    one_by_one = np.concatenate([embedder.embed_pixels(pixels[i : i + 1]) for i in range(len(pixels))])
    assert np.allclose(embedder.embed_pixels(pixels), one_by_one, atol=1e-4)


@pytest.mark.data
def test_bf16_and_f32_embeddings_of_real_photos_agree(real_data):
    photos = query_photos([real_data])
    photos = photos[:: max(1, len(photos) // 24)][:24]
    assert len(photos) >= 20
    f32, bf16 = (
        np.stack([outcome.embedding for outcome in lite0(precision).embed_photos(photos, n_photos=len(photos))])
        for precision in ("f32", "bf16")
    )
    cosines = (f32 * bf16).sum(axis=1)
    assert np.median(cosines) >= 0.999
    assert cosines.min() >= 0.99


@pytest.fixture
def mean_colour():
    """A backbone that gives a photo's mean colour, and its network as ONNX."""
    torch = pytest.importorskip("torch")
    same = torch.nn.Conv2d(3, 3, 1, bias=False)
    same.weight.data = torch.eye(3).view(3, 3, 1, 1)
    network = torch.nn.Sequential(same, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    preprocessing = Preprocessing(32, 0.875, "bicubic", (0.0,) * 3, (1.0,) * 3)
    return Backbone("mean", "mean_colour", 3, "0" * 64, preprocessing), export_onnx(network, 32)


def test_preparing_a_backbone_needs_no_room_for_temporary_files(mean_colour, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "there is none"))
    engines.export_openvino(*mean_colour, tmp_path / "cache" / "model.ir", {})
    assert [each.name for each in (tmp_path / "cache").iterdir()] == ["model.ir"]
    photo = np.full((1, 32, 32, 3), 51, np.uint8)
    ran = engines.OpenVinoEngine(tmp_path / "cache" / "model.ir", "f32", keep=False).run(photo)
    assert np.allclose(ran, 0.2)


def test_a_network_that_openvino_cannot_save_is_a_file_that_cannot_be_written(mean_colour, tmp_path, monkeypatch):
    import openvino

    def refuse(_model, xml, **_options):
        xml.write_text("<net")
        raise RuntimeError("Exception from src/core/serialize.cpp:7:\nCan't write the bin file.\n")

    monkeypatch.setattr(openvino, "save_model", refuse)
    with pytest.raises(OSError, match=r"Can't write the bin file\."):
        engines.export_openvino(*mean_colour, tmp_path / "model.ir", {})
    assert list(tmp_path.glob(".*")) == []


def test_a_vision_transformer_looks_at_five_views_in_every_engine(tmp_path):
    """It takes one picture a call, wherever it puts its class token before the patches."""
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=64, depth=2).eval()
    once = Preprocessing(64, 0.875, "bicubic", (0.5,) * 3, (0.5,) * 3)
    backbone = Backbone("vit", "vit_tiny_patch16_224", network.num_features, "0" * 64, once).in_views(5)
    onnx = export_onnx(network, 64)
    engines.export_openvino(backbone, onnx, tmp_path / "model.ir", {})
    assert (tmp_path / "model.ir").stat().st_size < 1.5 * len(onnx)  # five copies share their weights
    side = backbone.preprocessing.image_size_px
    photos = np.random.default_rng(0).integers(0, 256, (3, side, side, 3)).astype(np.uint8)
    theirs = engines.TorchEngine(backbone, network, "f32", device="cpu").run(photos)
    ours = engines.OpenVinoEngine(tmp_path / "model.ir", "f32", keep=False).run(photos)
    assert np.allclose(ours, theirs, atol=1e-5)


def test_native_precision_is_bf16_only_where_the_cpu_has_it(monkeypatch):
    monkeypatch.setattr(engines, "cpu_capabilities", lambda: ["FP32", "INT8"])
    assert engines.native_precision() == "f32"
    monkeypatch.setattr(engines, "cpu_capabilities", lambda: ["FP32", "BF16"])
    assert engines.native_precision() == "bf16"


def test_torch_engine_refuses_a_precision_it_does_not_have():
    backbone, network = load(resolve("lite0"))
    with pytest.raises(EngineError, match=r"f16.*f32, bf16"):
        engines.TorchEngine(backbone, network, "f16", device="cpu")


@pytest.mark.parametrize("damage", ["missing", "facts", "cut"])
def test_damaged_prepared_backbone_is_made_anew_and_said_so(own_cache, damage, monkeypatch):
    data, fingerprint = own_cache.read_bytes(), lite0().fingerprint
    # Converting takes seconds, and the next test does it.
    monkeypatch.setattr("fewshot.embedder._as_portable", lambda source: (load(source)[0], b"onnx"))
    monkeypatch.setattr(engines, "export_openvino", lambda _backbone, _onnx, path, _facts: path.write_bytes(data))
    if damage == "missing":
        own_cache.unlink()
    elif damage == "facts":
        own_cache.write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    else:
        own_cache.write_bytes(data[: len(data) // 2])
    said = []
    assert lite0(on_notice=said.append).fingerprint == fingerprint
    assert len(said) == 1
    assert "lite0" in said[0]
    verify(own_cache)


def test_prepared_backbone_with_a_flipped_bit_is_made_anew_before_it_is_run(own_cache, pixels):
    wanted = lite0().embed_pixels(pixels[:1])
    for blob in own_cache.parent.glob("*.blob"):
        blob.unlink()
    data = bytearray(own_cache.read_bytes())
    data[len(data) // 2] ^= 0x40
    own_cache.write_bytes(data)
    with pytest.raises(CacheDamagedError):
        verify(own_cache)
    assert np.allclose(lite0().embed_pixels(pixels[:1]), wanted, atol=1e-5)
    verify(own_cache)


@pytest.mark.parametrize("place", [0.1, 0.6, -30])
def test_damaged_compiled_blob_is_made_anew(own_cache, place, pixels):
    wanted = lite0().embed_pixels(pixels[:1])
    (blob,) = own_cache.parent.glob("*.blob")
    sound = blob.read_bytes()
    where = int(len(sound) * place) if place > 0 else len(sound) + place
    blob.write_bytes(sound[:where] + bytes([sound[where] ^ 8]) + sound[where + 1 :])
    assert np.allclose(lite0().embed_pixels(pixels[:1]), wanted, atol=1e-5)
    verify(blob)


def test_blob_of_another_machine_is_not_used(own_cache, monkeypatch, pixels):
    wanted = lite0().embed_pixels(pixels[:1])
    (blob,) = own_cache.parent.glob("*.blob")
    before = blob.stat().st_ino
    lite0().embed_pixels(pixels[:1])
    assert blob.stat().st_ino == before, "a sound blob of this machine must be used"
    monkeypatch.setattr(engines._openvino(), "get_version", lambda: "1999.1")
    assert np.allclose(lite0().embed_pixels(pixels[:1]), wanted, atol=1e-5)
    assert blob.stat().st_ino != before


def test_cache_that_cannot_be_written_is_told_with_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").touch()

    def export(_backbone, _onnx, path, facts):
        write_sealed(path, lambda target: target.write_bytes(b""), facts)

    monkeypatch.setattr(engines, "export_openvino", export)
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "file"))
    with pytest.raises(FewshotError, match="cannot be written") as caught:
        whitened()
    assert "FEWSHOT_CACHE" in caught.value.hint


def test_threads_that_run_together_get_what_they_get_alone(pixels):
    from concurrent.futures import ThreadPoolExecutor

    engine = lite0()._engine(len(pixels))
    alone = [engine.run(each[None]) for each in pixels]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: engine.run(each[None]), list(pixels) * 3))
    for number, row in enumerate(together):
        assert np.allclose(row, alone[number % len(pixels)], rtol=1e-3, atol=1e-3)


def test_an_engine_of_few_threads_is_not_bound_to_the_first_cores(own_cache, monkeypatch):
    """Two processes of one thread each would share a core."""
    monkeypatch.setenv("FEWSHOT_THREADS", "1")
    network = engines.OpenVinoEngine(prepared(), "f32", engines.BulkSettings())._compiled[1]
    assert network.get_property("INFERENCE_NUM_THREADS") == 1
    assert network.get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.parametrize("given", ["0", "-1", "many", "1.5", "1025", "9999999999", "9" * 5000])
def test_a_number_of_threads_that_no_machine_has_is_refused(given, monkeypatch):
    monkeypatch.setenv("FEWSHOT_THREADS", given)
    with pytest.raises(UsageError, match=r"FEWSHOT_THREADS is .*; wanted a whole number from 1 to 1,024"):
        engines.n_threads()
    monkeypatch.setenv("FEWSHOT_THREADS", "1024")
    assert engines.n_threads() == 1024


def test_the_torch_engine_keeps_to_the_limit_of_threads(mean_colour, monkeypatch):
    import torch

    backbone, network = mean_colour[0], torch.nn.Identity()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        engines.TorchEngine(backbone, network, "f32", device="cpu")
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("FEWSHOT_THREADS", "3")
        engines.TorchEngine(backbone, network, "f32", device="cpu")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_what_openvino_cannot_run_is_told_with_its_reason_and_not_a_place_in_its_source(monkeypatch, tmp_path):
    def refuse(*_arguments):
        raise RuntimeError("Exception from src/inference/src/cpp/core.cpp:109:\nCheck failed:\n no such precision \n\n")

    monkeypatch.setattr(engines, "_compiled", refuse)
    with pytest.raises(EngineError, match=r"at f32 on this CPU: no such precision$"):
        engines.OpenVinoEngine(tmp_path / "model.ir", "f32")


def test_numpy_multiplies_with_one_thread_beside_an_engine():
    code = (
        "import numpy as np, threadpoolctl\n"
        "from fewshot.embedder import EmbedderChoice, open_embedder\n"
        "open_embedder(EmbedderChoice('plants-lite0', 'f32')).open_for_many()\n"
        "blas = [each['num_threads'] for each in threadpoolctl.threadpool_info() if each['user_api'] == 'blas']\n"
        "assert blas and set(blas) == {1}, blas\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# What a query has no use for. Full names, so that a part of a library that is used can be named.
UNUSED = {*(name for names in EXTRAS.values() for name in names), "scipy", "pandas", "fastapi", "starlette", "uvicorn"}
UNUSED |= {"httpx", "watchfiles", "prometheus_client", "rich", "yaml", "numpy.ma", "openvino.tools", "fewshot.service"}
UNUSED |= {"sqlalchemy.dialects.postgresql", "statistics"}
UNUSED |= {
    "fewshot.training",
    "fewshot.projection",
    "fewshot.watching",
    "fewshot.evaluation",
    "fewshot.networks",
}


def test_query_on_a_prepared_backbone_loads_nothing_that_it_does_not_use(tmp_path):
    for label in ("rust", "healthy"):
        for i in range(3):
            write_leaf(tmp_path / "photos" / label / f"{i}.png", LEAF_COLOURS[label], i, size=(256, 240))
    script = (
        "import runpy, sys, json\n"
        "sys.argv = ['fewshot', *json.loads(sys.argv[1])]\n"
        "from fewshot.cli import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    code = done.code\n"
        f"print(json.dumps([code or 0, sorted({UNUSED!r} & set(sys.modules))]), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps([str(word) for word in words])],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        code, loaded = json.loads(done.stderr.splitlines()[-1])
        assert code == 0, done.stderr
        return loaded

    run("enroll", "--each", tmp_path / "photos")
    for _ in range(2):
        assert run("query", tmp_path / "photos" / "rust" / "0.png", "--json") == []


# ---- whitening


def without_statistics(source, folder):
    return shutil.copytree(source.location, folder / "plain", ignore=shutil.ignore_patterns("statistics.safetensors"))


def test_whitened_embeddings_are_the_backbones_own_moved_by_its_statistics(pixels, tmp_path):
    source = resolve("plants-lite0")
    plain = open_embedder(EmbedderChoice(str(without_statistics(source, tmp_path)), "f32"))
    statistics = load_statistics(source)
    wanted = whitening(statistics)(plain.embed_pixels(pixels))
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    ours, theirs = whitened().embed_pixels(pixels), whitened("torch").embed_pixels(pixels)
    assert (ours * wanted).sum(axis=1).min() > 0.9999
    assert (ours * theirs).sum(axis=1).min() > 0.999
    assert whitened().fingerprint == whitened("torch").fingerprint != plain.fingerprint


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_damaged_transform_is_made_anew(tmp_path, monkeypatch, pixels, damage):
    wanted = whitened().embed_pixels(pixels[:1])
    made = cache_folder() / "backbones" / source_key(resolve("plants-lite0"))
    own = tmp_path / "cache" / "backbones" / made.name
    shutil.copytree(made, own, ignore=shutil.ignore_patterns(".*"))  # what another worker is just writing
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "cache"))
    file = own / "transform"
    if damage == "missing":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[1000] ^= 0x10
        file.write_bytes(data)
    said = []
    assert np.allclose(whitened(on_notice=said.append).embed_pixels(pixels[:1]), wanted, atol=1e-6)
    assert len(said) == 1
    verify(file)
