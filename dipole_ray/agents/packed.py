"""What acts on a CPU: the networks of a policy packed once a version, for `agents.kernels` to evaluate.

A state's share of the first layer is computed once a state, and a whole flow is one call. Equal to the readable
networks to rounding, and one row's result does not depend on which others are asked about.

Shapes: B rows, N candidates, O observation dim, A action dim, E members, D outputs.
"""

import logging
from collections.abc import Sequence
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipole_ray.agents.adapters import BACKBONE, AdaptedFields
from dipole_ray.agents.fields import StackedFields
from dipole_ray.agents.networks import StackedMLP
from dipole_ray.agents.roles import Networks

logger = logging.getLogger(__name__)


@cache
def kernels() -> ModuleType | None:
    """Return the compiled kernels; None, and a warning, where numba cannot be imported."""
    try:
        from dipole_ray.agents import kernels as found
    except ImportError as error:
        logger.warning("acting takes two to five times as long as it could: %s", error)
        return None
    return found


class PackedMLP:
    """An MLP that reads a state and a candidate, such as a critic, and perhaps a time after them."""

    def __init__(self, mlp: StackedMLP, observation_dim: int, action_dim: int, compiled: Any) -> None:
        self._kernels, self._is_normalized = compiled, mlp.layer_norm
        self.weights, self.layout = _pack(mlp, observation_dim, action_dim, compiled)

    def at(self, states: Tensor, candidates: Tensor) -> Tensor:
        """Return the outputs (E, B, N, D), see `StackedMLP.at`."""
        rows, outputs = candidates[..., 0].numel(), self.layout[-1, self._kernels.UNITS]
        found = np.empty((len(self.weights), rows * outputs), self.weights.dtype)
        shares, work = self._shares(states, np.arange(len(self.weights))), self._work(candidates)
        flat, count = candidates.contiguous().numpy().reshape(-1), candidates.shape[1]
        self._kernels.evaluate(flat, count, shares, self.weights, self.layout, self._is_normalized, work, found)
        return torch.from_numpy(found).view(len(found), *candidates.shape[:2], outputs)

    def _shares(self, states: Tensor, members: np.ndarray) -> np.ndarray:
        """Return the states' share of the first layer, (members, B H)."""
        rows, layer = self._kernels.ROWS, self._kernels.STATES
        inputs = np.zeros((-(-len(states) // rows) * rows, states.shape[1]), self.weights.dtype)
        inputs[: len(states)] = states.numpy()
        width = self.layout[layer, self._kernels.WIDTH]
        shares = np.empty((len(members), len(inputs) * width), inputs.dtype)
        self._kernels.context(inputs.reshape(-1), len(inputs), self.weights, self.layout, members, shares)
        return shares

    def _work(self, candidates: Tensor) -> np.ndarray:
        """Return memory for a tile's points, velocities and two layers; zeros, as register tiles read past the rows."""
        widest = max(int(self.layout[:, self._kernels.WIDTH].max()), candidates.shape[2])
        return np.zeros((4, self._kernels.TILE * widest), self.weights.dtype)


class PackedFields(PackedMLP):
    """Velocity fields that only carry noise to actions."""

    def __init__(self, fields: StackedFields, action_dim: int, compiled: Any) -> None:
        super().__init__(fields.mlp, fields.observation_dim, action_dim, compiled)
        self._names = fields.names

    def generate(
        self,
        observations: Tensor,
        noise: Tensor,
        along: Sequence[str],
        denoise_steps: int,
        omega: float | Tensor,
        solver: str,
    ) -> Tensor:
        """Return the actions (B, N, A) in [-1, 1], see `flow.generate`."""
        members = np.array([self._names.index(name) for name in along])
        shares, work = self._shares(observations, members), self._work(noise)
        moved = noise.clone(memory_format=torch.contiguous_format)
        omegas = np.empty(len(observations), self.weights.dtype)
        omegas[:] = omega.view(-1).numpy() if isinstance(omega, Tensor) else omega
        how = denoise_steps, solver == "midpoint", omegas
        points, count = moved.view(-1).numpy(), noise.shape[1]
        self._kernels.generate(points, count, shares, self.weights, self.layout, members, *how, work)
        return moved.clamp_(-1.0, 1.0)


def is_worth_it(networks: Networks) -> bool:
    """Return whether `pack` returns others than it is given."""
    runs_kernels = networks.observation_mean.device.type == "cpu" and kernels() is not None
    return runs_kernels or any(isinstance(role, AdaptedFields) for role in networks.children())


def pack(networks: Networks, diffusion: str = "flow") -> Any:
    """Return the same networks by role: adapters merged, on a CPU packed where they read a state and a candidate.

    The kernels follow flows alone: fields of another diffusion are not packed.
    """
    sizes, compiled = networks.sizes, kernels() if networks.observation_mean.device.type == "cpu" else None
    roles: dict[str, Any] = {name: getattr(networks, name) for name, _ in networks.named_children()}
    for name, role in roles.items():
        if isinstance(role, AdaptedFields):
            roles[name] = role = role.merged((*role.names, BACKBONE))
        if compiled is None:
            continue
        if isinstance(role, StackedFields) and diffusion == "flow":
            roles[name] = PackedFields(role, sizes.action_dim, compiled)
        elif isinstance(role, StackedMLP) and role.kernels[0].shape[1] == sizes.pair_dim:
            roles[name] = PackedMLP(role, sizes.observation_dim, sizes.action_dim, compiled)
    return SimpleNamespace(**{**dict(networks.named_parameters(recurse=False)), **roles})


def _pack(mlp: StackedMLP, observation_dim: int, action_dim: int, compiled: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return all numbers of each member in a row, (E, P), and where they lie: a row a layer, see `kernels.OUT`.

    The first layer is two: its share of the state, with the bias, and that of the candidate, with the time's share as
    its bias. Units are padded with zeros to whole vectors.
    """
    kernel_list, bias_list, scales, shifts = (
        [tensor.detach().numpy() for tensor in tensors]
        for tensors in (mlp.kernels, mlp.biases, mlp.norm_scales, mlp.norm_shifts)
    )
    first, (members, inputs, _) = kernel_list[0], kernel_list[0].shape
    pairs = observation_dim + action_dim
    time = first[:, pairs:] if inputs > pairs else np.zeros_like(bias_list[0])
    layers = [(first[:, :observation_dim], bias_list[0]), (first[:, observation_dim:pairs], time)]
    layers += zip(kernel_list[1:], bias_list[1:], strict=True)
    step = compiled.columns(first.itemsize)
    parts: list[np.ndarray] = []
    layout, place, depth = [], 0, 0
    for row, (kernel, bias) in enumerate(layers):
        units = kernel.shape[2]
        width = -(-units // step) * step
        depth = kernel.shape[1] if row < compiled.HIDDEN else depth
        vectors = [bias]
        if row >= compiled.CANDIDATES and row - 1 < len(scales):
            vectors += [scales[row - 1], shifts[row - 1]]
        padded = np.zeros((members, depth, width), first.dtype)
        padded[:, : kernel.shape[1], :units] = kernel
        parts.append(padded.reshape(members, depth, -1, step).swapaxes(1, 2).reshape(members, -1))
        parts += [np.pad(vector[:, 0], ((0, 0), (0, width - units))) for vector in vectors]
        after = place + depth * width
        layout.append([place, after, after + width, after + 2 * width, depth, units, width])
        place, depth = after + len(vectors) * width, width
    return np.concatenate(parts, axis=1), np.array(layout)
