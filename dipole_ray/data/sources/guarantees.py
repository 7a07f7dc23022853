"""The guarantees of the common schema, for whatever a reader found: the one place where they are enforced.

Actions lie in [-1, 1], every trajectory has its closing row, the next observation is the next row, masks are 0 or 1,
and every number is finite. What does not fit is refused with its place, or left out, counted and said.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dipole_ray.data.schema import Rows, build_rows, concatenate, stored_schema
from dipole_ray.data.sources.actions import ActionScale
from dipole_ray.data.sources.images import are_images
from dipole_ray.data.sources.narrowing import SourceNarrowing
from dipole_ray.data.sources.reading import DAMAGED, Arrays, Block, ImportReport, Reading, parts_of
from dipole_ray.errors import ConfigError, DatasetError, counted

CHUNK_ROWS = 10_000  # rows of short episodes that are handed on together
CHUNK_BYTES = 1 << 26  # and their bytes, which images reach sooner
NOISE_FRACTION = 0.1  # share of clipped actions from which on they are hardly noise
MAX_NAMED = 10  # rows with non-finite numbers that a report names one by one


def enforce(
    blocks: Iterable[Block], reading: Reading, scale: ActionScale, *, join: bool, report: ImportReport
) -> Iterator[Rows]:
    """Yield the rows of the trajectories that a reader found, and count what happened.

    `scale` brings the actions to [-1, 1]; `join` hands several blocks on together, where they are single episodes.
    """
    narrowing, drop = SourceNarrowing(reading.offset), reading.non_finite == "drop"
    held: list[Rows] = []
    path = Path()
    for block in _whole_trajectories(_cut_at_limit(blocks, reading, report), report):
        path, rows = block.path, _finish(_checked(block, narrowing, drop), scale, drop, report)
        if rows is not None:
            held.append(rows)
        if held and (not join or _is_chunk(held)):
            yield concatenate(held)
            held = []
    if held:
        yield concatenate(held)
    narrowing.report(report)
    _judge_losses(path, report)


def _is_chunk(held: list[Rows]) -> bool:
    """Return whether the rows of episodes are enough to be handed on."""
    num_bytes = sum(values.nbytes for piece in held for values in piece.values())
    return num_bytes >= CHUNK_BYTES or sum(len(piece["remaining"]) for piece in held) >= CHUNK_ROWS


def _checked(block: Block, narrowing: SourceNarrowing, drop: bool) -> Block:
    if not block.is_closed:
        _check_following(block)  # in the numbers that were recorded
    return narrowing.narrow(block, drop=drop)


def _cut_at_limit(blocks: Iterable[Block], reading: Reading, report: ImportReport) -> Iterator[Block]:
    """End trajectories after the environment's time limit where the original does not say where time limits cut.

    The one rule for all formats; ConfigError where somebody asked for the limit, and it would have no effect.
    """
    limit, steps, cut = reading.max_episode_steps, 0, 0  # steps since the last end
    for block in blocks:
        if block.marks_limits and reading.is_limit_asked:
            what = f"{block.path}: says itself where trajectories end, so --max-episode-steps {limit} has no effect"
            raise ConfigError(f"{what}; leave it out")
        if not block.marks_limits and limit is not None:
            ends = block.columns["ends"].copy()
            start, count = -steps, len(ends)
            for end in [*np.flatnonzero(ends).tolist(), count]:
                cut += len(range(start + limit - 1, end, limit))
                ends[start + limit - 1 : end : limit] = True
                start = end + 1
            steps = count - 1 - int(np.flatnonzero(ends)[-1]) if ends.any() else steps + count
            block = replace(block, columns=block.columns | {"ends": ends})
        yield block
    if cut:
        report.notes.append(f"no time limits are marked: trajectories are cut after {counted(limit or 0, 'step')}")


def _judge_losses(path: Path, report: ImportReport) -> None:
    """Refuse data of which most is lost, and say what looks as if its rows were not in order."""
    lost, kept = report.unfollowed_transitions, report.transitions + report.dropped_transitions
    if lost > kept:
        raise DatasetError(
            f"{path}: {report.share(lost)} would be lost, because each ends a trajectory ('episode', 'terminals' or "
            "'timeouts') and nothing says what it led to; store or map next_observations, sort the rows by episode "
            "and time, or check what ends trajectories"
        )
    if report.unmarked_ends:
        ended = counted(report.unmarked_ends, "trajectory", verb="end")
        report.notes.append(
            f"{ended}, unmarked, where next_observations is not the next row's observation, the first at row "
            f"{report.first_unmarked}"
        )
    if report.clipped_transitions > NOISE_FRACTION * report.transitions:
        clipped = report.share(report.clipped_transitions, "have")
        report.warnings.append(
            f"{clipped} an action outside the bounds, brought to them, which is more than noise does; name the "
            "environment that made them with --env, or give --actions-are unit if they were scaled before"
        )
    if report.whole_actions and report.action_range and (report.action_range[0] < report.action_range[1]).any():
        report.warnings.append(
            "every recorded action is a whole number: if each is the number of a choice, policies here cannot play it, "
            "for theirs are real numbers between the bounds; give their environment real actions first"
        )
    if 2 * report.short_pieces > report.trajectories > 1:
        report.warnings.append(
            f"{report.short_pieces} of {report.trajectories} trajectories have one transition and no end of the task, "
            "as if the rows were not in order: they serve n_step=1 only; sort them by episode and time"
        )
    if report.returning_episodes:
        again = counted(report.returning_episodes, "time")
        report.warnings.append(
            f"{again} an episode comes again ({report.first_return}): each is read as a trajectory of its own; if they "
            "are one, sort the table by episode and time"
        )
    if report.untimed_rows:
        told = counted(report.untimed_rows, "row", verb="have")
        report.warnings.append(f"{told} no time, so their order is not checked; fill it, or leave it out (--map time=)")
    if report.time_gaps:
        spanning = counted(report.time_gaps, "transition", verb="span")
        report.warnings.append(
            f"{spanning} more than five usual steps of time, the first at {report.first_gap}: rows are missing there, "
            "or a trajectory ends unmarked; mark its last row (episode, terminals or timeouts)"
        )


def _whole_trajectories(blocks: Iterable[Block], report: ImportReport) -> Iterator[Block]:
    """Yield the same rows in blocks that end where a trajectory does."""
    held: list[Block] = []  # the rows of a trajectory that has not ended yet
    for block in blocks:
        ends = block.columns["ends"]
        report.rows_read += len(ends)
        count = int(np.flatnonzero(ends)[-1]) + 1 if ends.any() else 0
        if count:
            yield _joined([*held, _part(block, 0, count)])
            held = []
        if count < len(ends):
            held.append(_part(block, count, len(ends)))
    if held:
        last = _joined(held)
        last.columns["ends"][-1] = True
        yield last


def _part(block: Block, start: int, stop: int) -> Block:
    columns = {name: values[start:stop] for name, values in block.columns.items()}
    return replace(block, columns=columns, first_row=block.first_row + start)


def _joined(blocks: list[Block]) -> Block:
    return replace(blocks[0], columns=concatenate([block.columns for block in blocks]))


def _finish(block: Block, scale: ActionScale, drop: bool, report: ImportReport) -> Rows | None:
    """Return the rows of a block, or None if no transition is left."""
    recorded = block.columns["actions"]
    columns = {**block.columns, "actions": scale.stored(recorded, block.path)}
    order = np.arange(len(recorded))
    numbers = block.first_row + order
    times = columns.pop("times", None)
    if times is not None:
        _check_times(times, columns["ends"], block, report)
    if not block.is_closed:
        order, columns = _closed(columns, report)
        numbers = numbers[order]
    kept, masks = ~columns["ends"], columns["masks"]
    bad, places = _non_finite(columns, kept, numbers)
    if bad.any():
        if not drop:
            found = f"{counted(int(bad.sum()), 'transition', verb='touch')} NaN or infinity, the first at {places[0]}"
            raise DatasetError(f"{block.path}: {found}; repair the data or leave them out with --non-finite drop")
        kept &= ~bad
        report.dropped_transitions += int(bad.sum())
        named = [f"{block.place} {place}".lstrip() for place in places]
        report.non_finite += named[: MAX_NAMED - len(report.non_finite)]
    fractional = np.flatnonzero(kept & (masks != 0) & (masks != 1))
    if len(fractional):
        row = fractional[0]
        found = f"masks must be 0 (the task ended) or 1, row {numbers[row]} holds {masks[row]}"
        raise DatasetError(f"{block.path}: {found}; store 1 - terminated as the mask")
    if report.whole_actions:
        played = recorded[order][kept]
        report.whole_actions = bool((played == np.rint(played)).all())
    actions = np.zeros_like(columns["actions"])
    actions[kept] = scale.finish(columns["actions"][kept], numbers[kept], block.path, report)
    # A kept transition needs the row after it as its next observation: that row closes the piece unless it is kept too.
    used = kept | np.append(False, kept[:-1])
    report.transitions += int(kept.sum())
    report.trajectories += int((used & ~kept).sum())
    alone = kept & np.append(True, ~kept[:-1]) & np.append(~kept[1:], True)
    report.short_pieces += int((alone & (masks != 0)).sum())
    if not kept.any():
        return None
    seen = {name[1:]: values[used] for name, values in parts_of(columns).items()}
    schema = stored_schema(seen, actions)
    return build_rows(seen.get("", seen), actions[used], columns["rewards"][used], masks[used], ~kept[used], schema)


def _closed(columns: Arrays, report: ImportReport) -> tuple[np.ndarray, Arrays]:
    """Return of which row each is, and the columns with a closing row a trajectory, its last or an added one.

    Where nobody knows what the last action led to, its row only closes the trajectory, unless the task ended with it:
    then its next observation is never used.
    """
    ends, following = columns["ends"], parts_of(columns, "next_observations")
    is_added = ends & (columns["masks"] == 0)
    if following:
        vectors = [values for values in following.values() if not are_images(values)]
        is_absent = np.logical_or.reduce([np.zeros(len(ends), bool), *(np.isnan(one).all(axis=1) for one in vectors)])
        is_added = ends & (~is_absent | is_added)
        for name, values in following.items() if is_absent.any() else ():
            absent = is_absent.reshape(-1, *[1] * (values.ndim - 1))
            following[name] = np.where(absent, columns[f"observations{name}"], values)
        columns = columns | {f"next_observations{name}": values for name, values in following.items()}
    order = np.repeat(np.arange(len(ends)), 1 + is_added)
    is_copy = np.append(False, order[1:] == order[:-1])
    report.unfollowed_transitions += int((ends & ~is_added).sum())
    closed = {name: values[order] for name, values in columns.items()}
    for name, values in following.items():
        closed[f"observations{name}"][is_copy] = values[is_added]
    return order, {**closed, "ends": is_copy | (ends & ~is_added)[order]}


def is_followed(following: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Return (N,) bool: whether a next observation, (N, O) or images, is the observation of the next row."""
    if are_images(following):
        return np.asarray((following == states).reshape(len(states), -1).all(axis=1))
    return np.asarray(np.isclose(following, states, rtol=1e-5, atol=1e-6, equal_nan=True).all(axis=1))


