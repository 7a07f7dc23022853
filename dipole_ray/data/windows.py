"""Gather n-step transitions from columns of rows.

B transitions, n = n_step, h = min(n, remaining[row]) the length of one window

rewards            sum over k < h of discount^k * rewards[row + k]
masks              masks[row + h - 1]
next_observations  observations[row + h]
discounts          discount^h
"""

from __future__ import annotations

import numpy as np

from dipole_ray.data.schema import Rows

BATCH_COLUMNS = ("observations", "actions", "rewards", "masks", "next_observations", "discounts")


def gather_windows(columns: Rows, rows: np.ndarray, powers: np.ndarray) -> dict[str, np.ndarray]:
    """Gather the windows that begin at `rows`; none of them crosses a closing row or a mask of 0.

    Args:
        columns: Columns of one file; positions past its end continue at its beginning (a ring).
        rows: (B,) positions of transitions (remaining > 0).
        powers: (n + 1,) float64, discount^0 ... discount^n.

    Returns:
        The arrays of `BATCH_COLUMNS`, float32 with leading dimension B.
    """
    length, num_steps = len(columns["remaining"]), len(powers) - 1
    if num_steps == 1:
        steps, last = 1, rows
        rewards = _take(columns["rewards"], rows)
        discounts = np.full(len(rows), powers[1], dtype=np.float32)
    else:
        steps = np.minimum(_take(columns["remaining"], rows), num_steps).astype(np.int64)
        last = (rows + steps - 1) % length
        rewards = _discounted_sum(columns["rewards"], rows, steps, powers)
        discounts = powers[steps].astype(np.float32)
    return {
        "observations": _take(columns["observations"], rows),
        "actions": _take(columns["actions"], rows),
        "rewards": rewards,
        "masks": _take(columns["masks"], last),
        "next_observations": _take(columns["observations"], (rows + steps) % length),
        "discounts": discounts,
    }


def _take(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.take(column, rows, axis=0)


def _discounted_sum(rewards: np.ndarray, rows: np.ndarray, steps: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Sum discounted rewards over each window, in float64 and in the order of time."""
    total = np.zeros(len(rows))
    for k in range(int(steps.max(initial=0))):
        inside = np.flatnonzero(steps > k)
        total[inside] += powers[k] * rewards[(rows[inside] + k) % len(rewards)]
    return total.astype(np.float32)
