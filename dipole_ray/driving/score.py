"""The PDM score v1.1 of NAVSIM: how well plans drive in a scene."""

from dataclasses import dataclass, fields

import numpy as np

from dipole_ray.driving.collisions import Bearing
from dipole_ray.driving.judge import Judge
from dipole_ray.driving.plans import MAX_POSE, reference_poses
from dipole_ray.driving.scene import Scene
from dipole_ray.driving.simulation import simulate
from dipole_ray.driving.vehicle import Array
from dipole_ray.errors import ConfigError, NonFiniteError

BATCH = 64


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
        self._scene, self._judge = scene, Judge(scene, bearing)
        self._reference = self._judge(simulate(scene.reference[None, :], scene.ego)).progress[0]

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
        judged = self._judge(states)
        ep, pdms = judged.compared(np.maximum(judged.progress, self._reference))
        return Scores(judged.nc, judged.dac, ep, judged.ttc, judged.c, judged.ddc, pdms)


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
