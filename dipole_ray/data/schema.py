"""What one stored row is, and how a trajectory becomes rows.

A trajectory of T transitions is T + 1 rows, so that every observation is stored once and the next
observation is the next row. The last, *closing* row holds only the final observation.

    N rows, O and A the shapes of an observation and an action

    observations  float32 (N, *O)  or of another dtype (images); int32 (N,) where entries lie in a side table; one
                                   column `observations.NAME` for each of several arrays
    actions       float32 (N, *A)  in [-1, 1]; zeros in a closing row
    rewards       float32 (N,)     raw rewards of the environment; zero in a closing row
    masks         float32 (N,)     0 where the task ended with this transition (do not bootstrap), else 1
    remaining     int32   (N,)     transitions from this row until bootstrapping must stop: up to and with the
                                   first mask of 0, or the end of the trajectory; 0 marks a closing row
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dipole_ray.columns import Column, Schema, flattened
from dipole_ray.data.narrowing import Narrowing
from dipole_ray.errors import DatasetError, NonFiniteError, warn_once

Rows = dict[str, np.ndarray]
Observations = np.ndarray | Mapping[str, np.ndarray]

ACTION_LIMIT = 1.0 - 1e-5  # largest action magnitude that is imported (OGBench's reference agents clip to it as well)
_CHECKED_NUMBERS = 1 << 22  # at a time
ACTION_TOLERANCE = 1e-4  # how far beyond [-1, 1] an action may lie and still count as rounding


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
    observations: Observations,
    actions: np.ndarray,
    rewards: np.ndarray,
    masks: np.ndarray,
    closing: np.ndarray,
    schema: Schema | None = None,
) -> Rows:
    """Build rows of one or more whole trajectories that already have their closing rows.

    Args:
        observations: (N, *O), several such arrays by name, or (N,) numbers in a side table.
        actions: (N, *A); what a closing row holds is ignored, here and in rewards and masks.
        rewards: (N,).
        masks: (N,) of 0 and 1.
        closing: (N,) bool, True on the last row of each trajectory.
        schema: Says the dtypes of observations; left out, they are float32.
    """
    moving = ~closing
    kept_masks = np.where(moving, masks, 1.0).astype(np.float32)
    return {
        **{name: _in_dtype(values, name, schema) for name, values in flattened({"observations": observations}).items()},
        "actions": np.where(moving.reshape(-1, *[1] * (actions.ndim - 1)), actions, 0.0).astype(np.float32),
        "rewards": _narrow(np.where(moving, rewards, 0.0), "the rewards"),
        "masks": kept_masks,
        "remaining": remaining_steps(kept_masks, closing),
    }


def close_trajectory(
    observations: Observations,
    actions: np.ndarray,
    rewards: np.ndarray,
    masks: np.ndarray,
    schema: Schema | None = None,
) -> Rows:
    """Turn one trajectory of T transitions, or an unfinished piece of one, into T + 1 rows; the last one closes it.

    Args:
        observations: (T + 1, *O), or several such arrays by name; the last is what the last action led to.
        actions: (T, *A) in [-1, 1].
        rewards: (T,) raw rewards.
        masks: (T,); 0 where the task ended (terminated), 1 elsewhere, time limits included.
        schema: As of `build_rows`.

    Raises:
        DatasetError: If the lengths do not fit together or T is 0.
    """
    steps = len(actions)
    for array in flattened({"observations": observations}).values():
        if steps == 0 or len(array) != steps + 1 or len(rewards) != steps or len(masks) != steps:
            raise DatasetError(
                f"a trajectory of T transitions needs T+1 observations and T actions, rewards and masks with T >= 1; "
                f"found {len(array)} observations, {steps} actions, {len(rewards)} rewards, {len(masks)} masks"
            )
    actions = np.asarray(actions)
    return build_rows(
        observations,
        np.concatenate([actions, np.zeros_like(actions[:1])]),
        np.append(rewards, 0.0),
        np.append(masks, 1.0),
        np.arange(steps + 1) == steps,
        schema,
    )


def stored_schema(observations: Mapping[str, np.ndarray], actions: np.ndarray) -> Schema:
    """Return the schema of arrays, (N, ...) each, as they are: several observations by name, or one named ""."""
    columns = {name: Column(values.shape[1:], values.dtype.name) for name, values in observations.items()}
    return Schema(columns.get("", columns), Column(actions.shape[1:]))


def _in_dtype(values: np.ndarray, name: str, schema: Schema | None) -> np.ndarray:
    """Return `values` in the dtype of their column."""
    if schema is None:
        return np.ascontiguousarray(_narrow(np.asarray(values), "the observations"))
    # Floats are never made whole numbers: as they are, `validate_rows` refuses them.
    column, found = schema.columns.get(name), np.asarray(values)
    keeps = column is not None and np.can_cast(found.dtype, column.dtype, "same_kind")
    return np.ascontiguousarray(found, dtype=column.dtype if column is not None and keeps else None)


def _narrow(values: np.ndarray, what: str) -> np.ndarray:
    """Return float32; warn, once a process and dimension, where that loses what changes from row to row."""
    narrowing = Narrowing()
    narrow = narrowing.narrow(values)
    for lost in narrowing.losses():
        where = f"dimension {lost.dimension} of {what}" if values.ndim > 1 else what
        warn_once(
            f"rows of one's own: float32 does not tell apart what changes in {where}, as between {lost.low:.9g} and "
            f"{lost.high:.9g}; subtract an offset in float64, here and from what the policy is asked about"
        )
    return narrow


def concatenate(pieces: Sequence[Rows]) -> Rows:
    """Join rows of several trajectories into one; a single piece is returned as it is."""
    if not pieces:
        raise DatasetError("nothing to concatenate: the list of trajectories is empty; pass at least one")
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def validate_rows(rows: Rows, schema: Schema, where: str, table_rows: Mapping[str, int] | None = None) -> None:
    """Check that rows can be stored: columns, dtypes, shapes, finite numbers and window lengths.

    `rows` are whole trajectories or closed pieces, which messages call `where`. `table_rows` says how many entries each
    side table has; left out, the numbers that refer to them are not checked.

    Raises:
        DatasetError: If the layout is wrong, an action lies outside [-1, 1], a table has no such entry, or masks and
            `remaining` disagree.
        NonFiniteError: If a number is NaN or infinite; names the row and column.
    """
    _check_layout(rows, schema, where)
    for name, values in rows.items():
        bad = first_non_finite(values) if values.dtype.kind == "f" else None
        if bad is not None:
            remedy = "none of these rows was stored: reset the environment or repair the data"
            raise NonFiniteError(f"{where}: row {bad} of column '{name}' holds {values[bad]}; {remedy}")
    for name, table in schema.references.items():
        if table_rows is not None:
            check_references(rows[name], table_rows[table], f"{where}: column '{name}'", table)
    masks, remaining = rows["masks"], rows["remaining"]
    if (strange := (masks != 0) & (masks != 1)).any():
        bad = int(strange.argmax())
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


def check_references(numbers: np.ndarray, count: int, where: str, table: str) -> None:
    """Raise DatasetError unless every number is one of the `count` entries of a side table."""
    if numbers.min() < 0 or numbers.max() >= count:
        raise DatasetError(
            f"{where} refers to entries {numbers.min()} to {numbers.max()}, table '{table}' has {count}; give the "
            "table that these rows were made with"
        )


def first_non_finite(values: np.ndarray) -> int | None:
    """Return the first row of `values` (N, ...) that holds NaN or infinity, or None."""
    rows = max(1, _CHECKED_NUMBERS // max(1, values[0].size)) if len(values) else 1
    for start in range(0, len(values), rows):  # of a mapped table no more is in memory at a time
        finite = np.isfinite(values[start : start + rows])
        if not finite.all():
            return start + int(finite.reshape(len(finite), -1).all(axis=1).argmin())
    return None


def _check_layout(rows: Rows, schema: Schema, where: str) -> None:
    expected = schema.columns
    if set(rows) != set(expected):
        raise DatasetError(f"{where}: columns must be {', '.join(expected)}; found {', '.join(sorted(rows))}")
    count = len(rows["remaining"])
    if count == 0:
        raise DatasetError(f"{where}: there are no rows; leave empty trajectories out")
    for name, column in expected.items():
        found = rows[name]
        if found.dtype != column.dtype or found.shape != (count, *column.shape):
            what = f"column '{name}' must be {column.dtype} of shape {(count, *column.shape)}"
            raise DatasetError(f"{where}: {what}; found {found.dtype} of shape {found.shape}")
