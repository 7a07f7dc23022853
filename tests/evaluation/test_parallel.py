"""The evaluation of a trained run as a library call: what every cell gives alone, in the order of the grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dipole_ray.evaluation.cells import EvalConfig, cells_of
from dipole_ray.evaluation.parallel import evaluate_policy
from dipole_ray.evaluation.play import evaluate_cell
from dipole_ray.evaluation.table import rows_of
from dipole_ray.serving.policy import load_policy
from tests.agents.battery import tiny_config
from tests.cli.test_evaluate_cli import saved_run


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("omegas", [(0.5,), (0.0, 1.0)], ids=["one cell, here", "two cells, on Ray"])
def test_a_grid_in_parallel_gives_what_each_cell_gives_alone(omegas: tuple[float, ...], tmp_path: Path) -> None:
    policy = load_policy(str(saved_run(tmp_path / "run", tiny_config("dipole"))))
    config = EvalConfig(omegas=omegas, candidates=(2,), bc=False, episodes=3, num_envs=2, seed=4)
    results = evaluate_policy(policy, config, progress=False)
    assert [result.cell for result in results] == cells_of(config, policy.policy.config)
    for result in results:
        alone = evaluate_cell(policy.policy, policy.env, result.cell, episodes=3, seed=4, num_envs=2)
        assert np.array_equal(result.returns, alone.returns) and np.array_equal(result.lengths, alone.lengths)
    rows = rows_of(results, policy.policy.config)
    assert [(row["method"], row["omega"], row["episodes"]) for row in rows] == [
        ("DIPOLE", omega, 3) for omega in omegas
    ]
