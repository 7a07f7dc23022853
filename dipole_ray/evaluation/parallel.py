"""Evaluate a trained policy over a whole grid in parallel: pieces of it are Ray tasks, from one checkpoint."""

from typing import Any

import torch

from dipole_ray.cores import usable_cores
from dipole_ray.envs.make import env_dims
from dipole_ray.envs.scenes import DRIVE
from dipole_ray.evaluation.cells import EvalConfig, cells_of
from dipole_ray.evaluation.pieces import Piece, Together, split
from dipole_ray.evaluation.play import CellResult, evaluate_cells
from dipole_ray.parallel import map_tasks
from dipole_ray.serving.policy import TrainedPolicy, load_policy


def evaluate_policy(trained: TrainedPolicy, config: EvalConfig, *, progress: bool = True) -> list[CellResult]:
    """Play every cell of the grid that a policy can act in, in the order of `cells_of`; none costs any training.

    Every task reads the checkpoint again; what `config` says of evaluations during training is not looked at.

    Raises:
        DipoleError: A piece of the grid could not be played; names it.
    """
    path, acting, env = trained.path, trained.acting, trained.env
    how = {name: getattr(config, name) for name in ("seed", "num_envs", "trajectories")}

    def play(piece: Piece) -> list[CellResult]:  # in a process of its own, unless there is but one piece
        torch.set_num_threads(1)
        own = load_policy(path, **acting)
        if env.id == DRIVE:
            from dipole_ray.evaluation.plans import evaluate_plans  # needs the extra `driving`

            plain = {name: how[name] for name in ("seed", "num_envs")}
            return evaluate_plans(own.policy, env.driving, piece.cells, episodes=piece.episodes, **plain)
        return evaluate_cells(own.policy, env, piece.cells, episodes=piece.episodes, **how)

    cells, name = cells_of(config, trained.policy.config), path.parent.parent.name
    episodes = min(config.episodes, env_dims(trained.env).num_episodes or config.episodes)
    pieces = split(cells, episodes, min(len(cells), usable_cores()))
    shown: Any = {"unit": "episodes", "size": lambda piece: piece.num_episodes, "progress": progress}
    played = map_tasks(play, pieces, description=f"evaluating {name}", **shown)
    together = Together(pieces)
    whole = {
        result.cell: result for piece, some in zip(pieces, played, strict=True) for result in together.take(piece, some)
    }
    return [whole[cell] for cell in cells]
