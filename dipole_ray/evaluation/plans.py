"""Play the cells of an evaluation in scenes: an episode is one plan for one scene, and its return the plan's score.

Every cell plans for the same scenes. A scene is read and prepared once, and the plans of all cells are scored together.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from dipole_ray.driving.actions import plans_of, way_of
from dipole_ray.driving.scene_set import SceneSet
from dipole_ray.driving.score import PDMScorer, Scores
from dipole_ray.envs.observations import row_of, stacked
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

    A plan depends on the policy, its cell, the seed and its number, on nothing else; `num_envs` scenes are planned for
    at a time. `scenes` are those that `driving` names, where they are open already; `on_scene` is called after each.
    """
    scenes = scenes or SceneSet(driving.driven_in, driving.observation)
    order = np.random.default_rng([_ORDER_STREAM, seed]).permutation(len(scenes))
    acting = Batches(policy)
    scores: list[np.ndarray] = []  # (cells, measures) of each scene
    at_bound: list[np.ndarray] = []
    logs: list[str] = []
    for start in range(episodes.start, episodes.stop, num_envs):
        numbers = range(start, min(start + num_envs, episodes.stop))
        seen = [scenes.read(int(order[number])) for number in numbers]
        played = [
            CellEpisode(seed=0, cell=cell, index=number, noise=Noise(seed, cell, number))
            for number in numbers
            for cell in cells
        ]
        observations = stacked([scenes.observe(int(order[n]), one) for n, one in zip(numbers, seen, strict=True)])
        actions = acting(row_of(observations, np.arange(len(seen)).repeat(len(cells))), played)
        actions = actions.reshape(len(seen), len(cells), -1)
        for one, own in zip(seen, actions, strict=True):
            judged = PDMScorer(one.scene, driving.bearing).score(plans_of(own, way_of(one, driving.actions)))
            scores.append(np.stack([getattr(judged, name) for name in MEASURES], axis=1))
            on_scene()
        at_bound += list((np.abs(actions) >= AT_BOUND).mean(axis=2))
        logs += [one.log for one in seen]
    by_cell, bounds = np.stack(scores, axis=1), np.stack(at_bound, axis=1)
    return [_result(cell, own, bound, logs) for cell, own, bound in zip(cells, by_cell, bounds, strict=True)]


def _result(cell: Cell, scores: np.ndarray, at_bound: np.ndarray, logs: Sequence[str]) -> CellResult:
    """Return the result of a cell from the scores (N, measures) of its plans."""
    measures = {name: scores[:, column].copy() for column, name in enumerate(MEASURES)}
    shared: Any = {"successes": None, "paths": (), "maze": None, "at_bound": at_bound, "measures": measures}
    ones = np.ones(len(scores), np.int64)
    return CellResult(cell=cell, returns=measures["pdms"], lengths=ones, clusters=tuple(logs), **shared)
