"""What a policy sees of a scene, in numbers of about 1: a vector, or the car's status and tokens of what is around."""

import numpy as np

from dipole_ray.columns import Column, Schema
from dipole_ray.driving.actions import action_dim
from dipole_ray.driving.ego_status import hot_commands
from dipole_ray.driving.encoders import POLICIES, context_shape
from dipole_ray.driving.log import COMMANDS, HISTORY
from dipole_ray.driving.raster import CHANNELS, RasterConfig, raster
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.surroundings import SURROUNDINGS_DIM, surroundings
from dipole_ray.driving.vehicle import Array
from dipole_ray.envs.observations import Observation

_ABOVE = RasterConfig(pixels=64, metres_per_pixel=1.0)
CELLS = 16  # of a side in `bev`, 4 m each
PATCHES, PATCH = 8, 4  # of a side in `tokens`, and cells of 2 m in the side of each
_MOTION_UNITS = np.array([10.0, 10.0, 1.0, 1.0])  # m/s and m/s^2
_POSE_UNITS = np.array([10.0, 1.0, 0.1])  # metres ahead and aside, radians
STATUS_DIM = HISTORY * 4 + (HISTORY - 1) * 3 + len(COMMANDS)
BEV_DIM, TOKEN_DIM = STATUS_DIM + len(CHANNELS) * CELLS**2, len(CHANNELS) * PATCH**2 + 2
_COLUMNS: dict[str, Column | dict[str, Column]] = {
    "status": Column((STATUS_DIM,), table="scenes"),
    "bev": Column((BEV_DIM,), table="scenes"),
    "vector": Column((STATUS_DIM + SURROUNDINGS_DIM,), table="scenes"),
    "tokens": {
        "ego": Column((STATUS_DIM,), table="ego"),
        "context": Column((PATCHES**2, TOKEN_DIM), "float16", table="context"),
    },
}
_COLUMNS |= {
    policy: {
        "ego": Column((STATUS_DIM,), table="ego"),
        "context": Column(context_shape(policy), "float16", table="context"),
    }
    for policy in POLICIES
}


def schema_of(kind: str, actions: str = "poses") -> Schema:
    """Return what rows of judged plans hold: the number of a scene, of which side tables say what is seen."""
    return Schema(_COLUMNS[kind], action_dim(actions))


def observe(one: RecordedScene, kind: str, context: Array | None = None) -> Observation:
    """Return what is seen of a scene, as `schema_of` says; what an encoder made of it is given.

    `status` is the car's motion now and at three times before, its poses then, and the command; `bev` adds how much of
    each cell around the car every layer of the raster covers, `vector` its surroundings. `tokens` has the status as
    `ego`, and as `context` cells by patches, each with the place of its middle, from -1 to 1 along rows and columns.
    """
    status = status_of(one.motion, one.history, one.command)
    if kind in POLICIES:
        assert context is not None, f"an encoder's tokens are read, not made: {kind}"
        return {"ego": status, "context": context}
    if kind == "status":
        return status
    if kind == "vector":
        return np.concatenate([status, surroundings(one)])
    if kind == "bev":
        return np.concatenate([status, _covered(one, CELLS).ravel()])
    cells = _covered(one, PATCHES * PATCH).reshape(len(CHANNELS), PATCHES, PATCH, PATCHES, PATCH)
    middles = (2 * np.arange(PATCHES) + 1) / PATCHES - 1
    places = np.stack(np.meshgrid(middles, middles, indexing="ij"), axis=-1).reshape(-1, 2)
    context = np.concatenate([cells.transpose(1, 3, 0, 2, 4).reshape(PATCHES**2, -1), places], axis=1)
    return {"ego": status, "context": context.astype(np.float16)}


def status_of(motion: Array, history: Array, command: str) -> Array:
    """Return the car's status (29,) float32, from what RecordedScene has by these names.

    Poses are rounded to float32 first, as NAVSIM hands them to an agent, so that both see the same bits.
    """
    poses = history[:-1].astype(np.float32).astype(np.float64) / _POSE_UNITS
    numbers = np.concatenate([(motion / _MOTION_UNITS).ravel(), poses.ravel(), hot_commands([command])[0]])
    status: Array = numbers.astype(np.float32) + np.float32(0.0)  # one zero: there is -0.0 as well
    return status


def _covered(one: RecordedScene, cells: int) -> Array:
    """Return the share of each cell that the layers cover, (layers, cells, cells) float32."""
    side = _ABOVE.pixels // cells
    layers = raster(one, _ABOVE).reshape(len(CHANNELS), cells, side, cells, side)
    covered: Array = (layers.mean(axis=(2, 4)) / 255.0).astype(np.float32)
    return covered
