"""A batch as the rows of one table, so that one copy brings it to a device and one gather takes a batch out of it.

Shapes: W numbers in a row.
"""

import math
from collections.abc import Mapping
from itertools import accumulate

from torch import Tensor

from dipole_ray.columns import Column

_ALIGNMENT = 4
"""Numbers: each column begins at 16 bytes, as matrix products like it."""


class RowLayout:
    """Where in a row each column of a batch lies.

    Attributes:
        width: W.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        widths = [math.prod(column.shape) for column in columns.values()]
        aligned = [-(-width // _ALIGNMENT) * _ALIGNMENT for width in widths]
        self.width = sum(aligned)
        starts = zip(columns.items(), accumulate(aligned, initial=0), widths, strict=False)
        self._places = {name: (slice(start, start + width), column.shape) for (name, column), start, width in starts}

    def write(self, table: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Put a batch, with all of its columns, into the first rows of a table (..., W)."""
        rows = len(columns["rewards"])
        for name, (place, _) in self._places.items():
            table[:rows, place].copy_(columns[name].reshape(rows, -1))

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Return rows (..., W) by column, as views."""
        return {
            name: rows[..., place].unflatten(-1, shape) if shape else rows[..., place.start]
            for name, (place, shape) in self._places.items()
        }
