"""Each loss against its equation, written out with plain loops in float64, and its gradient by finite differences."""

import math

import pytest
import torch

from fewshot.errors import UsageError
from fewshot.losses import LOSSES, MetricLoss, Quadruplet, build_loss

N_CLASSES, DIM = 4, 6
MINED = ["contrastive", "triplet", "quadruplet"]


def batch(seed: int = 0, n_per_class: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    class_index = torch.arange(N_CLASSES).repeat_interleave(n_per_class)
    return torch.randn(len(class_index), DIM, dtype=torch.float64, generator=generator), class_index


def loss_of(name: str, **settings: object) -> MetricLoss:
    torch.manual_seed(1)
    return build_loss(name, n_classes=N_CLASSES, dim=DIM, **settings).double()


def squared_distances(embeddings: torch.Tensor) -> list[list[float]]:
    unit = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in embeddings.tolist()]
    return [[sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) for other in unit] for one in unit]


def mean_nonzero(terms: list[float]) -> float:
    kept = [term for term in terms if term > 0]
    return sum(kept) / len(kept) if kept else 0.0


def triplets(labels: list[int]) -> list[tuple[int, int, int]]:
    every = range(len(labels))
    return [
        (a, p, n)
        for a in every
        for p in every
        for n in every
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]
    ]


def cosines(embeddings: torch.Tensor, vectors: torch.Tensor) -> list[list[float]]:
    """(n, n_classes); `vectors` is (n_classes, dim)."""
    rows, columns = embeddings.tolist(), vectors.tolist()
    norm = [math.sqrt(sum(v * v for v in row)) for row in rows]
    length = [math.sqrt(sum(v * v for v in row)) for row in columns]
    return [
        [sum(a * b for a, b in zip(r, c, strict=True)) / (norm[i] * length[j]) for j, c in enumerate(columns)]
        for i, r in enumerate(rows)
    ]


def mean_cross_entropy(logits: list[list[float]], labels: list[int]) -> float:
    rows = zip(logits, labels, strict=True)
    return sum(math.log(sum(math.exp(v) for v in row)) - row[label] for row, label in rows) / len(labels)


def class_vectors(loss: MetricLoss) -> torch.Tensor:
    return next(parameter for name, parameter in loss.named_parameters() if name.endswith("W")).detach().T


