"""A recipe trains, resumes to the same result, and stops where it must with what was reached."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from training_steps import SMALLEST as SMALL

from fewshot import losses
from fewshot.errors import (
    ImageError,
    MissingFolderError,
    NotFiniteError,
    RecipeError,
    TooFewPhotosError,
    TrainingDiskFullError,
    TrainingError,
    TrainingStoppedError,
)
from fewshot.recipes import BACKBONE_NAMES, BASELINES, LOSS_NAMES, resolve
from fewshot.training import backbone_phase, batches, checkpoints, networks, photos, processes, report, runs
from fewshot.training.progress import Progress
from fewshot.training.runs import train
from fewshot.transforms import unpack_statistics

pytestmark = pytest.mark.usefixtures("one_thread")

COLOURS = {"corn-rust": (190, 110, 40), "corn-healthy": (60, 150, 50), "apple-scab": (30, 40, 25)}


@pytest.fixture(autouse=True)
def no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training here; the test of the report draws."""
    if "report" not in request.node.name:
        monkeypatch.setattr(report, "_write_curves", lambda report, file: None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three classes of 12 photos to learn and 4 to test: a colour with noise, in landscape format."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("test", 4)):
        for label, colour in COLOURS.items():
            folder = tmp_path / "data" / part / label
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.normal(colour, 40, (84, 100, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"s{i // 3}_{i:02}.jpg")
    return tmp_path / "data"


def recipe_file(tmp_path: Path, **settings: Any) -> Path:
    file = tmp_path / "small.yaml"
    chosen = {**SMALL, "test_folder": "test", **settings}
    file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in chosen.items()))
    return file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "backbone.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stop_at(epoch: int, batch: int = 1) -> Any:
    def stop(progress: Progress) -> None:
        if (progress.epoch, progress.batch) == (epoch, batch):
            raise KeyboardInterrupt

    return stop


# ---- a whole training


def test_training_learns_and_leaves_a_report(tmp_path: Path, data: Path) -> None:
    file = recipe_file(
        tmp_path, backbone="cnn-basic", epochs=6, head="mlp", head_epochs=60, head_learning_rate=0.02, head_width=32
    )
    seen: list[Progress] = []
    (report,) = train(file, data, tmp_path / "out", on_progress=seen.append)
    assert report.test is not None
    assert report.prototype is not None
    assert report.test.accuracy.share == report.prototype.top1.share == 1.0
    assert report.backbone_rows[-1].train.loss < report.backbone_rows[0].train.loss
    assert report.mean_epoch_seconds is not None
    assert report.mean_epoch_seconds > 0
    assert [p.phase for p in seen] == ["backbone"] * 18 + ["head"] * 60
    assert seen[17].seconds_left == 0.0
    folder = tmp_path / "out" / "small"
    results = json.loads((folder / "results.json").read_text())
    assert len(results["backbone_epochs"]) == 6
    assert set(results["backbone_epochs"][0]["test"]) == {"loss", "accuracy", "precision", "recall", "f1"}
    assert np.array(results["test"]["confusion"]).sum() == 12
    text = (folder / "report.md").read_text()
    assert "random weights" in text
    assert "nearest prototype" in text
    assert all(label in text for label in COLOURS)
    with Image.open(folder / "curves.png") as curves:
        assert curves.size[0] > 500
    assert list((folder / "tensorboard").glob("events.*"))
    assert all(tensor.dtype == torch.float16 for tensor in weights(folder).values() if tensor.is_floating_point())
    statistics = unpack_statistics((folder / "statistics.safetensors").read_bytes(), "statistics.safetensors")
    assert np.linalg.eigvalsh(statistics.covariance).min() > 0
    assert (statistics.dim, statistics.n_classes) == (128, 3)


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_every_loss_trains_a_backbone(tmp_path: Path, data: Path, loss: str) -> None:
    settings = {
        "backbone": "cnn-basic",
        "loss": loss,
        "margin": None,
        "epochs": 5,
        "learning_rate": 0.003,
        "photos_per_class": 4,
    }
    (report,) = train(recipe_file(tmp_path, **settings), data, tmp_path / "out")
    losses = [row.train.loss for row in report.backbone_rows]
    assert min(losses[1:]) < losses[0]
    assert report.prototype is not None
    assert report.prototype.top1.share > 0.6
    pairs = loss in ("contrastive", "triplet", "quadruplet")
    assert report.classifier == (None if pairs else "loss")
    assert report.backbone_rows[-1].test.accuracy is not None


