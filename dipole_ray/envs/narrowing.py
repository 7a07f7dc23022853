"""Whether an environment's first steps change numbers that float32 cannot tell apart."""

import numpy as np

from dipole_ray.data.narrowing import FAR, Narrowing
from dipole_ray.envs.standard import StandardEnv

_STEPS = 10


def narrowing_warnings(env: StandardEnv, env_id: str) -> tuple[str, ...]:
    """Return, as `what; remedy`, which dimensions of observations, and whether rewards, lose what changes at each step.

    Takes a few random steps where observations or rewards are wider than float32; numbers near 0 lose only noise.
    """
    observation = np.asarray(env.env.reset(seed=0)[0])
    if observation.dtype.itemsize <= np.dtype(np.float32).itemsize:
        return ()
    observations, rewards, is_over = [observation], list[float](), False
    env.inner_action_space.seed(0)
    while len(rewards) < _STEPS and not is_over:
        observation, reward, terminated, truncated, _ = env.env.step(env.inner_action_space.sample())
        observations.append(np.asarray(observation))
        rewards.append(float(reward))
        is_over = bool(terminated or truncated)
    seen, given = Narrowing(), Narrowing()
    seen.narrow(env.less_offset(np.stack(observations)))
    given.narrow(np.array(rewards))
    found = [
        f"environment '{env_id}': {lost.told(f'dimension {lost.dimension} of its observations')}; subtract an offset, "
        f"as with env.observation_offset={{{lost.dimension}: {lost.offset}}}"
        for lost in seen.losses()
        if max(abs(lost.low), abs(lost.high)) >= FAR
    ]
    found += [
        f"environment '{env_id}': {lost.told('its rewards')}; let it give smaller numbers, such as what each step adds"
        for lost in given.losses()
        if max(abs(lost.low), abs(lost.high)) >= FAR
    ]
    return tuple(found)
