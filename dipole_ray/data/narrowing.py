"""Numbers become float32, and what they lose on the way is found: large ones of which only the ends differ.

Readers, `close_trajectory` and the start of a run in an environment ask here; N consecutive rows, O numbers in each.
"""

from dataclasses import dataclass

import numpy as np

_LOST = 0.01  # share of the changes from row to row from which on their loss is said
_MATTERS = 1e-6  # the rounding in a dimension's range: below, what is lost is small beside what is kept
_NOISE = 1e-9  # a dimension's range in its numbers: below, it is rounding of float64 itself
_GRID = 1e-3  # spacing of float32 in a dimension's range from which on there are few values: 1000 at most
FAR = 2.0**14  # numbers from which on float32 has a spacing, 0.002, that is hardly ever noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """What one dimension lost."""

    dimension: int
    lost: int  # changes from row to row that float32 has not
    changes: int  # those that there were
    low: float
    high: float

    @property
    def offset(self) -> str:
        """A round number within the range, to subtract."""
        middle = (self.low + self.high) / 2
        digits = max(1, int(np.ceil(np.log10(abs(middle) / (self.high - self.low)))))
        return f"{float(f'{middle:.{digits}g}'):.15g}"

    def told(self, where: str) -> str:
        """Return it in words; `where` says whose dimension it is."""
        share = f"{self.lost} of its {self.changes} changes from row to row are lost"
        return (
            f"float32 does not tell apart what changes in {where}: {share} between {self.low:.15g} and {self.high:.15g}"
        )


def to_float32(values: np.ndarray) -> np.ndarray:
    """Return float32, without a copy where it is that already; what does not fit becomes infinite, and is found so."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, copy=False)


class Narrowing:
    """Takes numbers as they were recorded, and counts the changes from row to row that float32 has not."""

    def __init__(self) -> None:
        self._changes = self._lost = np.zeros(0, np.int64)
        self._low = self._high = np.zeros(0)

    def narrow(self, values: np.ndarray) -> np.ndarray:
        """Return recorded numbers, (N, O) or (N,), as float32."""
        narrow = to_float32(values)
        if values.dtype.itemsize > 4 and len(values):
            self._compare(values.reshape(len(values), -1), narrow.reshape(len(values), -1))
        return narrow

    def _compare(self, values: np.ndarray, narrow: np.ndarray) -> None:
        if not self._changes.size:
            self._changes = self._lost = np.zeros(values.shape[1], np.int64)
            self._low, self._high = values[0].astype(np.float64), values[0].astype(np.float64)
        changes = values[1:] != values[:-1]
        self._changes = self._changes + changes.sum(axis=0)
        self._lost = self._lost + (changes & (narrow[1:] == narrow[:-1])).sum(axis=0)
        self._low, self._high = np.fmin(self._low, values.min(axis=0)), np.fmax(self._high, values.max(axis=0))

    def losses(self) -> list[Lost]:
        """Return the dimensions that lost much of what was taken so far."""
        if not self._changes.size:
            return []
        largest, extent = np.maximum(np.abs(self._low), np.abs(self._high)), self._high - self._low
        with np.errstate(invalid="ignore", over="ignore"):
            rounding = np.spacing(largest.astype(np.float32)).astype(np.float64) / 2
            matters = (rounding > _MATTERS * extent) & (extent > _NOISE * largest) & np.isfinite(extent)
        return [
            Lost(
                dimension=int(dimension),
                lost=int(self._lost[dimension]),
                changes=int(self._changes[dimension]),
                low=float(self._low[dimension]),
                high=float(self._high[dimension]),
            )
            for dimension in np.flatnonzero(matters & (self._lost > _LOST * self._changes))
        ]


def rounded(values: np.ndarray) -> str | None:
    """Return, as `what; remedy`, in which dimensions stored float32 numbers, (N, O), look rounded before; else None."""
    low, high = values.min(axis=0).astype(np.float64), values.max(axis=0).astype(np.float64)
    largest, extent = np.maximum(np.abs(low), np.abs(high)), high - low
    with np.errstate(invalid="ignore", over="ignore"):
        spacing = np.spacing(largest.astype(np.float32)).astype(np.float64)
        is_coarse = (largest >= FAR) & (extent > 0) & (spacing > _GRID * extent) & np.isfinite(extent)
        # Whole numbers, and other multiples of what is far above the spacing, are as they were meant.
        uses_last_digits = (values.astype(np.float64) % (4 * spacing) != 0).any(axis=0)
    found = np.flatnonzero(is_coarse & uses_last_digits)
    if not len(found):
        return None
    which = f"dimension{'s' if len(found) > 1 else ''} {', '.join(map(str, found[:8]))} of the observations"
    what = f"{which} can take few values in float32 (near {high[found[0]]:.9g}), and seem to be rounded to them"
    return f"{what}; import an original of float64 with --offset, or record them less an offset"
