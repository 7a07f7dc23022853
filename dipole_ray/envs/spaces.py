"""Why the spaces of an environment cannot be used, and the very wrapper that mends it."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

_EXACT = 2**24  # whole numbers up to here are the same in float32
_WRAP = "register a version wrapped in gymnasium.wrappers."
_WHOLE = "np.rint(action).astype(env.action_space.dtype).reshape(env.action_space.shape)"


def problem(env: gymnasium.Env) -> str | None:
    """Return why an environment cannot be used, with a remedy; None if it can."""
    for name in ("observation", "action"):
        space = getattr(env, f"{name}_space")
        if not isinstance(space, gymnasium.Space):
            found = f"{type(space).__module__}.{type(space).__qualname__}"
            return f"has {found} as its {name}_space; give it a flat gymnasium.spaces.Box"
        if not isinstance(space, Box):
            kind = type(space).__name__
            return f"has a {kind} {name} space; only a flat Box can be used: {_wrapper(name, space)}"
        if len(space.shape) != 1:
            found = f"has {name}s of shape {space.shape}"
            return f"{found}; only flat vectors can be used: {_wrapper(name, space)}"
        if not space.shape[0]:
            return f"has {name}s without a number, as their shape is (0,); give its {name}_space at least one"
    observed, acted = env.observation_space, env.action_space
    assert isinstance(observed, Box) and isinstance(acted, Box)
    if not np.issubdtype(observed.dtype, np.floating) and max(-observed.low.min(), observed.high.max()) > _EXACT:
        found = f"has observations of type {observed.dtype} up to {observed.high.max()}, which float32 would round"
        remedy = f"{_WRAP}TransformObservation that scales them, or narrow"
        return f"{found}; {remedy} the bounds of its observation space to +-{_EXACT}"
    if not np.issubdtype(acted.dtype, np.floating):
        return f"has actions of type {acted.dtype}, and a policy's are real numbers: {_wrapper('action', acted)}"
    # An environment that knows no bound often writes the largest number there is.
    if not acted.is_bounded() or max(-acted.low.min(), acted.high.max()) >= np.finfo(np.float32).max:
        return f"has unbounded actions, and a policy's lie between bounds: {_wrapper('action', acted)}"
    if env.spec is None or env.spec.max_episode_steps is None:
        remedy = "set env.max_episode_steps, in RLlib's config env_config={'max_episode_steps': STEPS}"
        return f"has no time limit, so an episode may never end; {remedy}"
    return None


def _wrapper(name: str, space: gymnasium.Space) -> str:
    """Return a wrapper that gives an environment flat vectors of real numbers instead of a space, as code."""
    if name == "observation":
        if space.is_np_flattenable:
            return f"{_WRAP}FlattenObservation(env)"
        return f"{_WRAP}TransformObservation(env, f, gymnasium.spaces.Box(LOW, HIGH, (N,))), whose f makes N numbers"
    reshaped = "action.reshape(env.action_space.shape)"
    if isinstance(space, Discrete):
        first, last = int(space.start), int(space.start) + int(space.n) - 1
        return _transform("int(np.rint(action[0]))", f"Box({first}, {last}, (1,))")
    if isinstance(space, MultiBinary):
        return _transform(_WHOLE, f"Box(0, 1, ({int(np.prod(space.shape))},))")
    if isinstance(space, MultiDiscrete):
        most = "np.float32(env.action_space.start + env.action_space.nvec - 1).ravel()"
        return _transform(_WHOLE, f"Box(np.float32(env.action_space.start).ravel(), {most})")
    if isinstance(space, Box) and not np.issubdtype(space.dtype, np.floating):
        bounds = "np.float32(env.action_space.low).ravel(), np.float32(env.action_space.high).ravel()"
        return _transform(_WHOLE, f"Box({bounds})")
    if isinstance(space, Box) and space.is_bounded() and len(space.shape) != 1:
        bounds = "env.action_space.low.ravel(), env.action_space.high.ravel()"
        return _transform(reshaped, f"Box({bounds}, dtype=env.action_space.dtype)")
    if isinstance(space, Box):
        count = int(np.prod(space.shape))
        return f"{_transform(reshaped, f'Box(LOW, HIGH, ({count},))')}, with bounds in the place of LOW and HIGH"
    made = "whose f makes the environment's action of N numbers"
    return f"{_WRAP}TransformAction(env, f, gymnasium.spaces.Box(LOW, HIGH, (N,))), {made}"


def _transform(made: str, box: str) -> str:
    return f"{_WRAP}TransformAction(env, lambda action: {made}, gymnasium.spaces.{box})"
