"""Evaluation is deterministic, starts every cell from the same states, and counts each episode once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dipole_ray.agents.dipole import AgentConfig, DipoleAgent
from dipole_ray.columns import Schema
from dipole_ray.envs.make import EnvConfig, env_dims, make_env
from dipole_ray.errors import ConfigError, NonFiniteError
from dipole_ray.evaluation.batches import episode_seed
from dipole_ray.evaluation.cells import Cell, EvalConfig, PolicyName, cells_of, grid
from dipole_ray.evaluation.pieces import split
from dipole_ray.evaluation.play import CellResult, evaluate_cell, evaluate_cells, joined
from dipole_ray.evaluation.statistics import wilson_interval
from dipole_ray.evaluation.table import summarize
from tests.maze_walker import MAZE, MazeWalker

PENDULUM = EnvConfig(id="Pendulum-v1", max_episode_steps=30)
SHORT_MAZE = EnvConfig(id=MAZE, max_episode_steps=25)


def pendulum_agent(seed: int = 0) -> DipoleAgent:
    return DipoleAgent(AgentConfig.preset("small", train_bc=True), Schema(3, 1), seed=seed)


def same(first: CellResult, second: CellResult) -> bool:
    return bool(
        np.array_equal(first.returns, second.returns)
        and np.array_equal(first.lengths, second.lengths)
        and len(first.paths) == len(second.paths)
        and all(np.array_equal(a, b) for a, b in zip(first.paths, second.paths, strict=True))
    )


@pytest.mark.parametrize("cell", [Cell("bc", None, 1), Cell("guided", 0.0, 1), Cell("guided", 1.5, 4)], ids=str)
def test_a_cell_is_bitwise_repeatable_whatever_was_drawn_before(cell: Cell) -> None:
    agent = pendulum_agent()
    first = evaluate_cell(agent, PENDULUM, cell, episodes=5, seed=7, num_envs=3)
    np.random.seed(123)
    torch.manual_seed(5)
    agent.sample_actions(torch.zeros(4, 3))
    again = evaluate_cell(agent, PENDULUM, cell, episodes=5, seed=7, num_envs=3)
    assert same(first, again)
    assert not same(first, evaluate_cell(agent, PENDULUM, cell, episodes=5, seed=8, num_envs=3))


def test_used_environments_give_what_fresh_ones_do() -> None:
    agent = DipoleAgent(AgentConfig.preset("small"), Schema(2, 2), seed=0)
    fresh = evaluate_cell(agent, SHORT_MAZE, Cell(), episodes=5, seed=1, num_envs=3, trajectories=5)
    envs = [make_env(SHORT_MAZE) for _ in range(3)]
    evaluate_cell(agent, envs, Cell("guided", 0.0, 2), episodes=4, seed=2)
    used = evaluate_cell(agent, envs, Cell(), episodes=5, seed=1, trajectories=5)
    assert same(fresh, used)


def test_every_cell_starts_from_the_same_states_and_differs_in_its_noise() -> None:
    agent = DipoleAgent(AgentConfig.preset("small", train_bc=True), Schema(2, 2), seed=0)
    cells = grid(EvalConfig(omegas=(0.0, 1.0), candidates=(1, 2)), agent.policy.has_bc)
    assert len(cells) == 6
    results = [evaluate_cell(agent, SHORT_MAZE, cell, episodes=4, seed=0, num_envs=2, trajectories=4) for cell in cells]
    starts = [np.stack([path[0] for path in result.paths]) for result in results]
    assert all(np.array_equal(start, starts[0]) for start in starts)
    assert len(np.unique(starts[0], axis=0)) == 4
    firsts = np.stack([result.paths[0][1] for result in results])
    assert len(np.unique(firsts, axis=0)) == len(cells)


class Recorder:
    """Acts by its noise alone and notes how many rows each call had."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def sample_actions(
        self,
        observations: Tensor,
        omega: float | Tensor | None = None,
        num_candidates: int | None = None,
        generator: Any = None,
        policy: PolicyName = "guided",
    ) -> Tensor:
        self.rows.append(len(observations))
        drawn: Tensor = generator((len(observations), 1))
        return drawn.clamp(-1, 1)


def test_one_call_serves_all_running_episodes_and_no_finished_one() -> None:
    policy = Recorder()
    result = evaluate_cell(policy, PENDULUM, Cell(), episodes=5, seed=0, num_envs=2)
    assert policy.rows == [2] * 60 + [1] * 30
    assert result.lengths.tolist() == [30] * 5
    assert sum(policy.rows) == int(result.lengths.sum())


def test_cells_that_differ_in_omega_alone_share_calls() -> None:
    policy = Recorder()
    cells = [Cell("guided", omega, 16) for omega in (0.5, 1.0, 2.0)] + [Cell("guided", 0.0, 16), Cell("bc", None, 16)]
    results = evaluate_cells(policy, PENDULUM, cells, episodes=range(5), seed=0, num_envs=50)
    assert policy.rows == [15, 5, 5] * 30
    assert [result.cell for result in results] == cells


