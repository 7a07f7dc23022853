"""Named spans of this process's time, for `dipole train --profile`; nobody records them otherwise."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Record = Callable[[str, int, int], None]
"""Takes a span's name, and its start and end in nanoseconds since 1970."""

_records: list[Record] = []


@contextmanager
def span(name: str) -> Iterator[None]:
    """Give the block a name in traces, such as `update`."""
    start = time.time_ns()
    try:
        yield
    finally:
        if _records and threading.current_thread() is threading.main_thread():
            for record in _records:
                record(name, start, time.time_ns())


def spanned(name: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Give each call of a function a name in traces."""

    def around(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with span(name):
                return function(*args, **kwargs)

        return call

    return around


@contextmanager
def recorded_by(record: Record) -> Iterator[None]:
    """Have the spans of the block recorded."""
    _records.append(record)
    try:
        yield
    finally:
        _records.remove(record)
