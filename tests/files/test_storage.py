"""A disk that refuses a write pauses a run instead of ending it, says so, and never for ever."""

from __future__ import annotations

import errno
import logging
import math
import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.files import storage
from dipole_ray.files.checkpoint import CheckpointConfig, newest_valid, write_checkpoint
from dipole_ray.files.durable import read_json, write_json
from dipole_ray.files.storage import checkpoint_bytes, persist, require_room
from dipole_ray.tracking.metrics_file import MetricsFile
from tests.files.test_checkpoint import in_child


class Clock:
    """A clock that only sleeping moves, in the place of the module `time`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(storage, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Disk:
    """Refuses the first writes with an error of the operating system, and notes when each was tried."""

    def __init__(self, clock: Clock, refusals: int, code: int = errno.ENOSPC) -> None:
        self.clock, self.refusals, self.code = clock, refusals, code
        self.tried: list[float] = []

    def write(self) -> None:
        self.tried.append(round(self.clock.monotonic(), 3))
        if len(self.tried) <= self.refusals:
            raise OSError(self.code, os.strerror(self.code), "/data/run/file")


def outlast(disk: Disk, *, minutes: float = 60.0) -> None:
    persist(disk.write, retry_minutes=minutes, interrupted=())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_tried_again_after_1_2_4_to_60_seconds_with_one_error(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk(clock, refusals=9)
    outlast(disk)
    assert disk.tried == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    for said in ("/data/run/file", "No space left on device", "free space", "60 minutes", "Ctrl-C"):
        assert said in errors[0]
    assert "goes on after 243 s" in caplog.messages[-1]


def test_after_the_minutes_the_run_ends_with_the_error(clock: Clock) -> None:
    disk = Disk(clock, refusals=10**6)
    with pytest.raises(CheckpointError, match=r"No space left.*--resume"):
        outlast(disk, minutes=5)
    assert disk.tried[-1] == 300, "the last try comes at the very end"
    at_once = Disk(clock, refusals=1)
    with pytest.raises(CheckpointError, match="No space left"):
        outlast(at_once, minutes=0)
    assert at_once.tried == [300]


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EDQUOT, errno.ESTALE])
def test_every_refusal_that_may_pass_is_waited_out(code: int, clock: Clock) -> None:
    disk = Disk(clock, refusals=3, code=code)
    outlast(disk)
    assert disk.tried == [0, 1, 3, 7]


def test_what_waiting_cannot_mend_is_raised_at_once(clock: Clock) -> None:
    disk = Disk(clock, refusals=1, code=errno.ENOTDIR)
    with pytest.raises(NotADirectoryError):
        outlast(disk)
    assert disk.tried == [0]

    def refuse() -> None:
        raise CheckpointError("metadata is no JSON")

    with pytest.raises(CheckpointError, match="no JSON"):
        persist(refuse, retry_minutes=60, interrupted=())


def test_ctrl_c_ends_the_pause_but_one_that_came_before_it_does_not(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, seen = Disk(clock, refusals=10**6), [signal.SIGINT]

    def press_in_the_pause(seconds: float) -> None:
        clock.now += seconds
        if clock.now > 20:
            seen.append(signal.SIGINT)

    monkeypatch.setattr(clock, "sleep", press_in_the_pause)
    with pytest.raises(KeyboardInterrupt):
        persist(disk.write, retry_minutes=60, interrupted=seen)
    assert 20 < clock.now < 21


def test_no_wait_is_silent_not_even_a_write_that_hangs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SILENCE_S", 0.2)
    persist(lambda: time.sleep(0.9), retry_minutes=0, interrupted=())
    assert 2 <= len(caplog.messages) <= 4 and all("has not come back" in said for said in caplog.messages)
    caplog.clear()
    refusals = iter([OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])

    def write() -> None:
        for refusal in refusals:
            raise refusal

    persist(write, retry_minutes=1, interrupted=())  # waits one real second
    assert sum("No space left on device), for" in said for said in caplog.messages) >= 2
    assert not any(thread.name == "storage" for thread in threading.enumerate())


def test_checkpoints_are_written_through_one_percent_of_io_errors(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO from every hundredth flush to the disk: all checkpoints are there in the end, each of them whole."""
    calls, flush = 0, os.fsync

    def flaky(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls % 100 == 50:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", flaky)
    attempts = 0
    for steps in range(1, 101):

        def write(steps: int = steps) -> Path:
            nonlocal attempts
            attempts += 1
            return write_checkpoint(tmp_path, steps, {"agent": {"weight": torch.full((4,), steps)}}, {})

        assert newest_valid(tmp_path) == (None if steps == 1 else tmp_path / f"{steps - 1:09d}")
        persist(write, retry_minutes=60, interrupted=())
    assert newest_valid(tmp_path) == tmp_path / f"{100:09d}"
    assert attempts == 100 + calls // 100 + (calls % 100 >= 50) and attempts > 103
    assert len(list(tmp_path.iterdir())) == 100, "nothing half is left"


def test_a_run_whose_checkpoints_do_not_fit_is_refused_with_both_figures(tmp_path: Path) -> None:
    size = checkpoint_bytes({"agent": {"weight": torch.zeros(250, 1000)}}, {"note": "x"})
    written = write_checkpoint(tmp_path, 1, {"agent": {"weight": torch.zeros(250, 1000)}}, {"note": "x"})
    assert size == pytest.approx(sum(file.stat().st_size for file in written.iterdir()), rel=0.01)
    require_room(tmp_path, size, 3)
    with pytest.raises(CheckpointError, match=r"\(3000000000000000000 bytes\) for 3 checkpoints .*\(\d+ bytes\) free"):
        require_room(tmp_path, 10**18, 3)


def test_a_checkpoint_counts_the_metrics_that_a_full_disk_keeps_back(tmp_path: Path) -> None:
    """They are before it, so a resume must not cut them off once they could be written."""
    lines = [b'{"step": %d}\n' % step for step in range(30)]

    def fill_and_go_on() -> None:
        file = MetricsFile(tmp_path / "metrics.jsonl")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        for line in lines[:20]:
            file.append(line)
        saved = file.sync()
        assert (tmp_path / "metrics.jsonl").stat().st_size <= 100 < saved == sum(map(len, lines[:20]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert file.sync() == saved == (tmp_path / "metrics.jsonl").stat().st_size
        for line in lines[20:]:
            file.append(line)
        file.close()
        MetricsFile(tmp_path / "metrics.jsonl", keep_bytes=saved).close()

    assert in_child(fill_and_go_on) == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines[:20])


@pytest.mark.parametrize("minutes", [-1.0, float("inf"), float("nan")])
def test_an_impossible_wait_is_refused(minutes: float) -> None:
    with pytest.raises(ConfigError, match="retry_minutes"):
        CheckpointConfig(retry_minutes=minutes)


def test_json_files_hold_null_where_json_has_no_number(tmp_path: Path) -> None:
    """Others read them too, and ours refuses NaN."""
    write_json(tmp_path / "file.json", {"a": math.nan, "b": [math.inf, {"c": np.float64("-inf")}], "d": 1.5})
    assert read_json(tmp_path / "file.json") == {"a": None, "b": [None, {"c": None}], "d": 1.5}