def test_contrastive_is_its_equation() -> None:
    embeddings, class_index = batch()
    squared, labels = squared_distances(embeddings), class_index.tolist()
    pairs = [(i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j]
    same = [squared[i][j] for i, j in pairs if labels[i] == labels[j]]
    other = [max(1.3 - math.sqrt(squared[i][j]), 0.0) ** 2 for i, j in pairs if labels[i] != labels[j]]
    wanted = mean_nonzero(same) + mean_nonzero(other)
    assert any(term == 0 for term in other)
    assert any(term > 0 for term in other)
    assert loss_of("contrastive", margin=1.3)(embeddings, class_index).item() == pytest.approx(wanted, rel=1e-9)


def test_semihard_contrastive_takes_its_pairs_by_squared_distances() -> None:
    embeddings, class_index = batch()
    squared = squared_distances(embeddings)
    mined = [(a, p, n) for a, p, n in triplets(class_index.tolist()) if 0 < squared[a][n] - squared[a][p] <= 1.3]
    same = [squared[a][p] for a, p, _ in mined]
    other = [max(1.3 - math.sqrt(squared[a][n]), 0.0) ** 2 for a, _, n in mined]
    loss = loss_of("contrastive", margin=1.3, mining="semihard")
    assert loss(embeddings, class_index).item() == pytest.approx(mean_nonzero(same) + mean_nonzero(other), rel=1e-9)


def test_triplet_is_its_equation() -> None:
    embeddings, class_index = batch()
    squared = squared_distances(embeddings)
    terms = [max(squared[a][p] - squared[a][n] + 1.0, 0.0) for a, p, n in triplets(class_index.tolist())]
    assert any(term == 0 for term in terms)
    assert loss_of("triplet")(embeddings, class_index).item() == pytest.approx(mean_nonzero(terms), rel=1e-9)


@pytest.mark.parametrize("form", ["anchor", "four-sample"])
def test_quadruplet_is_its_equation(form: str) -> None:
    embeddings, class_index = batch()
    squared, labels = squared_distances(embeddings), class_index.tolist()
    first, second = [], []
    for a, p, n1 in triplets(labels):
        for n2 in range(len(labels)):
            if labels[n2] == labels[a] or n2 == n1 or (form == "four-sample" and labels[n2] == labels[n1]):
                continue
            rival = squared[a][n2] if form == "anchor" else squared[n1][n2]
            first.append(max(squared[a][p] - squared[a][n1] + 2.0, 0.0))
            second.append(max(squared[a][p] - rival + 1.0, 0.0))
    assert any(term == 0 for term in second)
    wanted = mean_nonzero(first) + mean_nonzero(second)
    assert loss_of("quadruplet", form=form)(embeddings, class_index).item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("mining", ["all", "hard"])
def test_a_pair_of_negatives_taken_once_counts_as_taken_in_both_orders(
    mining: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient."""
    embeddings, class_index = batch(seed=3, n_per_class=4)
    loss = loss_of("quadruplet", form="four-sample", mining=mining)
    found = []
    for triu in (torch.Tensor.triu, lambda negative: negative):
        monkeypatch.setattr(torch.Tensor, "triu", triu)
        given = embeddings.clone().requires_grad_()
        value = loss(given, class_index)
        found.append((value.item(), *torch.autograd.grad(value, given)))
    (once, slope), (twice, full_slope) = found
    assert once == pytest.approx(twice, rel=1e-12)
    assert torch.allclose(slope, full_slope, rtol=1e-10, atol=1e-14)
    assert slope.abs().max() > 0.01


@pytest.mark.parametrize("form", ["anchor", "four-sample"])
def test_hard_quadruplets_take_the_worst_of_the_batch(form: str) -> None:
    embeddings, class_index = batch(seed=3)
    squared, labels = squared_distances(embeddings), class_index.tolist()
    first, second = [], []
    for a, label in enumerate(labels):
        positive = max(squared[a][p] for p in range(len(labels)) if p != a and labels[p] == label)
        others = [n for n in range(len(labels)) if labels[n] != label]
        nearest = sorted(squared[a][n] for n in others)
        closest = min(squared[i][j] for i in others for j in others if labels[i] != labels[j])
        first.append(max(positive - nearest[0] + 2.0, 0.0))
        second.append(max(positive - (nearest[1] if form == "anchor" else closest) + 1.0, 0.0))
    loss = loss_of("quadruplet", form=form, mining="hard")
    wanted = mean_nonzero(first) + mean_nonzero(second)
    assert loss(embeddings, class_index).item() == pytest.approx(wanted, rel=1e-9)


def test_hard_triplets_take_the_worst_of_the_batch() -> None:
    embeddings, class_index = batch()
    squared, labels = squared_distances(embeddings), class_index.tolist()
    terms = []
    for a, label in enumerate(labels):
        positive = max(squared[a][p] for p in range(len(labels)) if p != a and labels[p] == label)
        terms.append(max(positive - min(squared[a][n] for n, other in enumerate(labels) if other != label) + 1.0, 0.0))
    loss = loss_of("triplet", mining="hard")
    assert loss(embeddings, class_index).item() == pytest.approx(mean_nonzero(terms), rel=1e-9)


def test_cosface_is_its_equation() -> None:
    embeddings, class_index = batch()
    loss, labels = loss_of("cosface"), class_index.tolist()
    rows = cosines(embeddings, class_vectors(loss))
    logits = [[32.0 * (c - 0.4 * (j == labels[i])) for j, c in enumerate(row)] for i, row in enumerate(rows)]
    assert loss(embeddings, class_index).item() == pytest.approx(mean_cross_entropy(logits, labels), rel=1e-9)


def test_arcface_is_its_equation_and_takes_degrees() -> None:
    embeddings, class_index = batch()
    loss, labels = loss_of("arcface", margin_degrees=28.6), class_index.tolist()
    margin = 28.6 * math.pi / 180
    assert margin == pytest.approx(0.5, abs=1e-3)

    def widened(cosine: float) -> float:
        angle = math.acos(cosine)
        return math.cos(angle + margin) if angle + margin <= math.pi else cosine - margin * math.sin(margin)

    rows = cosines(embeddings, class_vectors(loss))
    logits = [[32.0 * (widened(c) if j == labels[i] else c) for j, c in enumerate(row)] for i, row in enumerate(rows)]
    assert loss(embeddings, class_index).item() == pytest.approx(mean_cross_entropy(logits, labels), rel=1e-9)


@pytest.mark.parametrize(("annealing", "step", "weight"), [(False, 0, 0.0), (True, 0, 1000.0), (True, 10**6, 5.0)])
def test_sphereface_is_its_equation(annealing: bool, step: int, weight: float) -> None:
    embeddings, class_index = batch()
    loss, labels = loss_of("sphereface", annealing=annealing), class_index.tolist()
    loss.at_step(step)
    norms = embeddings.norm(dim=1).tolist()
    seen = set()

    def psi(cosine: float) -> float:
        angle = math.acos(cosine)
        k = math.floor(4 * angle / math.pi)
        seen.add(k)
        sign = -1.0 if k % 2 else 1.0
        return (weight * cosine + sign * math.cos(4 * angle) - 2 * k) / (1 + weight)

    rows = cosines(embeddings, class_vectors(loss))
    logits = [[norms[i] * (psi(c) if j == labels[i] else c) for j, c in enumerate(row)] for i, row in enumerate(rows)]
    assert len(seen) > 1, "the batch must reach more than one branch of psi"
    assert loss(embeddings, class_index).item() == pytest.approx(mean_cross_entropy(logits, labels), rel=1e-9)


def test_cross_entropy_is_its_equation() -> None:
    embeddings, class_index = batch()
    loss = loss_of("cross-entropy")
    weight, bias = (parameter.tolist() for parameter in loss.parameters())
    logits = [
        [sum(a * b for a, b in zip(row, w, strict=True)) + c for w, c in zip(weight, bias, strict=True)]
        for row in embeddings.tolist()
    ]
    wanted = mean_cross_entropy(logits, class_index.tolist())
    assert loss(embeddings, class_index).item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", [*LOSSES, "quadruplet four-sample"])
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    embeddings, class_index = batch(seed=5)
    loss = loss_of("quadruplet", form="four-sample") if "four" in name else loss_of(name)
    embeddings.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, class_index), (embeddings,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["sphereface", "cosface", "arcface", "cross-entropy"])
def test_gradient_reaches_the_class_vectors(name: str) -> None:
    embeddings, class_index = batch()
    loss = loss_of(name)
    parameters = list(loss.parameters())
    loss(embeddings, class_index).backward()
    step = 1e-6
    for parameter in parameters:
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = loss(embeddings, class_index).item()
            parameter.add_(direction, alpha=-2 * step)
            below = loss(embeddings, class_index).item()
            parameter.add_(direction, alpha=step)
        slope = (parameter.grad * direction).sum().item()
        assert slope == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_step_against_the_gradient_lowers_the_loss(name: str) -> None:
    embeddings, class_index = batch(seed=7)
    loss = loss_of(name)
    embeddings.requires_grad_()
    before = loss(embeddings, class_index)
    (gradient,) = torch.autograd.grad(before, embeddings)
    assert loss(embeddings - 1e-3 * gradient, class_index) < before


@pytest.mark.parametrize("name", MINED)
def test_a_batch_without_positives_costs_nothing(name: str) -> None:
    embeddings = torch.randn(4, DIM, requires_grad=True)
    settings = {"margin": 0.0} if name == "contrastive" else {}
    value = loss_of(name, **settings).float()(embeddings, torch.arange(4))
    value.backward()
    assert value.item() == 0.0


@pytest.mark.parametrize("name", MINED)
def test_losses_that_compare_photos_ignore_the_embeddings_length(name: str) -> None:
    embeddings, class_index = batch()
    loss = loss_of(name)
    lengths = torch.linspace(0.5, 9.0, len(embeddings), dtype=torch.float64)[:, None]
    assert loss(embeddings * lengths, class_index).item() == pytest.approx(loss(embeddings, class_index).item())


def test_arcface_survives_an_embedding_equal_to_its_class_vector() -> None:
    loss = loss_of("arcface").float()
    embeddings = class_vectors(loss).clone().float().requires_grad_()
    loss(embeddings, torch.arange(N_CLASSES)).backward()
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("name", ["cosface", "arcface", "sphereface", "cross-entropy"])
def test_logits_rank_the_nearest_class_vector_first(name: str) -> None:
    loss = loss_of(name)
    vectors = class_vectors(loss) if name != "cross-entropy" else next(loss.parameters()).detach()
    logits = loss.logits(vectors * 3.0)
    assert logits is not None
    assert logits.argmax(dim=1).tolist() == list(range(N_CLASSES))


def test_margins_make_a_loss_harder() -> None:
    embeddings, class_index = batch()
    for name, low, high in (
        ("cosface", {"margin": 0.1}, {"margin": 0.4}),
        ("arcface", {"margin_degrees": 5.0}, {"margin_degrees": 30.0}),
        ("triplet", {"margin": 0.5}, {"margin": 3.0}),
    ):
        assert loss_of(name, **low)(embeddings, class_index) < loss_of(name, **high)(embeddings, class_index)


def test_quadruplet_needs_more_than_the_first_negative() -> None:
    """The second margin is really used: without it the value is another."""
    embeddings, class_index = batch()
    one, two = Quadruplet(margin_2=1.0), Quadruplet(margin_2=0.2)
    assert one(embeddings, class_index) > two(embeddings, class_index)


@pytest.mark.parametrize(
    ("name", "settings", "suggestion"),
    [
        ("arcfase", {}, "arcface"),
        ("triplet", {"mining": "semi-hard"}, "semihard"),
        ("quadruplet", {"form": "anchors"}, "anchor"),
        ("cosface", {"margin_degrees": 3.0}, ""),
        ("sphereface", {"margin": 2.5}, ""),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(name: str, settings: dict[str, object], suggestion: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_loss(name, n_classes=3, dim=4, **settings)
    assert suggestion in caught.value.hint


@pytest.mark.parametrize("name", ["cosface", "arcface", "sphereface"])
def test_class_vectors_start_where_they_are_put(name: str) -> None:
    loss = loss_of(name)
    wanted = torch.randn(N_CLASSES, DIM, dtype=torch.float64)
    loss.set_class_vectors(wanted)
    assert torch.equal(class_vectors(loss), wanted)


@pytest.mark.parametrize("name", [*MINED, "cross-entropy"])
def test_losses_without_class_vectors_say_so(name: str) -> None:
    with pytest.raises(UsageError, match="no class vectors"):
        loss_of(name).set_class_vectors(torch.zeros(N_CLASSES, DIM))
