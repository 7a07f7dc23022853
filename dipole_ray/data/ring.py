"""The online part of the replay: the newest rows, in a mapped file, with one writer.

Rows are numbered from 0 in the order of insertion; row s lies at position s modulo the file's length. The column
`sequence` holds s + 1 and is written last, as the row's commit mark; 0 was never written, a negative number is being
overwritten right now. The newest `capacity` rows count. The file is about an eighth longer, so that the rows a
checkpoint names survive that many later inserts. Blocks of rows get a CRC-32 as soon as they are full.
"""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.data.ring_file import create_ring_file, lock_ring_file, map_ring_file
from dipole_ray.data.schema import Rows, Schema
from dipole_ray.errors import CheckpointError, ConfigError, CorruptSegment, DatasetError

BLOCK_ROWS = 8192
"""Rows under one checksum (fewer in small rings)."""


class OnlineRing:
    """A ring of the newest rows; rows of one insert are contiguous, windows may wrap around the end of the file."""

    def __init__(self, path: Path, schema: Schema, capacity: int) -> None:
        """Map the ring at `path`, making it if there is none. It counts as empty until `load_state`.

        Args:
            path: The Arrow file.
            schema: Dimensions of the rows.
            capacity: Rows that can be sampled at a time, >= 2, closing rows included.
        """
        if capacity < 2:
            raise ConfigError(f"capacity={capacity} rows cannot hold a transition and its closing row; use 2 or more")
        self.path, self.capacity = Path(path), capacity
        self.block_rows = max(1, min(BLOCK_ROWS, capacity // 16))
        num_blocks = -(-capacity // self.block_rows) + max(2, capacity // 8 // self.block_rows)
        self.file_rows = num_blocks * self.block_rows
        self.created = not self.path.exists()
        if self.created:
            create_ring_file(self.path, schema, self.file_rows)
        self._lock = lock_ring_file(self.path)
        self._mapped, self.columns = map_ring_file(self.path, schema, self.file_rows)
        self._names = tuple(schema.columns)
        self._is_clean = self.created
        self.rows_written = 0
        self._oldest = 0
        self._blocks: dict[int, int] = {}
        # Row numbers of the transitions in the ring, oldest first, themselves in a ring: appended and evicted in order.
        self._queue = np.zeros(capacity, dtype=np.int64)
        self._queue_start = 0
        self.num_transitions = 0

    @property
    def num_rows(self) -> int:
        """Rows that count now."""
        return self.rows_written - self._oldest

    def transition_rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the file positions of the transitions at `indices` in [0, num_transitions), oldest first."""
        rows: np.ndarray = self._queue[(self._queue_start + indices) % self.capacity]
        return rows % self.file_rows

    def append(self, rows: Rows) -> int:
        """Write validated rows, evicting the oldest; returns how many of them are transitions.

        Raises:
            DatasetError: If the rows alone exceed the capacity.
        """
        count = len(rows["remaining"])
        if count > self.capacity:
            raise DatasetError(
                f"{self.path}: one insert of {count} rows exceeds the capacity of {self.capacity} rows; "
                "insert shorter pieces or raise the replay capacity"
            )
        if not self._is_clean:  # a file left by an earlier run that was not resumed
            self.columns["sequence"][:] = 0
            self._is_clean = True
        self.created = False
        first = self.rows_written
        self._evict(max(self._oldest, first + count - self.capacity))
        sequence = np.arange(first + 1, first + count + 1)
        self._write("sequence", first, -sequence)
        for name in self._names:
            self._write(name, first, rows[name])
        self._write("sequence", first, sequence)
        self.rows_written = first + count
        self._seal_blocks(first)
        return self._enqueue(first + np.flatnonzero(rows["remaining"]))

    def state(self) -> dict[str, Any]:
        """Flush the file to disk and return row counts and checksums, as JSON."""
        self._mapped.flush()
        tail = self.rows_written // self.block_rows
        first_block = self._oldest // self.block_rows
        return {
            "capacity": self.capacity,
            "file_rows": self.file_rows,
            "rows_written": self.rows_written,
            "oldest": self._oldest,
            "blocks": {str(block): crc for block, crc in self._blocks.items() if block >= first_block},
            "tail_crc32": self._checksum(tail * self.block_rows, self.rows_written),
        }

    def load_state(self, state: dict[str, Any]) -> int:
        """Go back to the rows that `state` names; later rows are dropped.

        Returns:
            Rows that were overwritten since the state was taken and are therefore gone (0: restored exactly).

        Raises:
            CheckpointError: If the state belongs to a ring of another size.
            CorruptSegment: If rows it names are missing or fail their checksum.
        """
        if (state["capacity"], state["file_rows"]) != (self.capacity, self.file_rows):
            raise CheckpointError(
                f"{self.path}: the checkpoint's ring has capacity {state['capacity']}, this replay {self.capacity}; "
                "resume with the same replay capacity"
            )
        written, oldest = int(state["rows_written"]), int(state["oldest"])
        kept = self._verify(written, oldest, {int(block): crc for block, crc in state["blocks"].items()}, state)
        self._blocks = {int(block): crc for block, crc in state["blocks"].items()}
        self.rows_written, self._oldest = written, kept
        sequence = self.columns["sequence"]
        sequence[(sequence > written) | (sequence < 0)] = 0
        self._is_clean = True
        rows = np.arange(kept, written)
        self._queue_start = self.num_transitions = 0
        self._enqueue(rows[self.columns["remaining"][rows % self.file_rows] > 0])
        if kept > oldest:
            warnings.warn(
                f"{self.path}: {kept - oldest} of {written - oldest} online rows were overwritten after this "
                "checkpoint and are gone; the run goes on with the rest, but not bitwise as before",
                RuntimeWarning,
                stacklevel=2,
            )
        return kept - oldest

    def close(self) -> None:
        """Flush and give up the file; the ring cannot be used afterwards."""
        self._mapped.flush()
        self.columns = {}
        self._lock.close()

    def _write(self, name: str, first: int, values: np.ndarray) -> None:
        column, start = self.columns[name], first % self.file_rows
        fits = min(len(values), self.file_rows - start)
        column[start : start + fits] = values[:fits]
        column[: len(values) - fits] = values[fits:]

    def _evict(self, oldest: int) -> None:
        evicted = np.arange(self._oldest, oldest) % self.file_rows
        transitions = int(np.count_nonzero(self.columns["remaining"][evicted]))
        self._queue_start = (self._queue_start + transitions) % self.capacity
        self.num_transitions -= transitions
        self._oldest = oldest

    def _enqueue(self, rows: np.ndarray) -> int:
        slots = (self._queue_start + self.num_transitions + np.arange(len(rows))) % self.capacity
        self._queue[slots] = rows
        self.num_transitions += len(rows)
        return len(rows)

    def _seal_blocks(self, first: int) -> None:
        size = self.block_rows
        for block in range(first // size, self.rows_written // size):
            self._blocks[block] = self._checksum(block * size, (block + 1) * size)
            self._blocks.pop(block - self.file_rows // size, None)

    def _checksum(self, first: int, end: int) -> int:
        """Return the CRC-32 over all columns of rows [first, end), which lie in one block."""
        start, checksum = first % self.file_rows, 0
        for column in self.columns.values():
            checksum = zlib.crc32(column[start : start + end - first].data, checksum)
        return checksum

    def _verify(self, written: int, oldest: int, blocks: dict[int, int], state: dict[str, Any]) -> int:
        """Check every block with rows in [oldest, written); return the first row from which all are intact."""
        kept, size = oldest, self.block_rows
        for block in range(oldest // size, -(-written // size)):
            first, end = block * size, min((block + 1) * size, written)
            numbers = np.arange(first + 1, end + 1)
            found = self.columns["sequence"][first % self.file_rows :][: end - first]
            laps, rest = np.divmod(np.abs(found) - numbers, self.file_rows)
            is_later = (rest == 0) & (laps >= 1)
            if is_later.any() and (is_later | (found == numbers)).all():
                kept = end
                continue
            stored = blocks.get(block) if end == first + size else state["tail_crc32"]
            if not np.array_equal(found, numbers):
                was = (
                    "the file was missing and is new"
                    if self.created
                    else "the file does not hold the rows of the checkpoint"
                )
                raise self._corrupt(first, end, was)
            computed = self._checksum(first, end)
            if stored != computed:
                raise self._corrupt(first, end, f"checksum mismatch (stored {stored or 0:08x}, read {computed:08x})")
        return kept

    def _corrupt(self, first: int, end: int, found: str) -> CorruptSegment:
        return CorruptSegment(
            f"{self.path}: {found}; rows {first} to {end - 1} are affected: resume from an older checkpoint, restore "
            "the file, or start the online phase anew without resuming"
        )
