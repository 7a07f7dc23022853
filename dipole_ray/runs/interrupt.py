"""Ctrl-C as a wish that the work at hand is finished first."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Turn the first Ctrl-C into an entry of the list, seen after the iteration at hand; a second one ends at once."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> Any:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
