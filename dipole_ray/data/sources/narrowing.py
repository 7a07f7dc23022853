"""Observations become float32, and what they lose on the way is said: large numbers of which only the ends differ."""

from collections.abc import Sequence

import numpy as np

from dipole_ray.data.sources.reading import ImportReport, to_float32
from dipole_ray.errors import ConfigError

_LOST = 0.01  # share of the changes from row to row from which on their loss is said
_MATTERS = 1e-6  # the rounding in a dimension's range: below, what is lost is small beside what is kept
_NOISE = 1e-9  # a dimension's range in its numbers: below, it is rounding of float64 itself


class Narrowing:
    """Takes observations as they were recorded, and counts the changes from row to row that float32 has not."""

    def __init__(self, offset: Sequence[tuple[int, float]] = ()) -> None:
        """`offset` are dimensions, and what is subtracted from them before they are rounded."""
        self._offset = offset
        self._changes = self._lost = np.zeros(0, np.int64)
        self._low = self._high = np.zeros(0)

    def narrow(self, values: np.ndarray) -> np.ndarray:
        """Return recorded observations, (N, O), as float32, less the offset."""
        if self._offset:
            values = values.astype(np.float64)
            for dimension, number in self._offset:
                if not dimension < values.shape[1]:
                    found = f"observations have the dimensions 0 to {values.shape[1] - 1}"
                    raise ConfigError(f"--offset {dimension}={number:.15g}: {found}; name one of them")
                values[:, dimension] -= number
        narrow = to_float32(values)
        if values.dtype.itemsize > 4 and len(values):
            self._compare(values, narrow)
        return narrow

    def _compare(self, values: np.ndarray, narrow: np.ndarray) -> None:
        if not self._changes.size:
            self._changes = self._lost = np.zeros(values.shape[1], np.int64)
            self._low, self._high = values[0].copy(), values[0].copy()
        changes = values[1:] != values[:-1]
        self._changes = self._changes + changes.sum(axis=0)
        self._lost = self._lost + (changes & (narrow[1:] == narrow[:-1])).sum(axis=0)
        self._low, self._high = np.fmin(self._low, values.min(axis=0)), np.fmax(self._high, values.max(axis=0))

    def report(self, report: ImportReport) -> None:
        """Say, when all rows were taken, what was subtracted and which dimensions lost much."""
        if self._offset:
            what = ", ".join(f"{number:.15g} from dimension {dimension}" for dimension, number in self._offset)
            report.notes.append(
                f"observations are stored less an offset ({what}): whoever acts must subtract it from observations, in "
                "float64, before a policy sees them"
            )
        if not self._changes.size:
            return
        largest, extent = np.maximum(np.abs(self._low), np.abs(self._high)), self._high - self._low
        with np.errstate(invalid="ignore", over="ignore"):
            rounding = np.spacing(largest.astype(np.float32)).astype(np.float64) / 2
            matters = (rounding > _MATTERS * extent) & (extent > _NOISE * largest) & np.isfinite(extent)
        for dimension in np.flatnonzero(matters & (self._lost > _LOST * self._changes)):
            middle = (self._low[dimension] + self._high[dimension]) / 2
            near = float(f"{middle:.{max(1, int(np.ceil(np.log10(abs(middle) / extent[dimension]))))}g}")
            lost, low, high = self._lost[dimension], self._low[dimension], self._high[dimension]
            told = f"{lost} of its {self._changes[dimension]} changes from row to row are lost"
            remedy = f"subtract an offset, as with --offset {dimension}={near:.15g} when importing, or leave it out"
            report.warnings.append(
                f"float32 does not tell apart what changes in dimension {dimension} of the observations: {told} "
                f"between {low:.15g} and {high:.15g}; {remedy}"
            )
