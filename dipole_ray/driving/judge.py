"""What a drive is worth in a scene, before it is compared with other drives."""

from dataclasses import dataclass

import numpy as np
import shapely

from dipole_ray.driving.area import DrivableMap, oncoming_score
from dipole_ray.driving.collisions import Bearing, Traffic
from dipole_ray.driving.comfort import comfort_score
from dipole_ray.driving.scene import Scene
from dipole_ray.driving.vehicle import Array, box_points

MIN_PROGRESS_M = 5.0
EP_WEIGHT, TTC_WEIGHT, COMFORT_WEIGHT = 5.0, 5.0, 2.0  # DDC is reported, with weight 0


@dataclass(frozen=True, slots=True)
class Judged:
    """Sub-scores of drives and their way along the centreline, (B,) each."""

    nc: Array
    dac: Array
    ttc: Array
    c: Array
    ddc: Array
    progress: Array
    """metres, at least 0; 0 for a drive that is not safe"""

    def compared(self, most: Array) -> tuple[Array, Array]:
        """Return EP and the score, against the most progress, (B,) or one number, of the drives compared."""
        safe = self.nc * self.dac
        moved = most > MIN_PROGRESS_M
        ep = np.where(moved, self.progress / np.where(moved, most, 1.0), safe > 0)
        total = EP_WEIGHT * ep + TTC_WEIGHT * self.ttc + COMFORT_WEIGHT * self.c
        return ep, safe * total / (EP_WEIGHT + TTC_WEIGHT + COMFORT_WEIGHT)


class Judge:
    """Judges drives in one scene, which is prepared once."""

    def __init__(self, scene: Scene, bearing: Bearing) -> None:
        self._map, self._traffic = DrivableMap(scene), Traffic(scene, bearing)
        self._centerline = scene.centerline

    def __call__(self, states: Array) -> Judged:
        """Return what the drives with states (B, 41, 11) are worth."""
        points = box_points(states)
        area = self._map.locate(states, points)
        nc, ttc = self._traffic.judge(states, points, area)
        dac = (~area.off_road.any(axis=1)).astype(float)
        start, end = shapely.line_locate_point(self._centerline, shapely.points(points[:, [0, -1], 4])).T
        progress = np.maximum(end - start, 0.0) * nc * dac
        return Judged(nc, dac, ttc, comfort_score(states), oncoming_score(points, area), progress)
