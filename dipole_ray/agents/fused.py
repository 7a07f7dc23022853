"""Kernels in Triton for a captured step on a GPU, each in place of several small ones of torch; equal to rounding.

torch's builds for CUDA bring Triton, so this is imported there alone; with TRITON_INTERPRET=1 it runs on a CPU, too.

Shapes: E members, B rows, H hidden units, F fields of the sampler (one or two), N candidates, A action dim.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4
"""Of a program: few, since a batch has fewer rows than a GPU has threads to hide the memory's latency with."""
TILE, DEPTH = 32, 64
"""Rows and columns that a program of a product computes, and how many terms of the sum it reads at once."""
REDUCED = 64
PARAMETERS = 1024
"""Columns that a program adds up; parameters that a program moves."""


@triton.jit
def _gate(a: tl.tensor) -> tl.tensor:
    """Return the factor by which GELU scales its input, see `networks.gelu_tanh`."""
    return tl.sigmoid(1.5957691216057308 * a * (1.0 + 0.044715 * a * a))


@triton.jit
def _activate_forward(
    z: tl.tensor, bias: tl.tensor, scale: tl.tensor, shift: tl.tensor, y: tl.tensor, rows: tl.tensor, H: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, NORM: tl.constexpr, EPSILON: tl.constexpr,
) -> None:  # fmt: skip
    row, column, member = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK), tl.program_id(1)
    valid = column < H
    inside = (row < rows)[:, None] & valid[None, :]
    at, of = (member * rows + row)[:, None] * H + column[None, :], member * H + column
    a = tl.load(z + at, mask=inside, other=0.0)
    if HAS_BIAS:
        a += tl.load(bias + of, mask=valid, other=0.0)[None, :]
    g = a * _gate(a)
    if NORM:
        g = tl.where(inside, g, 0.0)
        centred = tl.where(inside, g - (tl.sum(g, axis=1) / H)[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / H + EPSILON)
        g = centred * rstd[:, None] * tl.load(scale + of, mask=valid, other=0.0)[None, :]
        g += tl.load(shift + of, mask=valid, other=0.0)[None, :]
    tl.store(y + at, g, mask=inside)


@triton.jit
def _activate_backward(
    z: tl.tensor, bias: tl.tensor, scale: tl.tensor, dy: tl.tensor, dz: tl.tensor, sums: tl.tensor, rows: tl.tensor,
    members: tl.tensor, blocks: tl.tensor, H: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr, NORM: tl.constexpr, EPSILON: tl.constexpr,
) -> None:  # fmt: skip
    block, member, column = tl.program_id(0), tl.program_id(1), tl.arange(0, BLOCK)
    row, valid = block * ROWS + tl.arange(0, ROWS), column < H
    inside = (row < rows)[:, None] & valid[None, :]
    at, of = (member * rows + row)[:, None] * H + column[None, :], member * H + column
    a = tl.load(z + at, mask=inside, other=0.0)
    d = tl.load(dy + at, mask=inside, other=0.0)
    if HAS_BIAS:
        a += tl.load(bias + of, mask=valid, other=0.0)[None, :]
    gate = _gate(a)
    slope = gate + a * gate * (1.0 - gate) * 1.5957691216057308 * (1.0 + 0.134145 * a * a)
    # Sums over this program's rows, (3, blocks, E, H): the gradients of bias, scale and shift.
    out, kind = sums + (block * members + member) * H + column, blocks * members * H
    if NORM:
        g = tl.where(inside, a * gate, 0.0)
        centred = tl.where(inside, g - (tl.sum(g, axis=1) / H)[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / H + EPSILON)
        normal = centred * rstd[:, None]
        tl.store(out + kind, tl.sum(d * normal, axis=0), mask=valid)
        tl.store(out + 2 * kind, tl.sum(d, axis=0), mask=valid)
        d = d * tl.load(scale + of, mask=valid, other=0.0)[None, :]
        along = tl.sum(d * normal, axis=1) / H
        d = rstd[:, None] * (d - (tl.sum(d, axis=1) / H)[:, None] - normal * along[:, None])
    d = tl.where(inside, d * slope, 0.0)
    tl.store(dz + at, d, mask=inside)
    if HAS_BIAS:
        tl.store(out, tl.sum(d, axis=0), mask=valid)


@triton.jit
def _add_blocks(
    sums: tl.tensor, total: tl.tensor, blocks: tl.tensor, width: tl.tensor, BLOCKS: tl.constexpr,
    REDUCED: tl.constexpr,
) -> None:  # fmt: skip
    """Add up (K, blocks, width) over the blocks, always in one order: the step stays repeatable."""
    block, column, kind = tl.arange(0, BLOCKS), tl.program_id(0) * REDUCED + tl.arange(0, REDUCED), tl.program_id(1)
    inside = (block < blocks)[:, None] & (column < width)[None, :]
    part = tl.load(sums + (kind * blocks + block)[:, None] * width + column[None, :], mask=inside, other=0.0)
    tl.store(total + kind * width + column, tl.sum(part, axis=0), mask=column < width)


class _Activate(torch.autograd.Function):
    """bias + GELU, then layer norm with scale and shift where there are such; z (E, B, H), the others (E, 1, H)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, z: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, epsilon: float
    ) -> Tensor:
        members, rows, width = z.shape
        z = z.contiguous()
        y = torch.empty_like(z)
        ctx.options = {"H": width, "BLOCK": triton.next_power_of_2(width), "ROWS": ROWS, "EPSILON": epsilon}
        ctx.options |= {"HAS_BIAS": bias is not None, "NORM": scale is not None}
        _activate_forward[(triton.cdiv(rows, ROWS), members)](z, bias, scale, shift, y, rows, **ctx.options)
        ctx.save_for_backward(z, bias, scale)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        z, bias, scale = ctx.saved_tensors
        (members, rows, width), norm = z.shape, scale is not None
        blocks = triton.cdiv(rows, ROWS)
        dz, sums = torch.empty_like(z), z.new_empty(3 if norm else 1, blocks, members, width)
        _activate_backward[(blocks, members)](
            z, bias, scale, gradient.contiguous(), dz, sums, rows, members, blocks, **ctx.options
        )
        if bias is None and not norm:
            return dz, None, None, None, None
        found, columns = z.new_empty(len(sums), members, 1, width), members * width
        _add_blocks[(triton.cdiv(columns, REDUCED), len(sums))](
            sums, found, blocks, columns, BLOCKS=triton.next_power_of_2(blocks), REDUCED=REDUCED
        )
        return dz, found[0] if bias is not None else None, *((found[1], found[2]) if norm else (None, None)), None


def activate(
    z: Tensor, bias: Tensor | None, scale: Tensor | None = None, shift: Tensor | None = None, epsilon: float = 0.0
) -> Tensor:
    """Return GELU(z + bias), (E, B, H), its rows normalized, scaled and shifted where a scale is given.

    z is (E, B, H), bias, scale and shift are (E, 1, H); all have gradients.
    """
    result: Tensor = _Activate.apply(z, bias, scale, shift, epsilon)
    return result


@triton.jit
def _dense(
    x: tl.tensor, kernel: tl.tensor, bias: tl.tensor, y: tl.tensor, rows: tl.tensor,
    WIDTH: tl.constexpr, H: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Write y = GELU(x kernel + bias), of (F, rows, WIDTH) and (F, WIDTH, H)."""
    row, column = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.program_id(1) * TILE + tl.arange(0, TILE)
    field, term = tl.program_id(2), tl.arange(0, DEPTH)
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, WIDTH, DEPTH):
        k = start + term
        left = (row < rows)[:, None] & (k < WIDTH)[None, :]
        right = (k < WIDTH)[:, None] & (column < H)[None, :]
        a = tl.load(x + (field * rows + row)[:, None] * WIDTH + k[None, :], mask=left, other=0.0)
        b = tl.load(kernel + (field * WIDTH + k)[:, None] * H + column[None, :], mask=right, other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    z = total + tl.load(bias + field * H + column, mask=column < H, other=0.0)[None, :]
    inside = (row < rows)[:, None] & (column < H)[None, :]
    tl.store(y + (field * rows + row)[:, None] * H + column[None, :], z * _gate(z), mask=inside)


@triton.jit
def _euler(
    x: tl.tensor, moved_x: tl.tensor, last: tl.tensor, out_kernel: tl.tensor, out_bias: tl.tensor, context: tl.tensor,
    kernel: tl.tensor, first: tl.tensor, rows: tl.tensor, t: tl.tensor, step: tl.tensor, omega: tl.tensor,
    A: tl.constexpr, N: tl.constexpr, L: tl.constexpr, H: tl.constexpr, INPUTS: tl.constexpr, FIELDS: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, BEGINS: tl.constexpr, ENDS: tl.constexpr,
) -> None:  # fmt: skip
    """Move x (rows, A) by what the last hidden layer (F, rows, L) says, and write the first (F, rows, H) at time t.

    The first call has no last layer yet; the last one writes no first layer, but clips x to the action box.
    """
    row, unit, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_L), tl.arange(0, BLOCK)
    field, is_row = tl.program_id(1), row < rows
    inside, onward = is_row[:, None] & (unit < L)[None, :], is_row[:, None] & (column < H)[None, :]
    if not ENDS:
        weights = kernel + field * INPUTS * H + column  # the state's, the action's and the time's
        z = tl.load(context + (field * (rows // N) + row // N)[:, None] * H + column[None, :], mask=onward, other=0.0)
        z += t * tl.load(weights + (INPUTS - 1) * H, mask=column < H, other=0.0)[None, :]
    for a in range(A):
        moved = tl.load(x + row * A + a, mask=is_row, other=0.0)
        if not BEGINS:
            for f in tl.static_range(FIELDS):
                h = tl.load(last + (f * rows + row)[:, None] * L + unit[None, :], mask=inside, other=0.0)
                w = tl.load(out_kernel + (f * L + unit) * A + a, mask=unit < L, other=0.0)
                share = 1.0 if FIELDS == 1 else (1.0 + omega if f == 0 else -omega)
                moved += step * share * (tl.sum(h * w[None, :], axis=1) + tl.load(out_bias + f * A + a))
        if ENDS:
            moved = tl.minimum(tl.maximum(moved, -1.0), 1.0)
        else:
            w = tl.load(weights + (INPUTS - 1 - A + a) * H, mask=column < H, other=0.0)
            z += moved[:, None] * w[None, :]
        tl.store(moved_x + row * A + a, moved, mask=is_row & (field == 0))
    if not ENDS:
        tl.store(first + (field * rows + row)[:, None] * H + column[None, :], z * _gate(z), mask=onward)


def generate(
    kernels: Sequence[Tensor], biases: Sequence[Tensor], context: Tensor, noise: Tensor, denoise_steps: int,
    omega: float,
) -> Tensor:  # fmt: skip
    """Carry noise (B, N, A) to actions in [-1, 1] without a gradient, see `flow.generate`.

    Args:
        kernels: Of the one or two fields that matter, (F, in, out); the first reads state, action and time.
        biases: (F, 1, out).
        context: The state's share of the first layer, (F, B, H).
        noise: Draws of the standard normal.
        denoise_steps: Number of Euler steps.
        omega: How two fields are combined.
    """
    batch, candidates, action_dim = noise.shape
    fields, inputs, width = kernels[0].shape
    rows, last_width = batch * candidates, kernels[-1].shape[1]
    kernels, biases, context = [k.contiguous() for k in kernels], [b.contiguous() for b in biases], context.contiguous()
    points = noise.contiguous(), torch.empty_like(noise), torch.empty_like(noise)
    layers = [noise.new_empty(fields, rows, kernel.shape[2]) for kernel in kernels[:-1]]
    precision = "tf32" if torch.get_float32_matmul_precision() != "highest" else "ieee"
    options = {"A": action_dim, "N": candidates, "L": last_width, "H": width, "INPUTS": inputs, "FIELDS": fields}
    options |= {"BLOCK_L": triton.next_power_of_2(last_width), "BLOCK": triton.next_power_of_2(width), "ROWS": 2}
    for k in range(denoise_steps + 1):
        x, moved = points[0] if k == 0 else points[1 + k % 2], points[1 + (k + 1) % 2]
        begins, ends = k == 0, k == denoise_steps
        _euler[(triton.cdiv(rows, 2), 1 if ends else fields)](
            x, moved, layers[-1], kernels[-1], biases[-1], context, kernels[0], layers[0],
            rows, k / denoise_steps, 1.0 / denoise_steps, float(omega), BEGINS=begins, ENDS=ends, **options,
        )  # fmt: skip
        if ends:
            return moved
        for (hidden, found), kernel, bias in zip(pairwise(layers), kernels[1:-1], biases[1:-1], strict=True):
            _dense[(triton.cdiv(rows, TILE), triton.cdiv(found.shape[2], TILE), fields)](
                hidden, kernel, bias, found, rows,
                WIDTH=hidden.shape[2], H=found.shape[2], TILE=TILE, DEPTH=DEPTH, PRECISION=precision,
            )  # fmt: skip
    raise AssertionError


@triton.jit
def _guard(check: tl.tensor, consecutive_skips: tl.tensor, skipped: tl.tensor, LIMIT: tl.constexpr) -> None:
    """Write 1 where `check` is not finite or there were too many skips, else 0, and count the skips in a row."""
    value, skips = tl.load(check), tl.load(consecutive_skips)
    bad = ((value - value != 0.0) | (skips >= LIMIT)).to(tl.float32)
    tl.store(skipped, bad)
    tl.store(consecutive_skips, (skips + 1.0) * bad)


def guard(check: Tensor, consecutive_skips: Tensor, limit: int) -> Tensor:
    """Return whether the step is skipped, 0 or 1, and count it in `consecutive_skips`; all are scalars."""
    skipped = torch.empty_like(check)
    _guard[(1,)](check, consecutive_skips, skipped, LIMIT=limit)
    return skipped


@triton.jit
def _adam(
    parameters: tl.tensor, gradients: tl.tensor, mean: tl.tensor, square: tl.tensor, targets: tl.tensor,
    steps: tl.tensor, skipped: tl.tensor, count: tl.tensor, first: tl.tensor, num_targets: tl.tensor,
    LR: tl.constexpr, BETA1: tl.constexpr, BETA2: tl.constexpr, LOG1: tl.constexpr, LOG2: tl.constexpr,
    EPS: tl.constexpr, TAU: tl.constexpr, BEFORE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    if tl.load(skipped) == 0.0:
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        number = tl.load(steps).to(tl.float64)
        rate = (LR / (1.0 - tl.exp(number * LOG1))).to(tl.float32)
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
        followed = inside & (at >= first) & (at < first + num_targets)
        target = tl.load(targets + at - first, mask=followed, other=0.0)
        tl.store(targets + at - first, target + TAU * ((before if BEFORE else p) - target), mask=followed)


def adam(
    parameters: Tensor, gradients: Tensor, moments: tuple[Tensor, Tensor], steps: Tensor, skipped: Tensor,
    followers: tuple[Tensor, int, float, bool], group: dict[str, Any],
) -> None:  # fmt: skip
    """Take a step of Adam, and one of the target critics after the critics, in one pass; none if `skipped` is 1.

    Args:
        parameters: Flat, as the others; changed in place, as are the moments and the targets.
        gradients: Of the parameters.
        moments: Mean and mean square of the gradients.
        steps: The number of this step, its first element.
        skipped: 0 or 1, a scalar.
        followers: The targets, the place of the first parameter that they follow, their Polyak rate, and whether they
            follow the parameters as they were before this step.
        group: The optimizer's settings.
    """
    (beta1, beta2), (targets, start, tau, before), count = group["betas"], followers, len(parameters)
    _adam[(triton.cdiv(count, PARAMETERS),)](
        parameters, gradients, *moments, targets, steps, skipped, count, start, len(targets),
        LR=group["lr"], BETA1=beta1, BETA2=beta2, LOG1=math.log(beta1), LOG2=math.log(beta2), EPS=group["eps"],
        TAU=tau, BEFORE=before, BLOCK=PARAMETERS,
    )  # fmt: skip
