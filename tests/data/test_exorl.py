"""ExORL's episode files become exactly the transitions they hold, and what is wrong with one is said in a sentence."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole_ray.cli.data import add_parser
from dipole_ray.collect.exorl import collect_exorl
from dipole_ray.data.dataset import open_dataset, write_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import ACTION_LIMIT, concatenate
from dipole_ray.data.sources.exorl import find_episodes
from dipole_ray.data.sources.formats import dataset_kind
from dipole_ray.data.sources.reading import ImportReport, Reading
from dipole_ray.envs.exorl.rewards import exorl_rewards
from dipole_ray.envs.make import EnvConfig
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.runs.config import DataConfig
from dipole_ray.runs.prepare import prepare_dataset
from tests.data.malformed_npz import Payload
from tests.data.reading import exorl_schema, read_exorl
from tests.synthetic import write_exorl

PHYSICS = np.arange(12.0).reshape(6, 2)  # an episode of five steps


def rewards_like_states(files: list[Path]) -> list[np.ndarray]:
    """Return a stand-in for a task: the first number of the state that was reached."""
    return [np.load(file)["physics"][1:, 0] for file in files]


def test_transition_i_goes_from_row_i_minus_1_to_row_i_by_action_i(tmp_path: Path) -> None:
    for index, steps in ((2, 5), (0, 3), (10, 4)):
        write_exorl(tmp_path / "buffer", index, 3, 2, PHYSICS[: steps + 1] + 100 * index)
    (tmp_path / "buffer/snapshot.pt").touch()
    (tmp_path / "buffer/episode_1.npz").touch()
    files = find_episodes(tmp_path)
    assert [file.name for file in files] == [
        "episode_000000_3.npz", "episode_000002_5.npz", "episode_000010_4.npz"
    ]  # fmt: skip
    report = ImportReport()
    write_dataset(
        tmp_path / "out", read_exorl(files, rewards_like_states(files), report=report), exorl_schema(files), {}
    )
    data = open_dataset(tmp_path / "out")
    rows = concatenate(list(data.iter_rows()))
    assert (data.num_transitions, report.trajectories, report.rows_read) == (12, 3, 15)
    moving = np.flatnonzero(rows["remaining"])
    expected: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "rewards", "next", "remaining")}
    for file in files:
        episode = np.load(file)
        for i in range(1, len(episode["action"])):
            expected["observations"].append(episode["observation"][i - 1])
            expected["actions"].append(np.clip(episode["action"][i], -ACTION_LIMIT, ACTION_LIMIT))
            expected["rewards"].append(episode["physics"][i, 0])
            expected["next"].append(episode["observation"][i])
            expected["remaining"].append(len(episode["action"]) - i)
    found = {name: rows[name][moving] for name in rows} | {"next": rows["observations"][moving + 1]}
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], np.asarray(values), err_msg=name)
    assert (rows["masks"] == 1).all()
    assert 77 not in rows["rewards"], "the collecting task's reward was taken"


def array(physics: np.ndarray = PHYSICS, **replaced: np.ndarray) -> Callable[[Path], object]:
    return lambda folder: write_exorl(folder, 1, 3, 2, physics, **replaced)


def number(name: str, row: int, value: float, dim: int) -> Callable[[Path], object]:
    values = PHYSICS.copy() if name == "physics" else np.zeros((6, dim), np.float32)
    values[row] = value
    return array(**{name: values})


def missing(folder: Path) -> None:
    path = write_exorl(folder, 1, 3, 2, PHYSICS)
    arrays = {name: values for name, values in np.load(path).items() if name != "physics"}
    np.savez(path, **arrays)


def cut(folder: Path) -> None:
    path = write_exorl(folder, 1, 3, 2, PHYSICS)
    path.write_bytes(path.read_bytes()[:-200])


def flipped(folder: Path) -> None:
    path = folder / "episode_000001_5.npz"
    np.savez(path, observation=np.ones((6, 3), np.float32), action=np.zeros((6, 2), np.float32), physics=PHYSICS)
    content = path.read_bytes()
    place = content.index(np.ones(18, np.float32).tobytes())
    path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])


MALFORMED = {
    "missing": (missing, "array 'physics' is missing (found action, discount, observation, reward)"),
    "cut": (cut, "damaged or cut short, get it again"),
    "flipped": (flipped, "CRC"),
    "empty": (lambda folder: (folder / "episode_000001_5.npz").touch(), "not a complete .npz file"),
    "length": (array(action=np.zeros((5, 2), np.float32)), "array 'action' has 5 rows, an episode of 5 steps"),
    "flat": (array(action=np.zeros(6, np.float32)), "array 'action' has shape (6,), expected (rows, dim)"),
    "pixels": (array(observation=np.zeros((6, 3), np.uint8)), "array 'observation' is of type uint8"),
    "half": (array(physics=PHYSICS.astype(np.float32)), "float64, which exact rewards need"),
    "other": (array(observation=np.zeros((6, 4), np.float32)), "the first episode has 3 and 2; keep one domain"),
    "range": (
        number("action", 4, 1.5, 2),
        "1 of 5 actions lie outside [-1, 1], the first at row 4 (1.5 in dimension 0)",
    ),
    "nan": (number("action", 2, np.nan, 2), "row 2 of array 'action' holds NaN"),
    "start": (number("observation", 0, np.inf, 3), "row 0 of array 'observation' holds NaN"),
    "state": (number("physics", 3, np.nan, 2), "row 3 of array 'physics' holds NaN"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_episode_is_refused_by_name_with_array_row_and_remedy(tmp_path: Path, case: str) -> None:
    make, told = MALFORMED[case]
    write_exorl(tmp_path, 0, 3, 2, PHYSICS)
    make(tmp_path)
    files = find_episodes(tmp_path)

    def rewards() -> Any:
        for file in files:
            yield np.load(file)["physics"][1:, 0] if case in ("nan", "state", "range", "start") else np.zeros(5)

    with pytest.raises(DatasetError) as caught:
        write_dataset(tmp_path / "out", read_exorl(files, rewards()), exorl_schema(files), {})
    message = str(caught.value)
    assert "episode_000001_5.npz" in message and told in message and ";" in message
    assert not (tmp_path / "out").exists()


def test_an_episode_of_python_objects_is_not_unpickled(tmp_path: Path) -> None:
    write_exorl(tmp_path, 0, 3, 2, PHYSICS)
    with (tmp_path / "episode_000001_5.npz").open("wb") as file:
        np.savez(file, observation=np.array([Payload(tmp_path / "ran")] * 6, object), physics=PHYSICS)
    with pytest.raises(DatasetError, match="Python objects"):
        list(read_exorl(find_episodes(tmp_path), [np.zeros(5)] * 2))
    assert not (tmp_path / "ran").exists()


def test_non_finite_transitions_can_be_left_out(tmp_path: Path) -> None:
    observations = np.zeros((6, 3), np.float32)
    observations[2] = np.nan
    write_exorl(tmp_path, 0, 3, 2, PHYSICS, observation=observations)
    report = ImportReport()
    (rows,) = read_exorl(find_episodes(tmp_path), [PHYSICS[1:, 0]], non_finite="drop", report=report)
    assert report.dropped_transitions == 2 and rows["rewards"][rows["remaining"] > 0].tolist() == [2, 8, 10]


def test_folders_without_episodes_or_of_several_domains_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no episodes"):
        find_episodes(tmp_path)
    for domain, dim in (("walker", 3), ("jaco", 4)):
        write_exorl(tmp_path / domain / "rnd/buffer", 0, dim, 2, PHYSICS)
    with pytest.raises(DatasetError, match=r"not of one domain: .*jaco/rnd/buffer has 4 .*walker/rnd/buffer has 3 and"):
        find_episodes(tmp_path)
    for place in ("walker/rnd/buffer", "walker/rnd", "walker"):
        assert len(find_episodes(tmp_path / place)) == 1 and dataset_kind(tmp_path / place) == "exorl"


def test_the_episodes_of_several_seeds_are_one_dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What `dipole data collect exorl` advises for more data: another seed in another folder, equal file names."""
    parts = [collect_exorl("jaco", "random", 500, seed, tmp_path / f"in/seed{seed}", 1, False) for seed in (0, 1)]
    assert find_episodes(tmp_path / "in") == [file for part in parts for file in find_episodes(part)]
    env = EnvConfig(id="exorl/jaco-reach_top_left")
    made = [
        prepare_dataset(DataConfig(path=str(path), cache=str(tmp_path / "cache")), env)
        for path in (tmp_path / "in", *parts)
    ]
    both, *alone = [concatenate(list(open_dataset(path).iter_rows())) for path in made if path is not None]
    for name, column in concatenate(alone).items():
        assert np.array_equal(both[name], column), name
    assert len(both["rewards"]) == 4 * 251
    joined = [message for message in caplog.messages if "2 folders are joined" in message]
    assert len(joined) == 1 and str(parts[1]) in joined[0]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect_exorl("cheetah", "random", 3000, 0, tmp_path_factory.mktemp("exorl"), progress=False)


