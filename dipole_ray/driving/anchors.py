"""Anchors: what drivers score who need no learning, or next to none, so that a policy's score means something."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from dipole_ray.data.clusters import clustered_errors
from dipole_ray.driving.collisions import Bearing
from dipole_ray.driving.container import SceneFolder
from dipole_ray.driving.curation import braking, going_on, speed_of
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.score import PDMScorer, Scores
from dipole_ray.driving.vehicle import Array, seen_from
from dipole_ray.parallel import map_tasks

NAMES = tuple(field.name for field in fields(Scores))
SCENES_A_SECOND = 20.0  # that one core reads and scores, which decides whether starting Ray pays
PLANNED_EVERY = 5  # steps of the reference between two poses of a plan


@dataclass(frozen=True, slots=True)
class Anchor:
    """What one driver scored."""

    name: str
    scores: Array
    """(N, 7) of every scene, in the order of NAMES"""
    logs: Sequence[str]
    """the log of each scene"""

    def means(self) -> Array:
        """Return the means (7,)."""
        means: Array = self.scores.mean(axis=0)
        return means

    def errors(self) -> Array:
        """Return the standard errors (7,) of the means; scenes of one log count as one draw."""
        return clustered_errors(self.scores, self.logs)


@dataclass(frozen=True, slots=True)
class _Task:
    """The scenes of one file, with plans besides the anchors' own."""

    folder: Path
    tokens: tuple[str, ...]
    plans: Mapping[str, Mapping[str, Array]]
    """by name and token"""
    bearing: Bearing

    def __str__(self) -> str:
        return f"{self.folder}, {self.tokens[0]} and so on"


def score_anchors(
    folder: SceneFolder, bearing: Bearing, plans: Mapping[str, Mapping[str, Array]] | None = None
) -> list[Anchor]:
    """Return what the driver, constant velocity, braking and PDM-Closed score in a folder, and further plans.

    Args:
        folder: The scenes.
        bearing: As `PDMScorer` takes it.
        plans: A plan (8, 3) for every scene, by the name of who made them and the scene's token.
    """
    tasks = [_Task(folder.folder, tokens, plans or {}, bearing) for tokens in folder.files if tokens]
    found = map_tasks(
        _scored, tasks, description="score", unit="scenes", size=lambda task: len(task.tokens), rate=SCENES_A_SECOND
    )
    logs = [log for part_logs, _ in found for log in part_logs]
    scores = {name: np.concatenate([part[name] for _, part in found]) for name in found[0][1]} if found else {}
    return [Anchor(name, rows, logs) for name, rows in scores.items()]


def _scored(task: _Task) -> tuple[list[str], dict[str, Array]]:
    """Return the logs of a file's scenes, and the scores (n, 7) of each who plans."""
    folder = SceneFolder(task.folder)
    logs: list[str] = []
    rows: dict[str, list[list[float]]] = defaultdict(list)
    for token in task.tokens:
        one = folder.read(token)
        logs.append(one.log)
        plans = own_plans(one) | {name: by_token[token] for name, by_token in task.plans.items()}
        scores = PDMScorer(one.scene, task.bearing).score(np.stack(list(plans.values())))
        for name, row in zip(plans, scores.rows(), strict=True):
            rows[name].append([row[key] for key in NAMES])
    return logs, {name: np.array(values) for name, values in rows.items()}


def own_plans(one: RecordedScene) -> dict[str, Array]:
    """Return the plans (8, 3) of those who need no learning."""
    speed = speed_of(one)
    reference = seen_from(one.scene.reference[PLANNED_EVERY::PLANNED_EVERY], one.scene.ego[:3])
    return {
        "human": one.human,
        "constant velocity": going_on(speed),
        "brake": braking(speed),
        "PDM-Closed": reference,
    }
