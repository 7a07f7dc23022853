"""How a fused kernel gets the tensors of many agents, whose losses `torch.vmap` computes at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dipole_ray.agents.networks import STACKED


def of_all(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return what a function of tensors (S, ...) returns for this agent, or for each one under `torch.vmap`."""
    if STACKED.get():
        found: Tensor = _OfAll.apply(function, *tensors)
        return found
    return function(*(tensor.unsqueeze(0) for tensor in tensors)).squeeze(0)


class _OfAll(torch.autograd.Function):
    """Lets `torch.vmap` call a function once, with the tensors of all agents."""

    @staticmethod
    def forward(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:  # type: ignore[override]
        raise AssertionError("no tensor here is an agent's own")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: the function has gradients of its own."""

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[int | None, ...], function: Callable[..., Tensor], *tensors: Tensor
    ) -> tuple[Tensor, int]:
        whole = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims[1:], strict=True)
        ]
        return function(*whole), 0
