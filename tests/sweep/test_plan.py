"""A sweep's file: what it may say, what is refused with which remedy, and which folder it leads to."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from dipole_ray.collect import collect
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.cells import cells_of
from dipole_ray.runs.config import load, presets
from dipole_ray.runs.prepare import content_of
from dipole_ray.settings import merge
from dipole_ray.sweep.plan import Plan, from_mapping, load_plan
from dipole_ray.sweep.records import TRIAL_FILE, SweepRecords
from tests.sweep.small import PBT, POPULATION, SPACE, sweep_mapping, write_sweep

DATA, FOLDER = Path("/data"), Path("/runs")


def plan(space: dict[str, Any] = SPACE, **parts: Any) -> Plan:
    return from_mapping(sweep_mapping(DATA, FOLDER, space=space, **parts))


def test_presets_of_runs_and_of_sweeps_are_told_apart() -> None:
    assert {"smoke", "beta_expectile", "omega_free", "pbt"} <= set(presets(sweeps=True))
    assert "quickstart" in presets() and not set(presets()) & set(presets(sweeps=True))
    with pytest.raises(ConfigError, match="'smoke' is a sweep, no single run: start it with 'dipole sweep smoke'"):
        load("smoke")
    with pytest.raises(ConfigError, match="'quickstart' is a run, no sweep: start it with 'dipole train quickstart'"):
        load_plan("quickstart")
    with pytest.raises(ConfigError, match="no preset or file 'smok': the presets are beta_expectile"):
        load_plan("smok")


@pytest.mark.parametrize("name", sorted(presets(sweeps=True)))
def test_every_preset_is_a_whole_plan(name: str) -> None:
    found = load_plan(name)
    assert found.sweep.name == name, "the file names the sweep"
    for values in found.trials():
        config = found.trial_config(values, "trial-000", FOLDER)
        grid = found.sweep.evaluation
        assert len(cells_of(config.evaluation, config.agent)) == len(grid.omegas) * len(grid.candidates)


def test_smoke_has_two_trials() -> None:
    assert load_plan("smoke").num_trials == 2


def test_overrides_reach_run_sweep_and_space(tmp_path: Path) -> None:
    path = write_sweep(tmp_path / "my.yaml", sweep_mapping(DATA, FOLDER))
    words = ["sweep.rungs=3", "agent.shift=1.5", "run.seed=4", "space.agent.expectile={grid: [0.7, 0.8]}"]
    found = load_plan(path, words)
    assert found.sweep.rungs == 3 and found.num_trials == 4
    config = found.run_config(found.trials()[1])
    assert (config.agent.shift, config.seed, config.agent.beta, config.agent.expectile) == (1.5, 4, 1.0, 0.8)


def test_base_run_may_be_a_preset_with_keys_on_top(tmp_path: Path) -> None:
    mapping = {"sweep": {}, "space": SPACE, "run": {"from": "quickstart", "training": {"offline_learner_steps": 77}}}
    found = load_plan(write_sweep(tmp_path / "my.yaml", mapping))
    config = found.run_config({})
    assert (config.env.id, config.training.offline_learner_steps) == (load("quickstart").env.id, 77)
    assert config.agent.n_step == load("quickstart").agent.n_step


def test_a_preset_of_the_agent_can_vary() -> None:
    found = from_mapping({**sweep_mapping(DATA, FOLDER), "space": {"agent.preset": {"grid": ["small", "paper"]}}})
    base = {**found.to_mapping()["run"], "agent": {"batch_size": 16}}
    widths = [
        len(Plan(sweep=found.sweep, space=found.space, run=base).run_config(v).agent.hidden_dims)
        for v in found.trials()
    ]
    assert widths == [2, 3]


def test_values_become_what_the_setting_takes() -> None:
    found = plan({"agent.learning_rate": {"grid": ["1e-3", "1e-4"]}, "agent.n_step": {"grid": [1, 2.0]}})
    assert found.space["agent.learning_rate"].values == (1e-3, 1e-4)
    assert [type(value) for value in found.space["agent.n_step"].values] == [int, int]


@pytest.mark.parametrize(
    ("space", "parts", "said"),
    [
        ({}, {}, "space is empty"),
        ({"agent.betta": {"grid": [1]}}, {}, r"unknown setting 'agent\.betta'; the nearest valid one is 'agent\.beta'"),
        ({"agent.beta": {"grid": [1, -1]}}, {}, r"space: agent\.beta: found -1"),
        ({"agent.beta": {"grid": ["steep"]}}, {}, r"space: agent\.beta is 'steep': a number is needed"),
        ({"agent.batch_size": {"uniform": [16, 64]}}, {"sweep": {"search": "random"}}, r"whole number.*choice"),
        ({"agent.beta": {"uniform": [1, 2]}}, {}, "set it to random or optuna"),
        (SPACE, {"sweep": {"search": "optuna"}}, r"write \{choice: \[\.\.\.\]\}"),
        (SPACE, {"sweep": PBT}, r"write \{choice: \[\.\.\.\]\}"),
        ({**POPULATION, "agent.hidden_dims": {"choice": [[8], [16]]}}, {"sweep": PBT}, "hidden_dims cannot change"),
        ({**POPULATION, "seed": {"choice": [0, 1]}}, {"sweep": PBT}, "seed cannot change while a trial goes on"),
        ({"evaluation.episodes": {"grid": [1]}}, {}, r"trials are scored by sweep\.evaluation"),
        ({"tracking.mlflow": {"grid": [True]}}, {}, "cannot differ between trials"),
        (SPACE, {"sweep": {"rung": 3}}, r"unknown setting 'sweep\.rung'; the nearest valid one is 'sweep\.rungs'"),
        (SPACE, {"sweep": {"evaluation": {"report_seed": 1000}}}, "give two different seeds"),
        (SPACE, {"sweep": {"num_samples": 3}}, r"seed: \{grid: \[0, 1\]\}"),
        (SPACE, {"sweep": {"scheduler": "asha", "asha": {"grace_rungs": 2}}}, "nothing is ever stopped"),
        (SPACE, {"sweep": {"rungs": 41}}, "more than the run's 40 steps"),
        (SPACE, {"sweep": {"resources": {"trial_cpus": 0}}}, "cores must be above 0"),
        (SPACE, {"run": {"agent": {"betta": 1}}}, r"'agent\.beta'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(space: Any, parts: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(space, **parts)


def test_an_unknown_section_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown section 'agent' of a sweep: sweep, space, run are known"):
        from_mapping({**sweep_mapping(DATA, FOLDER), "agent": {"beta": 1}})


@pytest.mark.parametrize(
    ("key", "values", "remedy"),
    [
        ("agent.omega", [0, 1], r"sweep\.evaluation\.omegas"),
        ("agent.num_candidates", [1, 16], r"sweep\.evaluation\.candidates"),
        ("agent.denoise_steps", [5, 10], r"agent\.denoise_steps=N"),
    ],
)
def test_what_costs_no_training_makes_no_trials(key: str, values: list[int], remedy: str) -> None:
    with pytest.raises(ConfigError, match=rf"train the same networks: .*{remedy}"):
        plan({key: {"grid": values}})


def test_omega_may_vary_where_rollouts_act_with_it(caplog: pytest.LogCaptureFixture) -> None:
    online = {"run": {"training": {"online_env_steps": 60}}}
    with caplog.at_level(logging.WARNING):
        assert plan({"agent.omega": {"grid": [0, 1]}}, **online).num_trials == 2
    assert "changes only the rollouts of the online phase" in caplog.text and "sweep.evaluation.omegas" in caplog.text


def test_the_folder_follows_from_what_shapes_the_result() -> None:
    def folder(**parts: Any) -> Path:
        return plan(**parts).folder

    assert folder().parent == FOLDER and folder().name.startswith("small-")
    assert folder() == folder(sweep={"resources": {"max_concurrent": 1}}), "where it runs"
    assert folder() == folder(run={"tracking": {"mlflow": False, "experiment": "other"}}), "where it is written down"
    others = [
        folder(sweep={"rungs": 4}),
        folder(sweep={"evaluation": {"report_episodes": 4}}),
        folder(space={"agent.beta": {"grid": [1.0, 6.0]}}),
        folder(run={"seed": 1}),
    ]
    assert len({folder(), *others}) == 5


def test_a_sweep_goes_on_where_its_data_lies_elsewhere_now(tmp_path: Path, pendulum: Path) -> None:
    """The folder is named after the data's content, and trials find their data at its new place."""
    other = collect("Pendulum-v1", 1000, 1, tmp_path / "other", progress=False)[0]
    moved = Path(shutil.copytree(pendulum, tmp_path / "moved"))
    assert from_mapping(sweep_mapping(pendulum, tmp_path)).folder == from_mapping(sweep_mapping(moved, tmp_path)).folder
    assert from_mapping(sweep_mapping(pendulum, tmp_path)).folder != from_mapping(sweep_mapping(other, tmp_path)).folder

    def varied(first: Path) -> Plan:
        return from_mapping(sweep_mapping(DATA, tmp_path, space={"data.path": {"grid": [str(first), str(other)]}}))

    before, now = varied(pendulum), varied(moved)
    assert before.folder == now.folder
    records = SweepRecords.open(before.folder, before.to_mapping())
    for values in before.trials():
        records.add(values)
        folder = records.trial_folder(f"trial-{len(records.trials) - 1:03d}")
        folder.mkdir(parents=True)
        notes = {"values": values, "rung": 1, "run_id": None, "checkpoint": None, "results": [], "finished": False}
        (folder / TRIAL_FILE).write_text(json.dumps(notes))
    records.save()
    for _ in range(2):  # also where the new plan stands in the file already
        again = SweepRecords.open(now.folder, now.to_mapping())
        assert [record.values for record in again.trials.values()] == now.trials()
        again.save()


