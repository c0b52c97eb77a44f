"""Teachers: what they see, what they say, and that the backbone being trained comes to say the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_training_epochs import LABELS, assert_equal, unseen
from torch import nn
from training_steps import SMALLEST

from fewshot.backbones import Preprocessing
from fewshot.errors import BackboneError
from fewshot.recipes import resolve
from fewshot.records import Pixels
from fewshot.training import networks
from fewshot.training.backbone_phase import BackbonePhase, Prepared
from fewshot.training.photos import Photos, Split, fit_all
from fewshot.training.processes import Processes
from fewshot.training.teachers import Follower, Teachers, apart, levelled, load_teachers
from fewshot.transforms import POWER, level

pytestmark = pytest.mark.usefixtures("one_thread")
N_PHOTOS = 36
ALONE = Processes(device=torch.device("cpu"))


def coloured() -> list[Pixels]:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (N_PHOTOS, 1, 1, 3))
    return [(colour + rng.integers(-40, 40, (60, 70, 3))).clip(0, 255).astype(np.uint8) for colour in colours]


def small(seed: int, dim: int = 16) -> networks.Trainee:
    """A backbone of one convolution, with weights of its own."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, dim, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    plain = Preprocessing(48, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return networks.Trainee(network, networks.Origin("small", "small", "random"), plain, 48, dim)


def phase(folder: Path, **settings: object) -> BackbonePhase:
    """A training of one convolution on a few dozen photos, beside another as its teacher."""
    given = {"image_size_px": 48, "teachers": ["lite0"], "distillation": 5.0, "backbone": "lite0", "batch_size": 12}
    recipe = resolve(SMALLEST | given | settings)
    photos = Photos(tuple(Path(f"{i}.jpg") for i in range(N_PHOTOS)), np.arange(N_PHOTOS) % len(LABELS), LABELS)
    nothing = photos.subset(np.zeros(0, np.int64))
    views = fit_all(coloured(), 48, 1.0)
    prepared = Prepared(Split(photos, nothing, photos), coloured(), None, views, views[:0], views, (small(1),))
    return BackbonePhase(recipe, small(0), prepared, folder, "", ALONE)


def test_embeddings_are_levelled_as_an_index_levels_them() -> None:
    embeddings = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    wanted = level(embeddings.numpy(), POWER)
    assert ((levelled(embeddings).numpy() * wanted).sum(1) > 0.9999).all()


def test_the_slope_is_finite_where_a_component_is_zero() -> None:
    embeddings = torch.tensor([[0.0, 1.0, -2.0, 0.0]], requires_grad=True)
    (levelled(embeddings) * torch.arange(4)).sum().backward()
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()


def test_a_component_jumps_with_its_sign_and_has_no_slope_at_zero() -> None:
    embeddings = torch.tensor([[0.0, 1.0, 1e-12, -1e-12]], requires_grad=True)
    found = levelled(embeddings)
    assert found[0].tolist() == pytest.approx([0.0, 1.0, 0.01, -0.01], rel=1e-3)
    found[0, 0].backward()
    assert embeddings.grad is not None
    assert embeddings.grad[0, 0] == 0


