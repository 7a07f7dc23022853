"""What every reader does with the trajectories it found: finite numbers, action range, rows.

A reader says which rows only close a trajectory; here rows become `Rows`, transitions that touch a non-finite number
are refused or dropped (which splits their trajectory), and actions are clipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from dipole_ray.data.schema import ACTION_LIMIT, ACTION_TOLERANCE, Rows, build_rows
from dipole_ray.errors import DatasetError

NonFinitePolicy = Literal["refuse", "drop"]

MAX_NAMED = 10
"""Rows with non-finite numbers that a report names one by one."""


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
    non_finite: list[str] = field(default_factory=list)
    """Where in the original the first of their numbers stand, as `row 7 (rewards)`."""
    unfollowed_transitions: int = 0
    """Transitions left out because the original does not hold the observation that they led to."""
    notes: list[str] = field(default_factory=list)
    """What else the reader decided, a clause each."""


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
    place: str = ""
    """What the rows are counted in, such as `episode_7`; empty where that is the whole original."""
    sources: dict[str, np.ndarray] = field(default_factory=dict)
    """Columns (N, ...) of the original that are not stored, but that must be finite for the row to be right."""


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
    bad, places = _non_finite(block)
    if bad.any():
        if non_finite == "refuse":
            raise DatasetError(
                f"{path}: {int(bad.sum())} transitions touch NaN or infinity, the first at {places[0]}; "
                "repair the data or leave them out with --non-finite drop"
            )
        kept &= ~bad
        report.dropped_transitions += int(bad.sum())
        named = [f"{block.place} {place}".lstrip() for place in places]
        report.non_finite += named[: MAX_NAMED - len(report.non_finite)]
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
    """Return float32, without a copy where it is that already; what does not fit becomes infinite, and is found so."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, copy=False)


def _non_finite(block: Block) -> tuple[np.ndarray, list[str]]:
    """Return (N,) bool, the transitions that touch a non-finite number, and where the first of these numbers stand.

    A transition touches its own row and the observation of the next one; a closing row has only an observation.
    """
    moving = ~block.closing
    finite = {"observations": _finite_rows(block.observations)}
    for name, values in {
        "actions": block.actions, "rewards": block.rewards, "masks": block.masks, **block.sources
    }.items():  # fmt: skip
        finite[name] = _finite_rows(values) | ~moving
    own = np.logical_and.reduce(list(finite.values()))
    touched = moving & ~(own & np.append(finite["observations"][1:], True))
    matters = ~own & (touched | np.append(False, touched[:-1]))
    places = [
        f"row {block.row_numbers[row]} ({', '.join(name for name in finite if not finite[name][row])})"
        for row in np.flatnonzero(matters)[:MAX_NAMED]
    ]
    return touched, places


def _finite_rows(values: np.ndarray) -> np.ndarray:
    finite: np.ndarray = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return finite
