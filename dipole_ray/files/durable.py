"""Files that are either complete on disk or not there: write, fsync, rename, fsync the folder."""

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Force the contents of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_file(temporary: Path, final: Path) -> None:
    """Make a finished temporary file durable under its final name, replacing what stood there."""
    sync(temporary)
    temporary.replace(final)
    sync(final.parent)  # or the new name may be lost in a power cut


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file, which becomes `path` when the block ends, replacing what stood there.

    If the block or the disk fails, the temporary file is removed and `path` stays as it was. An error of the disk names
    `path`: that of a full one, which comes with the bytes, names no file.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        commit_file(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> Path:
    """Write a text in UTF-8, whole or not at all, and return the path.

    What is no regular file, such as `/dev/stdout`, takes the text itself and is not replaced.
    """
    with replacing(path) if path.is_file() or not path.exists() else contextlib.nullcontext(path) as place:
        place.write_text(text, encoding="utf-8")
    return path


def json_text(value: Any) -> str:
    """Return the text of a JSON file; NaN and infinity, for which JSON has no number, are null."""
    return json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON values, see `json_text`, whole or not at all."""
    write_text(path, json_text(value))


def read_json(path: Path, max_bytes: int = 1 << 23, version: int | None = None) -> Any:
    """Return the JSON values of a regular file that nobody vouches for; one beyond `max_bytes` is not even read.

    An object must have `version`, where one is given, as its `format`; KeyError or TypeError where there is none.

    Raises:
        ValueError: It is too long, not JSON, nested without end, of another version, or holds NaN or a number of
            thousands of digits.
        OSError: It cannot be read.
    """
    if not path.is_file():  # a pipe would block, a device never end
        raise FileNotFoundError(errno.ENOENT, "missing, or not a regular file", str(path))
    with path.open("rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"longer than {format_bytes(max_bytes)}")
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested without end") from None
    if version is not None and value["format"] != version:
        raise ValueError(f"format {value['format']}, this version reads {version}")
    return value


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
