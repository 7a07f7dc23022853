"""The battery's last promise: every method plays, from memory and from a checkpoint, and its rows bear its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dipole_ray.agents.agent import make_agent
from dipole_ray.agents.config import PRESETS, AgentConfig
from dipole_ray.columns import Schema
from dipole_ray.envs.make import EnvConfig
from dipole_ray.evaluation.cells import Cell, EvalConfig, cells_of, chosen_cell, method_name
from dipole_ray.evaluation.play import evaluate_cell
from dipole_ray.evaluation.table import summarize
from dipole_ray.serving.policy import load_policy
from tests.agents.battery import tiny_config
from tests.cli.test_evaluate_cli import saved_run

PENDULUM = EnvConfig(id="Pendulum-v1", max_episode_steps=20)
NAMES = {"paper": "DIPOLE", "small": "DIPOLE"}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_method_plays_with_one_candidate_and_with_four(preset: str) -> None:
    agent = make_agent(tiny_config(preset), Schema(3, 1), seed=0)
    assert method_name(agent.config) == NAMES.get(preset, preset.upper())
    cells = cells_of(EvalConfig(omegas=(0.0,), candidates=(1, 4)), agent.config)
    results = [evaluate_cell(agent, PENDULUM, cell, episodes=3, seed=0) for cell in cells]
    assert sorted({cell.candidates for cell in cells}) == [1, 4]
    again = evaluate_cell(agent, PENDULUM, cells[0], episodes=3, seed=0)
    assert np.array_equal(again.returns, results[0].returns), "the same cell twice"
    assert not np.array_equal(results[0].returns, results[-1].returns)
    # Rejection sampling makes IFQL of a cloned flow; CFGRL's unweighted field is its own affair.
    methods = [summarize(result, method_name(agent.config))["method"] for result in results]
    assert methods[-1] == method_name(agent.config)
    assert methods[0] == ("BC" if agent.config.weight_scheme in ("bc", "cfgrl") else methods[-1])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_checkpoints_policy_plays_as_the_saved_agent_does(preset: str, tmp_path: Path) -> None:
    config = tiny_config(preset)
    loaded = load_policy(saved_run(tmp_path / "run", config))
    assert loaded.policy.config == config
    agent = make_agent(config, Schema(3, 1), seed=0)
    for cell in (chosen_cell(config), Cell(chosen_cell(config).policy, chosen_cell(config).omega, 2)):
        played = [evaluate_cell(one, PENDULUM, cell, episodes=2, seed=3) for one in (agent, loaded.policy)]
        assert np.array_equal(played[0].returns, played[1].returns)


def test_rows_of_the_cloned_flow_beside_another_method_are_bc() -> None:
    for config in (tiny_config("dipole", train_bc=True), tiny_config("fql", train_bc=True)):
        cells = cells_of(EvalConfig(omegas=(0.0,), candidates=(1, 4)), config)
        agent = make_agent(config, Schema(3, 1), seed=0)
        rows = [summarize(evaluate_cell(agent, PENDULUM, cell, episodes=1, seed=0), "X") for cell in cells]
        found = sorted((row["candidates"], row["method"]) for row in rows)
        assert found == [(1, "BC"), (1, "X"), (4, "BC"), (4, "X")]
    assert "bc" not in {cell.policy for cell in cells_of(EvalConfig(), tiny_config("fql"))}, "only where asked for"
    assert method_name(AgentConfig.preset("small", weight_scheme="bc")) == "IFQL"
    assert method_name(AgentConfig(weight_scheme="bc")) == "BC"
