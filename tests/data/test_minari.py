"""Datasets that Minari's own API wrote come back equal, from each of its storages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from minari.data_collector import EpisodeBuffer

from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.schema import ACTION_LIMIT, Rows, concatenate
from dipole_ray.data.sources import guarantees
from dipole_ray.data.sources.formats import dataset_kind
from dipole_ray.data.sources.reading import ImportReport
from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.runs.config import DataConfig
from dipole_ray.runs.prepare import prepare_dataset
from tests.data.reading import minari_schema, read_minari
from tests.data.test_exorl import dipole

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Minari misses an environment that nobody needs

STORAGES = ("hdf5", "arrow", "parquet")
LENGTHS = (5, 1, 8, 12)  # odd ones terminate, even ones are cut by a time limit
UNIT = Box(-1, 1, (2,), np.float32)
ANY = Box(-np.inf, np.inf, (3,), np.float32)
GOAL = Dict(
    achieved_goal=Box(-np.inf, np.inf, (2,), np.float32),
    desired_goal=Box(-np.inf, np.inf, (2,), np.float32),
    observation=Box(-np.inf, np.inf, (4,), np.float32),
)


def episodes(
    observations: gymnasium.Space = ANY, actions: gymnasium.Space = UNIT, lengths: tuple[int, ...] = LENGTHS
) -> list[Any]:
    """Return episodes as Minari's collector buffers them: infos have T + 1 rows, like the observations."""
    random = np.random.default_rng(0)
    found = []
    for index, steps in enumerate(lengths):
        flags = np.arange(steps) == steps - 1
        observations.seed(index)
        actions.seed(index)
        seen = [observations.sample() for _ in range(steps + 1)]
        is_dict = isinstance(observations, Dict)
        found.append(
            EpisodeBuffer(
                seed=index,
                observations={key: [entry[key] for entry in seen] for key in seen[0]} if is_dict else seen,
                actions=[actions.sample() for _ in range(steps)],
                rewards=random.normal(size=steps).tolist(),
                terminations=(flags & (steps % 2 == 1)).tolist(),
                truncations=(flags & (steps % 2 == 0)).tolist(),
                infos={
                    "success": random.integers(0, 2, steps + 1).tolist(),
                    "state": {"qpos": random.normal(size=(steps + 1, 6))},
                },
            )
        )
    return found


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a dataset by Minari's API and returns its folder."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    def make(
        storage: str = "hdf5",
        buffers: list[Any] | None = None,
        observations: gymnasium.Space = ANY,
        actions: gymnasium.Space = UNIT,
    ) -> Path:
        minari.create_dataset_from_buffers(
            f"test/{storage}-v0",
            episodes(observations, actions) if buffers is None else buffers,
            observation_space=observations,
            action_space=actions,
            data_format=storage,
            algorithm_name="random",
            author="somebody",
            author_email="somebody@example.com",
            code_permalink="https://example.com",
            description="a test",
        )
        return tmp_path / "test" / f"{storage}-v0"

    return make


def read(path: Path, *options: Any, **named: Any) -> tuple[Rows, ImportReport]:
    report = ImportReport()
    return concatenate(list(read_minari(path, *options, report=report, **named))), report


def written(path: Path) -> list[Any]:
    """Return the episodes as Minari reads them."""
    return list(minari.MinariDataset(path / "data").iterate_episodes())


@pytest.mark.parametrize("storage", STORAGES)
def test_what_minari_wrote_is_read_back_equal(write: Callable[..., Path], storage: str) -> None:
    path = write(storage)
    rows, report = read(path)
    expected = written(path)
    assert [len(episode.rewards) for episode in expected] == [*LENGTHS]
    np.testing.assert_array_equal(rows["observations"], np.concatenate([episode.observations for episode in expected]))
    moving = rows["remaining"] > 0
    actions = np.concatenate([episode.actions for episode in expected])
    np.testing.assert_array_equal(rows["actions"][moving], np.clip(actions, -ACTION_LIMIT, ACTION_LIMIT))
    rewards = np.concatenate([episode.rewards for episode in expected])
    np.testing.assert_array_equal(rows["rewards"][moving], rewards.astype(np.float32))
    terminations = np.concatenate([episode.terminations for episode in expected])
    np.testing.assert_array_equal(rows["masks"][moving], 1.0 - terminations)
    assert rows["remaining"].tolist() == [left for steps in LENGTHS for left in range(steps, -1, -1)]
    assert (report.transitions, report.trajectories, report.unfollowed_transitions) == (sum(LENGTHS), 4, 0)
    assert not report.notes
    for place in (path, path / "data"):
        assert dataset_kind(place) == "minari" and (minari_schema(place).observation_dim, report.rows_read) == (3, 30)
    assert dataset_kind(path / "data/main_data.hdf5") == "minari" if storage == "hdf5" else True


