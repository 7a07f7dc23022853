"""Whether an environment's first steps change numbers that float32 cannot tell apart."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dipole_ray.data.narrowing import FAR, Narrowing
from dipole_ray.envs.standard import StandardEnv

_STEPS = 10


def narrowing_warnings(env: StandardEnv, env_id: str) -> tuple[str, ...]:
    """Return, as `what; remedy`, which dimensions of observations, and whether rewards, lose what changes at each step.

    Takes a few random steps where observations or rewards are wider than float32; numbers near 0 lose only noise.
    """
    vectors = _vectors(env.env.reset(seed=0)[0])
    if all(vector.dtype.itemsize <= np.dtype(np.float32).itemsize for vector in vectors.values()):
        return ()
    observations, rewards, is_over = [vectors], list[float](), False
    env.inner_action_space.seed(0)
    while len(rewards) < _STEPS and not is_over:
        observation, reward, terminated, truncated, _ = env.env.step(env.inner_action_space.sample())
        observations.append(_vectors(observation))
        rewards.append(float(reward))
        is_over = bool(terminated or truncated)
    found, given = list[str](), Narrowing()
    given.narrow(np.array(rewards))
    for name in vectors:
        seen = Narrowing()
        seen.narrow(env.less_offset(np.stack([vectors[name] for vectors in observations])))
        where = f" '{name}'" if name else ""
        remedy = "as its own code can" if name else "as with env.observation_offset={{{0}: {1}}}"
        found += [
            f"environment '{env_id}': {lost.told(f'dimension {lost.dimension} of its observations{where}')}; subtract "
            f"an offset, {remedy.format(lost.dimension, lost.offset)}"
            for lost in seen.losses()
            if max(abs(lost.low), abs(lost.high)) >= FAR
        ]
    found += [
        f"environment '{env_id}': {lost.told('its rewards')}; let it give smaller numbers, such as what each step adds"
        for lost in given.losses()
        if max(abs(lost.low), abs(lost.high)) >= FAR
    ]
    return tuple(found)


def _vectors(observation: Any) -> dict[str, np.ndarray]:
    """Return what of an observation are numbers and no images, by name; that of a single one is empty."""
    parts = observation if isinstance(observation, Mapping) else {"": observation}
    return {name: np.asarray(part) for name, part in parts.items() if np.ndim(part) < 3}
