"""Gather n-step transitions from columns of rows.

B transitions, n = n_step, h = min(n, remaining[row]) the length of one window

rewards            sum over k < h of discount^k * rewards[row + k]
masks              masks[row + h - 1]
next_observations  observations[row + h]
discounts          discount^h

Observations are gathered from each of their columns, `observations` or several `observations.NAME`, and from the side
table where rows only hold numbers.
"""

from collections.abc import Iterable

import numpy as np

from dipole_ray.data.schema import Rows


def gather_n_step(
    columns: Rows, rows: np.ndarray, powers: np.ndarray, tables: Rows | None = None, kept: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """Gather the windows that begin at `rows`; none of them crosses a closing row or a mask of 0.

    Args:
        columns: Columns of one file; positions past its end continue at its beginning (a ring).
        rows: (B,) positions of transitions (remaining > 0).
        powers: (n + 1,) float64, discount^0 ... discount^n.
        tables: The side table of each column that refers to one, by the column's name.
        kept: Further columns, taken as they are where the file has them.
    """
    length, num_steps, tables = len(columns["remaining"]), len(powers) - 1, tables or {}
    if num_steps == 1:
        steps, last = 1, rows
        rewards = _take(columns["rewards"], rows)
        discounts = np.full(len(rows), powers[1], dtype=np.float32)
    else:
        steps = np.minimum(_take(columns["remaining"], rows), num_steps).astype(np.int64)
        last = (rows + steps - 1) % length
        rewards = _discounted_sum(columns["rewards"], rows, steps, powers)
        discounts = powers[steps].astype(np.float32)
    following = (rows + steps) % length
    observed = [name for name in columns if name.partition(".")[0] == "observations"]
    return {
        **{name: _take(columns[name], rows, tables.get(name)) for name in observed},
        "actions": _take(columns["actions"], rows),
        "rewards": rewards,
        "masks": _take(columns["masks"], last),
        **{f"next_{name}": _take(columns[name], following, tables.get(name)) for name in observed},
        "discounts": discounts,
        **{name: _take(columns[name], rows) for name in kept if name in columns},
    }


def _take(column: np.ndarray, rows: np.ndarray, table: np.ndarray | None = None) -> np.ndarray:
    """Take rows of a column, or the entries of a table that they refer to."""
    taken = np.take(column, rows, axis=0)
    return taken if table is None else np.take(table, taken, axis=0)


def _discounted_sum(rewards: np.ndarray, rows: np.ndarray, steps: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Sum discounted rewards over each window, in float64 and in the order of time."""
    num_steps = len(powers) - 1
    places = np.arange(num_steps)[:, None]
    if (
        rows.max(initial=0) <= len(rewards) - num_steps
    ):  # no window runs over the end of the file, so each is one piece of memory
        found = np.lib.stride_tricks.sliding_window_view(rewards, num_steps)[rows].T
    else:
        found = np.take(rewards, rows + places, mode="wrap")
    weighted = np.where(places < steps, found, 0.0) * powers[:-1, None]
    total: np.ndarray = np.add.reduce(weighted, axis=0, initial=0.0)
    return total.astype(np.float32)
