"""A grid of cells in pieces for several workers, and its results put together again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import CellResult, joined


@dataclass(frozen=True, slots=True)
class Piece:
    """Some episodes of some cells, for one worker to play."""

    cells: tuple[Cell, ...]
    episodes: range
    """Their numbers."""

    @property
    def num_episodes(self) -> int:
        """Episodes of all its cells."""
        return len(self.cells) * len(self.episodes)

    def __str__(self) -> str:
        cells = str(self.cells[0]) if len(self.cells) == 1 else f"{len(self.cells)} cells from {self.cells[0]} on"
        return f"{cells}, episodes {self.episodes.start} to {self.episodes.stop - 1}"


def split(cells: Sequence[Cell], episodes: int, workers: int) -> list[Piece]:
    """Return the pieces of a grid for so many workers: cells that can share calls together, their episodes divided.

    The slowest, with many candidates, come first: the workers then finish together.
    """
    counts = sorted({cell.candidates for cell in cells}, reverse=True)
    parts = max(1, min(workers, episodes))
    bounds = [episodes * part // parts for part in range(parts + 1)]
    alike = [tuple(cell for cell in cells if cell.candidates == count) for count in counts]
    return [Piece(some, range(*ends)) for some in alike for ends in pairwise(bounds)]


class Together:
    """Puts the pieces of a grid together, cell by cell."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._parts = {
            cell: [piece.episodes for piece in pieces if cell in piece.cells]
            for piece in pieces
            for cell in piece.cells
        }
        self._played: dict[tuple[Cell, range], CellResult] = {}

    def take(self, piece: Piece, results: Sequence[CellResult]) -> Iterator[CellResult]:
        """Take a piece that was played, and yield the cells that are whole with it."""
        self._played.update({(result.cell, piece.episodes): result for result in results})
        for cell in piece.cells:
            parts = [(cell, episodes) for episodes in self._parts[cell]]
            if all(part in self._played for part in parts):
                yield joined([self._played.pop(part) for part in parts])
