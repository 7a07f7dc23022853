"""The ring's journal: who inserted what, noted before the rows are written, so that a killed process loses no insert.

A mapped file of fixed length beside the ring, in two halves that are used in turn. A half begins with a *base*, all
that the ring knew then, as JSON; after it come records of 56 bytes, one before each insert and one for each full block.
Only the newest insert can be unfinished, so a full half is left for a new base in the other one. Every base and record
has its CRC-32, and the last record of an older half says that it was left, lest it be taken for the newest.

Nothing here is forced to the disk: the journal outlives the process, with the pages of the ring. What outlives a power
cut is a checkpoint, whose manifest and rows are.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dipole_ray.errors import CorruptSegment, DatasetError

MAX_SENDERS = 1024  # workers' lives whose last insert is remembered, those heard last
_BASE = struct.Struct("<II")  # crc32, length
_NUMBERS = 6
_RECORD = struct.Struct(f"<I{_NUMBERS}q")  # kind and numbers; a CRC-32 goes before them
_SIZE = 4 + _RECORD.size
INSERT, BLOCK, _LEFT = 1, 2, 3  # kinds of records: of an `Insert`; of a full block's number and CRC-32; of the end
_RECORDS = 1024


class Insert(NamedTuple):
    """One insert into the ring."""

    first: int  # number of its first row
    rows: int
    worker: int
    incarnation: int
    sequence: int
    env_steps: int  # transitions inserted up to and with this insert


@dataclass(slots=True)
class RingContents:
    """What a ring knows beside its rows."""

    rows_written: int = 0  # rows ever inserted, the number of the next one
    oldest: int = 0  # first row that still counts
    env_steps: int = 0  # transitions ever inserted
    last_sequence: dict[tuple[int, int], int] = field(default_factory=dict)  # (worker, incarnation), in order heard
    blocks: dict[int, int] = field(default_factory=dict)  # CRC-32 of each full block

    def senders(self) -> list[list[int]]:
        """Return [worker, incarnation, last sequence] of each sender, in order heard."""
        return [[*sender, sequence] for sender, sequence in self.last_sequence.items()]

    def take(self, insert: Insert) -> None:
        """Count an insert whose rows are all there."""
        self.rows_written, self.env_steps = insert.first + insert.rows, insert.env_steps
        sender = (insert.worker, insert.incarnation)
        self.last_sequence.pop(sender, None)
        self.last_sequence[sender] = insert.sequence
        if len(self.last_sequence) > MAX_SENDERS:
            del self.last_sequence[next(iter(self.last_sequence))]


def by_sender(senders: Iterable[Iterable[Any]]) -> dict[tuple[int, int], int]:
    """Return the `last_sequence` that `RingContents.senders` told, of the senders heard last."""
    return {(int(worker), int(life)): int(last) for worker, life, last in list(senders)[-MAX_SENDERS:]}


class Found(NamedTuple):
    """What a journal says about the ring that its process left behind."""

    contents: RingContents  # all inserts but the last
    last: Insert | None  # the last one; the commit marks of its rows tell whether it was finished
    is_torn: bool  # whether the last record is unreadable, as a kill can leave it
    recoveries: int  # how often the ring was taken up again


class Journal:
    """The journal of one ring, with one writer, who holds the ring's lock."""

    def __init__(self, path: Path, num_blocks: int) -> None:
        """Map the journal at `path`, made anew unless there is one of the right length.

        Its space is reserved, so that a full disk is an error now and not later.
        """
        self.path = path
        # What may follow until the next chance to turn: one insert, the blocks it fills, and `_LEFT`.
        self._reserve = (num_blocks + 2) * _SIZE
        base = 4096 + 64 * MAX_SENDERS + 32 * num_blocks
        self._half = -(-(base + _RECORDS * _SIZE + self._reserve) // 4096) * 4096
        self._run, self._turn, self._next = "", 0, 0
        try:
            with path.open("a+b") as stream:  # made if missing
                if stream.tell() != 2 * self._half:
                    stream.truncate(0)
                    stream.truncate(2 * self._half)
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(stream.fileno(), 0, 2 * self._half)
                self._map = mmap.mmap(stream.fileno(), 2 * self._half)
        except OSError as error:
            found = f"cannot make the replay's journal ({error.strerror or error})"
            raise DatasetError(f"{path}: {found}; free space or choose another folder") from error

    def begin(self, run: str) -> None:
        """Forget everything; from here on this is the journal of an empty ring in the run `run`."""
        self._map[:] = bytes(2 * self._half)
        self._run, self._turn, self._next = run, 0, 0
        self.rewrite(RingContents(), 0)
        self.rewrite(RingContents(), 0)  # so that a damaged base never looks like a journal that was not begun

    @property
    def is_full(self) -> bool:
        """Whether `rewrite` is due before the next insert."""
        return self._next + self._reserve > (self._turn % 2 + 1) * self._half

    def rewrite(self, contents: RingContents, recoveries: int) -> None:
        """Replace all records by `contents`, at one stroke; no insert may be under way."""
        turn = self._turn + 1
        base = {"turn": turn, "run": self._run, "recoveries": recoveries, **asdict(contents)}
        base |= {"last_sequence": contents.senders(), "blocks": list(contents.blocks.items())}
        text = json.dumps(base).encode()
        start = turn % 2 * self._half
        self._map[start : start + self._half] = bytes(self._half)
        end = start + _BASE.size + len(text)
        self._map[start:end] = _BASE.pack(zlib.crc32(text, len(text)), len(text)) + text
        if self._turn:
            self.note(_LEFT)
        self._turn, self._next = turn, end

    def note(self, kind: int, *numbers: int) -> None:
        """Append a record: of an insert that is about to be written, or of a block that is full."""
        body = _RECORD.pack(kind, *numbers, *[0] * (_NUMBERS - len(numbers)))
        self._map[self._next : self._next + _SIZE] = zlib.crc32(body).to_bytes(4, "little") + body
        self._next += _SIZE

    def read(self, run: str) -> Found | None:
        """Return what the journal holds, or None if it is not of the run `run`."""
        bases = [base for base in (self._read_base(0), self._read_base(1)) if base is not None]
        base = max(bases, key=lambda found: int(found["turn"]), default=None)
        if base is None or base["run"] != run:
            return None
        self._run, self._turn, self._next = run, base["turn"], base["end"]
        senders, blocks = by_sender(base["last_sequence"]), dict(base["blocks"])
        contents = RingContents(base["rows_written"], base["oldest"], base["env_steps"], senders, blocks)
        return Found(contents, *self._read_records(contents), int(base["recoveries"]))

    def _read_base(self, half: int) -> dict[str, Any] | None:
        start = half * self._half
        checksum, length = _BASE.unpack_from(self._map, start)
        begin = start + _BASE.size
        text = self._map[begin : min(begin + length, start + self._half)]
        is_whole = length and zlib.crc32(text, length) == checksum
        return {**json.loads(text), "end": begin + length} if is_whole else None

    def _read_records(self, contents: RingContents) -> tuple[Insert | None, bool]:
        """Count the records into `contents`, all but the last insert; return that, and whether the end is torn."""
        last: Insert | None = None
        end = (self._turn % 2 + 1) * self._half
        while self._next + _SIZE <= end:
            record = self._map[self._next : self._next + _SIZE]
            if record == bytes(_SIZE):
                return last, False
            kind, *numbers = _RECORD.unpack(record[4:])
            if zlib.crc32(record[4:]).to_bytes(4, "little") != record[:4] or kind == _LEFT:
                follows = self._map[self._next + _SIZE : self._next + 2 * _SIZE]
                if kind == _LEFT or any(follows):
                    remedy = "which online rows are whole cannot be told: resume from a checkpoint"
                    raise CorruptSegment(f"{self.path}: unreadable from byte {self._next} on; {remedy}")
                return last, True
            if kind == BLOCK:
                contents.blocks[numbers[0]] = numbers[1]
            else:
                insert = Insert(*numbers)
                # Where the next insert begins tells whether the one before was finished or given up by an error.
                if last is not None and insert.first == last.first + last.rows:
                    contents.take(last)
                last = insert
            self._next += _SIZE
        return last, False

    def close(self) -> None:
        """Give up the file."""
        self._map.close()
