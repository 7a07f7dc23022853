"""A policy that knows the maze: OGBench's oracle for the way, omega for the speed, standing still for BC."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipole_ray.envs.make import make_env
from dipole_ray.evaluation.cells import PolicyName

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"


class MazeWalker:
    """Has the signature of an agent, so that outcomes are known without training one."""

    def __init__(self) -> None:
        env = make_env(MAZE)
        env.reset(seed=0)
        self._maze = env.unwrapped
        self._goal = np.array(self._maze.cur_goal_xy)  # type: ignore[attr-defined]
        env.close()

    def sample_actions(
        self,
        observations: Tensor,
        omega: float | Tensor | None = None,
        num_candidates: int | None = None,
        generator: Any = None,
        policy: PolicyName = "guided",
    ) -> Tensor:
        """Return the oracle's direction, at a speed of (1 + omega) / 3, with a little noise."""
        if policy == "bc":
            return torch.zeros(len(observations), 2)
        steps = []
        for position in observations.numpy():
            subgoal, _ = self._maze.get_oracle_subgoal(position, self._goal)  # type: ignore[attr-defined]
            steps.append((subgoal - position) / max(float(np.linalg.norm(subgoal - position)), 1e-6))
        speed = (1 + torch.as_tensor(omega)).view(-1, 1) / 3
        return (torch.from_numpy(np.stack(steps)).float() * speed + 0.3 * generator((len(steps), 2))).clamp(-1, 1)
