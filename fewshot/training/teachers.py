"""Trained backbones that look at the same changed photos: the one being trained follows where they put them."""

from collections.abc import Sequence

import torch
from torch import nn

from fewshot import networks
from fewshot.backbones import resolve
from fewshot.recipes import Recipe
from fewshot.records import Pixels
from fewshot.training.networks import Trainee, origin_of, unit_rows
from fewshot.training.processes import Processes
from fewshot.transforms import POWER

# Pull of the map's start toward zero, in photos: there may be fewer photos than dimensions.
_RIDGE = 1.0
# The root's slope is infinite at 0, where most of an activation's components lie.
_LEAST = 1e-4
# Weight of pairs beside rows: cosines of pairs differ by hundredths, so their squares are small.
_PAIRS = 10.0


class Teachers(nn.Module):
    """Several backbones as one: (n, 3, size, size) float32 in [0, 1] -> (n, dim), unit rows, without gradient.

    Each one's embeddings are levelled and centred as an index does it, scaled to unit length and put side by side, so
    that a cosine between two rows is the mean of the teachers' cosines.

    Args:
        teachers: at least one, as `load_teachers` gives them.
        train: the plain view of the training photos, (n_train, size, size, 3) uint8.
        processes: who shares the work.

    Attributes:
        plain: (n_train, dim), where the teachers put the plain training photos.
    """

    def __init__(self, teachers: Sequence[Trainee], train: Pixels, processes: Processes) -> None:
        super().__init__()
        self.networks = nn.ModuleList(teachers).to(processes.device).eval()
        self.requires_grad_(False)
        plain = [torch.from_numpy(processes.embed(teacher, train)) for teacher in teachers]
        self.centres = [levelled(embeddings).mean(0).to(processes.device) for embeddings in plain]
        self.plain = self._joined([embeddings.to(processes.device) for embeddings in plain])

    @torch.no_grad()
    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Where the teachers put a batch."""
        return self._joined([network(photos).float() for network in self.networks])

    def _joined(self, embeddings: list[torch.Tensor]) -> torch.Tensor:
        rows = [unit_rows(levelled(each) - centre) for each, centre in zip(embeddings, self.centres, strict=True)]
        return unit_rows(torch.cat(rows, 1))


class Follower(nn.Module):
    """What of the learner is held against its teachers: its own directions, and a linear map of them to the teachers'.

    The map is trained with the learner and dropped after. It starts where ridge regression on the plain training photos
    puts it, so that the first steps teach the backbone and not the map.

    Args:
        learner: (n_train, dim) the learner's embeddings of the plain training photos, any length.
        teachers: (n_train, dim_teachers), the teachers' rows of the same.
    """

    def __init__(self, learner: torch.Tensor, teachers: torch.Tensor) -> None:
        super().__init__()
        self.centre = nn.Parameter(levelled(learner).mean(0))
        with torch.no_grad():
            rows = unit_rows(levelled(learner) - self.centre).double()
            sides = rows.T @ rows + _RIDGE * torch.eye(rows.shape[1], dtype=torch.double, device=rows.device)
            matrix = torch.linalg.solve(sides, rows.T @ teachers.double()).T
            self.map = nn.Linear(rows.shape[1], teachers.shape[1], bias=False, device=rows.device)
            self.map.weight.copy_(matrix)

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, dim) of any length -> (n, dim) and (n, dim_teachers), unit rows: the learner's own, and mapped."""
        own = unit_rows(levelled(embeddings.float()) - self.centre)
        return own, unit_rows(self.map(own))


def apart(own: torch.Tensor, mapped: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """How far a batch of the learner's is from its teachers': 0 where both agree.

    Rows: 1 less the mean cosine between mapped and taught. Pairs: the mean squared difference between the cosines of
    two photos, the learner's own and the teachers'; it is these that an index compares by, and no map stands between.

    Args:
        own: (n, dim) and
        mapped: (n, dim_teachers), as `Follower` gives them.
        taught: (n, dim_teachers), as `Teachers` gives them.

    Source:
        Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent", arXiv 2106.05237: both
        see the same strongly changed and mixed pictures, for many epochs; there class probabilities are followed.
        Pairs: Tung and Mori 2019, "Similarity-preserving knowledge distillation", arXiv 1907.09682, with cosines.
    """
    n = len(own)
    rows = 1 - (mapped * taught).sum() / n
    pairs = ((own @ own.T - taught @ taught.T) ** 2).sum() / max(1, n * (n - 1))  # a photo alone has no pair
    return rows + _PAIRS * pairs


def load_teachers(recipe: Recipe) -> tuple[Trainee, ...]:
    """The backbones that a recipe names as teachers; none where its backbone is not trained.

    Raises:
        WeightsUnreachableError: a teacher's weights are not on this machine.
    """
    found = []
    for name in recipe.teachers if recipe.epochs else ():
        source = resolve(name)
        described, network = networks.load(source)
        preprocessing, origin = described.preprocessing, origin_of(name, source, described)
        found.append(Trainee(network, origin, preprocessing, preprocessing.image_size_px, described.dim))
    return tuple(found)


def levelled(embeddings: torch.Tensor) -> torch.Tensor:
    """As `transforms.level` with the power that statistics are measured with, and with a slope that stays finite.

    For that a little is added to each size before its root is taken: components jump by 0.02 where they change their
    sign, and one that is exactly 0 stays 0 and has no slope.
    """
    unit = unit_rows(embeddings)
    return unit_rows(torch.sign(unit) * (unit.abs() + _LEAST) ** POWER)
