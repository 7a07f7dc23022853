"""Standard errors of means over what comes in clusters."""

from collections.abc import Sequence

import numpy as np


def clustered_errors(values: np.ndarray, clusters: Sequence[str]) -> np.ndarray:
    """Return the standard errors (M,) of the means of values (N, M), of which each cluster counts as one draw.

    The sandwich estimate, with k / (k - 1) for k clusters; NaN for a single one.
    """
    names, owner = np.unique(np.array(clusters), return_inverse=True)
    count = len(names)
    if count < 2:
        return np.full(values.shape[1], np.nan)
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, owner, values - values.mean(axis=0))
    errors: np.ndarray = np.sqrt((sums**2).sum(axis=0) * count / (count - 1)) / len(values)
    return errors
