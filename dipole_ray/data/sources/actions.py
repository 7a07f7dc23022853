"""Bringing recorded actions to [-1, 1], as the actions of all environments are here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dipole_ray.data.sources.pieces import ImportReport, to_float32
from dipole_ray.errors import DatasetError

ActionBounds = tuple[np.ndarray, np.ndarray]
"""Least and greatest actions, (A,) each."""


def scale_actions(actions: np.ndarray, bounds: ActionBounds | None, path: Path) -> np.ndarray:
    """Return `actions` (N, A) as float32, with `bounds` at -1 and 1; as they are where no bounds are known.

    Raises:
        DatasetError: If the bounds are of another number of dimensions.
    """
    if bounds is None or _is_unit(bounds):
        return to_float32(actions)
    low, high = bounds
    if len(low) != actions.shape[1]:
        raise DatasetError(
            f"{path}: actions have {actions.shape[1]} dimensions, the action space has {len(low)}; it is damaged, "
            "or of another environment than the one named"
        )
    return to_float32((actions.astype(np.float64) - (low + high) / 2) / ((high - low) / 2))


def note_scale(report: ImportReport, bounds: ActionBounds | None, owner: str) -> None:
    """Write down what becomes of the actions, unless their bounds, which are `owner`'s, are -1 and 1."""
    if bounds is None:
        report.notes.append("nothing says the bounds of the actions: they are taken as lying in [-1, 1] already")
    elif not _is_unit(bounds):
        low, high = (", ".join(f"{value:g}" for value in bound[:8]) for bound in bounds)
        report.notes.append(f"actions were scaled to [-1, 1] from [{low}] ... [{high}], the bounds of {owner}")


def _is_unit(bounds: ActionBounds) -> bool:
    return bool((bounds[0] == -1).all() and (bounds[1] == 1).all())
