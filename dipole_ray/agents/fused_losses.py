"""Mean weighted squares and their gradient in Triton, a kernel each: what the losses of a captured step come down to.

Shapes: S agents, F members of each, B rows, C rows of the target, A numbers of a row.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dipole_ray.agents.fused_members import of_all

_BLOCK = 1024


@triton.jit
def _forward(
    x: tl.tensor, target: tl.tensor, weights: tl.tensor, y: tl.tensor, F: tl.constexpr, B: tl.constexpr,
    C: tl.constexpr, A: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    member, place = tl.program_id(0), tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, B * A, BLOCK):
        at = start + place
        inside = at < B * A
        d = tl.load(x + member * B * A + at, mask=inside, other=0.0)
        d -= tl.load(target + member // F * C * A + at % (C * A), mask=inside, other=0.0)
        d *= d
        if WEIGHTED:
            d *= tl.load(weights + member * B + at // A, mask=inside, other=0.0)
        total += d
    tl.store(y + member, tl.sum(total) / (B * A))


@triton.jit
def _backward(
    x: tl.tensor, target: tl.tensor, weights: tl.tensor, dy: tl.tensor, dx: tl.tensor, dy_agent: tl.tensor,
    dy_member: tl.tensor, F: tl.constexpr, B: tl.constexpr, C: tl.constexpr, A: tl.constexpr, WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    at, member = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    inside = at < B * A
    d = tl.load(x + member * B * A + at, mask=inside, other=0.0)
    d -= tl.load(target + member // F * C * A + at % (C * A), mask=inside, other=0.0)
    if WEIGHTED:
        d *= tl.load(weights + member * B + at // A, mask=inside, other=0.0)
    scale = tl.load(dy + member // F * dy_agent + member % F * dy_member) * 2.0 / (B * A)
    tl.store(dx + member * B * A + at, d * scale, mask=inside)


class _Squares(torch.autograd.Function):
    """x is (S, F, B, A), the target (S, C, A), where C divides B, weights are (S, F, B)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:  # type: ignore[override]
        tensors = x.contiguous(), target.contiguous(), None if weights is None else weights.contiguous()
        (agents, members, rows, width), y = x.shape, x.new_empty(x.shape[:2])
        ctx.options = {"F": members, "B": rows, "C": target.shape[1], "A": width, "WEIGHTED": weights is not None}
        _forward[(agents * members,)](*tensors, y, BLOCK=_BLOCK, **ctx.options)
        ctx.save_for_backward(*tensors)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, target, weights = ctx.saved_tensors
        dx, (agents, members, rows, width) = torch.empty_like(x), x.shape
        grid = triton.cdiv(rows * width, _BLOCK), agents * members
        _backward[grid](x, target, weights, gradient, dx, *gradient.stride(), BLOCK=_BLOCK, **ctx.options)
        return dx, None, None


def weighted_squares(x: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over rows and columns of w (x - target)^2 for each member, (F,); see `losses.SQUARES`."""

    def run(x: Tensor, target: Tensor, *weights: Tensor) -> Tensor:
        found: Tensor = _Squares.apply(x, target, *(weights or (None,)))
        return found

    return of_all(run, x, target, *(() if weights is None else (weights.detach(),)))
