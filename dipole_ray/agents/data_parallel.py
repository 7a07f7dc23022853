"""Data-parallel learners: each takes every step on its own rows of the batch, and all end with equal parameters.

They compute what one learner computes on the whole batch, up to the rounding of sums. Losses are means over rows, so
the average of their gradients is the whole batch's. What is not a mean of rows (the spread of the advantage, the
quantiles in the metrics) is computed on the gathered rows of all. Each learner draws the noise of the whole batch and
keeps its shard, so that their generators stay equal. Parameters are then equal after every step without being sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

Rows = TypeVar("Rows", np.ndarray, Tensor)


class RankLost(Exception):
    """Another learner's process ended in the middle of a step, which nobody can finish then."""


class DataParallel:
    """This learner's place among those that step together; by default it is alone.

    Attributes:
        rank: This learner's number, from 0.
        size: How many learners there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @classmethod
    def of_process_group(cls) -> DataParallel:
        """Return this process's place in torch's default process group (gloo or NCCL), which must exist."""
        return cls(dist.get_rank(), dist.get_world_size())

    def shard(self, rows: Rows, batch_size: int | None = None) -> Rows:
        """Return this learner's consecutive part of the batch, or of each batch of `batch_size` that `rows` holds."""
        if self.size == 1:
            return rows
        parts = rows.reshape(-1, self.size, (batch_size or len(rows)) // self.size, *rows.shape[1:])
        return parts[:, self.rank].reshape(-1, *rows.shape[1:])

    def all_gather(self, values: Tensor, dim: int = -1) -> Tensor:
        """Return all learners' `values`, which hold the rows in dimension `dim`, as of the whole batch."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(self.size)]
        _exchange(lambda: dist.all_gather(parts, values.contiguous()))
        return torch.cat(parts, dim=dim)

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its average over all learners, in one exchange."""
        if self.size == 1:
            return
        bucket = torch.cat([tensor.reshape(-1) for tensor in tensors])
        _exchange(lambda: dist.all_reduce(bucket))
        bucket /= self.size
        parts = bucket.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def _exchange(collective: Callable[[], object]) -> None:
    """Run a collective call of all learners; raise RankLost if one of them is gone."""
    try:
        collective()
    except RuntimeError as error:  # gloo and NCCL name a closed connection no more precisely than this
        raise RankLost(str(error).splitlines()[0]) from None
