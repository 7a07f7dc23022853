"""Few rows through small networks on one core, compiled: packed products, what stands between two, and whole flows.

Libraries want many rows: with the 32 candidates of one state MKL and oneDNN reach a third to two thirds of what a core
can do, and starting an operation costs as much as a small layer. numba compiles this file at its first call, for the
machine at hand. All arrays are of one type, float32 or float64; offsets and strides count numbers.

Shapes: S states, N candidates of each, R = S N rows, C numbers of a candidate, F members of a stack, H units padded to
whole vectors, D outputs, A action dim.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from dipole_ray.agents.compiling import OPTIONS, compiled
from dipole_ray.agents.networks import CUBIC, LAYER_NORM_EPS, LINEAR
from dipole_ray.agents.tiles import VECTOR_BYTES, VECTORS, tile_of

ROWS = 4 if VECTOR_BYTES == 32 else 8
"""Rows of a register tile, two vectors wide: its sums fill half the registers, of which AVX2 has 16 and others 32."""
TILE = 64
"""Rows that pass through all layers and steps together: activations stay in the cache, weights are read once a tile."""
OUT, BIAS, SCALE, SHIFT, DEPTH, UNITS, WIDTH = range(7)
"""Columns of a layout, see `agents.packed`: offsets, then inputs, true outputs and padded outputs of a layer."""
STATES, CANDIDATES, HIDDEN = range(3)
"""Rows of a layout: the first layer's two parts, then the layers after it."""

