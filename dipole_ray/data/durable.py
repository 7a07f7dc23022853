"""Files that are either complete on disk or not there: write, fsync, rename, fsync the folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any


def sync_file(path: Path) -> None:
    """Force the contents of `path` to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Force the names in `directory` to the disk, so that a rename survives a power cut."""
    sync_file(directory)


def commit_file(temporary: Path, final: Path) -> None:
    """Make a finished temporary file durable under its final name, replacing what stood there."""
    sync_file(temporary)
    temporary.replace(final)
    sync_directory(final.parent)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` to `path` atomically and durably; a disk that refuses leaves what was there before."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        commit_file(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path, max_bytes: int = 1 << 23) -> Any:
    """Return the JSON values of a file that nobody vouches for.

    Args:
        path: A regular file.
        max_bytes: Length beyond which it is not even read.

    Raises:
        ValueError: It is too long, not JSON, nested without end, or holds NaN or a number of thousands of digits.
        OSError: It cannot be read.
    """
    if not path.is_file():  # a pipe would block, a device never end
        raise FileNotFoundError(errno.ENOENT, "missing, or not a regular file", str(path))
    with path.open("rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"longer than {format_bytes(max_bytes)}")
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested without end") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def format_bytes(count: int) -> str:
    """Return a byte count for a person, such as `41.9 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
