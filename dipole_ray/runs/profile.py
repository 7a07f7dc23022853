"""A trace of a run: the phases of the training process, and torch's operations in it, for Perfetto.

The file has Chrome's trace format, which ui.perfetto.dev opens. `collect` and `evaluate` wait for workers where there
are such; `sample`, `update` and `publish` hand batches to a learner in an actor, or are its work where it is in this
process: then torch's operations of the first seconds stand below them.
"""

import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipole_ray.errors import ConfigError
from dipole_ray.files.durable import write_text
from dipole_ray.spans import recorded_by

TORCH_S = 10.0
"""Seconds from the first update on in which torch's operations are kept: a second has a hundred thousand."""
_log = logging.getLogger(__name__)
_CLOCK = "dipole clock"
_COMPARISONS = 16


@contextlib.contextmanager
def profiled(path: Path | None) -> Iterator[None]:
    """Write the trace of the block to `path`, also where the block fails; None: nothing is traced.

    A disk that refuses the trace is said, and takes nothing from what the block has done.
    """
    if path is None:
        yield
        return
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--profile {path}: the folder does not exist; make it first")
    trace = _Trace()
    try:
        with recorded_by(trace.record):
            yield
    finally:
        try:
            write_text(path, json.dumps(trace.finished()))
        except OSError as error:
            _log.error("--profile %s: the trace cannot be written (%s) and is lost", path, error.strerror or error)


class _Trace:
    """Spans as events of Chrome's format, times in microseconds."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._profiler: Any = None
        self._stops = 0
        self._readings: list[tuple[int, int]] = []
        self._of_torch: dict[str, Any] = {}

    def record(self, name: str, start_ns: int, end_ns: int) -> None:
        """Take a span, see `spans.Record`."""
        event = {"ph": "X", "cat": "dipole", "name": name, "ts": start_ns / 1e3, "dur": (end_ns - start_ns) / 1e3}
        self._events.append(event | {"pid": os.getpid(), "tid": os.getpid()})
        if name == "sample" and self._profiler is None:  # the first update follows
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self._profiler.start()
            self._stops = end_ns + int(TORCH_S * 1e9)
            self._compare_clocks()
        elif self._stops and end_ns > self._stops:
            self._stop()

    def _compare_clocks(self) -> None:
        """Let torch record moments which our clock encloses; several, as a process may pause in any."""
        for _ in range(_COMPARISONS):
            before = time.time_ns()
            with torch.profiler.record_function(_CLOCK):
                self._readings.append((before, time.time_ns()))

    def _stop(self) -> None:
        """Read what torch recorded."""
        self._stops = 0
        self._compare_clocks()
        self._profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "torch.json"
            self._profiler.export_chrome_trace(str(file))
            self._of_torch = json.loads(file.read_text(encoding="utf-8"))

    def finished(self) -> dict[str, Any]:
        """Return the whole trace, on torch's clock where torch recorded anything."""
        if self._stops:
            self._stop()
        of_torch = self._of_torch.pop("traceEvents", [])
        own = [event | {"ts": ts} for event, ts in zip(self._events, self._on_torchs_clock(of_torch), strict=True)]
        return {**self._of_torch, "traceEvents": of_torch + own}

    def _on_torchs_clock(self, of_torch: list[dict[str, Any]]) -> list[float]:
        """Return when the spans began, in microseconds, by the tightest comparison at torch's start and at its end."""
        begins = [event["ts"] for event in self._events]
        moments = sorted(event["ts"] for event in of_torch if event.get("name") == _CLOCK and event.get("ph") == "X")
        if len(moments) != len(self._readings) or not moments:
            return begins
        widths = [after - before for before, after in self._readings]
        first, last = (min(half, key=widths.__getitem__) for half in np.array_split(range(len(widths)), 2))
        ours = [sum(self._readings[index]) / 2e3 for index in (first, last)]
        rate = (moments[last] - moments[first]) / (ours[1] - ours[0])
        return [moments[first] + rate * (begin - ours[0]) for begin in begins]
