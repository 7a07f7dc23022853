"""The online part of the replay: the newest rows, in a mapped file, with one writer.

Rows are numbered from 0 in the order of insertion; row s lies at position s modulo the file's length. The column
`sequence` holds s + 1 and is written last, as the row's commit mark; 0 was never written, -(s + 1) is row s while it is
written and after it was dropped. The newest `capacity` rows count. The file is about an eighth longer, so that the rows
a checkpoint names survive that many later inserts. Blocks of rows get a CRC-32 as soon as they are full.

A killed process loses nothing that it acknowledged: its rows stay in the page cache, and the journal beside the file
says who inserted them. An insert is first noted there and then written, and it counts once all its rows carry their
marks; the one that a kill interrupts is dropped whole.
"""

import warnings
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from dipole_ray.columns import Schema
from dipole_ray.data.schema import Rows
from dipole_ray.errors import CheckpointError, ConfigError, CorruptSegment, DatasetError
from dipole_ray.replay.journal import BLOCK, INSERT, Found, Insert, Journal, RingContents
from dipole_ray.replay.ring_file import create_ring_file, lock_ring_file, map_ring_file
from dipole_ray.replay.ring_rows import RingRows

BLOCK_ROWS = 8192  # rows under one checksum (fewer in small rings)


class OnlineRing:
    """A ring of the newest rows; rows of one insert are contiguous, windows may wrap around the end of the file."""

    def __init__(self, path: Path, schema: Schema, capacity: int, run: str | None = None) -> None:
        """Map the ring at `path`, making it if there is none; its journal lies beside it.

        `capacity` rows can be sampled at a time, closing rows included. A ring that an earlier process of the same
        `run` left, however it ended, is taken up again with all its rows; any other, and every one without a name,
        counts as empty until `load_state`.
        """
        if capacity < 2:
            raise ConfigError(f"capacity={capacity} rows cannot hold a transition and its closing row; use 2 or more")
        self.path, self.capacity = Path(path), capacity
        self.block_rows = max(1, min(BLOCK_ROWS, capacity // 16))
        self._num_blocks = -(-capacity // self.block_rows) + max(2, capacity // 8 // self.block_rows)
        self.file_rows = self._num_blocks * self.block_rows
        self.created = not self.path.exists()
        if self.created:
            create_ring_file(self.path, schema, self.file_rows)
        self._lock = lock_ring_file(self.path)
        try:
            self._mapped, self.columns = map_ring_file(self.path, schema, self.file_rows)
            self._rows = RingRows(self.columns, self.block_rows)
            self._is_clean = self.created
            self.contents, self.recoveries = RingContents(), 0
            # Row numbers of the transitions, oldest first, themselves in a ring: appended and evicted in order.
            self._queue = np.zeros(capacity, dtype=np.int64)
            self._queue_start = self.num_transitions = 0
            self._journal = Journal(self.path.with_name(f"{self.path.name}.journal"), self._num_blocks)
            found = None if run is None else self._journal.read(run)
            if found is None:
                self._journal.begin(run or uuid4().hex)
            else:
                self._recover(found)
        except BaseException:
            self._lock.close()
            raise

    def transition_rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the file positions of the transitions at `indices` in [0, num_transitions), oldest first."""
        rows: np.ndarray = self._queue[(self._queue_start + indices) % self.capacity]
        return rows % self.file_rows

    def append(self, rows: Rows, *, worker: int, incarnation: int, sequence: int) -> int:
        """Write validated rows, evicting the oldest; return the transitions ever inserted, these included.

        `sequence` is the number of this insert in the life `incarnation` of the worker that sends it.
        """
        count = len(rows["remaining"])
        if count > self.capacity:
            found = f"one insert of {count} rows exceeds the capacity of {self.capacity} rows"
            raise DatasetError(f"{self.path}: {found}; insert shorter pieces or raise the replay capacity")
        if not self._is_clean:  # a file left by an earlier run that was not resumed
            self._rows.marks[:] = 0
            self._is_clean = True
        if self._journal.is_full:
            self._journal.rewrite(self.contents, self.recoveries)
        self.created = False
        first = self.contents.rows_written
        transitions = first + np.flatnonzero(rows["remaining"])
        insert = Insert(first, count, worker, incarnation, sequence, self.contents.env_steps + len(transitions))
        numbers = np.arange(first + 1, first + count + 1)
        self._rows.write("sequence", first, -numbers)  # before the journal: no mark there is another insert's
        self._journal.note(INSERT, *insert)
        self._evict(max(self.contents.oldest, first + count - self.capacity))
        for name, values in rows.items():
            self._rows.write(name, first, values)
        self._rows.write("sequence", first, numbers)
        self.contents.take(insert)
        blocks = self.contents.blocks
        for block in range(first // self.block_rows, (first + count) // self.block_rows):
            blocks[block] = self._rows.block_checksum(block)
            blocks.pop(block - self._num_blocks, None)
            self._journal.note(BLOCK, block, blocks[block])
        self._enqueue(transitions)
        return self.contents.env_steps

    def state(self) -> dict[str, Any]:
        """Flush the file to disk and return row counts and checksums, as JSON."""
        self._mapped.flush()
        written, oldest = self.contents.rows_written, self.contents.oldest
        first, tail = oldest // self.block_rows, written // self.block_rows
        blocks = {str(block): crc for block, crc in self.contents.blocks.items() if block >= first}
        sizes = {"capacity": self.capacity, "file_rows": self.file_rows, "rows_written": written, "oldest": oldest}
        return {**sizes, "blocks": blocks, "tail_crc32": self._rows.checksum(tail * self.block_rows, written)}

    def load_state(
        self, state: dict[str, Any], *, env_steps: int = 0, last_sequence: dict[tuple[int, int], int] | None = None
    ) -> int:
        """Go back to the rows that `state` names; later rows are dropped.

        `env_steps` were inserted until then, and `last_sequence` was the last insert of each (worker, incarnation).

        Returns:
            Rows that were overwritten since the state was taken and are therefore gone (0: restored exactly).
        """
        if (state["capacity"], state["file_rows"]) != (self.capacity, self.file_rows):
            found = f"the checkpoint's ring has capacity {state['capacity']}, this replay {self.capacity}"
            raise CheckpointError(f"{self.path}: {found}; resume with the same replay capacity")
        written, oldest = int(state["rows_written"]), int(state["oldest"])
        blocks = {int(block): int(crc) for block, crc in state["blocks"].items()}
        if not 0 <= oldest <= written <= oldest + self.file_rows:
            found = f"the checkpoint names rows {oldest} to {written}, which a ring of {self.file_rows} cannot hold"
            raise CheckpointError(f"{self.path}: {found}; resume from another checkpoint")
        kept, damaged = self._rows.inspect(oldest, written, blocks, state["tail_crc32"])
        for first, end, found in damaged:
            what = "the file was missing and is new" if self.created else found
            raise CorruptSegment(
                f"{self.path}: {what}; rows {first} to {end - 1} are affected: resume from an older checkpoint, "
                "restore the file, or start the online phase anew without resuming"
            )
        self._hold(RingContents(written, kept, env_steps, dict(last_sequence or {}), blocks))
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
        self.columns.clear()
        self._journal.close()
        self._lock.close()

    def _evict(self, oldest: int) -> None:
        evicted = np.arange(self.contents.oldest, oldest) % self.file_rows
        transitions = int(np.count_nonzero(self.columns["remaining"][evicted]))
        self._queue_start = (self._queue_start + transitions) % self.capacity
        self.num_transitions -= transitions
        self.contents.oldest = oldest

    def _enqueue(self, rows: np.ndarray) -> None:
        slots = (self._queue_start + self.num_transitions + np.arange(len(rows))) % self.capacity
        self._queue[slots] = rows
        self.num_transitions += len(rows)

    def _hold(self, contents: RingContents) -> None:
        """Hold exactly the rows of `contents`: in the journal first, so that a kill in between loses nothing."""
        self._journal.rewrite(contents, self.recoveries)
        self.contents, marks = contents, self._rows.marks
        # Later rows are dropped; an older checkpoint can still see by their marks that they overwrote its own.
        np.negative(marks, out=marks, where=marks > contents.rows_written)
        self._is_clean = True
        self._queue_start = self.num_transitions = 0
        rows = np.arange(contents.oldest, contents.rows_written)
        self._enqueue(rows[self.columns["remaining"][rows % self.file_rows] > 0])

    def _recover(self, found: Found) -> None:
        """Take up what an earlier process of this run acknowledged; quarantine what is damaged."""
        contents, last = found.contents, found.last
        if last is not None and (self.created or self._rows.are_committed(last.first, last.rows)):
            contents.take(last)
        self.recoveries = found.recoveries + 1
        written = contents.rows_written
        is_missing = self.created and written > 0
        if is_missing or (found.is_torn and self._rows.are_committed(written, 1)):
            raise CorruptSegment(
                f"{self.path}: {'the file is missing' if is_missing else 'its journal has lost an insert'}; rows up to "
                f"{written} of this run are affected: resume from a checkpoint"
            )
        if not written:  # the file may still hold the rows of a checkpoint that is about to be loaded
            self._journal.rewrite(contents, self.recoveries)
            return
        size, tail = self.block_rows, written // self.block_rows
        contents.oldest = max(contents.oldest, written - self.capacity)
        for block in range(last.first // size if last else tail, tail):
            if block not in contents.blocks:  # killed between its last row and its checksum
                contents.blocks[block] = self._rows.block_checksum(block)
        counted = range(contents.oldest // size, tail)
        contents.blocks = {block: crc for block, crc in contents.blocks.items() if block in counted}
        tail_crc32 = self._rows.checksum(tail * size, written)
        contents.oldest, damaged = self._rows.inspect(contents.oldest, written, contents.blocks, tail_crc32)
        for damage in damaged:
            changed = self._rows.quarantine(damage, contents.oldest)
            for block in range(changed // size, damage.end // size):
                contents.blocks[block] = self._rows.block_checksum(block)
            warnings.warn(
                f"{self.path}: {damage.found}; rows {damage.first} to {damage.end - 1} are quarantined: they are not "
                "sampled again, and the run goes on with the rest",
                RuntimeWarning,
                stacklevel=4,
            )
        self._hold(contents)
