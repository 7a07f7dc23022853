"""D4RL's .hdf5 files give the transitions that `d4rl.qlearning_dataset` gives, and what they lack is said."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dipole_ray.columns import Schema
from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import ACTION_LIMIT, Rows, concatenate
from dipole_ray.data.sources import hdf5 as hdf5_source
from dipole_ray.data.sources.formats import FORMATS, dataset_kind
from dipole_ray.data.sources.reading import ImportReport, Reading
from dipole_ray.envs.make import EnvConfig
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.runs.config import DataConfig
from dipole_ray.runs.prepare import prepare_dataset
from tests.data.reading import d4rl_schema, read_d4rl
from tests.data.test_exorl import dipole
from tests.synthetic import write_d4rl, write_ogbench, write_table

Arrays = dict[str, np.ndarray]
LENGTHS = (7, 12, 1, 9, 5, 12)


def d4rl_arrays(lengths: tuple[int, ...] = LENGTHS, observation_dim: int = 3) -> Arrays:
    """Return a file's arrays: odd trajectories end the task, even ones are cut; the infos are there to be ignored."""
    random = np.random.default_rng(0)
    count, last = sum(lengths), np.cumsum(lengths) - 1
    states = [random.normal(size=(length + 1, observation_dim)).astype(np.float32) for length in lengths]
    return {
        "observations": np.concatenate([state[:-1] for state in states]),
        "next_observations": np.concatenate([state[1:] for state in states]),
        "actions": random.uniform(-1, 1, size=(count, 2)).astype(np.float32),
        "rewards": random.normal(size=count).astype(np.float32),
        "terminals": np.isin(np.arange(count), last[1::2]),
        "timeouts": np.isin(np.arange(count), last[0::2]),
        "infos/qpos": random.normal(size=(count, 5)),
        "metadata/algorithm": np.bytes_("SAC"),
    }


def without(arrays: Arrays, *names: str) -> Arrays:
    return {name: values for name, values in arrays.items() if name not in names}


def qlearning(arrays: Arrays, max_episode_steps: int | None = None) -> list[tuple[Any, ...]]:
    """Return (observation, action, reward, done, next observation or None) by the rules of d4rl.qlearning_dataset."""
    found, step = [], 0
    for i in range(len(arrays["rewards"]) - 1):
        done = bool(arrays["terminals"][i])
        is_final = arrays["timeouts"][i] if "timeouts" in arrays else step == (max_episode_steps or 0) - 1
        if is_final:
            step = 0
            continue
        step = 0 if done else step + 1
        following = None if done else tuple(arrays["observations"][i + 1])
        found.append(
            (tuple(arrays["observations"][i]), tuple(arrays["actions"][i]), arrays["rewards"][i], done, following)
        )
    return found


def read(path: Path, limit: float = 1.0, **options: Any) -> tuple[Rows, ImportReport]:
    """Read a file of an environment whose actions lie within `limit`."""
    report, bounds = ImportReport(), (np.full(2, -limit), np.full(2, limit))
    return concatenate(list(read_d4rl(path, action_bounds=bounds, report=report, **options))), report


def transitions(rows: Rows) -> list[tuple[Any, ...]]:
    """Return stored transitions in the same form."""
    return [
        (
            tuple(rows["observations"][i]),
            tuple(rows["actions"][i]),
            rows["rewards"][i],
            rows["masks"][i] == 0,
            None if rows["masks"][i] == 0 else tuple(rows["observations"][i + 1]),
        )
        for i in np.flatnonzero(rows["remaining"])
    ]


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_transitions_are_those_of_qlearning_dataset(tmp_path: Path, compression: str | None) -> None:
    arrays = without(d4rl_arrays(), "next_observations")
    path = write_d4rl(tmp_path / "hopper.hdf5", arrays, compression=compression)
    rows, report = read(path)
    expected = qlearning(arrays)
    # D4RL's loop never reaches the last row; here it ends the task, so what follows it does not matter.
    last = {name: values[-1] for name, values in arrays.items() if values.ndim}
    expected.append((tuple(last["observations"]), tuple(last["actions"]), last["rewards"], True, None))
    assert transitions(rows) == expected
    cut = int(arrays["timeouts"].sum())
    assert (report.unfollowed_transitions, report.rows_read, report.transitions) == (cut, sum(LENGTHS), len(expected))
    assert report.trajectories == len(LENGTHS) - 1, "the trajectory of one cut transition has none left"
    assert int((rows["masks"] == 0).sum()) == int(arrays["terminals"].sum())
    assert d4rl_schema(path) == Schema(3, 2) and dataset_kind(path) == "d4rl"