def are_followed(following: Arrays, states: Arrays) -> np.ndarray:
    """Return (N,) bool, as `is_followed` of observations in several parts."""
    return np.asarray(np.logical_and.reduce([is_followed(values, states[name]) for name, values in following.items()]))


def mark_unfollowed(
    ends: np.ndarray,
    same: np.ndarray,
    report: ImportReport,
    *,
    first_row: int,
    has_timeouts: bool,
    path: Path,
) -> None:
    """Mark in `ends` (N,), in place, and count the rows whose next observation is not the next row's: `same`, (N,).

    The one rule for ends that nothing marks, of whatever format; where episodes are named, such a row is an error, and
    where time limits are marked, most rows cannot be such.
    """
    unmarked = np.flatnonzero(~ends & ~same)
    if has_timeouts and 2 * len(unmarked) > len(ends) > 1:
        found = f"{len(unmarked)} of {len(ends)} next observations differ from the next row's observation"
        row = first_row + int(unmarked[0])
        raise DatasetError(f"{path}: {found}, the first at row {row}; sort the rows by episode and time")
    if len(unmarked) and not report.unmarked_ends:
        report.first_unmarked = first_row + int(unmarked[0])
    report.unmarked_ends += len(unmarked)
    ends[unmarked] = True


def _check_following(block: Block) -> None:
    """Refuse a next observation that is not the next row's inside a trajectory; say how many and where."""
    inner = np.flatnonzero(~block.columns["ends"][:-1])
    same = np.ones(len(inner), bool)
    for name, following in parts_of(block.columns, "next_observations").items():
        after, state = following[inner], block.columns[f"observations{name}"][inner + 1]
        # Rows with NaN or infinity are refused or dropped as such.
        same &= ~(finite_rows(after) & finite_rows(state)) | is_followed(after, state)
    if not same.all():
        raise DatasetError(
            f"{block.path}: {int((~same).sum())} next observations differ from the next row's observation inside a "
            f"trajectory, the first at row {block.first_row + inner[same.argmin()]}; sort the table by episode and "
            "time, or map the column that ends trajectories (episode, terminals or timeouts)"
        )


