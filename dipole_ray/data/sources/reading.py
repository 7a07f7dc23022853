"""What a reader of anybody's data is told, and what it gives: trajectories as it found them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from dipole_ray.data.sources.mapping import TableMapping

Arrays = dict[str, np.ndarray]
ActionBounds = tuple[np.ndarray, np.ndarray]
"""Least and greatest actions, (A,) each."""
Relabel = Callable[[Arrays], tuple[np.ndarray, np.ndarray]]
"""Gives rewards (N,) and masks (N,) of N rows from their arrays: observations, actions, terminals, physics state."""
Labels = Callable[[list[Path]], Iterable[np.ndarray]]
"""Gives the rewards of the steps of each episode, (T,): NaN where a state is not finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What data in anybody's format does not say itself, each for some formats only, and what is asked of it."""

    mapping: TableMapping | None = None
    """For tables; by default columns are taken by their names."""
    relabel: Relabel | None = None
    """For .npz files without rewards."""
    labels: Labels | None = None
    """For ExORL's episodes."""
    observations: Sequence[str] = ()
    """For Minari: which entries of dict observations are joined, in this order; `a/b` names one inside another."""
    max_episode_steps: int | None = None
    """For D4RL files without timeouts: the environment's time limit."""
    action_bounds: ActionBounds | None = None
    """For D4RL's and Minari's data without such: the bounds of the environment's actions."""
    non_finite: Literal["refuse", "drop"] = "refuse"
    """`refuse` raises at a NaN or infinity; `drop` leaves those transitions out, which splits their trajectory."""
    needs_rewards: bool = True
    """Whether data that nobody rewards is refused; otherwise its rewards are 0."""


@dataclass(kw_only=True, slots=True)
class ImportReport:
    """What was met on the way; filled while rows are consumed."""

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
    """What else was decided, a clause each."""


@dataclass(kw_only=True, slots=True)
class Block:
    """Whole trajectories as a reader found them, N rows.

    Either some rows are `closing`, or every row is a transition and `ends` says which are the last of a trajectory.
    """

    path: Path
    """The original, for messages."""
    observations: np.ndarray
    """(N, O)."""
    actions: np.ndarray
    """(N, A), not yet brought to [-1, 1]; ignored in closing rows."""
    rewards: np.ndarray
    """(N,); ignored in closing rows."""
    masks: np.ndarray
    """(N,), 0 where the task ended; ignored in closing rows."""
    closing: np.ndarray | None = None
    """(N,) bool, rows that hold only a last observation; the last row is one."""
    ends: np.ndarray | None = None
    """(N,) bool, the last transition of each trajectory."""
    next_observations: np.ndarray | None = None
    """(N, O) of transitions, where the original has them."""
    first_row: int = 0
    """Number of the first row in the original, for messages."""
    place: str = ""
    """What the rows are counted in, such as `episode_7`; empty where that is the whole original."""
    sources: Arrays = field(default_factory=dict)
    """Columns (N, ...) of the original that are not stored, but that must be finite for the row to be right."""
