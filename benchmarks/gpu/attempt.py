"""Parts of a measurement on a GPU: one that fails says so and hides no other, and none begins too late."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

BEGIN, SECONDS = time.perf_counter(), 125
"""Parts that would start later than this after the beginning are left out."""


def attempt(what: str, part: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a part found; of one that fails print the traceback, and return its last line."""
    start = time.perf_counter()
    if start - BEGIN > SECONDS:
        return {"failed": "no time was left"}
    try:
        found = part(*arguments)
    except Exception as error:  # a part that fails must not hide the others
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"}
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)
    return found
