"""How much memory the batches of an Arrow file take, from its own index, before Arrow decompresses any.

Every compressed buffer says its decompressed length in its first 8 bytes, and Arrow allocates that much. pyarrow has
no view of these numbers, so the few tables of the index that lead to them are read here (FlatBuffers; the layout is in
Arrow's File.fbs and Message.fbs). Positions come from the file and are trusted in nothing: one that leads out of the
file is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_MAGIC = b"ARROW1"
_MAX_INDEX_BYTES = 1 << 26
# Slots of the fields in their tables.
_FOOTER_DICTIONARIES, _FOOTER_BATCHES = 2, 3
_MESSAGE_HEADER_TYPE, _MESSAGE_HEADER, _MESSAGE_BODY_BYTES = 1, 2, 3
_IS_DICTIONARY = 2
_DICTIONARY_DATA = 1
_BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 3


def declared_bytes(file: Path) -> int:
    """Return the bytes that the batches of an Arrow file would take.

    Raises:
        ValueError: If the index leads out of the file.
        OSError: If the file cannot be read, or is too short to have an index.
    """
    try:
        with file.open("rb") as stream:
            end = stream.seek(-len(_MAGIC) - 4, 2)
            (length,) = struct.unpack("<i", stream.read(4))
            footer = _Table(_read(stream, end - length, length), 0)
            # A block is the position and length of the metadata of a batch, and the length of its body.
            blocks = [*footer.structs(_FOOTER_DICTIONARIES, "<qi12x"), *footer.structs(_FOOTER_BATCHES, "<qi12x")]
            return sum(_batch_bytes(stream, *block) for block in blocks)
    except struct.error as error:
        raise ValueError(f"its index leads out of the file: {error}") from error


def _batch_bytes(stream: IO[bytes], start: int, metadata_bytes: int) -> int:
    """Return the bytes of one batch's buffers once they are decompressed."""
    metadata = _read(stream, start, metadata_bytes)
    # A length of 4 bytes comes first, and since Arrow 0.15 a marker of 4 before it.
    message = _Table(metadata[8 if metadata[:4] == b"\xff\xff\xff\xff" else 4 :], 0)
    held = message.number(_MESSAGE_BODY_BYTES, "<q")
    if not 0 <= held <= stream.seek(0, 2) - start - metadata_bytes:
        raise ValueError(f"a batch of {held} bytes leads out of the file")
    batch = message.child(_MESSAGE_HEADER)
    if message.number(_MESSAGE_HEADER_TYPE, "<B") == _IS_DICTIONARY:
        batch = batch.child(_DICTIONARY_DATA)
    total = 0
    for offset, length in list(batch.structs(_BATCH_BUFFERS, "<qq")):
        size = length
        if length and batch.place(_BATCH_COMPRESSION) is not None:
            (size,) = struct.unpack("<q", _read(stream, start + metadata_bytes + offset, 8))
            size = length if size == -1 else size  # -1: this one was left as it is
        if length < 0 or size < 0:
            raise ValueError("a buffer of its batches has a negative length")
        total += size
    return total


class _Table:
    """One FlatBuffers table: a position in a buffer, and a list of where its fields are."""

    def __init__(self, data: bytes, place: int) -> None:
        """Find the table to which the offset at `place` leads."""
        self._data = data
        self._position = self._target(place)
        self._fields = self._position - self._unpack("<i", self._position)[0]

    def place(self, slot: int) -> int | None:
        """Return where a field is, None where it is left out."""
        (size,) = self._unpack("<H", self._fields)
        entry = 4 + 2 * slot
        offset = self._unpack("<H", self._fields + entry)[0] if entry < size else 0
        return self._position + offset if offset else None

    def number(self, slot: int, layout: str) -> int:
        """Return a field that is one number, 0 where it is left out."""
        place = self.place(slot)
        return 0 if place is None else int(self._unpack(layout, place)[0])

    def child(self, slot: int) -> _Table:
        """Return the table that a field points to."""
        place = self.place(slot)
        if place is None:
            raise ValueError("its index lacks a batch")
        return _Table(self._data, place)

    def structs(self, slot: int, layout: str) -> Iterator[tuple[Any, ...]]:
        """Yield the elements of a field that is a list."""
        place = self.place(slot)
        if place is not None:
            start = self._target(place)
            for index in range(self._unpack("<I", start)[0]):
                yield self._unpack(layout, start + 4 + struct.calcsize(layout) * index)

    def _target(self, place: int) -> int:
        return place + int(self._unpack("<I", place)[0])

    def _unpack(self, layout: str, position: int) -> tuple[Any, ...]:
        if position < 0:  # which struct would count from the end
            raise ValueError("its index leads out of the file")
        return struct.unpack_from(layout, self._data, position)


def _read(stream: IO[bytes], position: int, length: int) -> bytes:
    """Return exactly `length` bytes at `position`, or raise ValueError."""
    data = b""
    if position >= 0 and 0 < length <= _MAX_INDEX_BYTES:
        stream.seek(position)
        data = stream.read(length)
    if not data or len(data) != length:
        raise ValueError("its index leads out of the file")
    return data
