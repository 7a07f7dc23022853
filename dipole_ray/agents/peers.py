"""Learners that take every step together, each on its own rows of the batch.

They compute what one learner computes on the whole batch, up to the rounding of sums: losses are means over rows, so
the average of their gradients is the whole batch's; what is not a mean of rows (the spread of the advantage, the
quantiles in the metrics) is computed on the rows of all; and each draws the noise of the whole batch and takes its
share of it, so their random states stay equal. Parameters are then equal after every step without being sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

Rows = TypeVar("Rows", np.ndarray, Tensor)


class PeerLost(Exception):
    """Another learner went away in the middle of a step, which nobody can finish then."""


class Peers:
    """One learner's view of all, itself included; by default it is the only one.

    Attributes:
        rank: This learner's number, from 0.
        size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @classmethod
    def of_process_group(cls) -> Peers:
        """Return this process's view of torch's default process group (gloo or NCCL), which must exist."""
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, rows: Rows, batch_size: int | None = None) -> Rows:
        """Return this learner's consecutive part of the batch, or of each batch of `batch_size` that `rows` holds."""
        if self.size == 1:
            return rows
        parts = rows.reshape(-1, self.size, (batch_size or len(rows)) // self.size, *rows.shape[1:])
        return parts[:, self.rank].reshape(-1, *rows.shape[1:])

    def joined(self, values: Tensor, dim: int = -1) -> Tensor:
        """Return all learners' `values`, which hold the rows in dimension `dim`, as of the whole batch."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(self.size)]
        _together(lambda: dist.all_gather(parts, values.contiguous()))
        return torch.cat(parts, dim=dim)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its average over all learners, in one exchange."""
        if self.size == 1:
            return
        bucket = torch.cat([tensor.reshape(-1) for tensor in tensors])
        _together(lambda: dist.all_reduce(bucket))
        bucket /= self.size
        parts = bucket.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


def _together(exchange: Callable[[], object]) -> None:
    """Do an exchange with all learners; raise PeerLost if one of them is gone."""
    try:
        exchange()
    except RuntimeError as error:
        raise PeerLost(str(error).splitlines()[0]) from None
