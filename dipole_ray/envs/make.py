"""One factory for OGBench single tasks, dm_control suite tasks, ExORL tasks and gymnasium environments."""

import difflib
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from dipole_ray.columns import Schema
from dipole_ray.envs.contract import check_contract
from dipole_ray.envs.control import ControlEnv
from dipole_ray.envs.faults import described
from dipole_ray.envs.gl import disable_rendering_by_default, enable_rendering, is_disabled, lacks_rendering, undisturbed
from dipole_ray.envs.narrowing import narrowing_warnings
from dipole_ray.envs.registry import family, is_visual
from dipole_ray.envs.scenes import DRIVE, DrivingConfig
from dipole_ray.envs.spaces import has_images, problem
from dipole_ray.envs.standard import StandardEnv, success_of
from dipole_ray.errors import ConfigError, EnvironmentUnavailable
from dipole_ray.settings import to_mapping

_NOTHING_DRIVEN = DrivingConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvConfig:
    """Which environment, and what about it runs differ in."""

    id: str
    """`pointmaze-medium-navigate-singletask-task1-v0` (OGBench; without `-taskK` the default task),
    `dm_control/walker-walk`, `exorl/walker-walk`, a gymnasium id such as `Pendulum-v1`, `your_module:YourEnv-v0`, or
    `drive`: scenes in which a plan is scored, an episode of one step.
    Observations may be images, uint8 of height x width x channels, as of OGBench's `visual-` tasks, or a Dict with
    images; MuJoCo draws them by EGL or OSMesa (`dipole doctor` says which works)."""

    success_timing: str | None = None
    """OGBench only: whether reward, success and end of step t are judged on the state before the action, `pre`,
    or after it, `post`. None: OGBench's own choice, `pre` since 1.2.0, which is also how its datasets are labelled,
    so that offline and online rows of one replay agree. Published online results used `post`."""

    max_episode_steps: int | None = None
    """Steps after which an episode is truncated, >= 1. None: the environment's own limit."""

    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the environment's constructor, such as {g: 9.81}: values that JSON can hold."""

    success: bool = False
    """Whether the task defines success although its info tells none at first, as where `is_success` is there only when
    the task is solved: an episode that tells none has then failed. Otherwise success is known once it is told."""

    observation_offset: dict[str, float] | None = field(default=None, hash=False)
    """Dimensions of observations, from 0, and the number that is subtracted from each, in float64, before anything sees
    it: {0: 5400000}. null: that of the dataset (`dipole data import --offset`). {}: nothing, as where the environment
    subtracts it itself."""

    driving: DrivingConfig = _NOTHING_DRIVEN
    """Of `drive`: the scenes whose plans are scored."""

    def __post_init__(self) -> None:
        if (self.id == DRIVE) != bool(self.driving.scenes) or (self.id != DRIVE and self.driving != _NOTHING_DRIVEN):
            found = f"env.driving names {len(self.driving.scenes)} folders of scenes and env.id is '{self.id}'"
            raise ConfigError(f"{found}; give env.driving.scenes together with env.id={DRIVE}, or neither")
        for name in ("max_episode_steps", "kwargs", "success", "observation_offset"):
            if self.id == DRIVE and (found := getattr(self, name)):
                raise ConfigError(f"env.{name} is {found}, and a scene of env.id={DRIVE} is one plan; leave it out")
        if self.success_timing not in (None, "pre", "post"):
            raise ConfigError(f"env.success_timing is '{self.success_timing}'; use 'pre', 'post', or leave it out")
        if self.success_timing is not None and "singletask" not in self.id.split("-"):
            found = f"env.success_timing={self.success_timing} has no effect on '{self.id}'"
            raise ConfigError(f"{found}: only OGBench's single tasks know it; leave it out")
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise ConfigError(f"env.max_episode_steps is {self.max_episode_steps}; it must be at least 1")
        named: set[int] = set()
        for dimension, number in (self.observation_offset or {}).items():
            if not (str(dimension).isdecimal() and math.isfinite(number)):
                found = f"env.observation_offset says {dimension}: {number}"
                raise ConfigError(f"{found}; give the number of a dimension, from 0, and a finite number to subtract")
            if int(dimension) in named:
                raise ConfigError(f"env.observation_offset names dimension {int(dimension)} twice; give it once")
            named.add(int(dimension))
        if self.observation_offset is not None:
            offset = {str(int(dimension)): float(number) for dimension, number in self.observation_offset.items()}
            object.__setattr__(self, "observation_offset", offset)
        try:  # as a checkpoint gives them back
            object.__setattr__(self, "kwargs", json.loads(json.dumps(self.kwargs, allow_nan=False)))
        except (TypeError, ValueError) as error:
            remedy = "give numbers, texts, lists and mappings, from which the environment makes its objects"
            raise ConfigError(f"env.kwargs holds what no checkpoint can ({error}); {remedy}") from None

    def overrides(self) -> list[str]:
        """Return what differs from the defaults as `env.KEY=VALUE`, as commands take it; the id is no part of it."""
        said = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "id"}
        plain = {field.name: getattr(type(self)(id="Pendulum-v1"), field.name) for field in fields(self)}
        changed = {name: value for name, value in said.items() if value != plain[name]}
        if "driving" in changed:
            changed["driving"] = to_mapping(self.driving)
        return [f"env.{name}={json.dumps(value)}" for name, value in changed.items()]


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvDims:
    """What a policy and an evaluation need to know of an environment before it is built."""

    schema: Schema  # each number of an action is in [-1, 1]
    max_episode_steps: int  # after which an episode is truncated
    has_success: bool  # whether the task is known to define success: its first step tells it, or its config
    action_bounds: tuple[tuple[float, ...], tuple[float, ...]]
    """Least and greatest actions of the environment itself, which are -1 and 1 here."""
    num_episodes: int | None = None  # of an evaluation at most, where each is another scene
    warnings: tuple[str, ...] = ()  # what its first steps show that is likely to mislead, as `what; remedy`

    @property
    def observation_dim(self) -> int:
        """Length of the flat observation vector."""
        return self.schema.observation_dim

    @property
    def action_dim(self) -> int:
        """Length of the action vector."""
        return self.schema.action_dim


