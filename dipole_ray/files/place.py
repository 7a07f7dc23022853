"""Paths as they are meant where they are given, and where a folder was written.

By the latter a copy of a folder is told from the folder itself, moved, or seen from another node: what a folder is
known by elsewhere, such as its run in MLflow, stays the original's.
"""

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dipole_ray.errors import ConfigError


def absolute(path: str | Path, start: str | Path = "") -> Path:
    """Return a path for good: a relative one begins at `start`, or the working directory of this process now.

    Threads, other processes and a later working directory would take it for another.
    """
    return Path(start).absolute() / Path(path).expanduser()


def make_folder(path: Path) -> None:
    """Make a folder that may be there already; ConfigError where a file is in its way, or it may not be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"{path}: no folder can be made there ({error.strerror}); give another place") from None


def place_of(folder: Path) -> dict[str, Any]:
    """Return what a folder notes of where it is."""
    return {"folder": str(folder.resolve()), "host": platform.node(), "inode": folder.stat().st_ino}


def original_of(folder: Path, noted: Mapping[str, Any], is_twin: Callable[[Path], bool]) -> str | None:
    """Return where the original of a copied folder is, or None for the folder itself.

    Args:
        folder: The folder as it is found.
        noted: What `place_of` gave when it was written last; earlier versions noted less, or nothing.
        is_twin: Whether the folder at a path is known by what this one is known by.
    """
    here, there, inode = place_of(folder), noted.get("folder"), noted.get("inode")
    if there is None or inode == here["inode"]:  # moved at most: also a node that shares the disk sees this number
        return None
    if there != here["folder"] and is_twin(Path(there)):
        return str(there)
    if inode is not None and noted.get("host") != here["host"]:
        return f"{there} on {noted.get('host')}"
    return None
