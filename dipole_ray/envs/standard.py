"""The one shape in which every environment reaches the rest of the package."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import gymnasium
import numpy as np

from dipole_ray.envs.faults import failure
from dipole_ray.envs.gl import undisturbed
from dipole_ray.envs.observations import Observation
from dipole_ray.envs.spaces import has_images, schema_of, spaces_of
from dipole_ray.errors import ConfigError, EnvironmentUnavailable, NonFiniteError

Info = dict[str, Any]
GlobalDraws = Literal["never", "reset", "step"]
"""Where an environment draws from numpy's global stream: nowhere, in reset only, or in reset and step."""


def success_of(info: Mapping[str, Any]) -> float:
    """Return the success in [0, 1] that a step's info tells; NaN where it tells none, by no key, by None or by NaN.

    Raises:
        ValueError: If it tells something else, or is no mapping.
    """
    if not isinstance(info, Mapping):
        raise ValueError(f"the info of type {type(info).__name__}; return a dict, {{}} where there is nothing to tell")
    told = {name: info[name] for name in ("success", "is_success") if info.get(name) is not None}
    try:
        success = next((float(np.asarray(value).item()) for value in told.values()), math.nan)
    except (TypeError, ValueError):
        success = math.inf
    if success < 0 or success > 1:
        raise ValueError(f"{told!r:.200} in its info; tell success as one number from 0 to 1, or a bool")
    return success


class PrivateGlobalRandom:
    """A stream that stands in for numpy's global one while a block runs, and is put away afterwards.

    OGBench places mazes' starts, goals and teleports, and plans its oracles, with `numpy.random.*`. Left alone, two
    environments in one process would disturb each other's episodes, and a restarted run could not replay one. The
    process's own stream is left as it was found. Swapping costs about 0.1 ms, so it is done only around calls that are
    known to draw. Blocks of different instances nest; threads do not mix.
    """

    def __init__(self, seed: int | np.random.SeedSequence | None = None) -> None:
        self.seed(seed)

    def seed(self, seed: int | np.random.SeedSequence | None) -> None:
        """Start the stream anew from `seed` (any non-negative integer); None takes entropy from the system."""
        self._state = np.random.RandomState(np.random.MT19937(seed)).get_state(legacy=False)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Run the block with this stream as numpy's global one; keep where it got to, also when the block fails."""
        outer = np.random.get_state(legacy=False)
        np.random.set_state(self._state)
        try:
            yield
        finally:
            self._state = np.random.get_state(legacy=False)
            np.random.set_state(outer)


