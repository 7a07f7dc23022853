"""The sampler of flow policies in Triton: an Euler step is one kernel between the hidden layers of two.

Shapes: S agents, F fields (one or two), B states, N candidates, A action dim, O observation dim, L and H units of the
last and of the first hidden layer.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dipole_ray.agents.fused_layers import gate_of, hidden_layer, tile_for
from dipole_ray.agents.fused_pass import Stack, precision, tiled

_ROWS = 2


@triton.jit
def _euler(
    x: tl.tensor, moved_x: tl.tensor, last: tl.tensor, out_kernel: tl.tensor, out_bias: tl.tensor, context: tl.tensor,
    kernel: tl.tensor, first: tl.tensor, rows: tl.tensor, outer: tl.tensor, t: tl.tensor, step: tl.tensor,
    omega: tl.tensor, A: tl.constexpr, N: tl.constexpr, L: tl.constexpr, H: tl.constexpr, INPUTS: tl.constexpr,
    FIELDS: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, BEGINS: tl.constexpr,
    ENDS: tl.constexpr,
) -> None:  # fmt: skip
    """Move x (S, rows, A) by what the last hidden layer (S F, rows, L) says; write the first (S F, rows, H) at time t.

    The first call has no last layer yet; the last one writes no first layer, but clips x to the action box.
    """
    row, unit, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_L), tl.arange(0, BLOCK)
    field, agent, is_row = tl.program_id(1), tl.program_id(2), row < rows
    inside, onward = is_row[:, None] & (unit < L)[None, :], is_row[:, None] & (column < H)[None, :]
    at, member = agent.to(tl.int64) * outer, agent * FIELDS + field
    if not ENDS:
        weights = kernel + at + field * INPUTS * H + column  # the state's, the action's and the time's
        z = tl.load(context + (member * (rows // N) + row // N)[:, None] * H + column[None, :], mask=onward, other=0.0)
        z += t * tl.load(weights + (INPUTS - 1) * H, mask=column < H, other=0.0)[None, :]
    for a in range(A):
        moved = tl.load(x + (agent * rows + row) * A + a, mask=is_row, other=0.0)
        if not BEGINS:
            for f in tl.static_range(FIELDS):
                of = (agent * FIELDS + f) * rows + row
                h = tl.load(last + of[:, None] * L + unit[None, :], mask=inside, other=0.0)
                w = tl.load(out_kernel + at + (f * L + unit) * A + a, mask=unit < L, other=0.0)
                share = 1.0 if FIELDS == 1 else (1.0 + omega if f == 0 else -omega)
                moved += step * share * (tl.sum(h * w[None, :], axis=1) + tl.load(out_bias + at + f * A + a))
        if ENDS:
            moved = tl.minimum(tl.maximum(moved, -1.0), 1.0)
        else:
            w = tl.load(weights + (INPUTS - 1 - A + a) * H, mask=column < H, other=0.0)
            z += moved[:, None] * w[None, :]
        tl.store(moved_x + (agent * rows + row) * A + a, moved, mask=is_row & (field == 0))
    if not ENDS:
        tl.store(first + (member * rows + row)[:, None] * H + column[None, :], z * gate_of(z), mask=onward)


def generate(stack: Stack, observations: Tensor, noise: Tensor, steps: int, omega: float) -> Tensor:
    """Carry noise (S, B, N, A) to actions in [-1, 1] by so many Euler steps, without a gradient; see `flow.generate`.

    The stack is that of the one or two fields that matter, which `omega` combines; observations are (S, B, O).
    """
    kernels, biases = stack.kernels, stack.biases
    agents, batch, candidates, action_dim = noise.shape
    fields, inputs, width = kernels[0].shape[1:]
    rows, count, last_width = batch * candidates, agents * fields, kernels[-1].shape[2]
    context = torch.matmul(observations.unsqueeze(1), kernels[0][:, :, : observations.shape[2]]) + biases[0]
    points = noise.contiguous(), torch.empty_like(noise), torch.empty_like(noise)
    layers = [noise.new_empty(count, rows, kernel.shape[3]) for kernel in kernels[:-1]]
    spare = torch.empty_like(layers[0]) if len(layers) == 1 else layers[0]
    options = {"A": action_dim, "N": candidates, "L": last_width, "H": width, "INPUTS": inputs, "FIELDS": fields}
    options |= {"BLOCK_L": triton.next_power_of_2(last_width), "BLOCK": triton.next_power_of_2(width), "ROWS": _ROWS}
    for k in range(steps + 1):
        x, moved = points[0] if k == 0 else points[1 + k % 2], points[1 + (k + 1) % 2]
        begins, ends = k == 0, k == steps
        last, layers[0], spare = layers[-1], spare, layers[0]  # a single layer is read and written at once
        _euler[(triton.cdiv(rows, _ROWS), 1 if ends else fields, agents)](
            x, moved, last, kernels[-1], biases[-1], context, kernels[0], layers[0], rows, stack.outer,
            k / steps, 1.0 / steps, float(omega), BEGINS=begins, ENDS=ends, **options,
        )  # fmt: skip
        if ends:
            return moved
        for layer in range(1, len(layers)):
            _hidden(stack, layer, layers[layer - 1], layers[layer])
    raise AssertionError


def _hidden(stack: Stack, layer: int, x: Tensor, y: Tensor) -> None:
    """Write y (S F, rows, H), a hidden layer, from the one below."""
    (count, rows, units), members = y.shape, stack.kernels[0].shape[1]
    tile, nothing = tile_for("hidden", precision(), count, rows, units), None
    none: dict[str, Any] = {"BELOW": 1, "BELOW_BLOCK": 1, "BELOW_TILE": 1, "NORM_IN": False, "NORM_OUT": False}
    hidden_layer[(triton.cdiv(rows, tile.rows), triton.cdiv(units, tile.columns), count)](
        x, stack.kernels[layer], stack.biases[layer], nothing, nothing, nothing, nothing, y, nothing, nothing, rows,
        count, 1, x.stride(0), x.stride(1), stack.outer, E=members, INPUTS=x.shape[2], H=units, **none, KEEP=False,
        EPSILON=0.0, **tiled(tile, "BH", precision()),
    )  # fmt: skip