def test_a_cosine_between_rows_is_the_mean_of_the_teachers_cosines() -> None:
    train = fit_all(coloured(), 48, 1.0)
    both = Teachers((small(0), small(1)), train, ALONE)
    each = [Teachers((small(seed),), train, ALONE) for seed in (0, 1)]
    photos = torch.rand(5, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    rows = both(photos)
    cosines = [teacher(photos) @ teacher(photos).T for teacher in each]
    torch.testing.assert_close(rows @ rows.T, (cosines[0] + cosines[1]) / 2)
    assert not rows.requires_grad
    torch.testing.assert_close(both.plain, both(torch.from_numpy(train).permute(0, 3, 1, 2).float() / 255))


def test_the_map_starts_where_it_fits_the_plain_photos() -> None:
    generator = torch.Generator().manual_seed(0)
    learner = torch.rand(2000, 16, generator=generator)
    matrix = torch.randn(16, 8, generator=generator)
    rows = levelled(learner) - levelled(learner).mean(0)
    teachers = torch.nn.functional.normalize(rows @ matrix, dim=1)
    follower = Follower(learner, teachers)
    own, mapped = follower(learner * 7)  # lengths do not matter
    assert (mapped * teachers).sum(1).mean() > 0.97
    torch.testing.assert_close(own, torch.nn.functional.normalize(rows, dim=1))
    torch.testing.assert_close(mapped.norm(dim=1), torch.ones(2000))


def test_how_far_a_batch_is_apart_is_as_its_equation_says() -> None:
    generator = torch.Generator().manual_seed(0)
    own, mapped, taught = (
        torch.nn.functional.normalize(torch.randn(5, dim, generator=generator, dtype=torch.double), dim=1)
        for dim in (4, 6, 6)
    )
    rows = sum(1 - float(mapped[i] @ taught[i]) for i in range(5)) / 5
    pairs = [(float(own[i] @ own[j]) - float(taught[i] @ taught[j])) ** 2 for i in range(5) for j in range(5) if i != j]
    assert float(apart(own, mapped, taught)) == pytest.approx(rows + 10 * sum(pairs) / 20)
    assert float(apart(taught, taught, taught)) == pytest.approx(0)
    assert float(apart(own[:1], mapped[:1], taught[:1])) == pytest.approx(1 - float(mapped[0] @ taught[0]))


def now_apart(phase: BackbonePhase) -> float:
    """How far the learner is from its teacher on the plain photos."""
    assert phase.teachers is not None
    photos = torch.from_numpy(phase.prepared.train).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return float(apart(*phase.follower(phase.trainee(photos)), phase.teachers(photos)))


def test_a_loss_takes_the_backbone_away_from_its_teacher_and_distillation_brings_it_nearer(tmp_path: Path) -> None:
    still = {"loss_learning_rate": 1e-9, "epochs": 10}  # the map stays where it started: what changes is the backbone
    following, alone = phase(tmp_path / "1", **still), phase(tmp_path / "2", **still, distillation=1e-9)
    assert following.teachers is not None
    before = {name: tensor.clone() for name, tensor in following.teachers.state_dict().items()}
    first = now_apart(following)
    assert now_apart(alone) == first
    following.run(unseen)
    alone.run(unseen)
    assert now_apart(following) < 0.9 * first < first < now_apart(alone)
    assert all(torch.equal(tensor, before[name]) for name, tensor in following.teachers.state_dict().items())


def test_learner_and_teacher_see_the_same_changed_and_mixed_photos(tmp_path: Path) -> None:
    found = phase(tmp_path, mixup=1.0, colour_jitter=0.4, crop_min_share=0.3, quarter_turns=True)
    assert found.teachers is not None
    seen: dict[str, list[torch.Tensor]] = {"learner": [], "teacher": []}
    for name, network in (("learner", found.trainee), ("teacher", found.teachers.networks[0])):
        network.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0].clone()))
    found.step(np.arange(6), np.random.default_rng(0))
    assert len(seen["learner"]) == len(seen["teacher"]) == 1
    assert torch.equal(seen["learner"][0], seen["teacher"][0])


def test_it_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = phase(tmp_path / "whole")
    whole.run(unseen)
    phase(tmp_path / "parts", epochs=1).run(unseen)
    resumed = phase(tmp_path / "parts")
    resumed.run(unseen)
    assert_equal(whole, resumed)
    first, second = whole.follower.state_dict(), resumed.follower.state_dict()
    assert first.keys() == second.keys() != set()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_teacher_that_is_not_there_is_named() -> None:
    with pytest.raises(BackboneError, match="there is no folder runs/no-such-folder"):
        load_teachers(resolve({"teachers": ["runs/no-such-folder/"], "distillation": 1.0}))


def test_a_backbone_that_is_not_trained_needs_no_teachers() -> None:
    recipe = {"teachers": ["runs/no-such-folder/"], "distillation": 1.0, "epochs": 0, "head": "mlp"}
    assert load_teachers(resolve(recipe)) == ()


def test_processes_that_each_hold_some_rows_find_the_whole_derivative_together() -> None:
    """Each computes the same from all rows, and lets the gradient flow into its own."""
    generator = torch.Generator().manual_seed(0)
    own, mapped, taught = (
        torch.nn.functional.normalize(torch.randn(7, dim, generator=generator, dtype=torch.double), dim=1)
        for dim in (4, 6, 6)
    )
    whole = [own.clone().requires_grad_(), mapped.clone().requires_grad_()]
    apart(*whole, taught).backward()
    for rows in (slice(0, 4), slice(4, 7)):
        mine = torch.zeros(7, 1, dtype=torch.double)
        mine[rows] = 1
        parts = [each.clone().requires_grad_() for each in (own, mapped)]
        shared = [part * mine + each * (1 - mine) for part, each in zip(parts, (own, mapped), strict=True)]
        apart(*shared, taught).backward()
        for part, each in zip(parts, whole, strict=True):
            assert part.grad is not None
            assert each.grad is not None
            torch.testing.assert_close(part.grad[rows], each.grad[rows])
