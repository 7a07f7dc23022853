"""Evaluate a trained policy over a whole grid in parallel: every cell is a Ray task, from one checkpoint."""

import torch

from dipole_ray.evaluation.cells import Cell, EvalConfig, cells_of
from dipole_ray.evaluation.play import CellResult, evaluate_cell
from dipole_ray.parallel import map_tasks
from dipole_ray.serving.policy import TrainedPolicy, load_policy


def evaluate_policy(trained: TrainedPolicy, config: EvalConfig, *, progress: bool = True) -> list[CellResult]:
    """Play every cell of the grid that a policy can act in, in the order of `cells_of`; none costs any training.

    Every task reads the checkpoint again; what `config` says of evaluations during training is not looked at.

    Raises:
        DipoleError: A cell could not be played; names it.
    """
    path, acting = trained.path, trained.acting
    how = {name: getattr(config, name) for name in ("episodes", "seed", "num_envs", "trajectories")}

    def play(cell: Cell) -> CellResult:  # in a process of its own, unless there is but one cell
        torch.set_num_threads(1)
        own = load_policy(path, **acting)
        return evaluate_cell(own.policy, own.env, cell, **how)

    cells, name = cells_of(config, trained.policy.config), path.parent.parent.name
    return map_tasks(play, cells, description=f"evaluating {name}", unit="cells", progress=progress)
