"""A pass of stacks of MLPs forward, and its gradients, by the kernels of `fused_layers`.

Shapes: S agents, E members of each one's stack, M = S E, B rows, I inputs, H hidden units, D outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dipole_ray.agents.fused_layers import (
    CHUNK,
    REDUCED,
    Tile,
    add_blocks,
    hidden_gradient,
    hidden_layer,
    input_gradient,
    kernel_gradient,
    last_layer,
    rows_for,
    tile_for,
)
from dipole_ray.agents.networks import LAYER_NORM_EPS


class Stack(NamedTuple):
    """Parameters of S agents, or their gradients: kernels (S, E, I, H), biases (S, E, 1, H), those of norms."""

    kernels: Sequence[Tensor]
    biases: Sequence[Tensor]
    scales: Sequence[Tensor]
    shifts: Sequence[Tensor]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], layers: int) -> "Stack":
        """Return the stack of so many layers whose tensors these are, kind by kind."""
        norms = (len(tensors) - 2 * layers) // 2
        ends = (0, layers, 2 * layers, 2 * layers + norms, len(tensors))
        return cls(*(tensors[start:stop] for start, stop in pairwise(ends)))

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, kind by kind."""
        return [tensor for kind in self for tensor in kind]

    @property
    def outer(self) -> int:
        """How far one agent's parameters lie from the next one's, see `fused_layers`."""
        return self.kernels[0].stride(0)

    def norm(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """Return scale and shift of the norm after a hidden layer; of none, where there are no norms."""
        return (self.scales[layer], self.shifts[layer]) if self.scales and layer >= 0 else (None, None)

    def within(self, flat: Tensor) -> "Stack":
        """Return parts of a tensor (S, P), each of the shape of one of these."""
        parts = flat.split([tensor[0].numel() for tensor in self.tensors], dim=1)
        shaped = [part.view(tensor.shape) for part, tensor in zip(parts, self.tensors, strict=True)]
        return Stack.of(shaped, len(self.kernels))

    def packed(self) -> "Stack":
        """Return this, or a copy where the kernels could not walk through it."""
        tensors = self.tensors
        if all((len(each) == 1 or each.stride(0) == self.outer) and each[0].is_contiguous() for each in tensors):
            return self
        return self.within(torch.cat([each.reshape(len(each), -1) for each in tensors], dim=1))

    def room(self) -> "Stack":
        """Return uninitialized tensors of the same shapes."""
        length = sum(each[0].numel() for each in self.tensors)
        return self.within(self.kernels[0].new_empty(len(self.kernels[0]), length))


@dataclass
class Pass:
    """A pass of inputs (S, 1 or E, B, I); what it leaves for the gradients is by hidden layer, see `hidden_layer`."""

    stack: Stack
    inputs: Tensor
    precision: str
    """What Triton calls the numbers that products are computed in."""
    results: list[Tensor] = field(default_factory=list)
    slopes: list[Tensor] = field(default_factory=list)
    moments: list[Tensor | None] = field(default_factory=list)

    @classmethod
    def forward(cls, stack: Stack, inputs: Tensor, keep: bool) -> "tuple[Pass, Tensor]":
        """Return a pass and its outputs (S, E, B, D); to `keep` says that gradients will be asked for."""
        run = cls(stack.packed(), _walkable(inputs), precision())
        outputs = run.compute(keep)
        return run, outputs

    @property
    def _is_normal(self) -> bool:
        return bool(self.stack.scales)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """M, E and B."""
        agents, members = self.stack.kernels[0].shape[:2]
        return agents * members, members, self.inputs.shape[2]

    def compute(self, keep: bool) -> Tensor:
        """Return the outputs (S, E, B, D) layer by layer; see `forward`."""
        parts: Tensor | None = None
        for layer in range(len(self.stack.kernels) - 1):
            parts = self._hidden(layer, parts, keep)
        return self._outputs()

    def _hidden(self, layer: int, below: Tensor | None, keep: bool) -> Tensor | None:
        """Go through a hidden layer, and return the `parts` that it leaves; those of the layer below are given."""
        stack, (count, members, rows), empty = self.stack, self._sizes, self.inputs.new_empty
        width, units = stack.kernels[layer].shape[2:]
        tile, is_normal = self._tile("hidden", rows, units), self._is_normal and layer > 0
        y, number = empty(count, rows, units), 1 if below is None else below.shape[2]
        slope, moments = torch.empty_like(y) if keep else None, empty(2, count, rows) if keep and is_normal else None
        parts = empty(2, count, triton.cdiv(units, tile.columns), rows) if self._is_normal else None
        hidden_layer[(triton.cdiv(rows, tile.rows), triton.cdiv(units, tile.columns), count)](
            self._below(layer), stack.kernels[layer], stack.biases[layer], *stack.norm(layer - 1), below, moments, y,
            slope, parts, rows, count, *self._steps(layer), stack.outer, E=members, INPUTS=width, H=units, BELOW=number,
            BELOW_BLOCK=triton.next_power_of_2(number), BELOW_TILE=self._tile("hidden", rows, width).columns,
            NORM_IN=is_normal, NORM_OUT=self._is_normal, KEEP=keep, EPSILON=LAYER_NORM_EPS,
            **tiled(tile, "BH", self.precision),
        )  # fmt: skip
        self.results.append(y)
        self.moments += [moments] if layer > 0 else []
        self.slopes += [slope] if slope is not None else []
        return parts

    def _outputs(self) -> Tensor:
        """Return what the last layer makes of the last hidden one."""
        stack, (count, members, rows), last = self.stack, self._sizes, len(self.stack.kernels) - 1
        (units, outputs), (own, warps) = stack.kernels[last].shape[2:], rows_for(count, rows)
        y = self.inputs.new_empty(*stack.kernels[0].shape[:2], rows, outputs)
        self.moments.append(self.inputs.new_empty(2, count, rows))
        last_layer[(triton.cdiv(rows, own), count)](
            self.results[-1], stack.kernels[last], stack.biases[last], *stack.norm(last - 1), self.moments[-1], y,
            rows, count, stack.outer, E=members, H=units, D=outputs, BLOCK=triton.next_power_of_2(units), ROWS=own,
            NORM=self._is_normal, EPSILON=LAYER_NORM_EPS, num_warps=warps,
        )  # fmt: skip
        return y

    def backward(
        self, gradient: Tensor, places: Stack | None, apart: Callable[..., None], needs_inputs: bool
    ) -> Tensor | None:
        """Write the parameters' gradients, given that of the outputs, and return that of the inputs where needed.

        What nothing waits for here is given to `apart`, as a function and the tensors that it reads and writes.
        """
        d = gradient.contiguous()
        for layer in reversed(range(len(self.results))):
            dz, sums = self._through_activation(layer, d)
            if places is not None:
                apart(self._parameters, layer, dz, sums, places)
            if layer == 0 and not needs_inputs:
                return None
            d = self._through_product(layer, dz)
        found = d.view(*self.stack.kernels[0].shape[:2], *self.inputs.shape[2:])
        return found.sum(dim=1, keepdim=True) if self.inputs.shape[1] == 1 else found

    def _through_activation(self, layer: int, d: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of a hidden layer's product, and the sums of `hidden_gradient`."""
        stack, (count, members, rows), y = self.stack, self._sizes, self.results[layer]
        outputs, units = self._outputs_above(layer), y.shape[2]
        (own, warps), kinds = rows_for(count, rows), 3 if self._is_normal else 1
        blocks = triton.cdiv(rows, own)
        dz, width = torch.empty_like(y), max(units, outputs)
        sums = y.new_empty(kinds + (outputs + 1 if outputs else 0), blocks, count, width)
        hidden_gradient[(blocks, count)](
            y, self.slopes[layer], *stack.norm(layer), self.moments[layer], d, stack.kernels[-1], dz, sums, rows, count,
            stack.outer, E=members, H=units, D=outputs, WIDTH=width, BLOCK=triton.next_power_of_2(units), ROWS=own,
            NORM=self._is_normal, num_warps=warps,
        )  # fmt: skip
        return dz, sums

    def _through_product(self, layer: int, dz: Tensor) -> Tensor:
        """Return the gradient of what a layer reads, (M, B, I)."""
        (count, members, rows), kernel = self._sizes, self.stack.kernels[layer]
        width, units = kernel.shape[2:]
        if self.precision == "ieee":  # the library's is twice as fast
            return torch.matmul(dz.view(-1, members, rows, units), kernel.mT).flatten(0, 1)
        tile, dx = self._tile("input", rows, width), dz.new_empty(count, rows, width)
        input_gradient[(triton.cdiv(rows, tile.rows), triton.cdiv(width, tile.columns), count)](
            dz, kernel, dx, rows, self.stack.outer, E=members, INPUTS=width, H=units,
            **tiled(tile, "BI", self.precision),
        )  # fmt: skip
        return dx

    def _parameters(self, layer: int, dz: Tensor, sums: Tensor, places: Stack) -> None:
        """Write the gradients of a hidden layer's parameters; those of the last layer with the last hidden one's."""
        stack, (count, members, rows), outputs = self.stack, self._sizes, self._outputs_above(layer)
        width, units = stack.kernels[layer].shape[2:]
        tile = self._tile("kernel", width, units)
        kernel_gradient[(triton.cdiv(width, tile.rows), triton.cdiv(units, tile.columns), count)](
            self._below(layer), *stack.norm(layer - 1), self.moments[layer - 1] if layer else None, dz,
            places.kernels[layer], count, *self._steps(layer), stack.outer, places.outer,
            E=members, BATCH=rows, INPUTS=width, H=units, NORM=self._is_normal and layer > 0,
            **tiled(tile, "IH", self.precision),
        )  # fmt: skip
        kinds, blocks, _, most = sums.shape
        add_blocks[(triton.cdiv(most, REDUCED), count, kinds)](
            sums, places.biases[layer], *places.norm(layer), places.kernels[-1], places.biases[-1], count,
            places.outer, E=members, H=units, D=outputs, WIDTH=most, BLOCKS=blocks, NORM=self._is_normal,
            REDUCED=REDUCED, CHUNK=CHUNK,
        )  # fmt: skip

    def _tile(self, product: str, rows: int, columns: int) -> Tile:
        return tile_for(product, self.precision, self._sizes[0], rows, columns)

    def _outputs_above(self, layer: int) -> int:
        """Return how many outputs a hidden layer has above it; 0 where there is another hidden one."""
        return self.stack.kernels[-1].shape[3] if layer == len(self.results) - 1 else 0

    def _below(self, layer: int) -> Tensor:
        """Return what a layer reads, before the norm."""
        return self.results[layer - 1] if layer else self.inputs

    def _steps(self, layer: int) -> tuple[int, int, int]:
        """Return how many members read the same, how far it is to what the next ones read, and from row to row."""
        x, count = self._below(layer), self._sizes[0]
        if layer:
            return 1, x.stride(0), x.stride(1)
        return count // (x.shape[0] * x.shape[1]), x.stride(0 if x.shape[1] == 1 else 1), x.stride(2)


def tiled(tile: Tile, sides: str, precision: str) -> dict[str, Any]:
    """Return a product's tile and numbers as a kernel's options, for which `sides` names rows and columns."""
    sizes = {f"TILE_{sides[0]}": tile.rows, f"TILE_{sides[1]}": tile.columns, "DEPTH": tile.depth}
    return {**sizes, "PRECISION": precision, "num_warps": tile.warps, "num_stages": tile.stages}


def precision() -> str:
    """Return what Triton calls the numbers that torch multiplies matrices in."""
    return "tf32" if torch.get_float32_matmul_precision() != "highest" else "ieee"


def _walkable(x: Tensor) -> Tensor:
    """Return inputs (S, G, B, I), or a copy, whose S G blocks lie equally far apart and whose rows are whole."""
    agents, blocks = x.shape[:2]
    is_even = agents == 1 or blocks == 1 or x.stride(0) == blocks * x.stride(1)
    return x if is_even and x.stride(3) == 1 else x.contiguous()
