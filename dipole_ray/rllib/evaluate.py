"""Evaluation inside the algorithm: the whole grid of omega and candidates from one set of weights."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from dipole_ray.evaluation.cells import Cell, cell_key, cells_with_chosen, chosen_cell
from dipole_ray.evaluation.play import CellResult


def evaluate_grid(algorithm: Algorithm, eval_group: EnvRunnerGroup | None) -> tuple[dict[str, Any], int, int]:
    """Evaluate every cell of the grid: RLlib's `custom_evaluation_function`, so `algo.evaluate()` runs it.

    The cell at the config's own omega and num_candidates is reported under RLlib's usual keys
    (`evaluation/env_runners/episode_return_mean`), every cell under `evaluation/<cell>/...`. With the results go the
    environment steps played (twice: RLlib also wants agent steps).
    """
    config = algorithm.config.evaluation_settings()
    agent = algorithm.config.agent_settings()
    results = play(algorithm, eval_group, cells_with_chosen(config, agent), episodes=config.episodes)
    logged: dict[str, Any] = {}
    for result, row in zip(results, algorithm.rows(results), strict=True):
        logged[cell_key(result.cell)] = {key: value for key, value in row.items() if isinstance(value, int | float)}
        logged[cell_key(result.cell)] |= row.get("scores", {})
        if result.cell == chosen_cell(agent):
            names = {"episode_return_mean": "return", "episode_len_mean": "length", "num_episodes": "episodes"}
            names |= {} if row["success"] is None else {"success_mean": "success"}
            logged[ENV_RUNNER_RESULTS] = {name: row[key] for name, key in names.items()}  # type: ignore[literal-required]
            algorithm.note_score(row)
    logger = MetricsLogger(root=False)  # of their own: RLlib returns what was merged in last
    for name, numbers in logged.items():
        for key, value in numbers.items():
            logger.log_value((name, key), value, window=1)
    algorithm.metrics.aggregate([logger.reduce()], key=EVALUATION_RESULTS)
    for result in (one for one in results if one.logged):  # by callbacks
        keys = [cell_key(result.cell)] + [ENV_RUNNER_RESULTS] * (result.cell == chosen_cell(agent))
        logs = [{key: logged for key in keys} for logged in result.logged]
        algorithm.metrics.aggregate(logs, key=EVALUATION_RESULTS)
    env_steps = int(sum(result.lengths.sum() for result in results))
    return logged, env_steps, env_steps


def play(
    algorithm: Algorithm,
    eval_group: EnvRunnerGroup | None,
    cells: Sequence[Cell],
    *,
    on_result: Callable[[CellResult], None] | None = None,
    on_wait: Callable[[], object] = lambda: None,
    **how: Any,
) -> list[CellResult]:
    """Play the episodes of `cells` with the learner's weights; each worker plays a part of them.

    `on_result` is called with each result as it comes, and `on_wait`, which may raise, several times a second; the
    results returned have the order of `cells`. `how` is `playing`'s.
    """

    def wait() -> bool:
        on_wait()
        return True

    results: dict[Cell, CellResult] = {}
    for result in playing(algorithm, eval_group, cells, on_wait=wait, **how):
        assert result is not None, "a source waits where it is told to"
        results[result.cell] = result
        if on_result is not None:
            on_result(result)
    return [results[cell] for cell in cells]


def playing(
    algorithm: Algorithm,
    eval_group: EnvRunnerGroup | None,
    cells: Sequence[Cell],
    *,
    episodes: int,
    on_wait: Callable[[], bool],
    seed: int | None = None,
) -> Iterator[CellResult | None]:
    """Publish the learner's weights and yield results as they come, None instead of a wait where `on_wait` says so.

    Without RLlib's evaluation workers (`eval_group`) the rollout workers play. The seed of start states and noise is
    the config's unless given.
    """
    config = algorithm.config.evaluation_settings()
    source = algorithm.experience if eval_group is None else algorithm.make_experience(eval_group)
    algorithm.publish_weights()
    how: Any = {"num_envs": config.num_envs, "trajectories": config.trajectories, "episodes": episodes}
    how["seed"] = config.seed if seed is None else seed
    return source.evaluate(cells, algorithm.learner.policy, on_wait=on_wait, **how)  # type: ignore[no-any-return]
