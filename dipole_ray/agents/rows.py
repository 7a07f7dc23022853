"""A batch as the rows of one table, so that one copy brings it to a device and one gather takes a batch out of it.

Shapes: W numbers in a row.
"""

from collections.abc import Mapping
from itertools import accumulate

from torch import Tensor

from dipole_ray.agents.agent import COLUMNS
from dipole_ray.agents.networks import Sizes

_ALIGNMENT = 4
"""Numbers: each column begins at 16 bytes, as matrix products like it."""


class RowLayout:
    """Where in a row each column of a batch lies.

    Attributes:
        width: W.
    """

    def __init__(self, sizes: Sizes) -> None:
        widths = {"observations": sizes.observation_dim, "actions": sizes.action_dim}
        widths["next_observations"] = sizes.observation_dim
        aligned = [-(-widths.get(name, 1) // _ALIGNMENT) * _ALIGNMENT for name in COLUMNS]
        self.width = sum(aligned)
        starts = dict(zip(COLUMNS, accumulate(aligned, initial=0), strict=False))
        self._places = {
            name: slice(start, start + widths[name]) if name in widths else start for name, start in starts.items()
        }

    def write(self, table: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Put a batch, with all of its columns, into the first rows of a table (..., W)."""
        for name, place in self._places.items():
            table[: len(columns["rewards"]), place].copy_(columns[name])

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Return rows (..., W) by column, as views."""
        return {name: rows[..., place] for name, place in self._places.items()}
