"""What a policy sees of a scene, as one vector of numbers of about 1."""

import numpy as np

from dipole_ray.driving.ego_status import hot_commands
from dipole_ray.driving.log import COMMANDS, HISTORY
from dipole_ray.driving.raster import CHANNELS, RasterConfig, raster
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.vehicle import Array

CELLS, PIXELS_A_CELL = 16, 4
_ABOVE = RasterConfig(pixels=CELLS * PIXELS_A_CELL, metres_per_pixel=1.0)
_MOTION_UNITS = np.array([10.0, 10.0, 1.0, 1.0])  # m/s and m/s^2
_POSE_UNITS = np.array([10.0, 1.0, 0.1])  # metres ahead and aside, radians
STATUS_DIM = HISTORY * 4 + (HISTORY - 1) * 3 + len(COMMANDS)
DIMS = {"status": STATUS_DIM, "bev": STATUS_DIM + len(CHANNELS) * CELLS**2}
"""Length of each kind of observation."""


def observe(one: RecordedScene, kind: str) -> Array:
    """Return what is seen of a scene, (DIMS[kind],) float32.

    `status` is the car's motion now and at three times before, its poses then, and the command; `bev` adds how much of
    each cell around the car every layer of the raster covers.
    """
    motion, poses = one.motion / _MOTION_UNITS, one.history[:-1] / _POSE_UNITS
    parts = [motion.ravel(), poses.ravel(), hot_commands([one.command])[0]]
    if kind == "bev":
        cut = (len(CHANNELS), CELLS, PIXELS_A_CELL, CELLS, PIXELS_A_CELL)
        parts.append(raster(one, _ABOVE).reshape(cut).mean(axis=(2, 4)).ravel() / 255.0)
    return np.concatenate(parts).astype(np.float32)
