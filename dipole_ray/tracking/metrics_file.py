"""The file `metrics.jsonl`: written line by line while a run trains, read by pictures, benchmarks and sweeps.

A line holds `time` (seconds since 1970), `env_steps`, `learner_steps` and the metrics by name; NaN and infinity are
null. A checkpoint remembers the file's length (`sync`), and a resume cuts the file back to it, so that the lines of
updates that were lost with a killed process are not counted twice.
"""

import json
import logging
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from dipole_ray.errors import DatasetError

METRICS_FILE = "metrics.jsonl"

_log = logging.getLogger(__name__)


class MetricsFile:
    """An append-only file of whole lines, which survives a full disk by keeping lines back until there is space."""

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        """Open the file, made if missing, and cut it back to its whole lines, or to those in its first `keep_bytes`.

        Raises:
            OSError: It cannot be opened for writing.
        """
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._kept_back: deque[bytes] = deque()
        content = path.read_bytes()
        if keep_bytes is not None and keep_bytes > len(content):
            _log.warning("%s is shorter than at the checkpoint (%d < %d bytes)", path, len(content), keep_bytes)
        self.size = content.rfind(b"\n", 0, keep_bytes) + 1  # bytes of whole lines
        os.ftruncate(self._descriptor, self.size)

    def append(self, line: bytes) -> None:
        """Write one line and those kept back before it; on an error of the disk keep them back, with one warning."""
        self._kept_back.append(line)
        was_failing = len(self._kept_back) > 1
        try:
            while self._kept_back:
                rest = memoryview(self._kept_back[0])
                while rest:  # a disk that fills up takes a part of the line
                    rest = rest[os.write(self._descriptor, rest) :]
                self.size += len(self._kept_back.popleft())
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            if not was_failing:
                _log.warning("%s: %s; metrics are kept in memory until it can be written", self._path, error.strerror)

    def sync(self) -> int:
        """Wait until the disk has all lines, and return the length of the file in bytes.

        Lines that a full disk keeps back are counted in: they come first once there is space, so that a resume that
        cuts the file to this length loses none of them.
        """
        if self._kept_back:
            self.append(self._kept_back.pop())  # try again: appending the last one writes all
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            _log.warning("%s: %s; the last metrics may not survive a power loss", self._path, error.strerror)
        return self.size + sum(map(len, self._kept_back))

    def close(self) -> None:
        """Write what was kept back if there is space now, and close; closing twice does nothing."""
        if self._descriptor < 0:
            return
        self.sync()
        if self._kept_back:
            _log.warning("%s: the last %d lines could not be written", self._path, len(self._kept_back))
        os.close(self._descriptor)
        self._descriptor = -1


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics, none where the run has not begun to write them; raises as `read_lines`."""
    path = run_dir / METRICS_FILE
    return read_lines(path) if path.is_file() else []


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; a torn last line, as in a run that is being written, is left out.

    Raises:
        DatasetError: The file is missing, or another line is not a JSON object with `learner_steps`.
    """
    try:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: no metrics to draw ({error}); name a run folder that has trained") from error
    lines = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            entry = json.loads(line)
            float(entry["learner_steps"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DatasetError(f"{path}, line {number}: not a line of metrics ({error!r})") from error
        lines.append(entry)
    return lines
