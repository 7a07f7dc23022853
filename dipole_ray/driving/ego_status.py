"""The ego-status MLP: NAVSIM's blind baseline, which plans from speed, acceleration and command alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dipole_ray.driving.container import SceneStatus
from dipole_ray.driving.log import COMMANDS
from dipole_ray.driving.recorded import PLAN_POSES
from dipole_ray.driving.vehicle import Array
from dipole_ray.errors import ConfigError

HIDDEN, EPOCHS, BATCH, LEARNING_RATE = 512, 200, 64, 3e-4
INPUTS = 4 + len(COMMANDS)


class EgoStatusMLP(nn.Module):
    """Three hidden layers of 512, from vx, vy, ax, ay and the command to 8 poses."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
        layers += [nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PLAN_POSES * 3)]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("scale", torch.ones(PLAN_POSES * 3))

    def forward(self, status: Tensor) -> Tensor:
        """Return plans (B, 8, 3) of statuses (B, 8)."""
        plans: Tensor = (self.layers(status) * self.scale).reshape(-1, PLAN_POSES, 3)
        return plans


def inputs(status: SceneStatus) -> Tensor:
    """Return what the network sees (N, 8): speed now in units of 10 m/s, acceleration, and the command."""
    now = status.motion[:, -1] / np.array([10.0, 10.0, 1.0, 1.0])
    return torch.from_numpy(np.concatenate([now, hot_commands(status.commands)], axis=1)).float()


def hot_commands(commands: Sequence[str]) -> Array:
    """Return commands as rows (N, 4), 1 in the column of the command and 0 in the others."""
    return np.array([[command == name for name in COMMANDS] for command in commands], dtype=float)


def clone_drivers(status: SceneStatus, seed: int, epochs: int = EPOCHS) -> EgoStatusMLP:
    """Return a network that learned the drivers' plans by L1 loss, each number in units of its mean size.

    Raises:
        ConfigError: There are too few scenes to learn from.
    """
    if len(status.tokens) < BATCH:
        raise ConfigError(f"{len(status.tokens)} scenes to learn from; an ego-status MLP needs at least {BATCH}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other beside any other process, and the network is small
    try:
        return _trained(inputs(status), torch.from_numpy(status.human).float().flatten(1), seed, epochs)
    finally:
        torch.set_num_threads(threads)


def _trained(states: Tensor, plans: Tensor, seed: int, epochs: int) -> EgoStatusMLP:
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = EgoStatusMLP()
    network.scale.copy_(plans.abs().mean(dim=0).clamp(min=0.01))  # type: ignore[operator]
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for _ in range(epochs):
        for rows in torch.randperm(len(states), generator=random).split(BATCH):
            error = (network(states[rows]).flatten(1) - plans[rows]) / network.scale
            loss = error.abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


@torch.no_grad()
def plans_of(network: EgoStatusMLP, status: SceneStatus) -> dict[str, Array]:
    """Return the network's plan (8, 3) for each scene, by its token."""
    plans = network(inputs(status)).double().numpy()
    return dict(zip(status.tokens, plans, strict=True))
