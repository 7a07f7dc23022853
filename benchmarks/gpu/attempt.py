"""What the measurements on a GPU share: parts that hide no other, and what each result says of its making.

They need no Ray, so they cannot take `benchmarks.record`.
"""

from __future__ import annotations

import platform
import subprocess
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

BEGIN, SECONDS = time.perf_counter(), 125
"""Parts that would start later than this after the beginning are left out."""


def attempt(what: str, part: Callable[..., Any], *arguments: Any, within_s: float = SECONDS) -> Any:
    """Return what a part found; of one that fails print the traceback, and return its last line."""
    start = time.perf_counter()
    if start - BEGIN > within_s:
        return {"failed": "no time was left"}
    try:
        found = part(*arguments)
    except Exception as error:  # a part that fails must not hide the others
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"}
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)
    return found


def provenance(command: str, *packages: str) -> dict[str, Any]:
    """Return when and on which card numbers are measured, with which torch and other packages, by which command."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none: small sizes on a CPU",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", *packages)},
            "cuda": torch.version.cuda,
        },
        "commit": commit or None,
    }
