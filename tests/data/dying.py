"""A child process that is killed between two lines of the replay's code, at a place given by a number."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from dipole_ray.data import segment
from dipole_ray.files import durable
from dipole_ray.replay import ring

FOLDERS = tuple(str(Path(module.__file__).parent) for module in (segment, ring, durable))


def die_at(work: Callable[[Callable[[], None]], None], line: int) -> tuple[int, bool]:
    """Fork, run `work` in the child and kill it before the line numbered `line` of those it executes in data and files.

    Args:
        work: Gets a function that it calls after each step that it has seen acknowledged.
        line: Count of executed lines, from 0; beyond the end nothing is killed.

    Returns:
        Steps acknowledged, and whether the child was killed before it was through.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(60)  # rather than to hang on a lock that another thread held at the fork
            _kill_before(line)
            work(lambda: os.write(writing, b"x") and None)
            sys.settrace(None)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        acknowledged = len(stream.read())
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or os.WEXITSTATUS(status) == 0, "the child ended with an exception"
    return acknowledged, killed


def _kill_before(line: int) -> None:
    left = line

    def trace_line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return trace_line

    def trace_call(frame: FrameType, event: str, argument: Any) -> Any:
        return trace_line if frame.f_code.co_filename.startswith(FOLDERS) else None

    sys.settrace(trace_call)