def test_next_observations_keep_the_last_transition_before_a_timeout(tmp_path: Path) -> None:
    arrays = d4rl_arrays()
    rows, report = read(write_d4rl(tmp_path / "hopper.hdf5", arrays))
    moving = np.flatnonzero(rows["remaining"])
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(rows[name][moving], arrays[name], err_msg=name)
    np.testing.assert_array_equal(rows["observations"][moving + 1], arrays["next_observations"])
    np.testing.assert_array_equal(rows["masks"][moving], 1.0 - arrays["terminals"])
    assert report.unfollowed_transitions == 0 and report.trajectories == len(LENGTHS) and not report.notes


def test_terminals_in_clusters_each_end_the_task(tmp_path: Path) -> None:
    """As antmaze has them: the ant stays at the goal, and the trajectory goes on to its timeout."""
    arrays = without(d4rl_arrays((20, 20)), "next_observations")
    arrays["terminals"][:] = np.isin(np.arange(40), [12, 13, 14])
    arrays["timeouts"][:] = np.isin(np.arange(40), [19, 39])
    rows, report = read(write_d4rl(tmp_path / "antmaze.hdf5", arrays))
    assert transitions(rows) == qlearning(arrays)
    assert int((rows["masks"] == 0).sum()) == 3 and report.unfollowed_transitions == 2


def test_a_file_without_timeouts_needs_the_time_limit(tmp_path: Path) -> None:
    arrays = without(d4rl_arrays((10, 10, 10)), "next_observations", "timeouts")
    arrays["terminals"][:] = False
    path = write_d4rl(tmp_path / "old.hdf5", arrays)
    with pytest.raises(DatasetError, match=r"'timeouts' is missing.*--max-episode-steps"):
        read(path)
    rows, report = read(path, max_episode_steps=10)
    assert transitions(rows) == qlearning(arrays, 10)
    assert report.notes == ["no time limits are marked: trajectories are cut after 10 steps"]
    write_d4rl(path, arrays | {"timeouts": np.zeros(30, bool)})
    with pytest.raises(DatasetError, match="'timeouts' holds no 1"):
        read(path)
    assert transitions(read(path, max_episode_steps=10)[0]) == qlearning(arrays, 10)
    arrays["terminals"][[4, 29]] = True  # 5 to 14 and 15 to 24 are cut, and 25 to 29 ends the task
    write_d4rl(path, arrays)
    rows, report = read(path, max_episode_steps=10)
    assert rows["remaining"].tolist().count(0) == 4 and report.unfollowed_transitions == 2
    assert [row[2] for row in transitions(rows)] == np.delete(arrays["rewards"], [14, 24]).tolist()
    write_d4rl(path, arrays | {"timeouts": np.zeros(30, bool)})
    assert read(path)[1].notes == ["timeouts are all 0: trajectories end only where the task does"]


def test_an_end_that_no_flag_marks_shows_in_next_observations(tmp_path: Path) -> None:
    arrays = d4rl_arrays()
    arrays["timeouts"][LENGTHS[0] - 1] = False
    path = write_d4rl(tmp_path / "data.hdf5", arrays)
    rows, report = read(path)
    moving = np.flatnonzero(rows["remaining"])
    np.testing.assert_array_equal(rows["observations"][moving + 1], arrays["next_observations"])
    assert report.trajectories == len(LENGTHS)
    assert re.match(r"1 trajectory ends, unmarked, .* at row 6", report.notes[0])
    assert any("1 trajectory ends, unmarked" in finding.what for finding in inspect_dataset(path).findings)


def test_a_file_of_many_slices_gives_what_a_file_of_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = d4rl_arrays(tuple(np.random.default_rng(1).integers(1, 400, 40)), observation_dim=11)
    whole = [read(write_d4rl(tmp_path / f"{kind}.hdf5", arrays, **options))[0] for kind, options in LAYOUTS.items()]
    monkeypatch.setattr(hdf5_source, "SLICE_BYTES", 1)  # 1024 rows, the least
    pieces = list(read_d4rl(tmp_path / "gzip.hdf5"))
    assert len(pieces) > 4 and all(piece["remaining"][-1] == 0 for piece in pieces)
    for rows in (*whole, *(read(tmp_path / f"{kind}.hdf5")[0] for kind in LAYOUTS)):
        for name in rows:
            np.testing.assert_array_equal(rows[name], concatenate(pieces)[name], err_msg=name)


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gzip": {"compression": "gzip"},
    "shuffled": {"compression": "gzip", "shuffle": True},
    "only_shuffled": {"shuffle": True},
    "narrow": {"compression": 9, "narrow": True},
    "chunked": {"chunks": True},
}