@pytest.mark.parametrize("storage", STORAGES)
def test_dict_observations_are_joined_as_chosen(write: Callable[..., Path], storage: str) -> None:
    path = write(storage, observations=GOAL)
    with pytest.raises(DatasetError, match=r"dict of .*--map observations=achieved_goal,desired_goal,observation"):
        minari_schema(path)
    with pytest.raises(DatasetError, match="goal"):
        read(path, ["observation", "goal"])
    expected = [gymnasium.spaces.flatten(GOAL, entry) for episode in written(path) for entry in entries(episode)]
    rows, _ = read(path, ["achieved_goal", "desired_goal", "observation"])
    np.testing.assert_array_equal(rows["observations"], np.stack(expected))
    two, _ = read(path, ["observation", "desired_goal"])
    np.testing.assert_array_equal(two["observations"], np.stack(expected)[:, [4, 5, 6, 7, 2, 3]])


def entries(episode: Any) -> list[dict[str, np.ndarray]]:
    steps = len(episode.rewards)
    return [{name: values[i] for name, values in episode.observations.items()} for i in range(steps + 1)]


@pytest.mark.parametrize("storage", STORAGES)
def test_actions_are_scaled_from_the_bounds_of_their_space(write: Callable[..., Path], storage: str) -> None:
    space = Box(np.float32([-2, 0]), np.float32([2, 10]))
    rows, report = read(path := write(storage, actions=space))
    actions = np.concatenate([episode.actions for episode in written(path)]).astype(np.float64)
    expected = (actions - [0, 5]) / [2, 5]
    np.testing.assert_allclose(rows["actions"][rows["remaining"] > 0], expected, atol=1e-5)
    assert report.notes == ["actions were scaled to [-1, 1] from [-2, 0] ... [2, 10], the bounds of the action space"]


@pytest.mark.parametrize("space", [None, json.dumps({"type": "Box", "low": [-np.inf] * 2, "high": [np.inf] * 2})])
def test_a_dataset_without_bounds_is_scaled_from_the_environments(
    write: Callable[..., Path], space: str | None
) -> None:
    path = write()
    described(action_space=space)(path)
    taken, report = read(path)
    assert report.notes == ["nothing says the bounds of the actions: they are taken as lying in [-1, 1] already"]
    scaled, report = read(path, action_bounds=(np.array([-2.0, -1.0]), np.array([2.0, 3.0])))
    assert report.notes == [
        "actions were scaled to [-1, 1] from [-2, -1] ... [2, 3], the bounds of the environment's actions"
    ]
    moving = taken["remaining"] > 0
    np.testing.assert_allclose(scaled["actions"][moving], (taken["actions"][moving] - [0, 1]) / 2, atol=1e-6)
    with pytest.raises(DatasetError, match="actions have 2 dimensions, the action space has 1"):
        read(path, action_bounds=(np.array([-2.0]), np.array([2.0])))