def make_env(config: EnvConfig | str, render: bool = False) -> StandardEnv:
    """Build an environment, given its config or just its id, in the shape that `StandardEnv` promises.

    With `render`, `env.render()` returns pictures, uint8 (height, width, 3).

    Raises:
        ConfigError: If the id is unknown, or the environment's spaces are neither flat boxes nor images.
        EnvironmentUnavailable: If it exists, but cannot be built or drawn on this machine.
    """
    if isinstance(config, str):
        config = EnvConfig(id=config)
    if config.id == DRIVE:
        raise ConfigError("environment 'drive' is not stepped, its plans are scored: 'dipole drive show' draws scenes")
    disable_rendering_by_default()
    kind, limit = family(config.id), config.max_episode_steps
    if render or (kind == "ogbench" and is_visual(config.id)):
        enable_rendering()
    if kind == "ogbench":
        import ogbench

        options = _given(config, success_timing=config.success_timing, max_episode_steps=limit)
        build = partial(ogbench.make_env_and_datasets, config.id, env_only=True, **options)
        with constructing(config):
            env = standard_ogbench(build, config.id)
        env.subtract(config.observation_offset or {})
        return env
    if kind != "gymnasium" and config.kwargs:
        raise ConfigError(f"env.kwargs is {config.kwargs}, and '{config.id}' takes no arguments; leave it out")
    made = _make_gymnasium(config, render) if kind == "gymnasium" else ControlEnv(config.id, limit)
    if (found := problem(made)) is not None:
        made.close()
        raise ConfigError(f"environment '{config.id}' {found}")
    if is_disabled() and has_images(made.observation_space) and hasattr(made.unwrapped, "model"):
        enable_rendering()  # MuJoCo draws its observations
    env = StandardEnv(made)
    env.subtract(config.observation_offset or {})
    return env


