"""Recorded actions become stored ones: the bounds of the environment's actions become -1 and 1, whatever the format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.data.narrowing import to_float32
from dipole_ray.data.schema import ACTION_LIMIT, ACTION_TOLERANCE
from dipole_ray.data.sources.reading import ActionBounds, ImportReport
from dipole_ray.errors import DatasetError

UNIT = "unit"  # what a dataset says of bounds where actions were recorded in [-1, 1]
_NO_BOUND = float(np.finfo(np.float32).max) / 2  # a bound beyond is none
Bounds = ActionBounds | tuple[tuple[float, ...], tuple[float, ...]]
_REACHED = 0.99  # share of a bound from which on it counts as reached
_USED = 0.01  # share of the bounds below which recorded actions hardly use them
_HINT = "--actions-are unit"


def known_bounds(*found: Bounds | None) -> ActionBounds | None:
    """Return the bounds that are given, in each dimension those of the first who knows; None if nobody knows any.

    A dimension that nobody bounds has -inf and inf; environments write the largest number there is for it as well.
    """
    given = [np.asarray(bounds, np.float64) for bounds in found if bounds is not None]
    if not given:
        return None
    low, high = np.full_like(given[0], [[-np.inf], [np.inf]])
    for least, greatest in (bounds for bounds in given if bounds.shape == given[0].shape):
        is_news = np.isinf(low) & (least > -_NO_BOUND) & (greatest < _NO_BOUND)
        low, high = np.where(is_news, least, low), np.where(is_news, greatest, high)
    return None if np.isinf(low).all() else (low, high)


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionScale:
    """Which range of recorded actions becomes [-1, 1], and what happens outside it."""

    bounds: ActionBounds | None = None  # None: nobody knows them; infinite in dimensions where nobody does
    owner: str = ""  # whose bounds they are
    clips: bool = False  # whether actions outside are brought to the bounds, and counted, instead of refused
    is_unit: bool = False  # whether somebody said that actions were recorded in [-1, 1]

    def notes(self) -> list[str]:
        """Return what is to be said before anything is read."""
        if self.is_unit:
            return []
        if self.bounds is None:
            return ["nothing says the bounds of the actions: they are taken as lying in [-1, 1] already"]
        low, high = self.bounds
        notes, is_fixed, is_open = [], low == high, np.isinf(low)
        if is_fixed.any():
            notes.append(f"{_dimensions(is_fixed)} of the actions can have one value only, stored as 0")
        if is_open.any():
            notes.append(f"nothing bounds {_dimensions(is_open)} of the actions, taken as lying in [-1, 1] already")
        if ((low != -1) | (high != 1))[~is_open].any():
            notes.append(f"actions were scaled to [-1, 1] from {_range(self.bounds)}, the bounds of {self.owner}")
        return notes

    def stored(self, actions: np.ndarray, path: Path) -> np.ndarray:
        """Return recorded actions, (N, A), as float32 with the bounds at -1 and 1; those outside lie beyond."""
        if self.bounds is None or self._keeps:
            return to_float32(actions)
        if len(self.bounds[0]) != actions.shape[1]:
            found = f"actions have {actions.shape[1]} dimensions, the action space has {len(self.bounds[0])}"
            raise DatasetError(f"{path}: {found}; it is damaged, or of another environment than the one named")
        centre, half = self._affine()
        return to_float32((actions.astype(np.float64) - centre) / half)

    def recorded(self, stored: np.ndarray) -> np.ndarray:
        """Return stored actions (..., A) as they were recorded."""
        if self._keeps:
            return stored
        centre, half = self._affine()
        return np.asarray(centre + np.asarray(stored, np.float64) * half)

    @property
    def _keeps(self) -> bool:
        """Whether actions are stored as they were recorded; then their number is looked at elsewhere."""
        return self.bounds is None or bool((self.bounds[0] == -1).all() and (self.bounds[1] == 1).all())

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.bounds is not None
        low, high = self.bounds
        is_open = np.isinf(low)
        low, high = np.where(is_open, -1.0, low), np.where(is_open, 1.0, high)
        # Where only one value is possible, what differs from it by rounding is within [-1, 1], anything else beyond.
        rounding = ACTION_TOLERANCE * np.maximum(1.0, np.abs(low))
        return (low + high) / 2, np.where(low == high, rounding, (high - low) / 2)

    def _rounding(self) -> np.ndarray | float:
        """Return how far beyond [-1, 1] an action, (A,), may lie by rounding: far where bounds are close together."""
        if self.bounds is None or self._keeps:
            return ACTION_TOLERANCE
        largest = np.abs(np.where(np.isinf(self.bounds), 0.0, self.bounds)).max(axis=0)
        return np.asarray(np.maximum(ACTION_TOLERANCE, np.spacing(to_float32(largest)) / self._affine()[1]))

    def finish(self, actions: np.ndarray, numbers: np.ndarray, path: Path, report: ImportReport) -> np.ndarray:
        """Return scaled actions of transitions, (N, A), within [-1, 1], and note in which range they were.

        Raises:
            DatasetError: If one lies outside by more than rounding, unless such are clipped; says how many and where.
        """
        far = np.abs(actions) > 1.0 + self._rounding()
        outside = np.flatnonzero(far.any(axis=1))
        if len(outside) and not self.clips:
            found = self._outside(actions, outside[0], numbers, report)
            raise DatasetError(f"{path}: {len(outside)} of {len(actions)} actions lie {found}")
        report.clipped_transitions += len(outside)
        if len(actions):
            low, high = report.action_range or (actions[0], actions[0])
            report.action_range = np.minimum(low, actions.min(axis=0)), np.maximum(high, actions.max(axis=0))
        stored = np.clip(actions, -ACTION_LIMIT, ACTION_LIMIT)
        return (
            stored
            if self.bounds is None or self._keeps
            else np.where(self.bounds[0] == self.bounds[1], np.float32(0.0), stored)
        )

    def _outside(self, actions: np.ndarray, first: int, numbers: np.ndarray, report: ImportReport) -> str:
        """Return outside of what actions lie, where the first of them is, and what to do."""
        column = int(np.abs(actions[first]).argmax())
        low, high = (
            (-1.0, 1.0) if self.bounds is None or self._keeps else (float(bound[column]) for bound in self.bounds)
        )
        is_known, value = np.isfinite(low) and self.bounds is not None, self.recorded(actions[first])[column]
        low, high = (low, high) if is_known else (-1.0, 1.0)
        place = f"row {numbers[first]} ({value:.6g} in {report.dimension('actions', column)})"
        found = f"outside [{low:g}, {high:g}], the first at {place}"
        clipped = "import with --clip-actions if it is noise"
        if self.is_unit:
            return f"{found}, though they count as scaled already; leave {_HINT} out, or {clipped}"
        if not is_known:
            found += ", and nothing says their bounds"
            return f"{found}; name the environment that made them with --env, so that its bounds become -1 and 1"
        scaled = "" if (low, high) == (-1, 1) else f", or with {_HINT} if they were scaled before"
        found += f", the bounds of {self.owner}"
        return f"{found}; name the environment that made them with --env, {clipped} that passed the bounds{scaled}"

    def to_json(self) -> Any:
        """Return what a dataset says of its bounds: `unit`, null where nobody knows, or least and greatest actions."""
        if self.is_unit or self.bounds is None:
            return UNIT if self.is_unit else None
        return [[None if np.isinf(value) else float(value) for value in bound] for bound in self.bounds]


def scale_of_dataset(source: dict[str, Any]) -> ActionScale | None:
    """Return the scale that a dataset was made with; None if it does not say, as those of before do not."""
    if "action_bounds" not in source:
        return None
    found = source["action_bounds"]
    if found is None or found == UNIT:
        return ActionScale(is_unit=found == UNIT)
    low, high = np.array(found, np.float64)  # None becomes NaN
    return ActionScale(bounds=known_bounds((low, high)), owner="the environment that it was imported for")


def range_warnings(
    scale: ActionScale | None, environment: Bounds | None, stored: ActionBounds | None = None
) -> list[str]:
    """Return, as `what; remedy`, what does not fit between stored actions and the environment that they are for.

    Args:
        scale: How they were stored; None for a dataset that does not say, as those of before do not.
        environment: The bounds of the environment; None: none was named.
        stored: Least and greatest stored actions, (A,) each; None: nobody looked.
    """
    bounds = known_bounds(environment)
    if bounds is None or (scale is not None and scale.is_unit):
        return []
    (low, high), own = bounds, None if scale is None else known_bounds(scale.bounds)
    if any(found is not None and len(found[0]) != len(low) for found in (own, stored)):
        return []  # an error of its own
    if own is not None and not np.allclose(np.nan_to_num(own), np.nan_to_num(bounds), rtol=1e-5, atol=1e-6):
        what = f"actions were scaled to [-1, 1] from {_range(own)}, and the environment's bounds are {_range(bounds)}"
        return [f"{what}; name the environment that made this data, or know that its actions play in other bounds"]
    is_moving = np.isfinite(low) & (low < high) & ((low != -1) | (high != 1))
    narrow, wide = is_moving & (low >= -1) & (high <= 1), is_moving & (low <= -1) & (high >= 1)
    if own is None and is_moving.any():
        says = f"the environment's bounds are {_range(bounds)}, and"
        remedy = f"import the original with --env, or with {_HINT} if they were scaled before"
        if scale is not None:
            return [f"{says} actions were imported without them, as lying in [-1, 1] already; {remedy}"]
        if stored is not None and _reach(stored, low, high, narrow):
            return [f"{says} no stored action leaves them, as if they had never been scaled to [-1, 1]; {remedy}"]
    if own is not None and stored is not None and scale is not None:
        least, greatest = map(scale.recorded, stored)
        if _reach((least, greatest), -np.ones_like(low), np.ones_like(high), wide):
            what = f"no recorded action leaves [-1, 1], though the environment's bounds are {_range(bounds)}"
            return [f"{what}; if they were scaled to [-1, 1] before, import them with {_HINT}"]
    if own is not None and stored is not None:
        extent = stored[1] - stored[0]
        if (is_unused := (extent > 0) & (extent < 2 * _USED) & (low < high)).any():
            what = f"recorded actions use less than {_USED:.0%} of the bounds of {_dimensions(is_unused)}"
            remedy = "if those are no real bounds, wrap the environment with narrower ones and import again"
            return [f"{what}, {_range((low[is_unused], high[is_unused]))}; {remedy}"]
    return []


def _reach(found: ActionBounds, low: np.ndarray, high: np.ndarray, which: np.ndarray) -> bool:
    """Return whether actions lie within bounds and reach one of them, looking at some dimensions only."""
    (least, greatest), tolerance = found, ACTION_TOLERANCE * (high - low)
    is_within = ((least >= low - tolerance) & (greatest <= high + tolerance))[which].all()
    return bool(is_within and ((least <= _REACHED * low) | (greatest >= _REACHED * high))[which].any())


def _range(bounds: ActionBounds) -> str:
    """Return bounds for people: the first eight."""
    shown = (("unbounded" if np.isinf(value) else f"{value:g}" for value in bound[:8]) for bound in bounds)
    return " ... ".join(f"[{', '.join(numbers)}]" for numbers in shown)


def _dimensions(which: np.ndarray) -> str:
    numbers = np.flatnonzero(which)
    listed = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"dimension{'s' if len(numbers) > 1 else ''} {listed}"