def test_the_same_seed_gives_the_same_result_and_another_does_not(tmp_path: Path, data: Path) -> None:
    settings = {"mixup": 0.3, "colour_jitter": 0.2, "grey_share": 0.2, "crop_min_share": 0.5, "quarter_turns": True}
    file = recipe_file(tmp_path, **settings)
    train(file, data, tmp_path / "one")
    train(file, data, tmp_path / "two")
    train(recipe_file(tmp_path, **settings, seed=1), data, tmp_path / "three")
    one, two, three = (weights(tmp_path / name / "small") for name in ("one", "two", "three"))
    assert same(one, two)
    assert not same(one, three)


@pytest.mark.parametrize(("loss", "optimiser"), [("cosface", "adam"), ("triplet", "sgd"), ("sphereface", "adamw")])
def test_a_stopped_run_resumes_to_the_same_result(tmp_path: Path, data: Path, loss: str, optimiser: str) -> None:
    settings = {"margin": None, "optimiser": optimiser, "schedule": "cosine", "warmup_epochs": 1.0, "epochs": 3}
    file = recipe_file(tmp_path, loss=loss, **settings, head="mlp", head_epochs=2, head_dropout=0.2)
    (unbroken,) = train(file, data, tmp_path / "one")
    for epoch in (2, 3):
        with pytest.raises(TrainingStoppedError, match="kept"):
            train(file, data, tmp_path / "two", on_progress=stop_at(epoch, batch=2))
    (resumed,) = train(file, data, tmp_path / "two")
    assert same(weights(tmp_path / "one" / "small"), weights(tmp_path / "two" / "small"))
    scores = [[(row.train, row.test) for row in report.backbone_rows] for report in (unbroken, resumed)]
    assert scores[0] == scores[1]
    assert unbroken.head_rows[-1].test == resumed.head_rows[-1].test
    seen: list[Progress] = []
    train(file, data, tmp_path / "two", on_progress=seen.append)
    assert {progress.phase for progress in seen} == {"head"}, "finished epochs are not trained again"


def test_a_grid_trains_each_cell_in_its_own_folder(tmp_path: Path, data: Path) -> None:
    file = recipe_file(tmp_path, loss=["cosface", "triplet"], margin=None, epochs=1)
    done: list[str] = []
    reports = train(file, data, tmp_path / "out", on_cell=lambda report: done.append(report.cell))
    assert done == [report.cell for report in reports] == ["loss=cosface", "loss=triplet"]
    assert {folder.name for folder in (tmp_path / "out" / "small").iterdir()} == {"loss-cosface", "loss-triplet"}
    (only,) = train(file, data, tmp_path / "out", only="loss=triplet")
    assert only.cell == "loss=triplet"
    assert only.folder == tmp_path / "out" / "small" / "loss-triplet"


def test_the_best_epoch_is_kept_and_patience_ends(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.5, 0.9, 0.7, 0.8, 0.99])
    measured = backbone_phase.logit_scores

    def scores(logits: Any, true: Any, labels: Any, loss: float | None = None) -> Any:
        found = measured(logits, true, labels, loss)
        return found if loss is not None else type(found)(0.0, next(accuracies), 0.0, 0.0, 0.0)

    monkeypatch.setattr(backbone_phase, "logit_scores", scores)
    file = recipe_file(tmp_path, epochs=5, keep="best", patience=2)
    (report,) = train(file, data, tmp_path / "out")
    assert [row.test.accuracy for row in report.backbone_rows] == [0.5, 0.9, 0.7, 0.8]
    folder = tmp_path / "out" / "small"
    kept = checkpoints.load_checkpoint(folder / "checkpoint", "best")
    assert kept is not None
    assert len(kept.facts["rows"]) == 2
    best = checkpoints.without_prefix("network", kept.tensors)
    assert same(weights(folder), {name: tensor.half() for name, tensor in best.items()})
    assert "flatters" in (folder / "report.md").read_text()


def test_interpolation_mixes_the_first_and_the_trained_weights(tmp_path: Path, data: Path) -> None:
    first = torch.nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    with torch.no_grad():
        first.weight += 1.0
        first.bias -= 2.0
    networks.interpolate(first, before, 0.25)
    assert torch.allclose(first.weight, before["weight"] + 0.25)
    assert torch.allclose(first.bias, before["bias"] - 0.5)


# ---- what is frozen stays


