"""The elementwise work of an update on a CPU, each chain of operations in one compiled loop.

Shapes: B rows, H hidden units, P parameters, T threads.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from dipole_ray.agents.compiling import OPTIONS, compiled
from dipole_ray.agents.networks import CUBIC, LINEAR

Array = np.ndarray

# Eigen's rational approximation of tanh in float32 on [-_BOUND, _BOUND], highest powers first; beyond it is 1.
_BOUND = np.float32(7.90531110763549805)
_ODD = np.array(
    (
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    ),
    np.float32,
)
_EVEN = np.array((1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03), np.float32)
_O0, _O1, _O2, _O3, _O4, _O5, _O6 = _ODD
_E0, _E1, _E2, _E3 = _EVEN
_BLOCK = 4096
"""Squares that are summed up in the numbers' own precision."""
_HALF, _HALF_LINEAR, _HALF_CUBIC = (np.float32(x) for x in (0.5, LINEAR / 2, CUBIC / 2))


def _gate(x: Any) -> Any:
    """Return sigma(u), the factor by which GELU scales its input; see `networks`."""
    raise NotImplementedError


def _gate_slope(x: Any) -> Any:
    """Return du/dx."""
    raise NotImplementedError


@overload(_gate, jit_options=OPTIONS)
def _compile_gate(x: Any) -> Any:
    """Use (1 + tanh(u / 2)) / 2 in float32: a library's exponential is called number by number, ten times as slow."""

    def exact(x: Any) -> Any:
        return 1.0 / (1.0 + math.exp(-x * (LINEAR + CUBIC * x * x)))

    def rational(x: Any) -> Any:
        half = min(max(x * (_HALF_LINEAR + _HALF_CUBIC * x * x), -_BOUND), _BOUND)
        s = half * half
        odd = (((((_O0 * s + _O1) * s + _O2) * s + _O3) * s + _O4) * s + _O5) * s + _O6
        even = ((_E0 * s + _E1) * s + _E2) * s + _E3
        return _HALF + _HALF * (half * odd / even)

    return exact if x == types.float64 else rational


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
            y[row, j] = x * _gate(x)


@compiled
def activate_backward(z: Array, d: Array, bias: Array) -> None:
    """Turn the gradient d of `activate`'s y into that of z, (B, H), and add its sum over the rows to the bias's."""
    one = z.dtype.type(1)
    for row in range(z.shape[0]):
        for j in range(z.shape[1]):
            x = z[row, j]
            gate = _gate(x)
            d[row, j] *= gate + x * gate * (one - gate) * _gate_slope(x)
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
            y[row, j] = x * _gate(x)
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
            gate = _gate(x)
            normal[j] = x * gate
            slope[j] = gate + x * gate * (one - gate) * _gate_slope(x)
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
