"""What follows the gradients in a captured step, in Triton: their norm, the guard, Adam and the target networks.

Shapes: S agents, P numbers of a flat tensor, N blocks of them, K parameters.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
"""Parameters that a program moves."""
_SUMMED = 4096
"""Gradients whose squares a program adds up."""


@triton.jit
def _squares(gradients: tl.tensor, sums: tl.tensor, count: tl.tensor, BLOCK: tl.constexpr) -> None:
    at, agent = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    g = tl.load(gradients + agent.to(tl.int64) * count + at, mask=at < count, other=0.0)
    tl.store(sums + agent * tl.num_programs(0) + tl.program_id(0), tl.sum(g * g))


@triton.jit
def _guard(
    check: tl.tensor, sums: tl.tensor, norm: tl.tensor, consecutive_skips: tl.tensor, skipped: tl.tensor,
    steps: tl.tensor, BLOCKS: tl.constexpr, STEPS: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    agent, part = tl.program_id(0), tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, BLOCKS, BLOCK):
        total += tl.load(sums + agent * BLOCKS + start + part, mask=start + part < BLOCKS, other=0.0)
    length = tl.sqrt(tl.sum(total))
    value, skips = tl.load(check + agent) + length, tl.load(consecutive_skips + agent)
    bad = ((value - value != 0.0) | (skips >= LIMIT)).to(tl.float32)
    tl.store(norm + agent, length)
    tl.store(skipped + agent, bad)
    tl.store(consecutive_skips + agent, (skips + 1.0) * bad)
    for start in range(0, STEPS, BLOCK):
        at, inside = steps + agent * STEPS + start + part, start + part < STEPS
        tl.store(at, tl.load(at, mask=inside, other=0.0) + 1.0 - bad, mask=inside)


def guard(
    check: Tensor, gradients: Tensor, consecutive_skips: Tensor, steps: Tensor, limit: int
) -> tuple[Tensor, Tensor]:
    """Return which agents' steps are skipped, 0 or 1, and their gradients' norms, (S,); count the steps and skips.

    `check` (S,) is finite where all losses are; gradients are (S, P), the numbers of steps (S, K), skips in a row (S,).
    """
    (agents, count), skipped, norm = gradients.shape, torch.empty_like(check), torch.empty_like(check)
    blocks = triton.cdiv(count, _SUMMED)
    sums = check.new_empty(agents, blocks)
    _squares[(blocks, agents)](gradients, sums, count, BLOCK=_SUMMED)
    _guard[(agents,)](
        check, sums, norm, consecutive_skips, skipped, steps, BLOCKS=blocks, STEPS=steps.shape[1], LIMIT=limit,
        BLOCK=_BLOCK,
    )  # fmt: skip
    return skipped, norm


@triton.jit
def _adam(
    parameters: tl.tensor, gradients: tl.tensor, mean: tl.tensor, square: tl.tensor, targets: tl.tensor,
    steps: tl.tensor, rates: tl.tensor, skipped: tl.tensor, count: tl.tensor, num_steps: tl.tensor, first: tl.tensor,
    num_targets: tl.tensor, BETA1: tl.constexpr, BETA2: tl.constexpr, LOG1: tl.constexpr, LOG2: tl.constexpr,
    EPS: tl.constexpr, TAU: tl.constexpr, BEFORE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    agent = tl.program_id(1).to(tl.int64)
    if tl.load(skipped + agent) == 0.0:
        place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        at, inside = agent * count + place, place < count
        number = tl.load(steps + agent * num_steps).to(tl.float64)
        rate = (tl.load(rates + agent) / (1.0 - tl.exp(number * LOG1))).to(tl.float32)
        spread = tl.sqrt(1.0 - tl.exp(number * LOG2)).to(tl.float32)
        g = tl.load(gradients + at, mask=inside, other=0.0)
        m = tl.load(mean + at, mask=inside, other=0.0)
        v = tl.load(square + at, mask=inside, other=0.0)
        p = tl.load(parameters + at, mask=inside, other=0.0)
        before = p
        m += (1.0 - BETA1) * (g - m)
        v = BETA2 * v + (1.0 - BETA2) * g * g
        p -= rate * m / (tl.sqrt(v) / spread + EPS)
        tl.store(mean + at, m, mask=inside)
        tl.store(square + at, v, mask=inside)
        tl.store(parameters + at, p, mask=inside)
        followed, follower = inside & (place >= first) & (place < first + num_targets), place - first
        follower_at = targets + agent * num_targets + follower
        target = tl.load(follower_at, mask=followed, other=0.0)
        tl.store(follower_at, target + TAU * ((before if BEFORE else p) - target), mask=followed)


def adam(
    parameters: Tensor, gradients: Tensor, moments: tuple[Tensor, Tensor], steps: Tensor, skipped: Tensor,
    followers: tuple[Tensor, int, float, bool], rates: Tensor, group: dict[str, Any],
) -> None:  # fmt: skip
    """Take each agent's step of Adam, and that of its target critics after the critics, in one pass; none if skipped.

    Args:
        parameters: (S, P), as the others; changed in place, as are the moments and the targets.
        gradients: Of the parameters.
        moments: Mean and mean square of the gradients.
        steps: The number of this step, (S, K), of which each row's first element is read.
        skipped: 0 or 1, (S,).
        followers: The targets (S, T), the place of the first parameter that they follow, their Polyak rate, and whether
            they follow the parameters as they were before this step.
        rates: Learning rates, (S,), float64.
        group: The optimizer's other settings.
    """
    (beta1, beta2), (targets, start, tau, before), (agents, count) = group["betas"], followers, parameters.shape
    _adam[(triton.cdiv(count, _BLOCK), agents)](
        parameters, gradients, *moments, targets, steps, rates, skipped, count, steps.shape[1], start, targets.shape[1],
        BETA1=beta1, BETA2=beta2, LOG1=math.log(beta1), LOG2=math.log(beta2), EPS=group["eps"], TAU=tau, BEFORE=before,
        BLOCK=_BLOCK,
    )  # fmt: skip