GRID = grid(EvalConfig(omegas=(-1.0, 0.0, 0.5, 2.0), candidates=(1, 3)), has_bc=True)


@pytest.mark.parametrize(("dims", "env"), [((128, 128), MAZE), ((64, 64), "dm_control/walker-walk")], ids=str)
def test_an_episode_is_bitwise_the_same_whatever_is_played_beside_it(dims: tuple[int, ...], env: str) -> None:
    # Libraries' products with six columns round a row by its place, and all by the number of rows, on some machines.
    config = EnvConfig(id=env, max_episode_steps=6)
    agent = DipoleAgent(AgentConfig.preset("small", hidden_dims=dims, train_bc=True), env_dims(config).schema, seed=0)
    how: Any = {"seed": 3, "trajectories": 9}
    envs = [make_env(config) for _ in range(12)]
    together = evaluate_cells(agent, envs, GRID, episodes=range(5), **how)
    for whole in together[::3]:
        alone = evaluate_cell(agent, envs[:1], whole.cell, episodes=5, **how)
        beside = [cell for cell in GRID if cell != whole.cell][:4]
        first = evaluate_cells(agent, envs[:5], [*beside, whole.cell], episodes=range(2), **how)[-1]
        rest = evaluate_cells(agent, envs[:2], [whole.cell], episodes=range(2, 5), **how)[0]
        for other in (alone, joined([first, rest])):
            assert same(whole, other) and summarize(whole) == summarize(other)


@pytest.mark.parametrize(("episodes", "workers"), [(50, 2), (50, 1), (10, 3), (3, 8), (7, 64)])
def test_the_pieces_of_a_grid_hold_every_episode_once_and_none_is_much_larger(episodes: int, workers: int) -> None:
    pieces = split(GRID, episodes, workers)
    held = [(cell, i) for piece in pieces for cell in piece.cells for i in piece.episodes]
    assert sorted(held, key=str) == sorted(((cell, i) for cell in GRID for i in range(episodes)), key=str)
    lengths = [len(piece.episodes) for piece in pieces]
    assert max(lengths) <= min(lengths) + 1 and len(pieces) == 2 * min(workers, episodes)


def test_a_policy_may_plan_several_actions_at_once() -> None:
    class Planner(Recorder):
        def sample_actions(self, observations: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.rows.append(len(observations))
            drawn: Tensor = kwargs["generator"]((len(observations), 4, 1))
            return drawn.clamp(-1, 1)

    policy = Planner()
    result = evaluate_cell(policy, PENDULUM, Cell(), episodes=5, seed=0, num_envs=2)
    assert result.lengths.tolist() == [30] * 5
    assert policy.rows == [2] * 8 * 2 + [1] * 8, "30 steps are seven chunks of four actions and half of one"
    with pytest.raises(NonFiniteError, match="omega 1, 1 candidate"):
        broken = Planner()
        broken.sample_actions = lambda seen, **how: torch.full((len(seen), 4, 1), torch.nan)  # type: ignore[method-assign]
        evaluate_cell(broken, PENDULUM, Cell(), episodes=2, seed=0)


class StepCounter:
    """Stands around a real environment and refuses a step after the end of an episode."""

    def __init__(self, config: EnvConfig) -> None:
        self.env = make_env(config)
        self.unwrapped = self.env.unwrapped
        self.over = True
        self.seeds: list[int] = []

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict[str, object]]:
        assert self.over, "reset in the middle of an episode"
        self.over = False
        self.seeds.append(seed)
        return self.env.reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        assert not self.over, "stepped after the end"
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.over = terminated or truncated
        return observation, float(reward), terminated, truncated, info


def test_finished_environments_are_not_stepped_and_each_episode_runs_once() -> None:
    walker = MazeWalker()
    config = EnvConfig(id=MAZE)
    envs = [StepCounter(config) for _ in range(3)]
    result = evaluate_cell(walker, envs, Cell("guided", 1.0, 1), episodes=7, seed=0)  # type: ignore[arg-type]
    assert all(env.over for env in envs)
    seeds = [seed for env in envs for seed in env.seeds]
    assert sorted(seeds) == sorted(episode_seed(0, episode) for episode in range(7))
    assert len(set(result.lengths.tolist())) > 1, "the episodes should end at different times"


