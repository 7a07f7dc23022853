"""A group: the plans of one scene that are judged together, and what each is worth beside the others."""

from collections.abc import Mapping

import numpy as np

from dipole_ray.data.schema import Rows, build_rows
from dipole_ray.driving.observations import schema_of
from dipole_ray.driving.vehicle import Array
from dipole_ray.envs.scenes import DrivingConfig

STD_FLOOR = 1e-6


def group_advantages(scores: Array) -> Array:
    """Return (score - mean) / (deviation + 1e-6) within each group, (S, G), of scores (S, G); float32.

    It is made where all scores of a group are first together, so that a row's advantage never changes again. A group
    whose scores are all the same gives 0, which is no reason to leave it out: both fields then learn its plans alike.
    """
    spread = scores - scores.mean(axis=1, keepdims=True)
    spread[scores.max(axis=1) == scores.min(axis=1)] = 0.0  # the mean of equal numbers is rounded
    advantages: Array = (spread / (scores.std(axis=1, keepdims=True) + STD_FLOOR)).astype(np.float32)
    return advantages


def judged_rows(
    numbers: Array, actions: Array, advantages: Array, driving: DrivingConfig, kept: Mapping[str, Array] | None = None
) -> Rows:
    """Return the rows of plans (N, A) for scenes with these numbers, each an episode of one step with its advantage.

    What is `kept` of each plan, (N, ...), is a column of its own, 0 in closing rows.
    """
    twice, closing = np.repeat(numbers, 2).astype(np.int32), np.tile([False, True], len(numbers))
    pairs = np.repeat(actions, 2, axis=0), np.repeat(advantages, 2), np.zeros(len(twice))
    schema = schema_of(driving.observation, driving.actions)
    seen = {name.partition(".")[2]: twice for name in schema.observed}
    rows = build_rows(seen.get("", seen), *pairs, closing, schema)
    for name, values in (kept or {}).items():
        rows[name] = np.zeros((len(twice), *values.shape[1:]), np.float32)
        rows[name][~closing] = values
    return rows
