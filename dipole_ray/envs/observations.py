"""Observations as environments give them and policies take them: one array, or several by name.

Those of n environments have the same names, and the leading dimension n. A vector is float32, an image uint8 of shape
(height, width, channels).
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

Observation: TypeAlias = np.ndarray | dict[str, np.ndarray]
Observations: TypeAlias = np.ndarray | dict[str, np.ndarray]


def each(function: Callable[..., Any], *observations: Any) -> Any:
    """Return what a function makes of observations: of each array by its name, where there are several."""
    if isinstance(observations[0], dict):
        return {name: function(*(one[name] for one in observations)) for name in observations[0]}
    return function(*observations)


def stacked(observations: Sequence[Observation]) -> Observations:
    """Return n observations as one batch."""
    found: Observations = each(lambda *arrays: np.stack(arrays), *observations)
    return found


def as_seen(observation: Any) -> Observation:
    """Return an observation with numbers in float32, and images as they are."""
    seen: Observation = each(lambda array: array if _is_image(array) else np.asarray(array, np.float32), observation)
    return seen


def _is_image(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == 3


def row_of(observations: Observations, row: Any) -> Observation:
    """Return one row of a batch, or those of a list."""
    found: Observation = each(lambda array: array[row], observations)
    return found


def finite_rows(observations: Observations) -> np.ndarray:
    """Return (n,) bool: in which rows all numbers are finite."""
    arrays = list(observations.values()) if isinstance(observations, dict) else [observations]
    finite = np.ones(len(arrays[0]), bool)
    for array in arrays:
        if array.dtype.kind == "f":  # whole numbers, as of an image, always are
            finite &= np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return finite


def is_same(one: Observation, other: Observation) -> bool:
    """Return whether two observations are equal in every number."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    return np.array_equal(one, other)  # type: ignore[arg-type]