def test_a_policy_that_knows_the_way_succeeds_and_one_that_stands_fails() -> None:
    walker = MazeWalker()
    envs = [make_env(EnvConfig(id=MAZE, max_episode_steps=300)) for _ in range(4)]
    good = evaluate_cell(walker, envs, Cell("guided", 2.0, 1), episodes=4, seed=0, trajectories=2)
    bad = evaluate_cell(walker, envs, Cell("bc", None, 1), episodes=4, seed=0, trajectories=2)
    assert good.successes is not None
    assert good.successes.all()
    assert (good.returns >= -good.lengths).all()
    assert (good.lengths < 300).all()
    assert bad.successes is not None
    assert not bad.successes.any()
    assert bad.returns.tolist() == [-300.0] * 4
    assert good.maze is not None
    assert len(good.paths) == 2
    assert len(good.paths[0]) == good.lengths[0] + 1
    assert np.linalg.norm(good.paths[0][-1] - good.maze.goal) <= good.maze.goal_radius + 0.3
    row = summarize(good, method="walker")
    assert (row["success"], row["success_low"], row["success_high"]) == (1.0, *wilson_interval(4, 4))
    assert row["length_low"] is not None
    assert row["length_high"] is not None
    assert row["length_low"] <= row["length"] <= row["length_high"]
    labelled = good.trajectories("online")
    assert [one.success for one in labelled] == [True, True]
    assert {(one.phase, one.omega, one.candidates) for one in labelled} == {("online", 2.0, 1)}


def test_tasks_without_success_have_none_and_no_path() -> None:
    result = evaluate_cell(pendulum_agent(), PENDULUM, Cell(), episodes=1, seed=0, trajectories=1)
    row = summarize(result)
    assert result.successes is None
    assert result.paths == ()
    assert (row["success"], row["success_low"], row["return_low"]) == (None, None, None)
    assert row["episodes"] == 1


def test_actions_at_the_bound_are_counted() -> None:
    class Saturated(Recorder):
        def sample_actions(self, observations: Tensor, *args: object, **kwargs: object) -> Tensor:
            actions = torch.zeros(len(observations), 1)
            actions[0] = -1.0
            return actions

    result = evaluate_cell(Saturated(), PENDULUM, Cell(), episodes=4, seed=0)
    assert result.action_bound_fraction == 0.25


def test_a_non_finite_action_is_an_error_that_names_the_cell() -> None:
    class Broken(Recorder):
        def sample_actions(self, observations: Tensor, *args: object, **kwargs: object) -> Tensor:
            return torch.full((len(observations), 1), torch.nan)

    with pytest.raises(NonFiniteError, match=r"omega 0\.5, 16 candidates"):
        evaluate_cell(Broken(), PENDULUM, Cell("guided", 0.5, 16), episodes=2, seed=0)


def test_evaluating_leaves_the_agent_as_it_was() -> None:
    agent = pendulum_agent()
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    evaluate_cell(agent, PENDULUM, Cell("guided", 1.0, 3), episodes=2, seed=0)
    after = agent.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_grid_holds_bc_only_where_it_was_trained_and_asked_for() -> None:
    config = EvalConfig(omegas=(2.0, 0.0), candidates=(16, 1))
    assert [str(cell) for cell in grid(config, has_bc=True)] == [
        "BC, 1 candidate",
        "omega 0, 1 candidate",
        "omega 2, 1 candidate",
        "BC, 16 candidates",
        "omega 0, 16 candidates",
        "omega 2, 16 candidates",
    ]
    assert all(cell.policy == "guided" for cell in grid(config, has_bc=False))
    assert all(cell.policy == "guided" for cell in grid(replace(config, bc=False), has_bc=True))
    with pytest.raises(ConfigError, match="name an omega"):
        grid(EvalConfig(omegas=()), has_bc=False)


@pytest.mark.parametrize(
    "wrong",
    [{"episodes": 0}, {"omegas": (-2.0,)}, {"candidates": ()}, {"confidence": 95.0}, {"omegas": (), "bc": False}],
    ids=str,
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"evaluation.{next(iter(wrong))}"):
        EvalConfig(**wrong)  # type: ignore[arg-type]


def test_a_cell_has_an_omega_exactly_where_one_applies() -> None:
    with pytest.raises(ConfigError, match="only 'bc'"):
        Cell("bc", 1.0, 1)
    with pytest.raises(ConfigError, match="only 'bc'"):
        Cell("guided", None, 1)


def test_an_agent_is_evaluated_only_where_it_can_act() -> None:
    config = EvalConfig(omegas=(0.5, 1.0), candidates=(1, 4))
    guided = cells_of(config, AgentConfig.preset("dipole", train_bc=True))
    assert guided == grid(config, has_bc=True)
    assert cells_of(config, AgentConfig.preset("bc")) == [Cell("bc", None, 1), Cell("bc", None, 4)]
    assert cells_of(config, AgentConfig.preset("exp")) == [Cell("guided", 0.0, 1), Cell("guided", 0.0, 4)]
    with_bc = cells_of(config, AgentConfig.preset("exp", train_bc=True))
    assert with_bc[:2] == [Cell("bc", None, 1), Cell("bc", None, 4)]
    assert len(with_bc) == 4
