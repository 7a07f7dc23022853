"""Environments that people bring: what they tell, what they assert, what they take, and where they fail."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from dipole_ray.agents.dipole import AgentConfig
from dipole_ray.envs.make import EnvConfig, env_dims, make_env
from dipole_ray.envs.registry import family
from dipole_ray.envs.standard import StandardEnv
from dipole_ray.errors import ConfigError, DipoleError, EnvironmentUnavailable
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import evaluate_cell
from dipole_ray.evaluation.table import rows_of
from dipole_ray.rllib.metrics import RecentEpisodes
from tests import odd_envs

TELLING = ["Always", "LastStep", "WhenSolved", "NoneUntilOver", "OneDict"]


class Nods:
    """Acts so that a share of the episodes is solved: the same one in every environment."""

    def __init__(self, solved: list[bool]) -> None:
        self.signs = torch.tensor([1.0 if one else -1.0 for one in solved])

    def sample_actions(self, observations: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.signs[: len(observations), None]


def played(name: str, solved: list[bool]) -> Any:
    agent, cell = Nods(solved), Cell()
    return evaluate_cell(agent, f"tests.odd_envs:{name}-v0", cell, episodes=len(solved), seed=0)


@pytest.mark.parametrize("name", TELLING)
def test_success_is_read_alike_wherever_and_whenever_it_is_told(name: str) -> None:
    assert played(name, [True, False, True]).successes.tolist() == [True, False, True]
    assert played(name, [True, True]).successes.tolist() == [True, True]


def test_a_task_that_tells_none_has_no_success() -> None:
    assert evaluate_cell(Nods([True]), "Pendulum-v1", Cell(), episodes=1, seed=0).successes is None


@pytest.mark.parametrize("name", TELLING)
def test_cells_of_one_evaluation_all_have_success_or_none_has(name: str) -> None:
    results = [played(name, [True, False]), played(name, [False, False])]
    assert [row["success"] for row in rows_of(results, AgentConfig())] == [0.5, 0.0]
    alone = rows_of([played("WhenSolved", [False])], AgentConfig())
    assert alone[0]["success"] is None, "nobody knows that there is one"
    config = EnvConfig(id="tests.odd_envs:WhenSolved-v0", success=True)
    assert rows_of(results[1:], AgentConfig(), has_success=env_dims(config).has_success)[0]["success"] == 0.0


def test_rollouts_count_an_episode_that_tells_none_as_failed_once_success_is_known() -> None:
    recent = RecentEpisodes(3, {"return": [1.0, 1.0, 1.0], "length": [1, 1, 1], "success": [None, 1.0, None]})
    assert recent.tells_success and recent.metrics(True)["rollout/success"] == pytest.approx(1 / 3)
    assert "rollout/success" not in RecentEpisodes(1, {"return": [1.0], "success": [None]}).metrics(False)


def test_the_info_of_an_environment_stays_as_it_was() -> None:
    env = make_env("tests.odd_envs:OneDict-v0")
    env.reset(seed=0)
    infos = [env.step(np.zeros(1, np.float32))[4] for _ in range(odd_envs.STEPS)]
    assert env.unwrapped.info == {"is_success": True} and infos[-1]["success"] == 1.0


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_an_environment_gets_actions_within_its_own_bounds_in_its_own_type(dtype: str) -> None:
    """In these boxes every sixth corner left them by a unit in the last place, which the environment asserts."""
    corners = np.random.default_rng(0).choice([-1.0, 1.0], (100, 16)).astype(np.float32)
    for seed in range(40):
        env = make_env(EnvConfig(id="tests.odd_envs:Wide-v0", kwargs={"dtype": dtype, "seed": seed}))
        for corner in (*corners, np.full(16, 2.0)):
            env.reset(seed=0)
            env.step(corner)


def test_whole_numbers_are_observed_as_they_are() -> None:
    env = make_env("tests.odd_envs:Ints-v0")
    assert env.reset(seed=0)[0].dtype == np.float32 and env_dims("tests.odd_envs:Ints-v0").observation_dim == 2


def registered(make: Any, name: str = "Brought-v0", **more: Any) -> str:
    """Register what `make` returns as an environment, and return its id."""
    gymnasium.registry.pop(name, None)
    gymnasium.register(name, make, **{"max_episode_steps": 10, **more})
    env_dims.cache_clear()
    return name


class Spaces(odd_envs.Walk):
    """Has any spaces."""

    def __init__(self, observed: gymnasium.Space, acted: gymnasium.Space) -> None:
        self.observation_space, self.action_space = observed, acted

    def observed(self) -> Any:
        return self.observation_space.sample()


LINE = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
BIG = np.float32(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("observed", "acted", "wrap"),
    [
        (gymnasium.spaces.Discrete(4), LINE, gymnasium.wrappers.FlattenObservation),
        (gymnasium.spaces.Dict(a=LINE, b=gymnasium.spaces.Discrete(3)), LINE, gymnasium.wrappers.FlattenObservation),
        (gymnasium.spaces.Box(0, 255, (4, 4), np.uint8), LINE, gymnasium.wrappers.FlattenObservation),
        (
            gymnasium.spaces.Box(0, 2**40, (2,), np.int64),
            LINE,
            lambda env: gymnasium.wrappers.TransformObservation(env, lambda seen: seen / 2**20, LINE),
        ),
        *(
            (
                LINE,
                space,
                lambda env, make=make: gymnasium.wrappers.TransformAction(env, make, LINE),
            )
            for space, make in (
                (gymnasium.spaces.Discrete(2), lambda action: int(action[0] > 0)),
                (gymnasium.spaces.Box(0, 3, (1,), np.int64), lambda action: np.rint(action + 2).astype(np.int64)),
                (gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32), lambda action: action),
                (gymnasium.spaces.Box(-BIG, BIG, (1,), np.float32), lambda action: action),
                (gymnasium.spaces.Box(-1, 1, (1, 1), np.float32), lambda action: action[None]),
            )
        ),
    ],
)
def test_the_wrapper_that_a_refusal_names_helps(observed: Any, acted: Any, wrap: Any) -> None:
    with pytest.raises(ConfigError, match=r"register a version wrapped in gymnasium\.wrappers\.(\w+)") as refused:
        env_dims(registered(lambda: Spaces(observed, acted)))
    wrapped = wrap(Spaces(observed, acted))
    assert type(wrapped).__name__ in str(refused.value)
    if not isinstance(observed, gymnasium.spaces.Box) or observed.dtype != np.int64:
        assert env_dims(registered(lambda: wrap(Spaces(observed, acted)))).action_dim == 1


@pytest.mark.parametrize(
    "acted",
    [
        gymnasium.spaces.Discrete(3, start=-1),
        gymnasium.spaces.MultiDiscrete([3, 2], start=[1, 0]),
        gymnasium.spaces.MultiBinary((2, 2)),
        gymnasium.spaces.Box(-2, 5, (2, 2), np.int64),
        gymnasium.spaces.Box(0, 255, (3,), np.uint8),
        gymnasium.spaces.Box(-0.4, 0.4, (2, 2), np.float64),
        gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32),
    ],
)
def test_the_wrapper_that_a_refusal_writes_down_is_code_that_helps(acted: gymnasium.Space) -> None:
    """Also for whole numbers: every corner of the actions reaches the environment, which asserts what it is given."""
    with pytest.raises(ConfigError, match=r"register a version wrapped in ") as refused:
        env_dims(registered(lambda: Spaces(LINE, acted)))
    code = str(refused.value).partition("wrapped in ")[2].partition(", with bounds")[0]
    wrap = eval(f"lambda env: {code}", {"gymnasium": gymnasium, "np": np, "LOW": -1, "HIGH": 1})  # noqa: S307
    env = make_env(registered(lambda: wrap(Spaces(LINE, acted))))
    for corner in (-1.0, 0.0, 1.0):
        env.reset(seed=0)
        env.step(np.full(env.action_space.shape or (), corner, np.float32))


@pytest.mark.parametrize(
    ("late", "found"),
    [
        ({"told": lambda *_: {"success": "yes"}}, r"\{'success': 'yes'\} in its info; tell success as one number"),
        (
            {"told": lambda *_: {"is_success": 3}},
            r"\{'is_success': 3\} in its info; tell success as one number from 0 to 1",
        ),
        ({"told": lambda *_: None}, r"the info of type NoneType; return a dict"),
        ({"observed": lambda: np.zeros(3)}, r"the observation has shape \(3,\), its space \(2,\)"),
        ({"observed": lambda: {"a": 1}}, r"TypeError"),
        ({"step": lambda action: (np.zeros(2), None, False, False, {})}, r"TypeError.*NoneType"),
        ({"step": lambda action: (np.zeros(2), 0.0, False, {})}, r"not enough values"),
        ({"step": lambda action: sys.exit(3)}, r"SystemExit: 3"),
    ],
)
def test_what_breaks_only_later_is_one_sentence_with_the_environments_name(late: dict[str, Any], found: str) -> None:
    env = make_env("tests.odd_envs:Always-v0")
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    vars(env.unwrapped).update(late)
    with pytest.raises(EnvironmentUnavailable, match=rf"^environment 'Always-v0' fails in step: .*{found}") as refused:
        env.step(np.zeros(1, np.float32))
    assert "\n" not in str(refused.value)


def test_a_step_limit_can_be_given_wherever_one_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"env\.max_episode_steps"):
        make_env("tests.odd_envs:Endless-v0")
    assert env_dims(EnvConfig(id="tests.odd_envs:Endless-v0", max_episode_steps=7)).max_episode_steps == 7


def test_arguments_reach_the_constructor_and_are_what_a_checkpoint_holds() -> None:
    env = make_env(EnvConfig(id="tests.odd_envs:Massive-v0", kwargs={"mass": 3}))
    assert env.reset(seed=0)[0].tolist() == [3.0, 3.0]
    assert EnvConfig(id="x", kwargs={"sizes": (1, 2)}).kwargs == {"sizes": [1, 2]}
    with pytest.raises(ConfigError, match=r"env\.kwargs holds what no checkpoint can"):
        EnvConfig(id="x", kwargs={"reward": abs})
    with pytest.raises(ConfigError, match="takes no arguments"):
        make_env(EnvConfig(id="exorl/walker-walk", kwargs={"mass": 3}))
    with pytest.raises(EnvironmentUnavailable, match=r"missing 1 required.*'mass'.*env\.kwargs"):
        make_env("tests.odd_envs:Massive-v0")
    with pytest.raises(ConfigError, match=r"takes no arguments.*change env\.kwargs"):
        make_env(EnvConfig(id="tests.odd_envs:Ints-v0", kwargs={"mass": 3}))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Fails", r"cannot be built here: KeyError: 'gripper' \(.*odd_envs\.py, line \d+: raise KeyError"),
        ("FailsInStep", r"fails in step: KeyError: 'gripper' \(.*odd_envs\.py, line \d+: return \{\}\[\"gripper\"\]"),
        ("OldReset", r"reset returns of shape \(2,\).*; return observation, info"),
        ("OldStep", r"step returns a tuple of 4; return observation, reward, terminated, truncated, info"),
        ("OtherShape", r"observation of shape \(3,\).*has shape \(2,\)"),
        ("VectorReward", r"the reward of shape \(1,\).*float\(reward\)"),
        ("NaNReward", r"step returns the reward nan; return a finite number"),
        ("InfiniteObservation", r"reset returns NaN or infinity in the observation \[0\.0, inf\]"),
        ("NoInfo", r"the info of type NoneType; return a dict"),
        ("Wordy", r"'success': 'yes'.*one number"),
        ("Counts", r"'success': 2.*one number from 0 to 1"),
        ("Leaves", r"cannot be built here: SystemExit: no licence \(.*odd_envs\.py, line \d+"),
        ("FarReward", r"step returns the reward 1e\+300; return a finite number within float32"),
        ("NoActions", r"actions without a number"),
    ],
)
def test_what_an_environment_breaks_is_said_at_the_start(name: str, found: str) -> None:
    with pytest.raises(DipoleError, match=rf"^environment 'tests\.odd_envs:{name}-v0'.*{found}") as refused:
        env_dims(f"tests.odd_envs:{name}-v0")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f(:\n", r"SyntaxError.*my_envs\.py, line 1"),
        ("import math\nmath.sqrt('two')\n", r"TypeError.*my_envs\.py, line 2: math\.sqrt\('two'\)"),
        ("raise SystemExit(3)\n", r"SystemExit: 3"),
        ("import no_such_thing\n", r"no_such_thing"),
        ("import gymnasium\n", r"imported, but registers no such id"),
    ],
)
def test_a_module_that_fails_on_import_is_named_with_its_line(
    code: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_envs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_envs", raising=False)
    with pytest.raises(ConfigError, match=found):
        make_env("my_envs:Mine-v0")


def test_what_a_users_module_lacks_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the module itself, which is there."""
    (tmp_path / "lacks_something.py").write_text("import no_such_simulator\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = r"line 1: import no_such_simulator\); install 'no_such_simulator', or mend it there"
    with pytest.raises(ConfigError, match=said):
        family("lacks_something:Mine-v0")
    with pytest.raises(ConfigError, match=r"cannot import 'lacks_all\.of_it'.*PYTHONPATH"):
        family("lacks_all.of_it:Mine-v0")


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (40_000, 60_000, np.float16),  # of which the sum is beyond its type
        (1e38, 1.5e38, np.float32),
        (0.1, np.nextafter(np.float32(0.1), np.float32(1)), np.float32),  # of which the middle is none of its numbers
        (0.3, 0.3, np.float32),
    ],
)
def test_bounds_are_reached_whatever_their_type_holds(low: float, high: float, dtype: type) -> None:
    inner = odd_envs.Walk()
    inner.action_space = gymnasium.spaces.Box(dtype(low), dtype(high), (1,), dtype)
    env = StandardEnv(inner)
    corners = env.unmap(np.array([[-1.0], [1.0]], np.float32))
    np.testing.assert_array_equal(corners, np.array([[low], [high]], dtype))
    middle = env.unmap(np.zeros((1, 1), np.float32))
    np.testing.assert_allclose(middle, low / 2 + high / 2, rtol=1e-3)
