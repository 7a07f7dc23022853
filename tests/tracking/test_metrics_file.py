"""Metrics are complete on the disk: every line is JSON, whole, and of one run."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dipole_ray.errors import ConfigError
from dipole_ray.tracking.metrics_file import MetricsFile, read_metrics
from dipole_ray.tracking.tracker import TrackingConfig
from tests.tracking.small import log_lines, start


def test_every_line_is_json_and_non_finite_values_are_null(tmp_path: Path) -> None:
    with start(tmp_path, TrackingConfig(mlflow=False)) as tracker:
        metrics = {"a": np.float32(0.5), "b": torch.tensor(2), "c": float("nan"), "d": float("-inf"), "e": None}
        metrics |= {"f": np.finfo(np.float32).max, "g": sys.float_info.max}
        tracker.log(metrics, env_steps=np.int64(3), learner_steps=4)  # type: ignore[arg-type]
    (line,) = read_metrics(tmp_path)
    del line["time"]
    assert line == {
        "env_steps": 3,
        "learner_steps": 4,
        "a": 0.5,
        "b": 2.0,
        "c": None,
        "d": None,
        "e": None,
        "f": None,
        "g": None,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_torn_last_line_is_cut_off_on_resume(tmp_path: Path) -> None:
    config = TrackingConfig(mlflow=False)
    with start(tmp_path, config) as tracker:
        log_lines(tracker, range(3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1, "critic/lo')
    assert len(read_metrics(tmp_path)) == 3
    with start(tmp_path, config, resume=True) as tracker:
        log_lines(tracker, range(3, 5))
    assert [line["learner_steps"] for line in read_metrics(tmp_path)] == list(range(5))


def test_a_full_disk_keeps_lines_back_until_there_is_space(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"learner_steps": step, "text": "x" * 80}).encode() + b"\n" for step in range(40)]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            file = MetricsFile(path)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1234, resource.RLIM_INFINITY))  # in the middle of a line
            for line in lines[:30]:
                file.append(line)
            full = path.read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            for line in lines[30:]:
                file.append(line)
            file.close()
            status = 0 if full == b"".join(lines)[: len(full)] and full.endswith(b"\n") else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_bytes() == b"".join(lines)


def test_a_new_run_never_writes_into_an_old_ones_metrics(tmp_path: Path) -> None:
    config = TrackingConfig(mlflow=False)
    start(tmp_path, config).close()
    with pytest.raises(ConfigError, match="exists already"):
        start(tmp_path, config)


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        start(tmp_path / "file" / "run", TrackingConfig(mlflow=False))