# Eigen's tanh: an odd polynomial over an even one, highest powers first, within _BOUND; beyond it is 1 in float32.
_BOUND = np.float32(7.90531110763549805)
_ODD = tuple(
    np.float32(x)
    for x in (
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    )
)
_EVEN = tuple(
    np.float32(x) for x in (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
)
_tile = tile_of(ROWS)
_HALF_LINEAR, _HALF_CUBIC, _HALF = np.float32(LINEAR / 2), np.float32(CUBIC / 2), np.float32(0.5)


def columns(itemsize: int) -> int:
    """Return how many columns of a kernel lie together: two vectors."""
    return VECTORS * VECTOR_BYTES // itemsize


def gate(x: Any) -> Any:
    """Return the factor by which GELU scales its input, see `networks.gelu_tanh`."""
    raise NotImplementedError  # only compiled code calls it, and gets the function below


@overload(gate, jit_options=OPTIONS)
def _compile_gate(x: Any) -> Any:
    def exact(x: Any) -> Any:
        return 1.0 / (1.0 + math.exp(-x * (LINEAR + CUBIC * x * x)))

    def rational(x: Any) -> Any:
        half = min(max(x * (_HALF_LINEAR + _HALF_CUBIC * x * x), -_BOUND), _BOUND)
        s = half * half
        odd = (((((_ODD[0] * s + _ODD[1]) * s + _ODD[2]) * s + _ODD[3]) * s + _ODD[4]) * s + _ODD[5]) * s + _ODD[6]
        even = ((_EVEN[0] * s + _EVEN[1]) * s + _EVEN[2]) * s + _EVEN[3]
        return _HALF + _HALF * (half * odd / even)

    return exact if x == types.float64 else rational


@compiled
def _product(x: Any, rows: Any, weights: Any, layer: Any, y: Any) -> None:
    """Add x (rows, DEPTH) times a layer's kernel to y (rows, WIDTH), at the beginning of flat arrays."""
    depth, width, step = layer[DEPTH], layer[WIDTH], VECTORS * VECTOR_BYTES // x.itemsize
    for column in range(0, width, step):
        kernel = weights[layer[OUT] + column * depth :]
        for row in range(0, rows, ROWS):
            _tile(x, row * depth, depth, 1, kernel, y, row * width + column, width, depth, True)


@compiled
def _activate(z: Any, rows: Any, weights: Any, layer: Any, is_normalized: Any) -> None:
    """Turn a layer's sums (rows, WIDTH) into GELU, and each row into its layer norm where the stack has that."""
    width, units = layer[WIDTH], layer[UNITS]
    scale, shift = weights[layer[SCALE] :], weights[layer[SHIFT] :]
    count, epsilon = z.dtype.type(units), z.dtype.type(LAYER_NORM_EPS)
    for row in range(rows):
        line = z[row * width : (row + 1) * width]
        for j in range(width):
            line[j] *= gate(line[j])
        if is_normalized:
            mean = variance = z.dtype.type(0)
            for j in range(units):
                mean += line[j]
            mean /= count
            for j in range(units):
                variance += (line[j] - mean) * (line[j] - mean)
            inverse = z.dtype.type(1) / np.sqrt(variance / count + epsilon)
            for j in range(width):
                line[j] = (line[j] - mean) * inverse * scale[j] + shift[j]


@compiled
def context(states: Any, num_states: Any, weights: Any, layout: Any, members: Any, shares: Any) -> None:
    """Write the states' share of the first layer's sums, bias included, (members, S H); states (S inputs,).

    S is a multiple of ROWS.
    """
    layer = layout[STATES]
    width = layer[WIDTH]
    for i in range(len(members)):
        bias, share = weights[members[i], layer[BIAS] :], shares[i]
        for row in range(num_states):
            line = share[row * width : (row + 1) * width]
            for j in range(width):
                line[j] = bias[j]
        _product(states, num_states, weights[members[i]], layer, share)


@compiled
def _evaluate(
    x: Any, t: Any, start: Any, rows: Any, num_candidates: Any, shares: Any, weights: Any, layout: Any,
    is_normalized: Any, z: Any, y: Any,
) -> Any:  # fmt: skip
    """Return the outputs (rows, WIDTH) of one member at candidates x (rows, C), those from `start` on; in z or y.

    Reads and computes whole register tiles; the rows after `rows` are of no use.
    """
    layer, padded = layout[CANDIDATES], -(-rows // ROWS) * ROWS
    time, width = weights[layer[BIAS] :], layer[WIDTH]
    for row in range(padded):
        state = (start + min(row, rows - 1)) // num_candidates
        line, share = z[row * width : (row + 1) * width], shares[state * width : (state + 1) * width]
        for j in range(width):
            line[j] = share[j] + t * time[j]
    _product(x, padded, weights, layer, z)
    for after in range(HIDDEN, layout.shape[0]):
        _activate(z, padded, weights, layout[after - 1], is_normalized)
        bias, width = weights[layout[after, BIAS] :], layout[after, WIDTH]
        for row in range(padded):
            line = y[row * width : (row + 1) * width]
            for j in range(width):
                line[j] = bias[j]
        _product(z, padded, weights, layout[after], y)
        z, y = y, z
    return z


@compiled
def evaluate(
    candidates: Any, num_candidates: Any, shares: Any, weights: Any, layout: Any, is_normalized: Any, work: Any,
    found: Any,
) -> None:  # fmt: skip
    """Write all members' outputs, (F, R D), at candidates (R C,), N of each state; `shares` are the states'."""
    size, outputs, width = layout[CANDIDATES, DEPTH], layout[-1, UNITS], layout[-1, WIDTH]
    x, z, y = work[0], work[1], work[2]
    for start in range(0, len(candidates) // size, TILE):
        rows = min(TILE, len(candidates) // size - start)
        for i in range(rows * size):
            x[i] = candidates[start * size + i]
        for member in range(weights.shape[0]):
            last = _evaluate(
                x, x.dtype.type(0), start, rows, num_candidates, shares[member], weights[member], layout,
                is_normalized, z, y,
            )  # fmt: skip
            for row in range(rows):
                for d in range(outputs):
                    found[member, (start + row) * outputs + d] = last[row * width + d]


@compiled
def generate(
    points: Any, num_candidates: Any, shares: Any, weights: Any, layout: Any, members: Any, num_steps: Any,
    is_midpoint: Any, omegas: Any, work: Any,
) -> None:  # fmt: skip
    """Carry points (R A,), N of each state, along one member's field, or two that the states' omegas (S,) combine.

    See `flow.sample`.
    """
    size, width, kind = layout[-1, UNITS], layout[-1, WIDTH], points.dtype.type
    asked, z, y, v = work[0], work[1], work[2], work[3]
    evaluations = 2 if is_midpoint else 1
    for start in range(0, len(points) // size, TILE):
        rows = min(TILE, len(points) // size - start)
        x = points[start * size : (start + rows) * size]
        for i in range(len(x)):
            asked[i] = x[i]
        for k in range(evaluations * num_steps):
            for i in range(len(members)):
                last = _evaluate(
                    asked, kind(k / (evaluations * num_steps)), start, rows, num_candidates, shares[i],
                    weights[members[i]], layout, False, z, y,
                )  # fmt: skip
                for row in range(rows):
                    omega = omegas[(start + row) // num_candidates]
                    for a in range(size):
                        at, found = row * size + a, last[row * width + a]
                        v[at] = found if i == 0 else v[at] + omega * (v[at] - found)
            # The first of two evaluations moves the point that is asked about by half a step, the last the sample.
            for i in range(len(x)):
                if is_midpoint and k % 2 == 0:
                    asked[i] = x[i] + kind(0.5 / num_steps) * v[i]
                else:
                    x[i] += kind(1.0 / num_steps) * v[i]
                    asked[i] = x[i]
