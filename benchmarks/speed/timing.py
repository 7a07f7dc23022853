"""Ways of doing one thing, timed in turns within one process, so that a change of the machine's load meets all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def core_milliseconds(ways: dict[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Return milliseconds of a core that a call of each way takes: median, least and most over the rounds."""
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start, calls = time.process_time(), 0
            while (elapsed := time.process_time() - start) < seconds:
                way()
                calls += 1
            found[name].append(1e3 * elapsed / calls)
    return {name: spread(values) for name, values in found.items()}


def spread(values: list[float]) -> dict[str, Any]:
    """Return median, least, most and number."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
