"""Results know the data they were trained on, and new runs on other data do not join them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dipole_ray.bench.driver import run_suite
from dipole_ray.bench.job import DATA_FILE, Job, data_of, require_same_data
from dipole_ray.bench.report import collect as collect_results
from dipole_ray.bench.suite import Suite, from_mapping
from dipole_ray.collect import collect
from dipole_ray.errors import ConfigError
from dipole_ray.files.durable import write_json
from dipole_ray.runs.config import RunConfig
from dipole_ray.runs.prepare import find_dataset, prepare_dataset
from tests.bench.results import result
from tests.bench.small import suite_mapping
from tests.synthetic import ogbench_arrays, write_ogbench


def collected(folder: Path, seed: int) -> Path:
    return collect("Pendulum-v1", 300, seed, folder, num_workers=1, progress=False, overwrite=True)[0]


def suite_on(data: Path, folder: Path) -> Suite:
    return from_mapping(suite_mapping(data, base={"folder": str(folder)}))


def finish(job: Job, data: str | None) -> None:
    """Write what a finished run leaves."""
    job.folder.mkdir(parents=True)
    (job.folder / "run.yaml").write_text(yaml.safe_dump(job.config.located().to_mapping()))
    scores: Any = result(job.task, job.method, job.seed, {(1.0, 1): [0.5] * 5}, chosen=(1.0, 1))
    write_json(job.folder / "result.json", scores | ({"data": data} if data else {}))


def test_runs_on_data_that_was_made_again_do_not_join_results_of_the_old(tmp_path: Path) -> None:
    data = collected(tmp_path / "data", seed=0)
    suite = suite_on(data, tmp_path / "runs")
    jobs = suite.jobs()
    old = data_of(jobs[0].config)
    assert old is not None and old.startswith("300 transitions, ")
    for job in jobs:
        finish(job, old)
    assert run_suite(suite).finished == 4
    assert collected(tmp_path / "data", seed=1) == data
    new = data_of(jobs[0].config)
    with pytest.raises(ConfigError, match=f"dipole on pendulum, seed 0: {old}; what is there now: {new}.*move the old"):
        run_suite(suite)
    assert len(collect_results(suite, "mine")["runs"]) == 4, "what was measured can still be reported"
    for job in jobs:
        if job.seed == 1:
            (job.folder / "result.json").unlink()
    with pytest.raises(ConfigError, match="what is there now"):
        run_suite(suite, {"seed": ["1"]})  # a part joins the results of the others
    for job in jobs:
        if job.seed == 1:
            shutil.rmtree(job.folder)
            finish(job, old)
    collected(tmp_path / "data", seed=0)
    assert data_of(jobs[0].config) == old and run_suite(suite).finished == 4, "the same rows are the same data"


def test_a_report_mixes_no_data_and_results_that_do_not_name_theirs_pass(tmp_path: Path) -> None:
    suite = suite_on(tmp_path / "gone", tmp_path / "runs")
    for job, data in zip(suite.jobs(), ("300 transitions, a", None, None, "300 transitions, a"), strict=True):
        finish(job, data)
    assert run_suite(suite).finished == 4, "no data is there to compare with"
    assert len(collect_results(suite, "mine")["runs"]) == 4
    other = suite.jobs()[-1].folder / "result.json"
    other.write_text(other.read_text().replace("300 transitions, a", "300 transitions, b"))
    with pytest.raises(ConfigError, match="dipole on pendulum, seed 0: 300 transitions, a; ifql on pendulum, seed 1"):
        collect_results(suite, "mine")


def test_results_are_found_again_where_their_data_has_moved(tmp_path: Path) -> None:
    data = collected(tmp_path / "data", seed=0)
    suite = suite_on(data, tmp_path / "runs")
    for job in suite.jobs():
        finish(job, data_of(job.config))
    data.rename(tmp_path / "moved")
    moved = suite_on(tmp_path / "moved", tmp_path / "runs")
    assert [job.folder for job in moved.jobs()] == [job.folder for job in suite.jobs()]
    assert run_suite(moved).finished == 4 and len(collect_results(moved, "mine")["runs"]) == 4
    first, begun = moved.jobs()[0], moved.jobs()[0].folder
    (begun / "result.json").unlink()
    write_json(begun / DATA_FILE, {"data": data_of(first.config)})
    assert first.folder == begun and first.stored() is None, "a run that was cut off goes on"
    other = suite_on(collected(tmp_path / "other", seed=1), tmp_path / "runs")
    assert not any(job.folder.is_dir() for job in other.jobs()), "other data is other runs"


def test_data_that_is_converted_is_known_once_it_was(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    config = RunConfig.from_mapping(
        {
            "env": {"id": "pointmaze-medium-navigate-singletask-task1-v0"},
            "data": {"path": str(path), "cache": str(tmp_path / "cache")},
        }
    )
    assert data_of(config) is None
    found = []
    for seed in (0, 1, 0):
        write_ogbench(path, ogbench_arrays(np.random.default_rng(seed), [20] * 5, 2, 2))
        assert data_of(config) is None, "this file is not converted yet"
        assert prepare_dataset(config.data, config.env) == find_dataset(config.data, config.env)
        found.append(data_of(config))
    assert None not in found and found[0] == found[2] != found[1]
    trained = result("maze", "m", 0, {(None, 1): [0.4]}, chosen=(None, 1)) | {"data": found[1]}
    with pytest.raises(ConfigError, match="results of different data would be mixed"):
        require_same_data([(Job(task="maze", method="m", seed=0, config=config), trained)])
