"""Several processes that train one backbone together, as torchrun starts them; alone, the same code does nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fewshot.errors import TrainingError
from fewshot.records import Float32s, Int64s, Pixels
from fewshot.training.networks import Trainee, embed

# One process may have work of its own, such as training a head, while the others wait for it.
_PATIENCE = timedelta(hours=6)


class Processes:
    """The processes of one training: who shares the work, and how they come to hold the same.

    Args:
        rank: this one's number, from 0; the first alone writes files and speaks.
        n: how many there are.
        device: where this one runs.
    """

    def __init__(self, rank: int = 0, n: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.n = rank, n
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, n_rows: int) -> Int64s:
        """Which of `n_rows` are this process's: contiguous, the shares differing by at most one row.

        >>> Processes(1, 3, torch.device("cpu")).share(8)
        array([3, 4, 5])
        """
        return np.array_split(np.arange(n_rows, dtype=np.int64), self.n)[self.rank]

    def gathered(self, own: torch.Tensor, n_rows: int) -> torch.Tensor:
        """The rows of all processes in order, from each its share.

        The gradient flows into this process's own rows alone. When each process computes the same loss from all rows,
        that is the whole derivative with respect to its own; the sum over processes is the gradient of one process.

        Args:
            own: (n_own, dim), this process's share of the rows.
            n_rows: how many rows there are in all.

        Returns:
            (n_rows, dim).
        """
        if self.n == 1:
            return own
        padded = own.new_zeros((-(-n_rows // self.n), *own.shape[1:]))
        padded[: len(own)] = own.detach()
        found = [torch.empty_like(padded) for _ in range(self.n)]
        distributed.all_gather(found, padded)
        sizes = [len(rows) for rows in np.array_split(np.arange(n_rows), self.n)]
        rows = [part[:size] for part, size in zip(found, sizes, strict=True)]
        rows[self.rank] = own
        return torch.cat(rows)

    def embed(self, trainee: Trainee, pixels: Pixels) -> Float32s:
        """As `networks.embed`, each process its share; every process gets all rows."""
        if self.n == 1:
            return embed(trainee, pixels, self.device)
        own = torch.from_numpy(embed(trainee, pixels[self.share(len(pixels))], self.device))
        rows: Float32s = self.gathered(own.to(self.device), len(pixels)).cpu().numpy()
        return rows

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network, whose gradients are averaged over the processes; alone, itself.

        Raises:
            TrainingError: its batch norms learn from batches, which would be others in each process.
        """
        if self.n == 1:
            return network
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in network.modules()):
            raise TrainingError(
                f"{self.n} processes cannot train a network whose batch norms learn: each would see the statistics of "
                "its own share of a batch.",
                hint="Set frozen_batch_norm: true (in the recipe, or with --only), or use one process.",
            )
        if not any(parameter.requires_grad for parameter in network.parameters()):
            return network
        places = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=places)

    def averaged(self, parameters: list[nn.Parameter]) -> None:
        """Replace each parameter's gradient by its mean over the processes."""
        if self.n > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.n

    def from_first(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.n == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]

    def check_same(self, what: str, value: str) -> None:
        """Check that all processes hold the same.

        Raises:
            TrainingError: they do not.
        """
        if self.n == 1:
            return
        found: list[Any] = [None] * self.n
        distributed.all_gather_object(found, value)
        others = [rank for rank, each in enumerate(found) if each != found[0]]
        if others:
            raise TrainingError(
                f"process {others[0]} of {self.n} has {what} other than the first.",
                hint="Give every host the same recipe, and the same photos under --data.",
            )


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started this one among; started by hand, this one alone.

    Raises:
        TrainingError: the others cannot be reached.
    """
    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n == 1 or "RANK" not in os.environ:
        yield Processes()
        return
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"process {os.environ['RANK']} of {n} cannot join the others: {str(error).splitlines()[0]}",
            hint="Start it with torchrun; docs/cluster.md shows how.",
        ) from error
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
