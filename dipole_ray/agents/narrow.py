"""Linear layers whose weights take two bytes a number, between inputs and outputs of four.

Shapes: I inputs, D outputs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What the weights of a frozen backbone may be kept in, by the name in the settings."""


class NarrowLinear(nn.Linear):
    """A linear layer of a network in float32 that multiplies in the type of its own weights.

    The bias stays float32, as do inputs and outputs; so a network need not know which of its layers are narrow.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., D) of (..., I), in the input's type."""
        kind = self.weight.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        return F.linear(input.to(kind), self.weight, bias).to(input.dtype)


def keep_weights_in(dtype: torch.dtype, layers: list[nn.Linear]) -> None:
    """Round, or widen, the weights of these layers, which stay the same parameters.

    Subclasses of `torch.nn.Linear` are left as they are: what they make of their weights is their own.
    """
    before, after = (nn.Linear, NarrowLinear) if dtype != torch.float32 else (NarrowLinear, nn.Linear)
    for layer in layers:
        if type(layer) is before:
            layer.__class__ = after
            layer.weight.data = layer.weight.data.to(dtype)