def test_scaled_actions_do_in_the_environment_what_they_did_when_recorded(write: Callable[..., Path]) -> None:
    """Pendulum's torque lies in [-2, 2]: the recorded rewards come again, from actions in [-1, 1]."""
    original, steps = gymnasium.make("Pendulum-v1"), 50
    original.action_space.seed(0)
    observations, rewards = [original.reset(seed=3)[0]], []
    actions = [original.action_space.sample() for _ in range(steps)]
    for action in actions:
        observation, reward, *_ = original.step(action)
        observations.append(observation)
        rewards.append(float(reward))
    flags = [False] * (steps - 1)
    buffer = EpisodeBuffer(
        seed=3, observations=observations, actions=actions, rewards=rewards,
        terminations=[*flags, False], truncations=[*flags, True],
    )  # fmt: skip
    path = write(buffers=[buffer], observations=original.observation_space, actions=original.action_space)
    rows, _ = read(path)
    env = make_env("Pendulum-v1")
    np.testing.assert_array_equal(env.reset(seed=3)[0], rows["observations"][0])
    for i in range(steps):
        observation, reward, *_ = env.step(rows["actions"][i])
        np.testing.assert_allclose(observation, rows["observations"][i + 1], atol=1e-3)
        np.testing.assert_allclose(reward, rows["rewards"][i], atol=1e-2)
    data = DataConfig(path=str(path), cache=str(path / "cache"))
    folder = prepare_dataset(data, EnvConfig(id="Pendulum-v1"))
    assert folder is not None and prepare_dataset(data, EnvConfig(id="Pendulum-v1")) == folder
    converted = concatenate(list(open_dataset(folder).iter_rows()))
    assert all(np.array_equal(converted[name], rows[name]) for name in rows)


def test_an_end_inside_an_episode_ends_a_trajectory(write: Callable[..., Path]) -> None:
    (buffer,) = episodes(lengths=(10,))
    buffer.terminations[3], buffer.truncations[6] = True, True
    path = write(buffers=[buffer])
    rows, report = read(path)
    seen = np.asarray(buffer.observations)
    assert rows["remaining"].tolist() == [4, 3, 2, 1, 0, 3, 2, 1, 0, 3, 2, 1, 0] and report.trajectories == 3
    order = [0, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10]
    np.testing.assert_array_equal(rows["observations"], seen[order])
    assert np.flatnonzero(rows["masks"] == 0).tolist() == [3]