def test_a_run_takes_episodes_as_its_data_and_converts_them_once(collected: Path, tmp_path: Path) -> None:
    data = DataConfig(path=str(collected), cache=str(tmp_path))
    env = EnvConfig(id="exorl/cheetah-run_backward")
    folder = prepare_dataset(data, env)
    assert folder is not None and prepare_dataset(data, env) == folder
    rows = concatenate(list(open_dataset(folder).iter_rows()))
    states = [np.load(file)["physics"][1:] for file in find_episodes(collected)]
    expected = np.concatenate([exorl_rewards(env.id, part) for part in states]).astype(np.float32)
    assert np.array_equal(rows["rewards"][rows["remaining"] > 0], expected) and expected.max() > 0
    other = prepare_dataset(data, EnvConfig(id="exorl/cheetah-run"))
    assert other is not None and other != folder
    with pytest.raises(ConfigError, match=r"set env\.id=exorl"):
        prepare_dataset(data, EnvConfig(id="dm_control/cheetah-run"))
    with pytest.raises(DatasetError, match="'exorl/walker-run' has 24 and 6"):
        prepare_dataset(data, EnvConfig(id="exorl/walker-run"))


def test_inspect_judges_episodes_with_and_without_a_task(collected: Path) -> None:
    bare = inspect_dataset(collected)
    assert (bare.kind, bare.figures["transitions"], bare.figures["trajectories"]) == ("exorl", 3000, 3)
    assert "return_max" not in bare.figures
    task = "exorl/cheetah-run"
    labels = [exorl_rewards(task, np.load(file)["physics"][1:]) for file in find_episodes(collected)]
    judged = inspect_dataset(collected, Reading(labels=lambda files: iter(labels)))
    assert judged.figures["return_max"] > 0 and judged.figures["masked_fraction"] == 0 and judged.verdict != "error"