def _check_times(times: np.ndarray, ends: np.ndarray, block: Block, report: ImportReport) -> None:
    """Refuse times that fall inside a trajectory, and count where they rise far more than usual."""
    report.untimed_rows += int(np.isnan(times).sum())
    inner = np.flatnonzero(~ends[:-1])
    steps = times[inner + 1] - times[inner]
    if len(back := inner[steps < 0]):
        row = int(back[0])
        marks = "the column that ends trajectories (episode, terminals or timeouts)"
        remedy = f"map {marks}, or, if it is no time, give --map time="
        if not block.is_mapped:
            remedy = f"save {marks} too, or, if it is no time, save the file without it"
        column = f" in '{block.time_name}'" if block.time_name else ""
        raise DatasetError(
            f"{block.path}: time runs backwards {counted(len(back), 'time')} inside a trajectory, the first at row "
            f"{block.first_row + row} (from {times[row]} to {times[row + 1]}{column}); sort the table by episode and "
            f"time, {remedy}"
        )
    gaps = inner[steps > 5 * np.median(steps[steps > 0])] if (steps > 0).any() else inner[:0]
    if len(gaps) and not report.time_gaps:
        report.first_gap = f"row {block.first_row + gaps[0]} (from {times[gaps[0]]} to {times[gaps[0] + 1]})"
    report.time_gaps += len(gaps)


