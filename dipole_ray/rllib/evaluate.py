"""Evaluation inside the algorithm: the whole grid of omega and candidates from one set of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from dipole_ray.evaluation import Cell, CellResult, cells_of, chosen_cell, summarize
from dipole_ray.report import Row
from dipole_ray.rllib.rollouts import Rollouts

if TYPE_CHECKING:
    from dipole_ray.rllib.algorithm import DIPOLE


CELL_MEASURES = ("return", "success", "length", "action_bound_fraction")
"""What is logged of every cell; the rest is in `evaluation.json`."""


def evaluate_grid(algorithm: DIPOLE, eval_group: EnvRunnerGroup | None) -> tuple[dict[str, Any], int, int]:
    """Evaluate every cell of the grid: RLlib's `custom_evaluation_function`, so `algo.evaluate()` runs it.

    The cell at the config's own omega and num_candidates is reported under RLlib's usual keys
    (`evaluation/env_runners/episode_return_mean`), every cell under `evaluation/<cell>/...`.

    Returns:
        The results, and the environment steps played (twice: RLlib also wants agent steps).
    """
    config = algorithm.config.evaluation_settings()
    agent = algorithm.config.agent_settings()
    chosen = chosen_cell(agent)
    cells = cells_of(config, agent)
    cells += [] if chosen in cells else [chosen]
    results = play(algorithm, eval_group, cells, episodes=config.episodes)
    logged: dict[str, Any] = {}
    for result in results:
        row = summarize(result, confidence=config.confidence)
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        logged[cell_key(result.cell)] = numbers
        if result.cell == chosen:
            logged[ENV_RUNNER_RESULTS] = {
                "episode_return_mean": row["return"],
                "episode_len_mean": row["length"],
                "num_episodes": row["episodes"],
                **({} if row["success"] is None else {"success_mean": row["success"]}),
            }
            algorithm.note_score(row)
    # RLlib returns what was merged in last, so the numbers go through a logger of their own.
    logger = MetricsLogger(root=False)
    for name, numbers in logged.items():
        for key, value in numbers.items():
            logger.log_value((name, key), value, window=1)
    algorithm.metrics.aggregate([logger.reduce()], key=EVALUATION_RESULTS)
    env_steps = int(sum(result.lengths.sum() for result in results))
    return logged, env_steps, env_steps


def play(
    algorithm: DIPOLE,
    eval_group: EnvRunnerGroup | None,
    cells: Sequence[Cell],
    *,
    episodes: int,
    seed: int | None = None,
    on_result: Callable[[CellResult], None] | None = None,
) -> list[CellResult]:
    """Play the episodes of `cells` on the evaluation workers (or the rollout workers), in the order of `cells`.

    Args:
        algorithm: Whose learner gives the weights.
        eval_group: RLlib's evaluation workers; None takes the rollout workers, which are idle meanwhile.
        cells: What to play; each cell is one worker's job.
        episodes: Episodes per cell.
        seed: Seed of start states and noise; None takes the config's.
        on_result: Called with each result as it comes.
    """
    config = algorithm.config.evaluation_settings()
    rollouts = algorithm.rollouts if eval_group is None else Rollouts(eval_group, algorithm.config)
    algorithm.settle()
    how = {
        "episodes": episodes,
        "seed": config.seed if seed is None else seed,
        "num_envs": min(config.num_envs, episodes),
        "trajectories": min(config.trajectories, episodes),
    }
    results: dict[Cell, CellResult] = {}
    # The slowest cells first (many candidates, least greedy): the workers then finish together.
    order = sorted(cells, key=lambda cell: (-cell.candidates, -1.0 if cell.omega is None else cell.omega))
    for result in rollouts.evaluate(order, algorithm.learner.policy, **how):
        results[result.cell] = result
        if on_result is not None:
            on_result(result)
    return [results[cell] for cell in cells]


def cell_key(cell: Cell) -> str:
    """Return a short metric name of a cell, such as `omega_1_candidates_16`."""
    policy = "bc" if cell.omega is None else f"omega_{cell.omega:g}"
    return f"{policy}_candidates_{cell.candidates}"


def score_of(row: Row) -> float:
    """Return the number sweeps maximise: success where the task defines it, else the mean return."""
    return float(row["return"] if row["success"] is None else row["success"])


def cell_metrics(cell: Cell, row: Row, measures: Sequence[str] = CELL_MEASURES) -> dict[str, float]:
    """Return a cell's metrics, the measure first: MLflow draws a section for each, with a chart for each cell."""
    numbers = {name: row[name] for name in measures}  # type: ignore[literal-required]
    return {f"eval/{name}/{cell_key(cell)}": float(value) for name, value in numbers.items() if value is not None}