def dipole(*words: str | Path) -> int:
    """Run `dipole data ...` in this process."""
    parser = argparse.ArgumentParser(prog="dipole")
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["data", *map(str, words)])
    code: int = args.run(args)
    return code


def test_the_commands_collect_import_and_inspect(
    collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dipole("collect", "exorl", "cheetah", "--algo", "random", "--steps", 2500, "--out", tmp_path) == 0
    assert (tmp_path / "cheetah/random/buffer/episode_000002_1000.npz").exists()
    assert "env.id=exorl/cheetah-run" in capsys.readouterr().out
    options = ["--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    assert dipole("import", collected, "--env", "exorl/cheetah-run", *options) == 0
    told = capsys.readouterr().out
    assert "3000 transitions in 3 trajectories, observations 17, actions 6" in told
    assert list((tmp_path / "cache/exorl-rewards").rglob("*.npy"))
    kept = ("--cache", tmp_path / "inspected", "--workers", 1)
    assert dipole("inspect", collected, "--env", "exorl/cheetah-run_backward", *kept) == 0
    assert "inspect random: 3000 transitions" in capsys.readouterr().err
    (rewards,) = (tmp_path / "inspected/exorl-rewards").rglob("*.npy")
    written = rewards.stat().st_mtime_ns
    assert dipole("inspect", collected, "--env", "exorl/cheetah-run_backward", *kept) == 0
    assert rewards.stat().st_mtime_ns == written, "labelled twice"
    with pytest.raises(ConfigError, match="'Pendulum-v1' is none of theirs; name one with --env: exorl/"):
        dipole("inspect", collected, "--env", "Pendulum-v1")
    with pytest.raises(ConfigError, match=r"--workers is for rewarding .* for a task; name one with --env: exorl/"):
        dipole("inspect", collected, "--workers", 1)
    with pytest.raises(ConfigError, match="name one with --env: exorl/walker-stand"):
        dipole("import", collected, *options)
    with pytest.raises(DatasetError, match="'exorl/walker-run' has 24 and 6"):
        dipole("import", collected, "--env", "exorl/walker-run", *options)
    with pytest.raises(ConfigError, match="the domain is missing"):
        dipole("collect", "exorl", "--steps", 10, "--out", tmp_path)
    with pytest.raises(ConfigError, match="only exorl has domains"):
        dipole("collect", "Pendulum-v1", "--algo", "rnd", "--steps", 10, "--out", tmp_path)