def test_many_episodes_come_in_pieces(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write()
    whole, _ = read(path)
    monkeypatch.setattr(guarantees, "CHUNK_ROWS", 8)
    pieces = list(read_minari(path))
    assert [len(piece["remaining"]) for piece in pieces] == [8, 9, 13]
    assert all(np.array_equal(concatenate(pieces)[name], whole[name]) for name in whole)


def edit(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path / "data/main_data.hdf5", "a") as file:
            change(file)

    return apply


def replaced(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(file: h5py.File) -> None:
        values = file[f"episode_2/{name}"][:]
        del file[f"episode_2/{name}"]
        file[f"episode_2/{name}"] = change(values)

    return edit(apply)


def removed(name: str) -> Callable[[Path], None]:
    return edit(lambda file: file.__delitem__(name))


def described(**values: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        file = path / "data/metadata.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return apply


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "episode": (removed("episode_1"), r"holds 3 episodes, the first missing is episode_1 \(metadata.json says 4\)"),
    "last": (removed("episode_3"), r"holds 3 episodes, the first missing is episode_3"),
    "array": (removed("episode_2/rewards"), r"array 'episode_2/rewards' is missing \(found actions, infos"),
    "short": (replaced("actions", lambda a: a[:-2]), r"episode_2: array 'rewards' has 8 rows, 6 actions need 6"),
    "same": (replaced("observations", lambda a: a[:-1]), r"'observations' has 8 rows, 8 actions need 9"),
    "width": (replaced("observations", lambda a: a[:, :2]), r"episode_2: observations have 2 .* earlier .*3, 2"),
    "nan": (replaced("rewards", lambda a: a * np.nan), r"episode_2: 8 transitions touch NaN .* row 0 \(rewards\)"),
    "range": (replaced("actions", lambda a: a * 9), r"episode_2: 8 of 8 actions lie outside \[-1, 1\]"),
    "flag": (replaced("truncations", lambda a: a + 2.0), r"episode_2: 'truncations' must be 0 or 1, row 0 holds 2"),
    "format": (described(data_format="zarr"), r"data_format is 'zarr'; hdf5, arrow, parquet can be read"),
    "space": (described(action_space='{"type": "Box", "low": [1], "high": [0]}'), "do not fit together"),
    "deep": (described(action_space="[" * 100_000), "not the description of a dataset"),
    "json": (lambda path: (path / "data/metadata.json").write_text("{"), "not the description of a dataset"),
    "bounds": (described(action_space='{"type": "Box", "low": [-2], "high": [2]}'), "2 dimensions, the action space"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_dataset_is_refused_with_its_place(write: Callable[..., Path], case: str) -> None:
    damage, told = REFUSED[case]
    path = write()
    damage(path)
    with pytest.raises(DatasetError, match=told) as caught:
        read(path)
    assert str(path / "data") in str(caught.value) and ";" in str(caught.value)
    assert inspect_dataset(path).verdict == "error"


@pytest.mark.parametrize("storage", STORAGES)
def test_other_spaces_are_refused(write: Callable[..., Path], storage: str) -> None:
    buffers = episodes(actions=Discrete(3))
    with pytest.raises(DatasetError, match=r"actions' is of type int.*not supported"):
        read(write(storage, buffers, actions=Discrete(3)))


@pytest.mark.parametrize("storage", ["arrow", "parquet"])
def test_a_damaged_episode_of_the_other_storages_is_refused(write: Callable[..., Path], storage: str) -> None:
    path = write(storage)
    file = path / f"data/2/part-0.{storage}"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=rf"data/2/part-0\.{storage}: not a complete table .*get it again"):
        read(path)
    file.unlink()
    with pytest.raises(DatasetError, match=rf"data/2: holds no rows in \.{storage} files"):
        read(path)


def test_non_finite_rows_are_named_with_their_episode(write: Callable[..., Path]) -> None:
    path = write()
    replaced("rewards", lambda a: np.where(np.arange(8) == 3, np.nan, a))(path)
    rows, report = read(path, non_finite="drop")
    assert (report.dropped_transitions, report.non_finite) == (1, ["episode_2 row 3 (rewards)"])
    assert np.isfinite(rows["rewards"]).all() and report.trajectories == 5


def test_the_commands_import_and_inspect(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(observations=GOAL, actions=Box(-2, 2, (2,), np.float32))
    choice = ["--map", "observations=observation,desired_goal"]
    assert dipole("import", path, "--out", tmp_path / "out", *choice) == 0
    told = capsys.readouterr().out
    assert "26 transitions in 4 trajectories, observations 6, actions 2" in told
    assert "note: actions were scaled to [-1, 1]" in told
    assert open_dataset(tmp_path / "out").source["mapping"] == {"observations": ["observation", "desired_goal"]}
    assert dipole("inspect", path) == 1
    assert "--map observations=achieved_goal,desired_goal,observation" in capsys.readouterr().out
    assert dipole("inspect", path, *choice) == 0
    with pytest.raises(ConfigError, match="Minari's arrays have fixed names"):
        dipole("import", path, "--out", tmp_path / "no", "--map", "rewards=r")
    with pytest.raises(DatasetError, match="leave --map out"):
        dipole("import", write("arrow"), "--out", tmp_path / "no", *choice)


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_not_read_is_listed(write: Callable[..., Path], storage: str) -> None:
    path, report = write(storage, observations=GOAL), ImportReport()
    for _ in read_minari(path, ("observation",), report=report):
        pass
    unread = {"observations/achieved_goal", "observations/desired_goal"}
    assert unread < {*report.unread} and any(name.startswith("infos") for name in report.unread)
    assert "observations = observations/observation" in report.columns
    assert dipole("columns", path) == 0


def test_a_bound_that_is_none_is_called_so(write: Callable[..., Path], tmp_path: Path) -> None:
    """Neither infinity nor float32's largest number, which environments write for it, leaves in a verdict."""
    largest = np.finfo(np.float32).max
    path = write(buffers=episodes(actions=UNIT), actions=Box(np.float32([-largest, -2]), np.float32([largest, 2])))
    assert dipole("inspect", path, "--json", tmp_path / "verdict.json") == 0
    text = (tmp_path / "verdict.json").read_text()
    assert "from [unbounded, -2] ... [unbounded, 2]" in text and "inf]" not in text and "e+38" not in text