def test_other_numbers_are_converted(tmp_path: Path) -> None:
    arrays = without(d4rl_arrays(), "next_observations")
    expected = read(write_d4rl(tmp_path / "a.hdf5", arrays))[0]
    other = {
        **arrays,
        "observations": arrays["observations"].astype(">f8"),
        "rewards": arrays["rewards"].astype(np.float64)[:, None],
        "terminals": arrays["terminals"].astype(np.float32)[:, None],
        "timeouts": arrays["timeouts"].astype(np.uint8),
    }
    rows = read(write_d4rl(tmp_path / "b.hdf5", other, compression="gzip", shuffle=True))[0]
    for name in rows:
        np.testing.assert_array_equal(rows[name], expected[name], err_msg=name)
    other["actions"] = np.where(arrays["actions"] > 0.9, 1.0, arrays["actions"]).astype(np.float32)
    assert read(write_d4rl(tmp_path / "c.hdf5", other))[0]["actions"].max() == np.float32(ACTION_LIMIT)


def test_non_finite_transitions_are_refused_or_left_out(tmp_path: Path) -> None:
    arrays = without(d4rl_arrays(), "next_observations")
    arrays["observations"][3, 1], arrays["rewards"][10] = np.nan, np.inf
    path = write_d4rl(tmp_path / "data.hdf5", arrays)
    with pytest.raises(DatasetError, match=r"3 transitions touch NaN .* row 3 \(observations\).*--non-finite drop"):
        read(path)
    rows, report = read(path, non_finite="drop")
    assert (report.dropped_transitions, report.non_finite) == (3, ["row 3 (observations)", "row 10 (rewards)"])
    assert np.isfinite(rows["observations"]).all()
    assert inspect_dataset(path).verdict == "error"


def changed(change: Callable[[Arrays], Arrays]) -> Callable[[], Arrays]:
    return lambda: change(without(d4rl_arrays(), "next_observations"))


