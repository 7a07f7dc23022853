"""Whether an environment of anybody's does what gymnasium asks of one."""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from dipole_ray.data.narrowing import to_float32
from dipole_ray.envs.faults import failure
from dipole_ray.envs.spaces import is_image
from dipole_ray.envs.standard import success_of
from dipole_ray.errors import ConfigError

_WITHIN = " within float32's 3.4e38"


def check_contract(env: gymnasium.Env, env_id: str) -> None:
    """Reset and step an environment of anybody's, and refuse what would fail, or mislead, only later.

    First the environment itself, then with the wrappers around it, which fail at wrong answers in words of their own.

    Raises:
        ConfigError: An answer is not what gymnasium asks for; names what was found.
        EnvironmentUnavailable: Reset or step fails; names the line.
    """
    for layer in dict.fromkeys((env.unwrapped, env)):
        _check_reset(_answer(env_id, "reset", layer.reset, seed=0), layer, env_id)
        layer.action_space.seed(0)
        _check_step(_answer(env_id, "step", layer.step, layer.action_space.sample()), layer, env_id)


def _answer(env_id: str, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except (Exception, SystemExit) as error:  # any environment's any error
        raise failure(env_id, name, error) from error


def _check_reset(answer: Any, env: gymnasium.Env, env_id: str) -> None:
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise _broken(env_id, "reset", _words(answer), "return observation, info")
    _check_observation(answer[0], env.observation_space, env_id, "reset")
    _check_info(answer[1], env_id, "reset")


def _check_step(answer: Any, env: gymnasium.Env, env_id: str) -> None:
    if not isinstance(answer, tuple) or len(answer) != 5:
        raise _broken(env_id, "step", _words(answer), "return observation, reward, terminated, truncated, info")
    observation, reward, terminated, truncated, info = answer
    _check_observation(observation, env.observation_space, env_id, "step")
    if not _is_number(reward, "fiub"):
        raise _broken(env_id, "step", f"the reward {_words(reward)}", "return one number, such as float(reward)")
    if not np.isfinite(to_float32(np.asarray(reward))):
        remedy = f"return a finite number{_WITHIN * bool(np.isfinite(reward))}"
        raise _broken(env_id, "step", f"the reward {reward}", remedy)
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not _is_number(flag, "biu"):
            raise _broken(env_id, "step", f"{name} as {_words(flag)}", f"return bool({name})")
    _check_info(info, env_id, "step")


def _check_observation(observation: Any, space: gymnasium.Space, env_id: str, name: str) -> None:
    if isinstance(space, gymnasium.spaces.Dict):
        if not isinstance(observation, Mapping) or observation.keys() != space.keys():
            names = f"with {list(observation)}" if isinstance(observation, Mapping) else _words(observation)
            text = f"the observation {names}, and its observation space has {list(space)}"
            raise _broken(env_id, name, text, "make the two agree")
        for part in space:
            _check_observation(observation[part], space[part], env_id, name)
        return
    if not isinstance(space, gymnasium.spaces.Box):  # inside wrappers that make a Box of it
        return
    found = _array(observation)
    if found is None or found.dtype.kind not in "fiub" or found.shape != space.shape:
        text = f"the observation {_words(observation)}, and its observation space has shape {space.shape}"
        raise _broken(env_id, name, text, "make the two agree")
    if is_image(space) and found.dtype != np.uint8:
        text = f"the observation {_words(observation)}, and its observation space has type uint8"
        raise _broken(env_id, name, text, "return images as whole numbers from 0 to 255 in uint8")
    if not np.isfinite(to_float32(found)).all():
        is_far = bool(np.isfinite(found).all())
        what = f"{'a number beyond float32' if is_far else 'NaN or infinity'} in the observation {found.tolist()}"
        raise _broken(env_id, name, what, f"return finite numbers{_WITHIN * is_far}")


def _check_info(info: Any, env_id: str, name: str) -> None:
    try:
        success_of(info)
    except ValueError as error:
        found, _, remedy = str(error).partition("; ")
        raise _broken(env_id, name, found, remedy) from None


def _is_number(value: Any, kinds: str) -> bool:
    array = _array(value)
    return array is not None and array.shape == () and array.dtype.kind in kinds


def _array(value: Any) -> np.ndarray | None:
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # a ragged list
        return None


def _words(value: Any) -> str:
    """Return what an answer is: its type, and its length or shape and dtype where it has one."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if isinstance(value, np.ndarray):
        return f"of shape {value.shape} and type {value.dtype}"
    return f"of type {type(value).__name__}"


def _broken(env_id: str, name: str, found: str, remedy: str) -> ConfigError:
    return ConfigError(f"environment '{env_id}': {name} returns {found}; {remedy}, as gymnasium's environments do")
