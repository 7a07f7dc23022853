"""The elementwise work of an update on a CPU, each chain of operations in one compiled loop.

Shapes: B rows, H hidden units, P parameters, T threads.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from dipole_ray.agents.compiling import OPTIONS, compiled
from dipole_ray.agents.kernels import gate
from dipole_ray.agents.networks import CUBIC, LINEAR

Array = np.ndarray

_BLOCK = 4096
"""Squares that are summed up in the numbers' own precision."""


def _gate_slope(x: Any) -> Any:
    """Return du/dx."""
    raise NotImplementedError  # only compiled code calls it, and gets the function below


@overload(_gate_slope, jit_options=OPTIONS)
def _compile_gate_slope(x: Any) -> Any:
    real = np.float64 if x == types.float64 else np.float32
    linear, cubic = real(LINEAR), real(3.0 * CUBIC)

    def slope(x: Any) -> Any:
        return linear + cubic * x * x

    return slope


@compiled
def activate(z: Array, bias: Array, y: Array) -> None:
    """Add the bias (H,) to z, and write y = GELU(z), both (B, H)."""
    for row in range(z.shape[0]):
        for j in range(z.shape[1]):
            x = z[row, j] + bias[j]
            z[row, j] = x
            y[row, j] = x * gate(x)


@compiled
def activate_backward(z: Array, d: Array, bias: Array) -> None:
    """Turn the gradient d of `activate`'s y into that of z, (B, H), and add its sum over the rows to the bias's."""
    one = z.dtype.type(1)
    for row in range(z.shape[0]):
        for j in range(z.shape[1]):
            x = z[row, j]
            sigma = gate(x)
            d[row, j] *= sigma + x * sigma * (one - sigma) * _gate_slope(x)
            bias[j] += d[row, j]


@compiled
def normalize(z: Array, bias: Array, scale: Array, shift: Array, epsilon: Any, y: Array) -> None:
    """Add the bias to z, and write y = LayerNorm(GELU(z)), both (B, H), with scale and shift, (H,) as the bias."""
    units = z.dtype.type(z.shape[1])
    for row in range(z.shape[0]):
        mean = variance = z.dtype.type(0)
        for j in range(z.shape[1]):
            x = z[row, j] + bias[j]
            z[row, j] = x
            y[row, j] = x * gate(x)
            mean += y[row, j]
        mean /= units
        for j in range(z.shape[1]):
            variance += (y[row, j] - mean) * (y[row, j] - mean)
        inverse = z.dtype.type(1) / np.sqrt(variance / units + epsilon)
        for j in range(z.shape[1]):
            y[row, j] = (y[row, j] - mean) * inverse * scale[j] + shift[j]


@compiled
def normalize_backward(z: Array, d: Array, scale: Array, epsilon: Any, sums: tuple[Array, Array, Array]) -> None:
    """Turn the gradient d of `normalize`'s y into that of z, (B, H).

    Added are the rows' sums, (H,), to the gradients of bias, scale and shift.
    """
    bias, scale_gradient, shift_gradient = sums
    zero, one, units = z.dtype.type(0), z.dtype.type(1), z.dtype.type(z.shape[1])
    normal, slope = np.empty_like(scale), np.empty_like(scale)
    for row in range(z.shape[0]):
        mean = variance = d_mean = d_along = zero
        for j in range(z.shape[1]):
            x = z[row, j]
            sigma = gate(x)
            normal[j] = x * sigma
            slope[j] = sigma + x * sigma * (one - sigma) * _gate_slope(x)
            mean += normal[j]
        mean /= units
        for j in range(z.shape[1]):
            variance += (normal[j] - mean) * (normal[j] - mean)
        inverse = one / np.sqrt(variance / units + epsilon)
        for j in range(z.shape[1]):
            normal[j] = (normal[j] - mean) * inverse
            scale_gradient[j] += d[row, j] * normal[j]
            shift_gradient[j] += d[row, j]
            d[row, j] *= scale[j]
            d_mean += d[row, j]
            d_along += d[row, j] * normal[j]
        d_mean /= units
        d_along /= units
        for j in range(z.shape[1]):
            d[row, j] = inverse * (d[row, j] - d_mean - normal[j] * d_along) * slope[j]
            bias[j] += d[row, j]


@compiled
def add_up(gradients: Array, start: int, stop: int) -> Any:
    """Add all threads' gradients (T, P) to the first's between two places; return the sum of the squares there."""
    first, squares = gradients[0, start:stop], 0.0
    for thread in range(1, gradients.shape[0]):
        other = gradients[thread, start:stop]
        for i in range(len(first)):
            first[i] += other[i]
    for block in range(0, len(first), _BLOCK):
        part, square = first[block : block + _BLOCK], gradients.dtype.type(0)
        for i in range(len(part)):
            square += part[i] * part[i]
        squares += square
    return squares


@compiled
def adam(
    parameters: Array, gradients: Array, mean: Array, square: Array, settings: Array, start: int, stop: int
) -> None:
    """Take a step of Adam on the parameters (P,) between two places, as on the moments, all in place.

    The settings are 1 - beta1, beta2, 1 - beta2, rate / (1 - beta1^n), sqrt(1 - beta2^n) and epsilon.
    """
    rest1, beta2, rest2, rate, spread, epsilon = settings
    p, g, m, v = parameters[start:stop], gradients[start:stop], mean[start:stop], square[start:stop]
    for i in range(len(p)):
        m[i] += rest1 * (g[i] - m[i])
        v[i] = beta2 * v[i] + rest2 * g[i] * g[i]
        p[i] -= rate * m[i] / (np.sqrt(v[i]) / spread + epsilon)


@compiled
def follow(targets: Array, parameters: Array, tau: Any, start: int, stop: int) -> None:
    """Move targets a Polyak step towards the parameters, all flat, between two places."""
    t, p = targets[start:stop], parameters[start:stop]
    for i in range(len(t)):
        t[i] += tau * (p[i] - t[i])