REFUSED = {
    "lengths": (changed(lambda a: a | {"actions": a["actions"][:-3]}), "arrays differ in their .*actions 43"),
    "range": (changed(lambda a: a | {"actions": 2 * a["actions"]}), r"actions lie outside \[-1, 1\], the first at row"),
    "flags": (changed(lambda a: a | {"terminals": np.arange(46)}), "'terminals' must be 0 or 1, row 2 holds 2"),
    "cut": (changed(lambda a: a | {"timeouts": np.ones(46), "terminals": np.zeros(46)}), "would be lost"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_on_is_refused(tmp_path: Path, case: str) -> None:
    make, told = REFUSED[case]
    path = write_d4rl(tmp_path / "data.hdf5", make())
    with pytest.raises(DatasetError, match=told) as caught:
        read(path)
    assert str(path) in str(caught.value) and ";" in str(caught.value)


def test_the_commands_import_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_d4rl(tmp_path / "pendulum.hdf5", pendulum_arrays(), compression="gzip")
    assert dipole("import", path, "--env", "Pendulum-v1", "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert (
        "1196 transitions in 4 trajectories, 4 transitions (0.333 %) left out because nothing says what they led to"
        in told
    )
    assert open_dataset(tmp_path / "out").source["format"] == "d4rl"
    assert dipole("inspect", path) == 0
    assert "4 transitions (0.333 %) are left out: nothing says what they led to" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--map is for tables"):
        dipole("import", path, "--out", tmp_path / "no", "--format", "d4rl", "--map", "rewards=r")
    with pytest.raises(DatasetError, match="no column 'r' for rewards"):
        dipole("import", path, "--out", tmp_path / "no", "--map", "rewards=r")
    with pytest.raises(DatasetError, match=r"'exorl/walker-run' has 24 and 6"):
        dipole("import", path, "--env", "exorl/walker-run", "--out", tmp_path / "no")
    old = write_d4rl(tmp_path / "old.hdf5", without(pendulum_arrays(), "timeouts"))
    assert dipole("import", old, "--env", "Pendulum-v1", "--out", tmp_path / "old") == 0  # its limit is 200
    assert "1194 transitions in 6 trajectories, 6 transitions (0.5 %) left out" in capsys.readouterr().out
    assert dipole("inspect", old, "--max-episode-steps", "300") == 0
    with pytest.raises(ConfigError, match="--max-episode-steps 300 of dataset data"):
        dipole("inspect", tmp_path / "old", "--max-episode-steps", "300")


def test_actions_are_scaled_from_the_bounds_of_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Pendulum's torque lies in [-2, 2], of which the file says nothing."""
    arrays = pendulum_arrays()
    path = write_d4rl(tmp_path / "pendulum.hdf5", arrays)
    kept = ~arrays["timeouts"]
    note = "actions were scaled to [-1, 1] from [-2] ... [2], the bounds of the environment's actions"
    assert dipole("import", path, "--env", "Pendulum-v1", "--out", tmp_path / "scaled") == 0
    assert note in capsys.readouterr().out
    prepared = prepare_dataset(DataConfig(path=str(path), cache=str(tmp_path)), EnvConfig(id="Pendulum-v1"))
    assert prepared is not None and note in caplog.text
    for folder in (tmp_path / "scaled", prepared):
        rows = concatenate(list(open_dataset(folder).iter_rows()))
        np.testing.assert_allclose(rows["actions"][rows["remaining"] > 0], arrays["actions"][kept] / 2, rtol=1e-6)
    assert dipole("import", path, "--out", tmp_path / "taken") == 0
    assert "note: nothing says the bounds of the actions: they are taken as lying in" in capsys.readouterr().out
    rows = concatenate(list(open_dataset(tmp_path / "taken").iter_rows()))
    np.testing.assert_array_equal(rows["actions"][rows["remaining"] > 0], arrays["actions"][kept])
    full = write_d4rl(tmp_path / "full.hdf5", arrays | {"actions": 2 * arrays["actions"]})
    assert dipole("inspect", full, "--env", "Pendulum-v1") == 0 and dipole("inspect", full) == 1


def test_inspect_compares_the_dimensions_of_the_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_d4rl(tmp_path / "pendulum.hdf5", pendulum_arrays())
    assert dipole("import", path, "--env", "Pendulum-v1", "--out", tmp_path / "out") == 0
    for place in (path, tmp_path / "out"):
        assert dipole("inspect", place, "--env", "Pendulum-v1") == 0
        capsys.readouterr()
        assert dipole("inspect", place, "--env", "MountainCarContinuous-v0") == 1
        told = " ".join(capsys.readouterr().out.split())
        assert "observations have 3 and actions 1 dimensions, the environment has 2 and 1" in told
        assert dipole("inspect", place, "--env", "exorl/walker-walk") == 1
        for wrong, near in (("Pendulun-v1", "'Pendulum-v1'"), ("exorl-walker-walk", "'exorl/walker-walk'")):
            with pytest.raises(ConfigError, match=f"unknown environment '{wrong}'; the nearest.*{near}"):
                dipole("inspect", place, "--env", wrong)


@pytest.mark.parametrize("option", ["--workers", "--cache"])
def test_options_of_exorl_are_refused_elsewhere(tmp_path: Path, option: str) -> None:
    path = write_d4rl(tmp_path / "pendulum.hdf5", pendulum_arrays())
    for words in (("import", path, "--out", tmp_path / "out"), ("inspect", path)):
        with pytest.raises(ConfigError, match=f"{option} is for rewarding ExORL.s episodes, and this is d4rl data"):
            dipole(*words, option, "1")


def pendulum_arrays() -> Arrays:
    """Return four trajectories of 300 transitions in the dimensions of Pendulum."""
    arrays = without(d4rl_arrays((300,) * 4), "next_observations")
    ends = arrays["terminals"] | arrays["timeouts"]
    return arrays | {"actions": arrays["actions"][:, :1], "timeouts": ends, "terminals": np.zeros_like(ends)}


def test_a_run_takes_a_file_as_its_data_and_converts_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_d4rl(tmp_path / "pendulum.hdf5", pendulum_arrays())
    data, env = DataConfig(path=str(path), cache=str(tmp_path / "cache")), EnvConfig(id="Pendulum-v1")
    folder = prepare_dataset(data, env)
    assert folder is not None and "4 transitions (0.333 %) are left out" in caplog.text
    written = (folder / "manifest.json").stat().st_mtime_ns
    assert prepare_dataset(data, env) == folder and (folder / "manifest.json").stat().st_mtime_ns == written
    rows = concatenate(list(open_dataset(folder).iter_rows()))
    (expected,) = read_d4rl(path)
    assert all(np.array_equal(rows[name], expected[name]) for name in expected if name != "actions")
    with h5py.File(path, "a") as file:
        file["rewards"][0] = 7.0
    other = prepare_dataset(data, env)
    assert other is not None and other != folder
    with pytest.raises(DatasetError, match=r"nowhere\.hdf5: no such file"):
        prepare_dataset(DataConfig(path=str(tmp_path / "nowhere.hdf5"), cache=str(tmp_path)), env)


def test_masks_and_episodes_of_a_file_are_used_and_the_rest_is_listed(tmp_path: Path) -> None:
    """As the same columns are in a table; a mask tells a terminal at a time limit from the end of the task."""
    arrays = without(d4rl_arrays(), "next_observations", "timeouts")
    arrays |= {"masks": 1.0 - arrays["terminals"], "episode_id": np.repeat(np.arange(len(LENGTHS)), LENGTHS)}
    last = np.cumsum(LENGTHS) - 1
    arrays["terminals"][last] = True
    arrays |= {"infos/qpos": np.zeros((sum(LENGTHS), 2)), "colour": np.zeros(sum(LENGTHS))}
    flat = {name: values for name, values in arrays.items() if "/" not in name}
    (rows, report), table = read(write_d4rl(tmp_path / "own.hdf5", arrays)), ImportReport()
    same = concatenate(list(FORMATS["table"].rows(write_table(tmp_path / "own.parquet", flat), Reading(), table)))
    assert all(np.array_equal(rows[name], same[name]) for name in rows) and 0 < (rows["masks"] == 0).sum() < len(last)
    assert "episode = episode_id" in report.columns and {*report.unread} == {"infos", "metadata", "colour"}
    without_terminals = write_d4rl(tmp_path / "own.hdf5", without(arrays, "terminals"))
    assert all(np.array_equal(values, same[name]) for name, values in read(without_terminals)[0].items())
    with pytest.raises(DatasetError, match="'masks' equals 'terminals', and a mask is 0 where the task ends"):
        read(write_d4rl(tmp_path / "own.hdf5", arrays | {"masks": arrays["terminals"].astype(float)}))


@pytest.mark.parametrize("kind", ["hdf5", "parquet", "npz"])
def test_a_time_limit_cuts_whatever_marks_none_and_is_refused_elsewhere(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("observations", "actions", "rewards", "terminals")
    arrays = {name: values for name, values in d4rl_arrays((10, 10, 10)).items() if name in names}
    arrays["terminals"][:] = np.isin(np.arange(30), [4, 29])
    write: Any = {"hdf5": write_d4rl, "parquet": write_table, "npz": write_ogbench}[kind]
    path = write(tmp_path / f"own.{kind}", arrays)
    words = [] if kind == "hdf5" else ["--format", "table", "--map", "terminals_are=termination"]
    assert dipole("import", path, "--out", tmp_path / "out", "--max-episode-steps", "10", *words) == 0
    assert "trajectories are cut after 10 steps" in capsys.readouterr().out
    rows = concatenate(list(open_dataset(tmp_path / "out").iter_rows()))
    assert [row[2] for row in transitions(rows)] == np.delete(arrays["rewards"], [14, 24]).tolist()
    write(path, arrays | {"timeouts": np.isin(np.arange(30), [14, 24])})
    with pytest.raises(
        ConfigError, match="says itself where trajectories end, so --max-episode-steps 10 has no effect"
    ):
        dipole("import", path, "--out", tmp_path / "no", "--max-episode-steps", "10", *words[:2])


def test_times_of_a_file_are_checked_as_those_of_a_table(tmp_path: Path) -> None:
    """What has a time's name and is none (a number alone, a text a row) is not read."""
    count = 40
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "observations": rng.standard_normal((count, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
        "rewards": np.full(count, 3e38, np.float32),
        "terminals": np.arange(count) % 10 == 9,
        "timeouts": np.zeros(count, bool),
        "time": 1.7e9,
        "timestamp": np.array([b"noon"] * count),
    }
    for step, is_right in ((np.arange(count), True), (np.arange(count)[::-1], False)):
        path = tmp_path / f"{is_right}.hdf5"
        with h5py.File(path, "w") as file:
            for name, values in (arrays | {"step": step}).items():
                file[name] = values
        inspection = inspect_dataset(path)
        assert (inspection.verdict != "error") == is_right
        if is_right:
            assert sum(inspection.histograms["returns"][1]) == 4, "of rewards beyond what float32 sums"
        else:
            assert "time runs backwards 36 times" in inspection.findings[0].what
            assert "save the file without it" in inspection.findings[0].remedy
