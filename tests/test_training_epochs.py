"""An epoch of the backbone: what the network is given, what is said of it, and which epochs are kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_steps import SMALLEST

from fewshot.errors import NotFiniteError
from fewshot.recipes import resolve
from fewshot.records import Pixels
from fewshot.training import batches, checkpoints, networks
from fewshot.training.backbone_phase import BackbonePhase, Prepared
from fewshot.training.head_phase import Features, train_head
from fewshot.training.photos import Photos, Split, fit_all
from fewshot.training.processes import Processes
from fewshot.training.progress import Progress

pytestmark = pytest.mark.usefixtures("one_thread")

N_PHOTOS = 12
LABELS = ("apple-scab", "corn-healthy", "corn-rust")
SMALL = {**SMALLEST, "backbone": "cnn-basic", "batch_size": 6}
CONVOLUTIONS = {**SMALL, "backbone": "lite0", "image_size_px": 64, "test_image_size_px": 64, "learning_rate": 0.001}


def noise() -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (84, 100, 3), dtype=np.uint8) for _ in range(N_PHOTOS)]


def phase(folder: Path, interpolation: float = 1.0, **settings: Any) -> BackbonePhase:
    """The backbone's part of a training on a dozen photos of noise, which are its test photos too."""
    recipe = replace(resolve({**SMALL, **settings}), interpolation=interpolation)  # of random weights it is refused
    torch.manual_seed(0)
    trainee = networks.build_trainee(recipe)
    decoded = noise()
    photos = Photos(tuple(Path(f"{i}.jpg") for i in range(N_PHOTOS)), np.arange(N_PHOTOS) % len(LABELS), LABELS)
    nothing = photos.subset(np.zeros(0, np.int64))
    views = fit_all(decoded, trainee.preprocessing.image_size_px, trainee.preprocessing.crop_pct)
    prepared = Prepared(Split(photos, nothing, photos), decoded, None, views, views[:0], views)
    return BackbonePhase(recipe, trainee, prepared, folder, "", Processes(device=torch.device("cpu")))


def unseen(progress: Progress) -> None:
    pass


def state(phase: BackbonePhase) -> dict[str, torch.Tensor]:
    owners = {"network": phase.trainee.network, "loss": phase.loss, "projection": phase.projection}
    return {f"{name}.{key}": tensor for name, owner in owners.items() for key, tensor in owner.state_dict().items()}


def assert_equal(one: BackbonePhase, other: BackbonePhase) -> None:
    """Bit for bit."""
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert [(row.train, row.test) for row in one.rows] == [(row.train, row.test) for row in other.rows]


# ---- what the network is given


def test_mixup_gives_the_network_each_photo_blended_with_its_partner(tmp_path: Path) -> None:
    learning = phase(tmp_path, mixup=0.4, colour_jitter=0.3, crop_min_share=0.5)
    rows = np.array([7, 2, 9, 4, 0])
    given: list[torch.Tensor] = []
    forward = learning._forward
    learning._forward = lambda photos: given.append(photos) or forward(photos)  # type: ignore[assignment,func-returns-value]
    value, seen = learning.step(rows, np.random.default_rng(3))
    # The same chance again, in the same order.
    rng = np.random.default_rng(3)
    decoded = [learning.prepared.decoded[row] for row in rows]
    changes = batches.drawn_changes(decoded, learning.recipe, rng)
    partner, share = batches.drawn_partners(len(rows), 0.4, rng)
    photos = batches.changed(decoded, 80, changes, np.arange(len(rows)))
    assert sorted(partner) == [0, 1, 2, 3, 4]
    assert (partner != np.arange(5)).any()
    assert 0.5 <= share < 0.95  # else a blend the wrong way round could pass
    assert torch.allclose(given[0], share * photos + (1 - share) * photos[partner], atol=1e-6)
    # The loss is blended alike, from the same logits.
    before = phase(tmp_path, mixup=0.4, colour_jitter=0.3, crop_min_share=0.5)
    true = torch.from_numpy(before.prepared.split.train.class_index[rows])
    with torch.no_grad():
        embeddings = before.trainee(given[0])
        wanted = share * before.loss(embeddings, true) + (1 - share) * before.loss(embeddings, true[partner])
    assert value == pytest.approx(float(wanted), rel=1e-5)
    assert seen is not None


def test_the_larger_share_of_a_blend_is_the_photos_own() -> None:
    shares = [batches.drawn_partners(5, 0.4, np.random.default_rng(seed))[1] for seed in range(50)]
    assert min(shares) >= 0.5
    assert max(shares) <= 1.0


# ---- what is said of it


def test_a_batch_is_judged_by_the_weights_that_met_it(tmp_path: Path) -> None:
    """With class vectors from after the step, a high rate would make training accuracy look better than it was."""
    learning = phase(tmp_path, backbone="ann-basic", flips=False, loss_learning_rate=10.0)
    rows = np.arange(N_PHOTOS)
    photos = batches.changed(
        learning.prepared.decoded, 80, batches.drawn_changes(noise(), learning.recipe, np.random.default_rng(0)), rows
    )
    with torch.no_grad():
        wanted = learning.loss.logits(learning.trainee(photos))
    _, seen = learning.step(rows, np.random.default_rng(0))
    assert wanted is not None
    assert seen is not None
    assert np.allclose(seen, wanted.numpy(), atol=1e-5)
    with torch.no_grad():
        after = learning.loss.logits(learning.trainee(photos))
    assert after is not None
    assert not np.allclose(seen, after.numpy(), atol=0.1)


