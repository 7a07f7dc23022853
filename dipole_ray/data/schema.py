"""What one stored row is, and how a trajectory becomes rows.

A trajectory of T transitions is T + 1 rows, so that every observation is stored once and the next
observation is the next row. The last, *closing* row holds only the final observation.

    N rows, O observation dimension, A action dimension

    observations  float32 (N, O)
    actions       float32 (N, A)   in [-1, 1]; zeros in a closing row
    rewards       float32 (N,)     raw rewards of the environment; zero in a closing row
    masks         float32 (N,)     0 where the task ended with this transition (do not bootstrap), else 1
    remaining     int32   (N,)     transitions from this row until bootstrapping must stop: up to and with the
                                   first mask of 0, or the end of the trajectory; 0 marks a closing row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dipole_ray.errors import ConfigError, DatasetError, NonFiniteError

Rows = dict[str, np.ndarray]

ACTION_LIMIT = 1.0 - 1e-5
"""Largest action magnitude that is imported (OGBench's reference agents clip to it as well)."""
ACTION_TOLERANCE = 1e-4
"""How far beyond [-1, 1] an action may lie and still count as rounding."""


@dataclass(frozen=True, slots=True)
class Schema:
    """Dimensions of one dataset or replay; everything else about its columns is fixed."""

    observation_dim: int
    """Length of the flat observation vector, >= 1."""
    action_dim: int
    """Length of the action vector, >= 1."""

    def __post_init__(self) -> None:
        if self.observation_dim < 1 or self.action_dim < 1:
            raise ConfigError(
                f"observation_dim={self.observation_dim} and action_dim={self.action_dim} must be at least 1; "
                "take them from env_dims(env_id) or from an open dataset's .schema"
            )

    @property
    def columns(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Column name -> (dtype, shape of one row's entry), in storage order."""
        real, whole = np.dtype(np.float32), np.dtype(np.int32)
        return {
            "observations": (real, (self.observation_dim,)),
            "actions": (real, (self.action_dim,)),
            "rewards": (real, ()),
            "masks": (real, ()),
            "remaining": (whole, ()),
        }

    @property
    def row_bytes(self) -> int:
        """Bytes that one row takes on disk and in memory."""
        return 4 * (self.observation_dim + self.action_dim + 3)

    def to_json(self) -> dict[str, int]:
        """Return the schema as a JSON object."""
        return {"observation_dim": self.observation_dim, "action_dim": self.action_dim}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Schema:
        """Rebuild a schema from `to_json`."""
        return cls(observation_dim=int(value["observation_dim"]), action_dim=int(value["action_dim"]))


def remaining_steps(masks: np.ndarray, closing: np.ndarray) -> np.ndarray:
    """Count the transitions from each row until bootstrapping must stop.

    Args:
        masks: (N,), 0 where the task ended with that transition.
        closing: (N,) bool, True on rows that hold only a last observation. The last row must be one.

    Returns:
        (N,) int32; 0 on closing rows, 1 on the last transition of a window, and so on backwards.
    """
    rows = np.arange(len(masks))
    next_closes = np.append(closing[1:], True)
    is_stop = ~closing & (next_closes | (masks == 0))
    stop = np.minimum.accumulate(np.where(is_stop, rows, len(masks))[::-1])[::-1]
    return np.where(closing, 0, stop - rows + 1).astype(np.int32)


def build_rows(
    observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, masks: np.ndarray, closing: np.ndarray
) -> Rows:
    """Build rows of one or more whole trajectories that already have their closing rows.

    Args:
        observations: (N, O).
        actions: (N, A); what a closing row holds is ignored.
        rewards: (N,); likewise.
        masks: (N,) of 0 and 1; likewise.
        closing: (N,) bool, True on the last row of each trajectory.

    Returns:
        Rows in the dtypes of this module; the inputs are not changed.
    """
    moving = ~closing
    kept_masks = np.where(moving, masks, 1.0).astype(np.float32)
    return {
        "observations": np.ascontiguousarray(observations, dtype=np.float32),
        "actions": np.where(moving[:, None], actions, 0.0).astype(np.float32),
        "rewards": np.where(moving, rewards, 0.0).astype(np.float32),
        "masks": kept_masks,
        "remaining": remaining_steps(kept_masks, closing),
    }


def close_trajectory(observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, masks: np.ndarray) -> Rows:
    """Turn one trajectory (or an unfinished piece of one) into rows with a closing row.

    Args:
        observations: (T + 1, O), the last one being what the last action led to.
        actions: (T, A) in [-1, 1].
        rewards: (T,) raw rewards.
        masks: (T,); 0 where the task ended (terminated), 1 elsewhere, time limits included.

    Returns:
        T + 1 rows.

    Raises:
        DatasetError: If the lengths do not fit together or T is 0.
    """
    steps = len(actions)
    if steps == 0 or len(observations) != steps + 1 or len(rewards) != steps or len(masks) != steps:
        raise DatasetError(
            f"a trajectory of T transitions needs T+1 observations and T actions, rewards and masks with T >= 1; found "
            f"{len(observations)} observations, {steps} actions, {len(rewards)} rewards, {len(masks)} masks"
        )
    actions = np.asarray(actions)
    return build_rows(
        np.asarray(observations),
        np.concatenate([actions, np.zeros_like(actions[:1])]),
        np.append(rewards, 0.0),
        np.append(masks, 1.0),
        np.arange(steps + 1) == steps,
    )


def concatenate(pieces: Sequence[Rows]) -> Rows:
    """Join rows of several trajectories into one; a single piece is returned as it is."""
    if not pieces:
        raise DatasetError("nothing to concatenate: the list of trajectories is empty; pass at least one")
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def validate_rows(rows: Rows, schema: Schema, where: str = "rows") -> int:
    """Check that rows can be stored: columns, dtypes, shapes, finite numbers and window lengths.

    Args:
        rows: Whole trajectories or closed pieces; the last row must be a closing row.
        schema: The dimensions they must have.
        where: How to call these rows in an error message.

    Returns:
        The number of transitions among the rows.

    Raises:
        DatasetError: If the layout is wrong, an action lies outside [-1, 1], or masks and `remaining` disagree.
        NonFiniteError: If a number is NaN or infinite; names the row and column.
    """
    _check_layout(rows, schema, where)
    for name in ("observations", "actions", "rewards", "masks"):
        bad = first_non_finite(rows[name])
        if bad is not None:
            raise NonFiniteError(
                f"{where}: row {bad} of column '{name}' holds {rows[name][bad]}; none of these rows was stored: "
                "reset the environment or repair the data"
            )
    masks, remaining = rows["masks"], rows["remaining"]
    if not np.isin(masks, (0.0, 1.0)).all():
        bad = int(np.flatnonzero((masks != 0) & (masks != 1))[0])
        raise DatasetError(f"{where}: masks must be 0 or 1, row {bad} holds {masks[bad]}; store 1 - terminated")
    largest = float(np.abs(rows["actions"]).max())
    if largest > 1.0 + ACTION_TOLERANCE:
        raise DatasetError(f"{where}: an action of magnitude {largest:.6g} lies outside [-1, 1]; rescale the actions")
    closing = remaining == 0
    if not closing[-1] or closing[0] or not np.array_equal(remaining, remaining_steps(masks, closing)):
        raise DatasetError(
            f"{where}: column 'remaining' does not fit the masks and closing rows (each trajectory needs at least one "
            "transition and one closing row); build rows with close_trajectory"
        )
    return len(remaining) - int(np.count_nonzero(closing))


def first_non_finite(values: np.ndarray) -> int | None:
    """Return the first row of `values` (N, ...) that holds NaN or infinity, or None."""
    finite = np.isfinite(values)
    if finite.all():
        return None
    return int(np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))[0])


def _check_layout(rows: Rows, schema: Schema, where: str) -> None:
    expected = schema.columns
    if set(rows) != set(expected):
        raise DatasetError(f"{where}: columns must be {', '.join(expected)}; found {', '.join(sorted(rows))}")
    count = len(rows["remaining"])
    if count == 0:
        raise DatasetError(f"{where}: there are no rows; leave empty trajectories out")
    for name, (dtype, shape) in expected.items():
        found = rows[name]
        if found.dtype != dtype or found.shape != (count, *shape):
            raise DatasetError(
                f"{where}: column '{name}' must be {dtype} of shape {(count, *shape)}; "
                f"found {found.dtype} of shape {found.shape}"
            )
