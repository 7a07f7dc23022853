"""What spaces of environments are as columns; why others cannot be used, and the very wrapper that mends it.

Observations are a flat vector of numbers, an image (uint8, height x width x channels), or a Dict with images in it.
"""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from dipole_ray.columns import CHANNELS, Column, Schema, is_channels_first

_EXACT = 2**24  # whole numbers up to here are the same in float32
_WRAP = "register a version wrapped in gymnasium.wrappers."
_LEAST_SIDE = 8  # pixels of what is taken for an image where nothing says that it is one
_WHOLE = "np.rint(action).astype(env.action_space.dtype).reshape(env.action_space.shape)"


def is_image(space: gymnasium.Space) -> bool:
    """Return whether a space is one of images, uint8 (H, W, C)."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3


def has_images(space: gymnasium.Space) -> bool:
    """Return whether observations of a space are images, or hold some by name."""
    return is_image(space) or (isinstance(space, Dict) and any(map(is_image, space.values())))


def schema_of(observed: gymnasium.Space, acted: gymnasium.Space) -> Schema:
    """Return the columns of observations and actions in spaces that have no `problem`."""
    assert acted.shape is not None
    single = {name: _column(space) for name, space in observed.items()} if isinstance(observed, Dict) else None
    return Schema(single or _column(observed), *acted.shape)


def _column(space: gymnasium.Space) -> Column:
    assert space.shape is not None
    return Column(space.shape, "uint8" if is_image(space) else "float32")


def spaces_of(schema: Schema) -> tuple[gymnasium.Space, Box]:
    """Return the spaces in which every environment of such columns reaches policies."""
    named: dict[str, gymnasium.Space]
    named = {name.partition(".")[2]: _box(column) for name, column in schema.observed.items()}
    return named.get("", Dict(named)), Box(-1.0, 1.0, schema.actions.shape, np.float32)


def _box(column: Column) -> Box:
    if column.dtype == "uint8":
        return Box(0, 255, column.shape, np.uint8)
    return Box(-np.inf, np.inf, column.shape, np.float32)


def problem(env: gymnasium.Env) -> str | None:
    """Return why an environment cannot be used, with a remedy; None if it can."""
    for name in ("observation", "action"):
        space = getattr(env, f"{name}_space")
        if not isinstance(space, gymnasium.Space):
            found = f"{type(space).__module__}.{type(space).__qualname__}"
            return f"has {found} as its {name}_space; give it a flat gymnasium.spaces.Box"
    return _observation_problem(env.observation_space) or _action_problem(env)


def _observation_problem(space: gymnasium.Space) -> str | None:
    if not (isinstance(space, Dict) and has_images(space)):
        return None if is_image(space) and not is_channels_first(space.shape or ()) else _array_problem(space)
    for name, part in space.items():
        found = None if is_image(part) and not is_channels_first(part.shape or ()) else _array_problem(part)
        if found is not None or not name.isidentifier():
            others = [other for other in space if other != name]
            found = f"'{name}' of its observations {found or 'has a name that is no identifier'}"
            return f"{found.partition('; ')[0]}; mend it, or {_WRAP}FilterObservation(env, {others})"
    return None


def _array_problem(space: gymnasium.Space, name: str = "observation") -> str | None:
    """Return why a space is neither of flat vectors nor of images, see `problem`."""
    if not isinstance(space, Box):
        kind = type(space).__name__
        return f"has a {kind} {name} space; only a flat Box can be used: {_wrapper(name, space)}"
    if name == "observation" and (pixels := _to_image(space)) is not None:
        found = f"has observations of shape {space.shape} and type {space.dtype}"
        return f"{found}; images are uint8 of height x width x channels: {pixels}"
    if len(space.shape) != 1:
        found = f"has {name}s of shape {space.shape}"
        return f"{found}; only flat vectors can be used: {_wrapper(name, space)}"
    if not space.shape[0]:
        return f"has {name}s without a number, as their shape is (0,); give its {name}_space at least one"
    is_whole = name == "observation" and not np.issubdtype(space.dtype, np.floating)
    if is_whole and max(-space.low.min(), space.high.max()) > _EXACT:
        found = f"has observations of type {space.dtype} up to {space.high.max()}, which float32 would round"
        remedy = f"{_WRAP}TransformObservation that scales them, or narrow"
        return f"{found}; {remedy} the bounds of its observation space to +-{_EXACT}"
    return None


def _action_problem(env: gymnasium.Env) -> str | None:
    acted = env.action_space
    if (found := _array_problem(acted, "action")) is not None:
        return found
    assert isinstance(acted, Box)
    if not np.issubdtype(acted.dtype, np.floating):
        return f"has actions of type {acted.dtype}, and a policy's are real numbers: {_wrapper('action', acted)}"
    # An environment that knows no bound often writes the largest number there is.
    if not acted.is_bounded() or max(-acted.low.min(), acted.high.max()) >= np.finfo(np.float32).max:
        return f"has unbounded actions, and a policy's lie between bounds: {_wrapper('action', acted)}"
    if env.spec is None or env.spec.max_episode_steps is None:
        remedy = "set env.max_episode_steps, in RLlib's config env_config={'max_episode_steps': STEPS}"
        return f"has no time limit, so an episode may never end; {remedy}"
    return None


def _to_image(space: Box) -> str | None:
    """Return a wrapper that makes images of what looks like some, but is none of ours; None of anything else."""
    shape, made = space.shape, "image"
    if len(shape) == 4 and space.dtype == np.uint8:  # a stack of frames
        shape, made = (*shape[1:3], shape[0] * shape[3]), "np.concatenate(list(image), axis=-1)"
    elif len(shape) != 3 or min(shape) > CHANNELS[-1] or sorted(shape)[1] < _LEAST_SIDE:
        return None
    elif is_channels_first(shape):
        shape, made = (shape[1], shape[2], shape[0]), "image.transpose(1, 2, 0)"
    if space.dtype != np.uint8:
        scale = "255 * " if space.is_bounded() and space.high.max() <= 1 else ""
        made = f"np.rint({scale}{made}).astype(np.uint8)"
    box = f"gymnasium.spaces.Box(0, 255, {shape}, np.uint8)"
    return f"{_WRAP}TransformObservation(env, lambda image: {made}, {box})"


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
