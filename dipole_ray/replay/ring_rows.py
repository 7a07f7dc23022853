"""Rows of a ring's columns by their numbers: commit marks, checksums, and what to do with rows that fail them."""

import zlib
from typing import NamedTuple

import numpy as np

from dipole_ray.data.schema import Rows


class Damage(NamedTuple):
    """Rows [first, end), one block or the rest of one, that are not what was written."""

    first: int
    end: int
    found: str


class RingRows:
    """The columns of a ring file; row s lies at position s modulo their length, and its mark is s + 1."""

    def __init__(self, columns: Rows, block_rows: int) -> None:
        self.columns, self.block_rows = columns, block_rows
        self.marks = columns["sequence"]
        self.length = len(self.marks)

    def write(self, name: str, first: int, values: np.ndarray) -> None:
        """Write one column of the rows from `first` on."""
        column, start = self.columns[name], first % self.length
        fits = min(len(values), self.length - start)
        column[start : start + fits] = values[:fits]
        column[: len(values) - fits] = values[fits:]

    def are_committed(self, first: int, count: int) -> bool:
        """Whether `count` rows from `first` on carry their marks."""
        rows = np.arange(first, first + count)
        return bool((self.marks[rows % self.length] == rows + 1).all())

    def checksum(self, first: int, end: int) -> int:
        """Return the CRC-32 over all columns of rows [first, end), which lie in one block."""
        start, checksum = first % self.length, 0
        for column in self.columns.values():
            checksum = zlib.crc32(column[start : start + end - first].data, checksum)
        return checksum

    def block_checksum(self, block: int) -> int:
        """Return the CRC-32 of a full block."""
        return self.checksum(block * self.block_rows, (block + 1) * self.block_rows)

    def inspect(self, oldest: int, written: int, blocks: dict[int, int], tail_crc32: int) -> tuple[int, list[Damage]]:
        """Check rows [oldest, written) by the CRC-32 of their full blocks and of the rows after these, `tail_crc32`.

        Return the first row from which on none was overwritten by later ones, and what is damaged.
        """
        kept, size = oldest, self.block_rows
        damaged = []
        for block in range(oldest // size, -(-written // size) if oldest < written else 0):
            first, end = block * size, min((block + 1) * size, written)
            numbers = np.arange(first + 1, end + 1)
            found = self.marks[first % self.length :][: end - first]
            laps, rest = np.divmod(np.abs(found) - numbers, self.length)
            is_later = (rest == 0) & (laps >= 1)  # marks of rows that came whole laps after these
            is_there = (found == numbers) | (numbers <= oldest)  # rows before the oldest may be anything
            stored = blocks.get(block) if end == first + size else tail_crc32
            computed = self.checksum(first, end)
            if is_there.all() and stored == computed:
                continue
            if is_later.any() and (is_later | is_there).all():
                kept = end
                continue
            what = "the file does not hold the rows that were written"
            if is_there.all():
                what = f"checksum mismatch (stored {stored or 0:08x}, read {computed:08x})"
            damaged.append(Damage(max(first, oldest), end, what))
        return kept, damaged

    def quarantine(self, damage: Damage, oldest: int) -> int:
        """Make closing rows of the damaged ones, and end all trajectories from `oldest` on before them.

        No transition begins at such a row or reaches it; its other numbers stay. Return the first changed row.
        """
        remaining, first = self.columns["remaining"], damage.first
        before, rows = np.arange(oldest, first), np.arange(first, damage.end)
        reaching = before[before + remaining[before % self.length] >= first]
        remaining[reaching % self.length] = first - 1 - reaching
        remaining[rows % self.length] = 0
        self.marks[rows % self.length] = rows + 1
        return int(reaching[0]) if len(reaching) else first
