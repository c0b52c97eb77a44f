"""`--quality best`: a photo is looked at as a whole and at its four corners."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fewshot.backbones import QUALITIES, Preprocessing, WeightsSource, on_this_machine, quality_of, resolve, source_key
from fewshot.cli.main import main
from fewshot.embedder import EmbedderChoice, open_embedder
from fewshot.errors import BackboneError
from fewshot.samples import CLASSES, render_leaf, write_samples

pytestmark = pytest.mark.weights


def opened(backbone="lite0", quality="best", engine="openvino"):
    return open_embedder(EmbedderChoice(backbone, "f32", engine, quality))


@pytest.fixture(scope="module")
def photos():
    """(5, 320, 320, 3) uint8: drawn leaves."""
    rng = np.random.default_rng(3)
    return np.stack([np.asarray(render_leaf(CLASSES[i % len(CLASSES)], rng, size_px=320)) for i in range(5)])


def cosines(ours, theirs):
    return (ours * theirs).sum(axis=1)


def test_an_embedding_is_the_mean_of_the_whole_and_the_four_corners(photos):
    fast = opened(quality="fast")
    whole = np.stack([np.asarray(Image.fromarray(photo).resize((224, 224), Image.BICUBIC)) for photo in photos])
    corners = [photos[:, top : top + 224, left : left + 224] for top in (0, 96) for left in (0, 96)]
    mean = np.mean([fast.embed_pixels(np.ascontiguousarray(view)) for view in (whole, *corners)], axis=0)
    wanted = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    assert cosines(opened().embed_pixels(photos), wanted).min() > 0.9998  # Pillow rounds to whole grey levels
    assert cosines(wanted, fast.embed_pixels(whole)).max() < 0.999


@pytest.mark.parametrize("backbone", ["lite0", "plants-lite0"])
def test_engines_see_the_same_views(photos, backbone):
    ours, theirs = opened(backbone), opened(backbone, engine="torch")
    assert ours.fingerprint == theirs.fingerprint
    assert cosines(ours.embed_pixels(photos), theirs.embed_pixels(photos)).min() > 0.9999


def test_photos_together_are_embedded_as_alone(photos):
    embedder = opened()
    together = embedder.embed_pixels(photos)
    alone = np.concatenate([embedder.embed_pixels(photo[None]) for photo in photos])
    assert cosines(together, alone).min() > 0.9999


def test_each_quality_has_a_fingerprint_and_a_cache_of_its_own():
    fast, best = resolve("lite0"), replace(resolve("lite0"), views=5)
    assert (quality_of(fast.views), quality_of(best.views)) == ("fast", "best")
    assert source_key(fast) != source_key(best)
    assert on_this_machine(WeightsSource(**best.as_dict())) == best
    assert "views" not in fast.as_dict()
    assert opened().fingerprint != opened(quality="fast").fingerprint == opened(quality=None).fingerprint


@pytest.mark.parametrize("size", [64, 224, 240, 260, 288, 299, 300, 331, 384])
def test_the_network_gets_views_of_its_own_size(size):
    once = Preprocessing(size, 0.875, "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert once.in_views(1) is once
    five = once.in_views(5)
    assert (once.view_size_px, five.view_size_px) == (size, size)
    assert five.image_size_px > size
    assert five.in_views(5) is five
    assert Preprocessing.from_dict(json.loads(json.dumps(five.as_dict()))) == five
    assert set(QUALITIES.values()) == {1, 5}


def test_a_number_of_views_from_a_later_release_is_told():
    later = replace(resolve("plants-lite0"), views=9)
    assert quality_of(later.views) == "9 views"
    with pytest.raises(BackboneError, match="of 9 views") as caught:
        open_embedder(EmbedderChoice(precision="f32"), source=later)
    assert "Update" in caught.value.hint


def test_an_index_keeps_its_quality_until_it_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path / "photos", n_support=3, n_query=1)
    folder, runner = tmp_path / "photos" / "support", CliRunner()

    def run(*words, code=0):
        done = runner.invoke(main, [str(word) for word in words])
        assert done.exit_code == code, done.output
        return done.output

    run("enroll", "--each", folder, "--quality", "best", "--precision", "f32", "--backbone", "plants-lite0")
    index = json.loads(run("doctor", "--json"))["index"]
    assert index["quality"] == "best"
    assert index["backbone"] == opened("plants-lite0").fingerprint
    photo = next(folder.rglob("*.jpg"))
    assert json.loads(run("query", photo, "--json").splitlines()[-1])["matches"][0]["label"] == photo.parent.name
    assert "--quality" in run("query", photo, "--quality", "fast", code=2)
    run("reindex", "--quality", "fast", "--precision", "f32")
    assert json.loads(run("doctor", "--json"))["index"]["quality"] == "fast"
    assert "f32, fast" in run("doctor")
