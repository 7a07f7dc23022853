"""Compiles functions of plain loops for the machine at hand, by numba, and keeps the result in the user's cache."""

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numba

from dipole_ray.errors import DipoleError
from dipole_ray.files.lock import FolderLock

OPTIONS: dict[str, Any] = {
    # Python's looks at each divisor, and no loop with a division is vectorized.
    "error_model": "numpy",
    # All freedoms but those that assume finite numbers: an update is judged by its gradient's norm.
    "fastmath": {"reassoc", "contract", "arcp", "nsz", "afn"},
    # A function called by others would else stand in the cached code of each, optimised for that one, and all would run
    # the first that a process loads: other last bits in a process that compiles than in one that finds the cache.
    "forceinline": True,
}

_log = logging.getLogger(__name__)
_WAIT_S = 120.0

_SOURCES = ("compiling", "halves", "kernels", "loops", "networks", "passes", "products", "tiles")


def _cache_directory() -> str:
    """Return the place of what these very files compile to.

    numba itself notices a change in the file of a function, but not in those of the functions that it calls.
    """
    sources = [Path(__file__).with_name(f"{name}.py") for name in _SOURCES]
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    own = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dipole_ray", "compiled")
    return str(Path(os.environ.get("NUMBA_CACHE_DIR") or own, version).expanduser())


_CACHE_DIRECTORY = _cache_directory()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, which is compiled at its first call and runs without the interpreter's lock."""
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _CACHE_DIRECTORY
    try:
        made: Callable[..., Any] = numba.njit(nogil=True, cache=True, **OPTIONS)(function)
    except RuntimeError:  # no place that can be written to
        made = numba.njit(nogil=True, **OPTIONS)(function)
    finally:
        numba.config.CACHE_DIR = before
    return made


def compiling_once() -> AbstractContextManager[object]:
    """Let one process of a machine compile, and others wait and load what it made, as trials start side by side."""
    try:
        return FolderLock(Path(_CACHE_DIRECTORY), _WAIT_S, say=_log.debug)
    except (DipoleError, OSError):  # no place for a lock, or one that compiles for too long: each for itself
        return nullcontext()