@lru_cache(maxsize=64)
def env_dims(config: EnvConfig | str) -> EnvDims:
    """Return the sizes of an environment, found by building and stepping it once per process.

    Raises:
        ConfigError: Also if what it returns is not what gymnasium asks of an environment.
        EnvironmentUnavailable: Also if it fails; names the line.
    """
    if isinstance(config, str):
        return env_dims(EnvConfig(id=config))
    if config.id == DRIVE:
        from dipole_ray.driving.observations import schema_of
        from dipole_ray.driving.scene_set import SceneSet

        driving = config.driving  # what cannot be opened, or was encoded by two encoders, is refused here
        SceneSet([*dict.fromkeys((*driving.scenes, *driving.driven_in))], driving.observation)
        schema, count = schema_of(driving.observation, driving.actions).as_seen, len(SceneSet(driving.driven_in))
        bounds = (-1.0,) * schema.action_dim, (1.0,) * schema.action_dim
        return EnvDims(schema=schema, max_episode_steps=1, has_success=False, action_bounds=bounds, num_episodes=count)
    with closing(make_env(config)) as env:
        if family(config.id) == "gymnasium":
            check_contract(env.env, config.id)
        warnings = narrowing_warnings(env, config.id) if family(config.id) == "gymnasium" else ()
        env.reset(seed=0)
        info = env.step(np.zeros(env.schema.action_dim, np.float32))[4]
        assert env.spec is not None and env.spec.max_episode_steps is not None
        bounds = env.inner_action_space.low.tolist(), env.inner_action_space.high.tolist()
        return EnvDims(
            schema=env.schema,
            max_episode_steps=env.spec.max_episode_steps,
            has_success=config.success or not math.isnan(success_of(info)),
            action_bounds=(tuple(bounds[0]), tuple(bounds[1])),
            warnings=warnings,
        )


def standard_ogbench(build: Callable[[], gymnasium.Env], env_id: str) -> StandardEnv:
    """Wrap the OGBench environment that `build` returns, cleaning up after its construction."""
    with warnings.catch_warnings():
        # Its action spaces warn of a cast from float64 to float32 that loses nothing.
        warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")
        env = build()
        # A maze leaves its XML in the temporary folder, and open, once the model is compiled.
        path = getattr(env.unwrapped, "fullpath", None)
        if path is not None and Path(path).parent == Path(tempfile.gettempdir()):
            _close_descriptors(Path(path))
            Path(path).unlink(missing_ok=True)
        is_maze = "maze" in env_id or "soccer" in env_id
        return StandardEnv(env, "step" if "teleport" in env_id else "reset" if is_maze else "never")


def _close_descriptors(path: Path) -> None:
    """Close what this process holds open on `path`: a hundred mazes would otherwise hold a hundred descriptors."""
    for entry in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):  # the listing's own descriptor is gone by now
            if entry.readlink() == path:
                os.close(int(entry.name))


def _given(config: EnvConfig, **ours: Any) -> dict[str, Any]:
    """Return what an environment is made with, leaving to it what is None."""
    given = {name: value for name, value in ours.items() if value is not None}
    return {"disable_env_checker": True} | config.kwargs | given


def _make_gymnasium(config: EnvConfig, render: bool) -> gymnasium.Env:
    ours = {"max_episode_steps": config.max_episode_steps, "render_mode": "rgb_array" if render else None}
    build = partial(gymnasium.make, config.id, **_given(config, **ours))
    with constructing(config):
        try:
            return build()
        except Exception as error:
            if not lacks_rendering(error):
                raise
    enable_rendering()  # one that draws while it is built, as gymnasium's AddRenderObservation does
    with constructing(config):
        return build()


@contextmanager
def constructing(config: EnvConfig) -> Iterator[None]:
    """Say what a constructor fails with, and at which line."""
    try:
        with undisturbed():  # some draw while they are built
            yield
    except (Exception, SystemExit) as error:  # any environment's any error
        found = f"environment '{config.id}' is registered, but cannot be built here: {described(error)}"
        if not config.kwargs:
            remedy = "mend it there, or give its arguments, if it needs some, with env.kwargs"
            raise EnvironmentUnavailable(f"{found}; {remedy}") from error
        own = [own.name for own in fields(EnvConfig)]
        near = [name for key in config.kwargs for name in difflib.get_close_matches(key, own, 1)]
        meant = f"; if a setting was meant, the nearest valid one is 'env.{near[0]}'" if near else ""
        raise ConfigError(f"{found}; mend it there, or change env.kwargs={config.kwargs}{meant}") from error