def trainee(**settings: Any) -> tuple[networks.Trainee, Any]:
    recipe = resolve({**SMALL, "backbone": "cnn-basic", **settings})
    torch.manual_seed(0)
    return networks.build_trainee(recipe), recipe


def test_frozen_parts_do_not_learn_and_late_parts_learn_fastest() -> None:
    network, recipe = trainee(frozen_parts=1, layer_decay=0.5)
    parts = networks.parts(network.network)
    assert len(parts) == 4  # three convolutions, one dense layer
    groups = networks.parameter_groups(recipe, network)
    assert [group["lr"] for group in groups] == [0.003, 0.0015, 0.00075]
    trainable = [[parameter.requires_grad for module in part for parameter in module.parameters()] for part in parts]
    assert not any(trainable[0])
    assert all(all(part) for part in trainable[1:])


def test_freezing_everything_is_refused() -> None:
    network, recipe = trainee(frozen_parts=4)
    with pytest.raises(TrainingError, match="4 parts"):
        networks.parameter_groups(recipe, network)


def test_frozen_batch_norms_keep_their_statistics() -> None:
    network, recipe = trainee(frozen_batch_norm=True)
    norm = torch.nn.BatchNorm2d(3)
    network.network.insert(0, norm)
    networks.training_mode(recipe, network)
    network(torch.rand(4, 3, 80, 80) + 5)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    networks.training_mode(resolve(SMALL), network)
    network(torch.rand(4, 3, 80, 80) + 5)
    assert not torch.equal(norm.running_mean, torch.zeros(3))