class StandardEnv(gymnasium.Wrapper):
    """Vectors in float32, images in uint8, actions in [-1, 1], and episodes that depend on seed and actions alone.

    `reset(seed=s)` followed by the same actions gives bitwise the same trajectory in any process of the same
    machine and library versions, whatever else runs there and whatever this object did before: the environment's
    own stream, numpy's global stream as seen by the environment, and its action space's stream (OGBench warms up
    its scenes with sampled actions) all start from `s`. `reset()` without a seed goes on in those streams.

    `info["success"]` is a float where a step tells success. The wrapped environment gets actions within its own bounds,
    in its own type, and its info stays as it is.
    """

    def __init__(self, env: gymnasium.Env, global_draws: GlobalDraws = "never") -> None:
        """Wrap `env`, whose spaces have no `problem`: its action is a flat, bounded Box."""
        super().__init__(env)
        self._id = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        inner = env.action_space
        if not isinstance(env.unwrapped.__dict__.get("action_space"), gymnasium.spaces.Space):
            inner = _pin_action_space(env.unwrapped)
        assert isinstance(inner, gymnasium.spaces.Box)
        self.inner_action_space = inner
        """Actions of the wrapped environment."""
        self._low, self._high = inner.low.astype(inner.dtype), inner.high.astype(inner.dtype)
        # In float64 and halved first: the sum of two bounds may be beyond their own type, or between its numbers.
        low, high = self._low.astype(np.float64) / 2, self._high.astype(np.float64) / 2
        self._centre, self._half_range = high + low, high - low
        self._is_unit_range = bool(np.all(self._low == -1.0) and np.all(self._high == 1.0))
        self._offset: np.ndarray | None = None
        self._global_draws = global_draws
        self._global_random = PrivateGlobalRandom()
        self.schema = schema_of(env.observation_space, inner)
        """What observations and actions are as columns."""
        self.observation_space, self.action_space = spaces_of(self.schema)
        self._has_images = has_images(self.observation_space)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        """Start an episode; returns the observation, as its space says, and the environment's info.

        Raises:
            EnvironmentUnavailable: If the environment's own code fails; names the line.
        """
        if seed is not None:
            self._global_random.seed(seed)
            self.inner_action_space.seed(seed)
        with nullcontext() if self._global_draws == "never" else self._global_random.swapped_in():
            try:
                with self._drawing() if self._has_images else nullcontext():
                    observation, info = self.env.reset(seed=seed, options=options)
                return self._seen(observation), info
            except (Exception, SystemExit) as error:  # any environment's any error
                raise failure(self._id, "reset", error) from error

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, Info]:
        """Advance one step with `action`, float32 (A,); values beyond [-1, 1] are clipped.

        Raises:
            EnvironmentUnavailable: If the environment's own code fails; names the line.
            NonFiniteError: If `action` holds NaN or infinity, which MuJoCo would turn into a silent reset.
        """
        action = np.asarray(action, np.float32)
        if not np.isfinite(action).all():
            raise NonFiniteError(f"action {action} is not finite: the policy has diverged; nothing was stepped")
        action = self.unmap(np.clip(action, -1.0, 1.0))
        with self._global_random.swapped_in() if self._global_draws == "step" else nullcontext():
            try:
                with self._drawing() if self._has_images else nullcontext():
                    observation, reward, terminated, truncated, info = self.env.step(action)
                observed, success = self._seen(observation), success_of(info)
                number, flags = float(reward), (bool(terminated), bool(truncated))
            except (Exception, SystemExit) as error:  # any environment's any error
                raise failure(self._id, "step", error) from error
        if not math.isnan(success):
            info = {**info, "success": success}  # another dict: an environment may give its own again and again
        return observed, number, *flags, info

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Let gymnasium's MuJoCo renderer, which draws into whatever OpenGL context is current, keep to its own."""
        with undisturbed():
            if (renderer := getattr(self.unwrapped, "mujoco_renderer", None)) is not None:
                for viewer in renderer._viewers.values():
                    viewer.make_context_current()
            yield

    def _seen(self, observation: Any) -> Observation:
        """Return one observation as policies take it; ValueError where it is not of its space."""
        if not isinstance(self.observation_space, gymnasium.spaces.Dict):
            return self._seen_part(self.observation_space, observation, "the observation")
        if not isinstance(observation, Mapping) or observation.keys() != self.observation_space.keys():
            found = list(observation) if isinstance(observation, Mapping) else type(observation).__name__
            raise ValueError(f"the observation has {found}, its space {list(self.observation_space)}")
        spaces = self.observation_space.items()
        return {name: self._seen_part(space, observation[name], f"'{name}' observed") for name, space in spaces}

    def _seen_part(self, space: gymnasium.Space, observation: Any, what: str) -> np.ndarray:
        """Return one array of an observation; images are taken as they are, and so must be uint8."""
        found = self._taken(space, observation)
        if found.shape != space.shape:
            raise ValueError(f"{what} has shape {found.shape}, its space {space.shape}")
        if space.dtype == np.uint8 != found.dtype:
            raise ValueError(f"{what} has type {found.dtype}, its space uint8")
        return found

    def subtract(self, offset: Mapping[str, float]) -> None:
        """Subtract numbers from dimensions of observations from now on; ConfigError if there is no such dimension."""
        if offset and not self.schema.is_flat:
            found = f"and observations are {self.schema.observation_text}, no one vector"
            raise ConfigError(
                f"env.observation_offset is {offset}, {found}; leave it out, and let the environment do it"
            )
        size = self.schema.observation_dim if self.schema.is_flat else 0
        if beyond := [dimension for dimension in offset if int(dimension) >= size]:
            found = f"observations have the dimensions 0 to {size - 1}"
            raise ConfigError(f"env.observation_offset names dimension {beyond[0]}: {found}; name one of them")
        self._offset = np.array([offset.get(str(dimension), 0.0) for dimension in range(size)]) if offset else None

    def observed(self, observations: Any) -> Any:
        """Return observations (..., O) of the wrapped environment as policies take them.

        Vectors are float32, less the offset; images stay as they are.
        """
        if not isinstance(self.observation_space, gymnasium.spaces.Dict):
            return self._taken(self.observation_space, observations)
        return {name: self._taken(space, observations[name]) for name, space in self.observation_space.items()}

    def _taken(self, space: gymnasium.Space, values: Any) -> np.ndarray:
        return np.asarray(values) if space.dtype == np.uint8 else np.asarray(self.less_offset(values), np.float32)

    def less_offset(self, observations: np.ndarray) -> np.ndarray:
        """Return observations (..., O) of the wrapped environment less the offset, not yet narrowed."""
        return observations if self._offset is None else np.asarray(observations, np.float64) - self._offset

    def unmap(self, actions: np.ndarray) -> np.ndarray:
        """Return actions (..., A) in [-1, 1], as policies give them, in the wrapped environment's own box and type."""
        if not self._is_unit_range:
            actions = self._centre + actions * self._half_range
        # Rounding carries a corner out of the box by one unit in the last place, which environments may assert against.
        inside: np.ndarray = np.clip(actions, self._low, self._high)
        return inside.astype(self._low.dtype)

    def render(self) -> np.ndarray:  # type: ignore[override]  # gymnasium would have rendering modes return others
        """Return the current frame, uint8 (height, width, 3).

        Raises:
            EnvironmentUnavailable: If a library that draws this environment is missing.
        """
        vis = getattr(getattr(self.unwrapped, "model", None), "vis", None)
        if vis is not None and not self._has_images:  # which are to look as they always do
            # Drawing in software gets 10 to 30 times faster; it counts only before the first rendering context.
            vis.quality.shadowsize = vis.quality.offsamples = 0
        try:
            with self._drawing():
                return np.asarray(self.env.render())
        except gymnasium.error.DependencyNotInstalled as error:
            raise EnvironmentUnavailable(f"cannot draw {self.env}: {error}") from error

    def close(self) -> None:
        """Close the environment, with the renderers that OGBench leaves open."""
        for name in ("custom_renderer", "_renderer"):
            renderer = getattr(self.unwrapped, name, None)
            if renderer is not None:
                renderer.close()
                setattr(self.unwrapped, name, None)
        self.env.close()


def _pin_action_space(env: gymnasium.Env) -> gymnasium.spaces.Space:
    """Give `env`, whose class makes a new action space at every access, one space that keeps its seed.

    OGBench's manipulation environments sample from that property while they reset, which no seed reaches. An
    instance attribute cannot shadow a property, hence the subclass.
    """
    space = env.action_space
    env.__class__ = type(type(env).__name__, (type(env),), {"action_space": space, "__module__": type(env).__module__})
    return space