def check_flags(
    values: np.ndarray, name: str, path: Path, first_row: int = 0, where: str = "where the task or the trajectory ends"
) -> None:
    """Raise DatasetError if a number other than 0 and 1 is among the flags `values` (N,)."""
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise DatasetError(
            f"{path}: {name} must be 0 or 1, row {first_row + wrong[0]} holds {values[wrong[0]]}; store 1 {where}"
        )


def check_masks(masks: np.ndarray, terminals: np.ndarray, name: str, other: str, path: Path) -> None:
    """Refuse masks, (N,), that say the contrary: they are 0 where the task ended, and equal its terminals here."""
    if np.array_equal(masks, terminals) and len(np.unique(masks)) > 1:
        found = f"'{name}' equals '{other}', and a mask is 0 where the task ends"
        raise DatasetError(f"{path}: {found}; store 1 - terminated as the mask, or leave it out")


def check_counts(counts: dict[str, int], path: Path, remedy: str = "get the file again") -> None:
    """Raise DatasetError unless all arrays have the same number of rows, and some."""
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        least, one_more = min(counts.values()), [name for name, count in counts.items() if count > min(counts.values())]
        is_last_seen = one_more == ["observations"] and counts["observations"] == least + 1
        apart = "of a trajectory save observations[:-1] as observations, and observations[1:] as next_observations"
        raise DatasetError(
            f"{path}: arrays differ in their number of rows ({found}); {apart if is_last_seen else DAMAGED}"
        )
    if not any(counts.values()):
        raise DatasetError(f"{path}: holds no rows; {remedy}")


def finite_rows(values: np.ndarray) -> np.ndarray:
    """Return (N,) bool: which rows of `values`, (N, ...), hold finite numbers only."""
    if values.dtype.kind != "f":
        return np.ones(len(values), bool)
    return np.asarray(np.isfinite(values).all(axis=tuple(range(1, values.ndim))))


def _non_finite(columns: Arrays, moving: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return (N,) bool, the transitions that touch a non-finite number, and where the first of these numbers stand.

    A transition touches its own row and the observation of the next one; a closing row has only an observation.
    """
    observed = {f"observations{name}" for name in parts_of(columns)}
    finite = {name: finite_rows(values) | ((name not in observed) & ~moving) for name, values in columns.items()}
    own = np.logical_and.reduce(list(finite.values()))
    seen = np.logical_and.reduce([finite[name] for name in observed])
    touched = moving & ~(own & np.append(seen[1:], True))
    matters = ~own & (touched | np.append(False, touched[:-1]))
    places = [
        f"row {numbers[row]} ({', '.join(name for name in finite if not finite[name][row])})"
        for row in np.flatnonzero(matters)[:MAX_NAMED]
    ]
    return touched, places