def test_a_frozen_backbone_is_run_once_a_photo(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_seen = 0
    embed = networks.embed

    def counting(network: Any, pixels: Any, device: Any) -> Any:
        nonlocal n_seen
        n_seen += len(pixels)
        return embed(network, pixels, device)

    monkeypatch.setattr(processes, "embed", counting)
    file = recipe_file(
        tmp_path, epochs=0, frozen_parts=-1, loss="cross-entropy", margin=None, head="mlp", head_epochs=9
    )
    (report,) = train(file, data, tmp_path / "out")
    assert n_seen == 36 + 12
    assert len(report.head_rows) == 9


@pytest.mark.parametrize("name", [name for name in BACKBONE_NAMES if name not in BASELINES])
def test_every_backbone_runs_forward_and_learns_one_step(name: str) -> None:
    """Without weights, which most have none of here: the report says "random weights"."""
    recipe = resolve({"backbone": name, "weights": "random", "image_size_px": 96, "frozen_parts": 1})
    torch.manual_seed(0)
    network = networks.build_trainee(recipe)
    assert network.origin.weights == "random"
    groups = networks.parameter_groups(recipe, network)
    networks.training_mode(recipe, network)
    head = torch.nn.Linear(network.dim, 2)
    optimiser = torch.optim.SGD([*groups, {"params": [*head.parameters()], "lr": 0.1}])
    last = networks.parts(network.network)[-1]
    before = [parameter.clone() for module in last for parameter in module.parameters()]
    side = 128 if name in ("inception_v3", "legacy_xception") else 96
    embeddings = network(torch.rand(2, 3, side, side))
    assert embeddings.shape == (2, network.dim)
    torch.nn.functional.cross_entropy(head(embeddings), torch.tensor([0, 1])).backward()
    optimiser.step()
    after = [parameter for module in last for parameter in module.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.weights
def test_the_installed_backbone_starts_from_its_weights() -> None:
    network = networks.build_trainee(resolve({"backbone": "lite0"}))
    assert (network.origin.weights, network.dim) == ("imagenet", 1280)
    assert len(networks.parts(network.network)) == 9
    none = networks.build_trainee(resolve({"backbone": "lite0", "normalisation": "none"}))
    photo = torch.rand(1, 3, 96, 96)
    assert torch.allclose(network.eval()(photo), none.eval()((photo - 0.5) / 0.5), atol=1e-4)
    assert network.preprocessing.crop_pct == 0.875
    assert networks.build_trainee(resolve({"backbone": "plants-lite0"})).origin.weights == "trained"
    asked = {"backbone": "lite0", "image_size_px": 160, "test_image_size_px": 200, "test_crop_pct": 1.0}
    whole = networks.build_trainee(resolve(asked)).preprocessing
    assert (whole.image_size_px, whole.crop_pct, whole.short_side_px) == (200, 1.0, 200)


# ---- batches and augmentation


def test_class_batches_hold_p_classes_with_k_different_photos_each() -> None:
    class_index = np.repeat(np.arange(10), 7)
    seen: list[int] = []
    for batch in batches.class_batches(class_index, 12, 3, np.random.default_rng(0)):
        assert len(batch) == len(set(batch.tolist())) == 12
        classes, counts = np.unique(class_index[batch], return_counts=True)
        assert (len(classes), set(counts)) == (4, {3})
        seen += batch.tolist()
    counts = np.bincount(seen, minlength=70)
    assert len(seen) == 72
    assert counts.max() <= 2
    assert (counts == 0).sum() < 12


def test_class_batches_of_few_classes_take_more_photos_of_each() -> None:
    class_index = np.array([0] * 30 + [1] * 20)
    for batch in batches.class_batches(class_index, 32, 4, np.random.default_rng(0)):
        assert np.bincount(class_index[batch]).tolist() == [16, 16]
        assert len(set(batch.tolist())) == 32


@given(
    st.lists(st.integers(2, 9), min_size=2, max_size=4), st.integers(2, 4), st.integers(2, 16), st.integers(0, 2**32)
)
def test_no_photo_comes_twice_before_all_of_its_class_came_once(
    sizes: list[int], photos_per_class: int, batch_size: int, seed: int
) -> None:
    sizes = [max(n, photos_per_class) for n in sizes]
    class_index = np.repeat(np.arange(len(sizes)), sizes)
    batch_size = max(batch_size, 2 * photos_per_class)
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "n_batches", lambda *_: 60)
        seen = np.zeros(len(class_index), np.int64)
        for batch in batches.class_batches(class_index, batch_size, photos_per_class, rng):
            assert len(set(batch.tolist())) == len(batch)
            seen[batch] += 1
            assert all(np.ptp(seen[class_index == i]) <= 1 for i in range(len(sizes)))


def test_shuffled_batches_hold_every_photo_once() -> None:
    found = [batch.tolist() for batch in batches.shuffled_batches(33, 8, np.random.default_rng(0))]
    assert sorted(row for batch in found for row in batch) == list(range(33))
    assert min(len(batch) for batch in found) >= 6


def augmented(decoded: list[Any], settings: dict[str, Any], seed: int) -> torch.Tensor:
    changes = batches.drawn_changes(decoded, resolve({**SMALL, **settings}), np.random.default_rng(seed))
    return batches.changed(decoded, 64, changes, np.arange(len(decoded)))


def test_augmentation_keeps_range_and_size_and_changes_photos() -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (90, 120, 3), dtype=np.uint8) for _ in range(6)]
    settings = {"crop_min_share": 0.3, "colour_jitter": 0.4, "grey_share": 0.5, "quarter_turns": True}
    batch = augmented(pixels, settings, seed=1)
    assert batch.shape == (6, 3, 64, 64)
    assert 0.0 <= batch.min() < batch.max() <= 1.0
    again = augmented(pixels, settings, seed=1)
    other = augmented(pixels, settings, seed=2)
    assert torch.equal(batch, again)
    assert not torch.equal(batch, other)
    n_grey = sum(bool((photo.std(0) < 1e-6).all()) for photo in batch)
    assert 0 < n_grey < 6


def test_without_augmentation_a_photo_is_its_centre() -> None:
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, 16:80] = 200
    batch = augmented([pixels], {"flips": False}, seed=0)
    assert torch.allclose(batch, torch.full_like(batch, 200 / 255))


def test_dataset_normalisation_is_measured_on_the_training_photos(data: Path) -> None:
    split = photos.read_split(resolve({**SMALL, "test_folder": "test"}), data)
    decoded = photos.decode_all(split.train, 80, grey=False)
    mean, std = photos.channel_statistics(decoded)
    pixels = np.concatenate([array.reshape(-1, 3) for array in decoded]) / 255.0
    assert np.allclose(mean, pixels.mean(axis=0), atol=1e-4)
    assert np.allclose(std, pixels.std(axis=0), atol=1e-3)


