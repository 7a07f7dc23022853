"""`dipole` that is killed on the spot: `python -m tests.chaos.die_at TARGET CALL WORDS...`.

Runs `dipole WORDS` until TARGET, `module:function` or `module:Class.method`, is about to be called for the CALL-th
time. Then the process gets SIGKILL, so that a test can put a kill before any call that a run makes.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import signal
import sys
from typing import Any

from dipole_ray.cli import main


def arm(target: str, call: int) -> None:
    """Put the kill before the `call`-th call, from 1, of `target`."""
    module, _, path = target.partition(":")
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    original, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
