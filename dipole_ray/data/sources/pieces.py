"""What every reader does with the trajectories it found: finite numbers, action range, rows.

A reader says which rows only close a trajectory; here rows become `Rows`, transitions that touch a non-finite number
are refused or dropped (which splits their trajectory), and actions are clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dipole_ray.data.schema import ACTION_LIMIT, ACTION_TOLERANCE, Rows, build_rows
from dipole_ray.errors import DatasetError

NonFinitePolicy = Literal["refuse", "drop"]


@dataclass(kw_only=True, slots=True)
class ImportReport:
    """What a reader met on its way; filled while its rows are consumed."""

    rows_read: int = 0
    """Rows of the original."""
    transitions: int = 0
    """Transitions handed on."""
    trajectories: int = 0
    """Trajectories (or pieces, where non-finite rows were dropped) handed on."""
    dropped_transitions: int = 0
    """Transitions dropped because they touch a NaN or infinity."""
    first_dropped_row: int | None = None
    """Where in the original the first of them stands."""


@dataclass(kw_only=True, slots=True)
class Block:
    """Whole trajectories as a reader found them; N rows."""

    observations: np.ndarray
    """(N, O) float32."""
    actions: np.ndarray
    """(N, A) float32; ignored in closing rows."""
    rewards: np.ndarray
    """(N,) float32; ignored in closing rows."""
    masks: np.ndarray
    """(N,) float32; ignored in closing rows."""
    closing: np.ndarray
    """(N,) bool, rows that hold only a last observation."""
    row_numbers: np.ndarray
    """(N,) where each row stands in the original, for messages."""


def finish_block(block: Block, path: Path, non_finite: NonFinitePolicy, report: ImportReport) -> Rows | None:
    """Turn a block into rows.

    Args:
        block: Whole trajectories; the last row is a closing row.
        path: The original, for messages.
        non_finite: Whether a transition with a NaN or infinity is an error or left out.
        report: Counts what happened.

    Returns:
        The rows, or None if no transition was left.

    Raises:
        DatasetError: If a number is not finite (and that is refused), a mask is neither 0 nor 1, or an action is out of
            range.
    """
    kept = ~block.closing
    bad = _touches_non_finite(block) & kept
    if bad.any():
        row = int(block.row_numbers[np.flatnonzero(bad)[0]])
        if non_finite == "refuse":
            raise DatasetError(
                f"{path}: {int(bad.sum())} transitions hold NaN or infinity, the first at row {row} ({_where(block)}); "
                "repair the data or leave them out with --non-finite drop"
            )
        kept &= ~bad
        report.dropped_transitions += int(bad.sum())
        report.first_dropped_row = row if report.first_dropped_row is None else report.first_dropped_row
    fractional = kept & (block.masks != 0) & (block.masks != 1)
    if fractional.any():
        row = int(np.flatnonzero(fractional)[0])
        raise DatasetError(
            f"{path}: masks must be 0 (the task ended) or 1, row {block.row_numbers[row]} holds {block.masks[row]}; "
            "store 1 - terminated as the mask"
        )
    check_actions(block.actions[kept], block.row_numbers[kept], path)
    # A kept transition needs the row after it as its next observation: that row closes the piece unless it is kept too.
    used = kept | np.append(False, kept[:-1])
    report.transitions += int(kept.sum())
    report.trajectories += int((used & ~kept).sum())
    if not kept.any():
        return None
    return build_rows(
        block.observations[used],
        np.clip(block.actions[used], -ACTION_LIMIT, ACTION_LIMIT),
        block.rewards[used],
        block.masks[used],
        ~kept[used],
    )


def check_actions(actions: np.ndarray, row_numbers: np.ndarray, path: Path) -> None:
    """Raise DatasetError if an action lies outside [-1, 1] by more than rounding; says how many and where."""
    outside = (np.abs(actions) > 1.0 + ACTION_TOLERANCE).any(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise DatasetError(
            f"{path}: {int(outside.sum())} of {len(outside)} actions lie outside [-1, 1], the first at row "
            f"{row_numbers[first]} ({actions[first][np.abs(actions[first]).argmax()]:.6g}); rescale the actions "
            "to [-1, 1]"
        )


def to_float32(values: np.ndarray) -> np.ndarray:
    """Convert to float32; what does not fit becomes infinite, and is then found as such."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


def _touches_non_finite(block: Block) -> np.ndarray:
    """Return (N,) bool: transitions whose observation, action, reward, mask or next observation is not finite."""
    bad_state = ~np.isfinite(block.observations).all(axis=1)
    own = ~(np.isfinite(block.actions).all(axis=1) & np.isfinite(block.rewards) & np.isfinite(block.masks))
    touched: np.ndarray = bad_state | own | np.append(bad_state[1:], False)
    return touched


def _where(block: Block) -> str:
    moving = ~block.closing
    names = []
    for name in ("observations", "actions", "rewards", "masks"):
        values: np.ndarray = getattr(block, name)
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not (finite if name == "observations" else finite | ~moving).all():
            names.append(name)
    return "in " + " and ".join(names)