def test_raw_files_are_told_by_their_content(tmp_path: Path) -> None:
    """Files of one name and size, as collectors of other seeds write them."""
    for name in ("here", "there", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.npz").write_bytes(b"PK" + bytes([name == "other"]) * 300_000)
    here, there, other = (content_of(str(tmp_path / name / "data.npz")) for name in ("here", "there", "other"))
    assert here == there != other


def test_a_sweep_named_by_an_earlier_version_keeps_its_folder(tmp_path: Path, pendulum: Path) -> None:
    found = from_mapping(sweep_mapping(pendulum, tmp_path))
    earlier = tmp_path / f"small-{found.digest(content=False)}"
    assert found.folder != earlier
    earlier.mkdir()
    assert found.folder == earlier


def test_a_plan_comes_back_from_its_file() -> None:
    found = plan()
    again = from_mapping(yaml.safe_load(yaml.safe_dump(found.to_mapping())))
    assert again.digest() == found.digest() and again.trials() == found.trials()


def test_trials_evaluate_on_the_grid_and_leave_cores_to_each_other() -> None:
    found = plan(run={"learner": {"num_threads": None}, "training": {"learner_steps_per_iteration": 1000}})
    config = found.trial_config({"agent.beta": 5.0}, "trial-001", FOLDER)
    assert (config.evaluation.omegas, config.evaluation.candidates, config.evaluation.seed) == (
        (0.0, 1.0),
        (1, 2),
        1000,
    )
    assert config.learner.num_threads == 1 and config.training.learner_steps_per_iteration == 20


def test_paths_of_the_data_do_not_depend_on_where_a_trial_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    mapping = merge(sweep_mapping(DATA, FOLDER), {"run": {"data": {"path": "here/data"}}})
    assert from_mapping(mapping).run_config({}).data.path == str(tmp_path / "here/data")
