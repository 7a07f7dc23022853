"""What collections have in common: a request with limits, its record beside the data, and one writer at a time."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.files.durable import read_json
from dipole_ray.files.lock import LOCK, FolderLock


def check_numbers(what: str, **numbers: int | None) -> None:
    """Refuse a seed below 0 and any other number below 1; None stands for a number that is not given."""
    for name, number in numbers.items():
        least = 0 if name == "seed" else 1
        if number is not None and number < least:
            raise ConfigError(f"cannot collect {what}: {name} is {number}; it must be at least {least}")


@contextmanager
def writing(path: Path, what: str, parts: str) -> Iterator[None]:
    """Hold the lock of `path` for the block, waiting for another process; say on a failing disk what is kept."""
    try:
        with FolderLock(path.parent, math.inf, f".{path.name}{LOCK}"):
            yield
    except OSError as error:
        remedy = "free space there, or choose another place with --out, in a run with data.cache=PATH"
        kept = f"Finished {parts} are kept, and the same call goes on from them"
        raise DatasetError(f"cannot collect {what}: {error.strerror or error}; {remedy}. {kept}") from error


def read_record(path: Path) -> dict[str, Any]:
    """Return what is written down of some data; nothing where there is no record, or none of ours."""
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def request_in_words(record: dict[str, Any]) -> str:
    """Say what request made the data of `record`."""
    request = record.get("request")
    if not isinstance(request, dict):
        return "there is no record of them"
    return ", ".join(f"{key} {value}" for key, value in request.items() if key != "name")
