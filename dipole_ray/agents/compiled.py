"""Gradients and steps of an agent on a CPU by compiled loops: equal to `Steps` to rounding, about twice as fast.

Parameters, targets, moments and gradients lie in one tensor each, so that each is gone through in one pass. Losses,
draws and the state dict are the agent's own, so a checkpoint taken on one way continues on the other.

Shapes: P parameters, T threads.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dipole_ray.agents import loops, state
from dipole_ray.agents.compiling import compiling_once
from dipole_ray.agents.fields import StackedFields
from dipole_ray.agents.networks import PASSES, StackedMLP
from dipole_ray.agents.passes import Passes
from dipole_ray.agents.steps import Loss, Steps

_WORK_OF_ADAM = 50
"""Multiplications of a product that take as long as a parameter's step."""


class CompiledSteps(Steps):
    """Takes over from an agent's `Steps`, whose tensors become views of flat ones."""

    is_compiled = True

    def __init__(self, steps: Steps, networks: nn.Module, threads: int, *, in_halves: bool = False) -> None:
        """Compile what is to be run, for the stacks among the networks; numba's own errors where it cannot.

        Matrix products round their factors to bfloat16 where they are computed `in_halves`, see `halves`.
        """
        super().__init__(steps.config, steps.optimizer, steps.critics, steps.targets)
        self._flat = state.flatten(self.parameters)
        self._flat_targets = state.flatten(self.targets, like=self._flat)
        start = self.critics[0].storage_offset() if self.critics else 0
        self._flat_critics = self._flat[start:][: len(self._flat_targets)]
        moments = [self.optimizer.state[parameter] for parameter in self.parameters]
        self._moments = {kind: state.flatten([each[kind] for each in moments]) for kind in moments[0]}
        self._by_thread = self._flat.new_zeros(threads, len(self._flat))
        views = [state.views(flat, self.parameters) for flat in self._by_thread]
        self._gradient_of = views[0]
        self.gradients = [self._by_thread[0]]
        trained = dict(zip(self.parameters, zip(*views, strict=True), strict=True))
        self._passes = Passes(trained, threads, in_halves=in_halves)
        with compiling_once():
            self._warm_up(networks)

    def _warm_up(self, networks: nn.Module) -> None:
        """Compile whatever an update calls."""
        for module in networks.modules():
            if isinstance(module, StackedMLP):
                self._passes.warm_up(module)
            elif isinstance(module, StackedFields):
                nothing = self._flat.new_zeros(1, module.observation_dim)
                noise = self._flat.new_zeros(1, 1, module.mlp.kernels[-1].shape[2])
                self._passes.generate(module, nothing, noise, list(module.names[:1]), 1, 0.0)
        self._by_thread.zero_()
        loops.add_up(self._by_thread.numpy(), 0, 0)
        loops.adam(*self._adam(), 0, 0)
        loops.follow(*self._followers(), 0, 0)

    def differentiate(self, loss: Callable[[], Loss]) -> Loss:
        """Do what `Steps` does, the networks evaluated by `Passes`."""
        for parameter, gradient in zip(self.parameters, self._gradient_of, strict=True):
            if parameter.grad is not gradient:
                parameter.grad = gradient  # what is no stacked MLP adds to it by autograd
        token, threads = PASSES.set(self._passes), torch.get_num_threads()
        torch.set_num_threads(1)  # torch's threads meet after each operation, and turn while they wait
        try:
            self._by_thread.zero_()
            total, metrics, statistics = loss()
            total.backward()
        finally:
            torch.set_num_threads(threads)
            PASSES.reset(token)
        if len(self._by_thread) > 1:
            gradients = self._by_thread.numpy()
            self._deal(lambda _, *part: loops.add_up(gradients, *part))
        return total.detach(), metrics, statistics

    def gradient_norm(self) -> Tensor:
        """Return the norm of all gradients together."""
        gradients = self._by_thread[:1].numpy()
        return torch.tensor(math.sqrt(sum(self._deal(lambda _, *part: loops.add_up(gradients, *part)))))

    def apply(self) -> None:
        """Do what `Steps` does, in one pass over the parameters and one over the targets."""
        if self.config.target_update == "before":
            self._move_targets()
        self._moments["step"].add_(1)
        arrays = self._adam()
        self._deal(lambda _, *part: loops.adam(*arrays, *part))
        if self.config.target_update == "after":
            self._move_targets()

    def _adam(self) -> tuple[np.ndarray, ...]:
        """Return what the next step of Adam reads and writes, see `loops.adam`."""
        group, count = self.optimizer.param_groups[0], max(1.0, float(self._moments["step"][0]))
        beta1, beta2 = group["betas"]
        rate, spread = group["lr"] / (1 - beta1**count), math.sqrt(1 - beta2**count)
        settings = self._flat.new_tensor((1 - beta1, beta2, 1 - beta2, rate, spread, group["eps"]))
        tensors = self._flat, self.gradients[0], self._moments["exp_avg"], self._moments["exp_avg_sq"], settings
        return tuple(tensor.numpy() for tensor in tensors)

    def _deal(self, work: Callable[..., Any]) -> list[Any]:
        return self._passes.deal(work, len(self._flat), _WORK_OF_ADAM)

    def _move_targets(self) -> None:
        arrays = self._followers()
        self._passes.deal(lambda _, *part: loops.follow(*arrays, *part), len(arrays[0]), _WORK_OF_ADAM)

    def _followers(self) -> tuple[Any, ...]:
        """Return what a Polyak step reads and writes, see `loops.follow`."""
        targets, critics = self._flat_targets.numpy(), self._flat_critics.numpy()
        return targets, critics, targets.dtype.type(self.config.tau)
