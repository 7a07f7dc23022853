"""Evaluate a trained policy over a whole grid in parallel: every cell is a Ray task, from one checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dipole_ray.evaluation.cells import Cell, EvalConfig, cells_of
from dipole_ray.evaluation.play import CellResult, evaluate_cell
from dipole_ray.parallel import map_tasks
from dipole_ray.serving.policy import TrainedPolicy, load_policy


def evaluate_policy(trained: TrainedPolicy, config: EvalConfig, *, progress: bool = True) -> list[CellResult]:
    """Play every cell of the grid that a policy can act in; none costs any training.

    The checkpoint is read again by every task; what `config` says of evaluations during training is not looked at.

    Returns:
        One result a cell, in the order of `cells_of`; `table.rows_of` makes rows with intervals of them.

    Raises:
        DipoleError: A cell could not be played; names it.
    """
    jobs = [_Job(trained.path, cell, config) for cell in cells_of(config, trained.policy.config)]
    name = trained.path.parent.parent.name
    return map_tasks(_play, jobs, description=f"evaluating {name}", unit="cells", progress=progress)


@dataclass(frozen=True, slots=True)
class _Job:
    """One cell to be played by one task."""

    checkpoint: Path
    cell: Cell
    config: EvalConfig

    def __str__(self) -> str:
        return str(self.cell)


def _play(job: _Job) -> CellResult:
    """Play one cell; runs in a process of its own, unless there is but one."""
    torch.set_num_threads(1)
    trained = load_policy(job.checkpoint)
    how = {name: getattr(job.config, name) for name in ("episodes", "seed", "num_envs", "trajectories")}
    return evaluate_cell(trained.policy, trained.env, job.cell, **how)
