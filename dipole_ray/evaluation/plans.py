"""Play the cells of an evaluation in scenes: an episode is one plan for one scene, and its return the plan's score.

Every cell plans for the same scenes. A scene is read and prepared once, and the plans of all cells are scored together.
A plan's noise comes from what the car knows of itself in the scene, so it is the same plan in whichever order, folder
or program the scene comes, NAVSIM's own included.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from dipole_ray.driving.actions import plans_of, way_of
from dipole_ray.driving.observations import STATUS_DIM
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.scene_set import SceneSet
from dipole_ray.driving.score import PDMScorer, Scores
from dipole_ray.envs.observations import Observations, row_of, stacked
from dipole_ray.envs.scenes import DrivingConfig
from dipole_ray.evaluation.batches import Batches, CellEpisode, Noise, SamplesActions
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import AT_BOUND, CellResult

MEASURES = tuple(field.name for field in fields(Scores))
_ORDER_STREAM = 0x5CE9E5


def evaluate_plans(
    policy: SamplesActions,
    driving: DrivingConfig,
    cells: Sequence[Cell],
    *,
    episodes: range,
    seed: int,
    num_envs: int = 50,
    scenes: SceneSet | None = None,
    on_scene: Callable[[], object] = lambda: None,
) -> list[CellResult]:
    """Plan in the scenes with these numbers, in an order that the seed decides, in every cell.

    A plan depends on the policy, its cell, the seed and what is seen, on nothing else. `num_envs` scenes are planned
    for at a time; `scenes` are those of `driving`, where they are open already; `on_scene` is called after each.
    """
    scenes = scenes or SceneSet(driving.driven_in, driving.observation)
    order = np.random.default_rng([_ORDER_STREAM, seed]).permutation(len(scenes))
    numbers = [int(order[number]) for number in episodes]
    scores: list[np.ndarray] = []  # (cells, measures) of each scene
    at_bound: list[np.ndarray] = []
    logs: list[str] = []
    how: Any = {"seed": seed, "at_once": num_envs, "actions": driving.actions}
    for one, drawn, plans in planned(policy, scenes, numbers, cells, **how):
        judged = PDMScorer(one.scene, driving.bearing).score(plans[:, 0])
        scores.append(np.stack([getattr(judged, name) for name in MEASURES], axis=1))
        at_bound.append((np.abs(drawn[:, 0]) >= AT_BOUND).mean(axis=1))
        logs.append(one.log)
        on_scene()
    by_cell, bounds = np.stack(scores, axis=1), np.stack(at_bound, axis=1)
    return [_result(cell, own, bound, logs) for cell, own, bound in zip(cells, by_cell, bounds, strict=True)]


def planned(
    policy: SamplesActions,
    scenes: SceneSet,
    numbers: Sequence[int],
    cells: Sequence[Cell],
    *,
    seed: int,
    actions: str = "poses",
    draws: int = 1,
    at_once: int = 50,
    is_paired: bool = False,
) -> Iterator[tuple[RecordedScene, np.ndarray, np.ndarray]]:
    """Yield the scenes with these numbers, each with a policy's actions and plans there (cells, draws, 8, 3).

    `actions` says how its actions (cells, draws, A) are meant, as `env.driving.actions` does.
    The first of the draws is the plan of an evaluation with this seed; where plans are paired, so that they differ by
    omega alone, in the first cell.
    """
    acting = Batches(policy)
    for start in range(0, len(numbers), at_once):
        part = numbers[start : start + at_once]
        seen = [scenes.read(number) for number in part]
        observations = stacked([scenes.observe(number, one) for number, one in zip(part, seen, strict=True)])
        drawn = drawn_actions(acting, observations, cells, seed=seed, draws=draws, is_paired=is_paired)
        for one, own in zip(seen, drawn, strict=True):
            yield one, own, plans_of(own, way_of(one, actions))


def drawn_actions(
    acting: Batches,
    observations: Observations,
    cells: Sequence[Cell],
    *,
    seed: int,
    draws: int = 1,
    is_paired: bool = False,
) -> np.ndarray:
    """Return what a policy plans in every cell for each of N observations, as actions (N, cells, draws, A)."""
    played: list[CellEpisode] = []
    for number in _scene_numbers(observations):
        for cell in cells:
            noise = Noise(seed, cells[0] if is_paired else cell, number)  # each draw takes the next of it
            played += [CellEpisode(seed=0, cell=cell, index=number, noise=noise) for _ in range(draws)]
    rows = np.arange(len(played)) // (len(cells) * draws)
    return acting(row_of(observations, rows), played).reshape(
        len(played) // (len(cells) * draws), len(cells), draws, -1
    )


def _scene_numbers(observations: Observations) -> list[int]:
    """Return a number for each scene, made of the car's status alone: tokens of an encoder differ between devices."""
    status = observations["ego"] if isinstance(observations, dict) else observations[:, :STATUS_DIM]
    return [int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:8], "big") for row in status]


def _result(cell: Cell, scores: np.ndarray, at_bound: np.ndarray, logs: Sequence[str]) -> CellResult:
    """Return the result of a cell from the scores (N, measures) of its plans."""
    measures = {name: scores[:, column].copy() for column, name in enumerate(MEASURES)}
    shared: Any = {"successes": None, "paths": (), "maze": None, "at_bound": at_bound, "measures": measures}
    ones = np.ones(len(scores), np.int64)
    return CellResult(cell=cell, returns=measures["pdms"], lengths=ones, clusters=tuple(logs), **shared)