# ---- which epochs are kept


@pytest.mark.parametrize("owner", ["backbone", "loss", "projection"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_last_step_that_destroys_the_weights_is_told_and_the_epoch_before_is_kept(
    tmp_path: Path, owner: str, keep: str
) -> None:
    """One batch an epoch: each loss is computed before the step, so no loss ever shows what the last step did."""
    learning = phase(tmp_path, batch_size=N_PHOTOS, projection_dim=8, keep=keep)
    network = {"backbone": learning.trainee.network, "loss": learning.loss, "projection": learning.projection}[owner]
    step, n_steps = learning.optimiser.step, 0

    def overflowing(*given: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        done = step(*given)
        if n_steps == learning.recipe.epochs:
            with torch.no_grad():
                next(network.parameters()).view(-1)[0] = float("inf")
        return done

    learning.optimiser.step = overflowing  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError, match=f"the {owner}'s .* in epoch 2; epoch 1 is kept") as caught:
        learning.run(unseen)
    assert "learning_rate" in caught.value.hint
    for name in ("last", *(["best"] if keep == "best" else [])):
        kept = checkpoints.load_checkpoint(tmp_path, name)
        assert kept is not None
        assert len(kept.facts["rows"]) == 1
        assert all(torch.isfinite(tensor).all() for tensor in kept.tensors.values())


@pytest.mark.parametrize("loss", ["cross-entropy", "triplet"])
def test_weights_too_large_for_any_photo_are_told_though_they_are_finite(tmp_path: Path, loss: str) -> None:
    settings = {"loss": loss, "margin": None, "batch_size": 64, "epochs": 1, "optimiser": "sgd"}
    learning = phase(tmp_path, **settings, learning_rate=1e38)
    with pytest.raises(NotFiniteError, match="the embeddings became NaN or infinite in epoch 1; no epoch was finished"):
        learning.run(unseen)
    assert not list(tmp_path.iterdir())


def test_a_batch_norm_that_overflows_is_told(tmp_path: Path) -> None:
    learning = phase(tmp_path, **{**CONVOLUTIONS, "epochs": 1})
    norm = next(module for module in learning.trainee.modules() if isinstance(module, torch.nn.BatchNorm2d))
    step = learning.optimiser.step

    def overflowing(*given: Any) -> Any:
        norm.running_var[0] = float("inf")
        return step(*given)

    learning.optimiser.step = overflowing  # type: ignore[method-assign]
    with pytest.raises(NotFiniteError, match=r"the backbone's bn1\.running_var became NaN or infinite in epoch 1"):
        learning.run(unseen)


def test_a_head_that_its_last_step_destroys_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = resolve({**SMALL, "head": "mlp", "head_epochs": 1, "head_batch_size": 64})
    features = Features(np.ones((N_PHOTOS, 4), np.float32), np.arange(N_PHOTOS) % 3)
    step = torch.optim.Adam.step

    def overflowing(optimiser: Any) -> Any:
        done = step(optimiser)
        with torch.no_grad():
            optimiser.param_groups[0]["params"][0][0, 0] = float("nan")
        return done

    monkeypatch.setattr(torch.optim.Adam, "step", overflowing)
    with pytest.raises(NotFiniteError, match=r"the head's .* in epoch 1") as caught:
        train_head(recipe, features, features, features, LABELS, "", unseen)
    assert "head_learning_rate" in caught.value.hint


# ---- again, and on


def test_convolutions_and_batch_norms_resume_to_the_same_weights(tmp_path: Path) -> None:
    settings = {**CONVOLUTIONS, "mixup": 0.4, "colour_jitter": 0.2, "crop_min_share": 0.5, "projection_dim": 16}
    unbroken = phase(tmp_path / "one", **settings)
    unbroken.run(unseen)

    def stop(progress: Progress) -> None:
        if (progress.epoch, progress.batch) == (2, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        phase(tmp_path / "two", **settings).run(stop)
    resumed = phase(tmp_path / "two", **settings)
    seen: list[Progress] = []
    resumed.run(seen.append)
    assert {progress.epoch for progress in seen} == {2}
    assert_equal(resumed, unbroken)
    other = phase(tmp_path / "three", **settings, seed=1)
    other.run(unseen)
    assert not torch.equal(state(other)["network.conv_stem.weight"], state(unbroken)["network.conv_stem.weight"])


# ---- what is kept of it


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_backbone_kept_is_as_far_from_the_first_as_the_recipe_says(tmp_path: Path, share: float) -> None:
    first, learned, kept = (phase(tmp_path / str(i), interpolation=share if i == 2 else 1.0) for i in range(3))
    learned.run(unseen)
    kept.run(unseen)
    weights = [each.trainee.network.state_dict() for each in (first, learned, kept)]
    assert not torch.equal(weights[0]["1.weight"], weights[1]["1.weight"])
    for name, found in weights[2].items():
        assert torch.allclose(found, torch.lerp(weights[0][name], weights[1][name], share), atol=1e-6)
