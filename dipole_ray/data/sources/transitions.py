"""From one row a transition, as tables and D4RL hold it, to trajectories with their closing rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dipole_ray.data.sources.pieces import Block, ImportReport
from dipole_ray.errors import DatasetError

Arrays = dict[str, np.ndarray]


def close_trajectories(arrays: Arrays, ends: np.ndarray, first_row: int, report: ImportReport) -> Block:
    """Give every trajectory its closing row: its last row, or an added one where that is a full transition.

    Where nobody knows what the last action led to, its row only closes the trajectory, unless the task ended with it:
    then its next observation is never used.

    Args:
        arrays: observations, actions, rewards, masks, and next_observations where they are known; N rows.
        ends: (N,) bool, the last row of each trajectory.
        first_row: Number of the first row in the original.
        report: Counts the transitions whose next observation nobody knows.
    """
    observations, following = arrays["observations"], arrays.get("next_observations")
    is_added = ends & (True if following is not None else arrays["masks"] == 0)
    order = np.repeat(np.arange(len(ends)), 1 + is_added)
    is_copy = np.append(False, order[1:] == order[:-1])
    states = observations[order]
    sources: Arrays = {}
    if following is not None:
        states[is_copy] = following[ends]
        sources = {"next_observations": following[order]}
    report.unfollowed_transitions += int((ends & ~is_added).sum())
    return Block(
        observations=states,
        actions=arrays["actions"][order],
        rewards=arrays["rewards"][order],
        masks=arrays["masks"][order],
        closing=is_copy | (ends & ~is_added)[order],
        row_numbers=first_row + order,
        sources=sources,
    )


def is_followed(following: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Return (N,) bool: whether a next observation, (N, O), is the observation of the next row, (N, O)."""
    same: np.ndarray = np.isclose(following, states, rtol=1e-5, atol=1e-6, equal_nan=True).all(axis=1)
    return same


def check_following(
    observations: np.ndarray, following: np.ndarray, ends: np.ndarray, path: Path, first_row: int
) -> None:
    """Raise DatasetError if a next observation is not the next row's inside a trajectory; says how many and where."""
    inner = np.flatnonzero(~ends[:-1])
    after, state = following[inner], observations[inner + 1]
    # Rows with NaN or infinity are told apart by `finish_block`.
    unknown = ~(np.isfinite(after).all(axis=1) & np.isfinite(state).all(axis=1))
    same = unknown | is_followed(after, state)
    if not same.all():
        row = int(inner[np.flatnonzero(~same)[0]])
        raise DatasetError(
            f"{path}: {int((~same).sum())} next observations differ from the next row's observation inside a "
            f"trajectory, the first at row {first_row + row}; sort the table by episode and time, or map the "
            "column that ends trajectories (episode, terminals or timeouts)"
        )
