"""Triton's kernels in place of many small ones of torch in a captured step on a GPU; results are equal to rounding.

Shapes: S agents, E members of a stack, B rows, I inputs, D outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dipole_ray.agents import fused_flow
from dipole_ray.agents.branches import Branches
from dipole_ray.agents.fields import StackedFields
from dipole_ray.agents.fused_losses import weighted_squares
from dipole_ray.agents.fused_members import of_all
from dipole_ray.agents.fused_pass import Pass, Stack
from dipole_ray.agents.fused_steps import adam, guard
from dipole_ray.agents.networks import Members, StackedMLP

__all__ = ["FusedPasses", "adam", "guard", "weighted_squares"]


class FusedPasses:
    """Evaluates the stacks of one agent, or those of many whose losses `torch.vmap` computes at once."""

    def __init__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], branches: Branches) -> None:
        """Write gradients of these parameters, (S, ...) or those of one agent, to the tensors given, (S, ...).

        Parameters must stay where they are in memory. Their gradients are ready once the branches are joined.
        """
        self._places = {each.data_ptr(): place for each, place in zip(parameters, gradients, strict=True)}
        self._unwritten, self._branches = set(self._places), branches

    def begin(self) -> None:
        """Begin a step, whose gradients are yet to be written."""
        self._unwritten = set(self._places)

    def evaluate(self, mlp: StackedMLP, inputs: Tensor, members: Members = None) -> Tensor:
        """Return what `StackedMLP.forward` does."""
        parameters, layers = [each for kind in mlp.parts(members) for each in kind], len(mlp.kernels)

        def run(inputs: Tensor, *parameters: Tensor) -> Tensor:
            if torch.is_grad_enabled() and any(each.requires_grad for each in (inputs, *parameters)):
                found: Tensor = _Pass.apply(self, layers, inputs, *parameters)
                return found
            return Pass.forward(Stack.of(parameters, layers), inputs, keep=False)[1]

        return of_all(run, inputs if inputs.dim() == 3 else inputs.unsqueeze(0), *parameters)

    def generate(
        self, fields: StackedFields, observations: Tensor, noise: Tensor, along: list[str], steps: int, omega: float
    ) -> Tensor:
        """Return what `flow.generate` does, without a gradient."""
        kernels, biases = fields.parts(along)

        def run(observations: Tensor, noise: Tensor, *parameters: Tensor) -> Tensor:
            return fused_flow.generate(Stack.of(parameters, len(kernels)).packed(), observations, noise, steps, omega)

        return of_all(run, observations, noise, *kernels, *biases)

    def backward(self, run: Pass, stack: Stack, gradient: Tensor, learns: bool, needs_inputs: bool) -> list[Any]:
        """Return the gradients of a pass's inputs and of the stack's tensors, as far as they are needed."""
        if not learns:
            return [run.backward(gradient, None, _at_once, needs_inputs), *(None for _ in stack.tensors)]
        keys = {each.data_ptr() for each in stack.tensors}
        places = [self._places.get(each.data_ptr()) for each in stack.tensors]
        known = [place for place in places if place is not None]
        sizes = [each.numel() for each in stack.tensors]
        apart: Callable[..., None] = self._branches.apart
        if keys <= self._unwritten and [place.numel() for place in known] == sizes:
            self._unwritten -= keys
            shaped = [place.view(each.shape) for place, each in zip(known, stack.tensors, strict=True)]
            found = Stack.of(shaped, len(stack.kernels))
        else:  # autograd adds these to what may still be under way
            self._branches.join()
            found, apart = stack.room(), _at_once
        return [run.backward(gradient, found, apart, needs_inputs), *found.tensors]


def _at_once(function: Callable[..., None], *arguments: Any) -> None:
    function(*arguments)


class _Pass(torch.autograd.Function):
    """A stack's pass as one node."""

    @staticmethod
    def forward(ctx: Any, passes: FusedPasses, layers: int, inputs: Tensor, *parameters: Tensor) -> Tensor:  # type: ignore[override]
        stack = Stack.of(parameters, layers)
        run, outputs = Pass.forward(stack, inputs, keep=True)
        ctx.kept = passes, run, stack
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        passes, run, stack = ctx.kept
        _, _, needs_inputs, *learns = ctx.needs_input_grad
        return None, None, *passes.backward(run, stack, gradient, any(learns), needs_inputs)