def test_dataset_normalisation_changes_six_numbers_and_no_weight(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, build = [], runs.build_trainee
    monkeypatch.setattr(runs, "build_trainee", lambda recipe: built.append(recipe) or build(recipe))
    recipes = [resolve({**SMALL, "test_folder": "test", "normalisation": how}) for how in ("dataset", "none")]
    split = photos.read_split(recipes[0], data)
    (measured, prepared), (plain, _) = (runs.prepare(recipe, split, photos.DecodedPhotos()) for recipe in recipes)
    assert len(built) == 2, "once each"
    mean, std = photos.channel_statistics(prepared.decoded)
    assert (measured.preprocessing.mean, measured.preprocessing.std) == (tuple(mean.tolist()), tuple(std.tolist()))
    assert same(measured.network.state_dict(), plain.network.state_dict())
    batch = torch.rand(2, 3, 80, 80)
    normalised = (batch - torch.from_numpy(mean).view(3, 1, 1)) / torch.from_numpy(std).view(3, 1, 1)
    assert torch.allclose(measured(batch), plain(normalised), atol=1e-6)


def test_what_the_next_training_wants_too_is_not_decoded_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = photos.read_split(resolve({**SMALL, "test_folder": "test"}), data)
    decode, asked = photos.decode_all, []
    monkeypatch.setattr(photos, "decode_all", lambda *given: asked.append(given[1:]) or decode(*given))
    kept = photos.DecodedPhotos()
    first = kept.of([(split.train, 80), (split.test, 64)], grey=False)
    assert asked == [(80, False), (64, False)]
    again = kept.of([(split.train, 80), (split.test, 72)], grey=False)
    assert asked[2:] == [(72, False)]
    assert all(one is other for one, other in zip(first[0], again[0], strict=True))
    kept.of([(split.train, 80), (split.test, 64)], grey=True)
    assert asked[3:] == [(80, True), (64, True)]
    kept.of([(split.train, 80)], grey=False)
    assert asked[5:] == [(80, False)], "forgotten when another training did not want it"


# ---- splits


def test_a_split_holds_every_photo_once_with_its_share_of_each_class(data: Path) -> None:
    recipe = resolve({**SMALL, "test_share": 0.25, "validation_share": 0.34})
    split = photos.read_split(recipe, data)
    files = [*split.train.files, *split.validation.files, *split.test.files]
    assert len(files) == len(set(files)) == 36
    assert np.bincount(split.test.class_index).tolist() == [3, 3, 3]
    assert np.bincount(split.validation.class_index).tolist() == [3, 3, 3]
    assert photos.read_split(recipe, data).test.files == split.test.files
    assert photos.read_split(resolve({**recipe.as_dict(), "seed": 5}), data).test.files != split.test.files
    for file, i in zip(split.test.files, split.test.class_index, strict=True):
        assert file.parent.name == split.test.labels[i]


def test_a_split_by_source_never_divides_a_source(data: Path) -> None:
    settings = {**SMALL, "split_by": "source", "source_pattern": r"^(s\d+)_", "test_share": 0.25}
    split = photos.read_split(resolve(settings), data)
    sources = [{file.name[:2] for file in part.files} for part in (split.train, split.test)]  # each is in every class
    assert not sources[0] & sources[1]
    assert len(split.test) == 9


def test_held_out_classes_are_nowhere(data: Path) -> None:
    recipe = resolve({**SMALL, "test_folder": "test", "held_out_classes": ["corn-rust"]})
    split = photos.read_split(recipe, data)
    assert split.train.labels == split.test.labels == ("apple-scab", "corn-healthy")
    assert not [file for part in (split.train, split.test) for file in part.files if file.parent.name == "corn-rust"]


def test_leaves_get_other_surroundings_and_the_report_says_how_many(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "write_portable", lambda folder: None)  # which takes ten times as long as this training
    for file in (data / "train" / "corn-healthy").iterdir():
        pixels = np.full((84, 100, 3), 150, np.uint8)
        pixels[20:64, 30:70] = COLOURS["corn-healthy"]
        Image.fromarray(pixels).save(file)
    colour = {"backbone": "lite0", "image_size_px": 48, "frozen_batch_norm": True, "epochs": 1}
    settings = {**colour, "new_ground": 0.5, "ground_classes": ["corn-rust"]}
    (report,) = train(recipe_file(tmp_path, **settings), data, tmp_path / "one")
    train(recipe_file(tmp_path, **colour), data, tmp_path / "plain")
    assert not same(weights(tmp_path / "one" / "small"), weights(tmp_path / "plain" / "small"))
    assert report.as_dict()["n_cut_out"] == 12
    assert "12 show a leaf on a plain ground" in (report.folder / "report.md").read_text()


# ---- bad input


def test_an_unknown_held_out_class_suggests_the_nearest(tmp_path: Path, data: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        train(recipe_file(tmp_path, held_out_classes=["corn-rusty"]), data, tmp_path / "out")
    assert "corn-rust" in caught.value.hint


def test_a_class_with_too_few_photos_for_p_x_k_is_named(tmp_path: Path, data: Path) -> None:
    for file in sorted((data / "train" / "apple-scab").iterdir())[3:]:
        file.unlink()
    with pytest.raises(TooFewPhotosError, match="'apple-scab' has 3 photos"):
        train(recipe_file(tmp_path, loss="triplet", margin=None), data, tmp_path / "out")


def test_one_class_is_not_enough(tmp_path: Path, data: Path) -> None:
    file = recipe_file(tmp_path, held_out_classes=["corn-rust", "corn-healthy"])
    with pytest.raises(TooFewPhotosError, match="at least 2"):
        train(file, data, tmp_path / "out")


def test_a_class_too_small_to_split_is_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(TooFewPhotosError, match="cannot be split"):
        train(recipe_file(tmp_path, test_folder="", test_share=0.01), data, tmp_path / "out")


def test_a_source_pattern_that_finds_nothing_is_refused(tmp_path: Path, data: Path) -> None:
    file = recipe_file(tmp_path, test_folder="", split_by="source", source_pattern="^(H[0-9]+)_")
    with pytest.raises(RecipeError, match="finds no source"):
        train(file, data, tmp_path / "out")


def test_a_missing_folder_is_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(MissingFolderError):
        train(recipe_file(tmp_path, train_folder="trian"), data, tmp_path / "out")


def test_a_broken_photo_stops_the_training_before_it_starts(tmp_path: Path, data: Path) -> None:
    (data / "train" / "apple-scab" / "s0_00.jpg").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match="s0_00"):
        train(recipe_file(tmp_path), data, tmp_path / "out")


def test_a_nan_loss_stops_and_keeps_the_last_good_epoch(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_at_epoch_2(progress: Progress) -> None:
        if progress.epoch == 2:
            monkeypatch.setattr(losses.CosFace, "forward", lambda self, e, c: e.sum() * float("nan"))

    file = recipe_file(tmp_path, epochs=3)
    with monkeypatch.context() as patch:
        monkeypatch = patch
        with pytest.raises(NotFiniteError, match="epoch 2, batch 2; epoch 1 is kept") as caught:
            train(file, data, tmp_path / "out", on_progress=break_at_epoch_2)
    assert "learning_rate" in caught.value.hint
    kept = checkpoints.load_checkpoint(tmp_path / "out" / "small" / "checkpoint", "last")
    assert kept is not None
    assert len(kept.facts["rows"]) == 1
    assert all(torch.isfinite(tensor).all() for tensor in kept.tensors.values())


def test_a_learning_rate_far_too_high_is_told(tmp_path: Path, data: Path) -> None:
    file = recipe_file(tmp_path, loss="cross-entropy", margin=None, learning_rate=1e30, optimiser="sgd", epochs=3)
    with pytest.raises(NotFiniteError, match="cross-entropy"):
        train(file, data, tmp_path / "out")


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = recipe_file(tmp_path, epochs=3)
    with pytest.raises(TrainingStoppedError):
        train(file, data, tmp_path / "out", on_progress=stop_at(2))
    folder = tmp_path / "out" / "small" / "checkpoint"
    before = (folder / "last.safetensors").read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "fsync", no_space)
        with pytest.raises(TrainingDiskFullError, match=r"last\.safetensors"):
            train(file, data, tmp_path / "out")
    assert (folder / "last.safetensors").read_bytes() == before
    assert not list(folder.glob(".*.partial"))
    (report,) = train(file, data, tmp_path / "out")
    assert len(report.backbone_rows) == 3


def test_a_folder_of_another_training_is_refused(tmp_path: Path, data: Path) -> None:
    train(recipe_file(tmp_path, epochs=1), data, tmp_path / "out")
    with pytest.raises(TrainingError, match="another epochs"):
        train(recipe_file(tmp_path, epochs=2), data, tmp_path / "out")
    (data / "train" / "corn-rust" / "s0_00.jpg").unlink()
    with pytest.raises(TrainingError, match="other photos"):
        train(recipe_file(tmp_path, epochs=1), data, tmp_path / "out")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, data: Path) -> None:
    file = recipe_file(tmp_path, epochs=3)
    with pytest.raises(TrainingStoppedError):
        train(file, data, tmp_path / "out", on_progress=stop_at(2))
    last = tmp_path / "out" / "small" / "checkpoint" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:500])
    with pytest.raises(TrainingError, match="damaged"):
        train(file, data, tmp_path / "out")
