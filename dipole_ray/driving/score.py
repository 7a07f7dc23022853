"""The PDM score v1.1 of NAVSIM: how well plans drive in a scene."""

from dataclasses import dataclass, fields

import numpy as np
import shapely

from dipole_ray.driving.area import DrivableMap, oncoming_score
from dipole_ray.driving.collisions import Bearing, Traffic
from dipole_ray.driving.comfort import comfort_score
from dipole_ray.driving.plans import MAX_POSE, reference_poses
from dipole_ray.driving.scene import Scene
from dipole_ray.driving.simulation import simulate
from dipole_ray.driving.vehicle import Array, box_points
from dipole_ray.errors import ConfigError, NonFiniteError

BATCH = 64
MIN_PROGRESS_M = 5.0
EP_WEIGHT, TTC_WEIGHT, COMFORT_WEIGHT = 5.0, 5.0, 2.0  # DDC is reported, with weight 0


@dataclass(frozen=True, slots=True)
class Scores:
    """Sub-scores and score of plans, (B,) each, in [0, 1]."""

    nc: Array
    """no collision by the car's own fault: 0, 1/2 or 1"""
    dac: Array
    """drivable area compliance: 0 or 1"""
    ep: Array
    """progress along the centreline against the reference plan's"""
    ttc: Array
    """time to collision within bounds: 0 or 1"""
    c: Array
    """comfort: 0 or 1"""
    ddc: Array
    """driving direction compliance: 0, 1/2 or 1"""
    pdms: Array
    """nc * dac * (5 ep + 5 ttc + 2 c) / 12"""

    def rows(self) -> list[dict[str, float]]:
        """Return a row of plain numbers for each plan."""
        names = [field.name for field in fields(self)]
        columns = [getattr(self, name).tolist() for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


class PDMScorer:
    """Scores plans in one scene, which is prepared once."""

    def __init__(self, scene: Scene, bearing: Bearing = "official") -> None:
        """Prepare a scene; its map and objects must not be changed afterwards.

        Args:
            scene: What surrounds the car.
            bearing: `official` keeps NaN for the angle to an object exactly ahead where the cosine rounds above 1, as
                NAVSIM has it; `clipped` takes it as 0, for scores that are not to be compared with NAVSIM's.
        """
        self._scene = scene
        self._map, self._traffic = DrivableMap(scene), Traffic(scene, bearing)
        judged = self._judge(simulate(scene.reference[None, :], scene.ego))
        self._reference_progress = judged[0][0] * judged[1][0] * judged[5][0]

    def score(self, plans: Array) -> Scores:
        """Return the scores of plans (B, K, 3): poses (x, y, heading) 0.5 s apart in the frame of the car's rear axle.

        A batch is scored as its plans alone would be. 64 plans are computed at a time, so any number fits.

        Raises:
            ConfigError: The shape is another one, or a pose lies beyond 1000 km.
            NonFiniteError: A pose holds NaN or infinity.
        """
        plans = checked_plans(plans)
        parts = [self._score(plans[start : start + BATCH]) for start in range(0, len(plans), BATCH)]
        if not parts:
            return Scores(*np.zeros((7, 0)))
        return Scores(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Scores)))

    def _score(self, plans: Array) -> Scores:
        scene = self._scene
        states = simulate(reference_poses(plans, scene.ego, scene.start_us), scene.ego)
        nc, dac, ttc, c, ddc, progress = self._judge(states)
        safe = nc * dac
        raw = progress * safe
        most = np.maximum(raw, self._reference_progress)
        moved = most > MIN_PROGRESS_M
        ep = np.where(moved, raw / np.where(moved, most, 1.0), safe > 0)
        weights = EP_WEIGHT + TTC_WEIGHT + COMFORT_WEIGHT
        pdms = safe * (EP_WEIGHT * ep + TTC_WEIGHT * ttc + COMFORT_WEIGHT * c) / weights
        return Scores(nc, dac, ep, ttc, c, ddc, pdms)

    def _judge(self, states: Array) -> tuple[Array, Array, Array, Array, Array, Array]:
        """Return NC, DAC, TTC, C, DDC and the progress in metres of simulated states (B, 41, 11)."""
        points = box_points(states)
        area = self._map.locate(states, points)
        nc, ttc = self._traffic.judge(states, points, area)
        dac = (~area.off_road.any(axis=1)).astype(float)
        ends = shapely.points(points[:, [0, -1], 4])
        start, end = shapely.line_locate_point(self._scene.centerline, ends).T
        progress = np.maximum(end - start, 0.0)
        return nc, dac, ttc, comfort_score(states), oncoming_score(points, area), progress


def checked_plans(plans: Array) -> Array:
    """Return plans (B, K, 3) as float64 if they can be scored."""
    plans = np.asarray(plans, dtype=np.float64)
    if plans.ndim != 3 or plans.shape[2] != 3 or plans.shape[1] == 0:
        raise ConfigError(
            f"plans have shape {plans.shape}, (B, K, 3) is needed: B plans of K poses x, y, heading 0.5 s apart"
        )
    bad = np.argwhere(~np.isfinite(plans))
    if len(bad):
        plan, pose, column = bad[0]
        raise NonFiniteError(f"plan {plan} holds {plans[plan, pose, column]} in pose {pose}; poses are finite numbers")
    far = np.argwhere(np.abs(plans) > MAX_POSE)
    if len(far):
        raise ConfigError(f"plan {far[0][0]} has a pose beyond {MAX_POSE:g} m from the car; poses are in metres")
    return plans
