"""PDM-Closed: the rule-based planner whose plan is a scene's reference, from the centreline on.

Fifteen proposals, five speeds of an intelligent driver on the centreline and on its parallels a metre to each side, are
driven among objects that are forecast to go on as they do, and judged; the best one is the plan.
"""

from dataclasses import replace

import numpy as np
import shapely

from dipole_ray.driving.judge import Judge
from dipole_ray.driving.path import PosePath
from dipole_ray.driving.plans import STEP_S, STEPS, sampled
from dipole_ray.driving.scene import FRAMES, RED_LIGHT, Frame, Scene
from dipole_ray.driving.simulation import simulate
from dipole_ray.driving.vehicle import (
    HEADING,
    LENGTH,
    STATE_DIM,
    VX,
    WIDTH,
    Array,
    X,
    Y,
    box_points,
)
from dipole_ray.errors import ConfigError

OFFSETS_M = (0.0, -1.0, 1.0)
SPEED_FRACTIONS = np.array([0.2, 0.4, 0.6, 0.8, 1.0])
FALLBACK_SPEED = 15.0
MIN_GAP_M, HEADWAY_S, ACCELERATION, DECELERATION, EXPONENT = 1.0, 1.5, 1.5, 3.0, 10
PLAN_STEPS = 50


def pdm_closed(scene: Scene, speed_limit: float | None = None, center: PosePath | None = None) -> Array:
    """Return the plan of PDM-Closed, poses (51, 3) in the world at 0.1 s; the scene's own reference is not looked at.

    Args:
        scene: Only its first frame is used: objects go on with the speed and the heading they have there.
        speed_limit: m/s, of the lane that the car is on; None takes 15 m/s, as the official planner does.
        center: The centreline with the headings of its lanes; None takes those between its points.
    """
    if speed_limit is not None and not speed_limit > 0:
        raise ConfigError(f"speed_limit is {speed_limit}; metres per second above 0 are needed, or None")
    targets = SPEED_FRACTIONS * (FALLBACK_SPEED if speed_limit is None else speed_limit)
    forecast = _forecast(scene)
    center = center or PosePath.through(scene.centerline)
    paths = [center if offset == 0 else center.parallel(offset) for offset in OFFSETS_M]
    proposals = np.concatenate([_Unroll(forecast, path, targets).poses() for path in paths])
    judged = Judge(forecast, "official")(simulate(proposals[:, : STEPS + 1], scene.ego))
    _, score = judged.compared(judged.progress.max())
    best: Array = proposals[np.argmax(score)]
    return best


def reference_plan(scene: Scene, speed_limit: float | None = None, center: PosePath | None = None) -> Array:
    """Return the plan of PDM-Closed as a scene's reference (41, 3), at the cut times of `plans`."""
    plan = pdm_closed(scene, speed_limit, center)
    knots_us = scene.start_us + np.arange(len(plan)) * 100_000.0
    reference: Array = sampled(plan[None], knots_us, scene.start_us)[0]
    return reference


def _forecast(scene: Scene) -> Scene:
    """Return the scene in which everything goes on as in its first frame, moved every 0.2 s.

    What the car touches at the start is left out, as officially it is ignored; of red lights only what it is all in.
    """
    first = scene.frames[0]
    ego = shapely.Polygon(box_points(scene.ego)[:4])
    red = np.array([RED_LIGHT in token for token in first.tokens], dtype=bool)
    kept = ~np.where(red, shapely.within(ego, first.polygons), shapely.intersects(ego, first.polygons)).astype(bool)
    tokens, polygons = [token for token, keep in zip(first.tokens, kept, strict=True) if keep], first.polygons[kept]
    ways = np.array([_velocity(scene, token) for token in tokens]).reshape(-1, 2)
    ways = np.repeat(ways, shapely.get_num_coordinates(polygons), axis=0)
    times_s = STEP_S * (np.arange(FRAMES) // 2 * 2)
    frames = [Frame(tokens, shapely.transform(polygons, lambda xy, t=t: xy + ways * t)) for t in times_s]
    return replace(scene, frames=frames)


def _velocity(scene: Scene, token: str) -> tuple[float, float]:
    if RED_LIGHT in token or not scene.objects[token].is_agent:
        return 0.0, 0.0
    known = scene.objects[token]
    return known.speed * np.cos(known.heading), known.speed * np.sin(known.heading)


class _Unroll:
    """The intelligent driver's five speeds on one path, step by step."""

    def __init__(self, scene: Scene, path: PosePath, targets: Array) -> None:
        self._scene, self._path, self._targets = scene, path, targets
        start = path.line.project(shapely.Point(scene.ego[[X, Y]]))
        self._distance = np.full(len(targets), start)
        self._speed = np.full(len(targets), scene.ego[VX])
        reach = start + abs(targets.max()) * PLAN_STEPS * STEP_S
        self._corridor = path.between(start, reach).buffer(WIDTH / 2, cap_style="square")
        self._leads = np.zeros((len(targets), 3))

    def poses(self) -> Array:
        """Return the poses (5, 51, 3)."""
        poses = [self._path.at(self._distance)]
        for step in range(1, PLAN_STEPS + 1):
            if step % 2 == 0:
                self._look_ahead(self._scene.frames[step], poses[-1])
            self._drive()
            poses.append(self._path.at(self._distance))
        return np.stack(poses, axis=1)

    def _look_ahead(self, frame: Frame, poses: Array) -> None:
        """Find what is nearest ahead of each proposal in the corridor.

        One note is kept for all five, as officially: what one finds and the next does not overwrite stays.
        """
        touched = np.flatnonzero(shapely.intersects(self._corridor, frame.polygons))
        tokens, polygons = [frame.tokens[i] for i in touched.tolist()], frame.polygons[touched]
        places = shapely.line_locate_point(self._path.line, shapely.centroid(polygons))
        lead = np.zeros(3)
        for i, pose in enumerate(poses):
            ahead = np.flatnonzero(places > self._distance[i])
            if len(ahead):
                state = np.zeros(STATE_DIM)
                state[[X, Y, HEADING]] = pose
                gaps = shapely.distance(shapely.Polygon(box_points(state)[:4]), polygons[ahead])
                nearest = tokens[int(ahead[gaps.argmin()])]
                lead[0] = self._distance[i] + gaps.min()
                if RED_LIGHT not in nearest:
                    known = self._scene.objects[nearest]
                    lead[1] = known.speed * np.cos(known.heading - pose[2]) if known.is_agent else 0.0
            else:
                lead[0], lead[2] = self._path.length, LENGTH / 2
            self._leads[i] = lead

    def _drive(self) -> None:
        """Go on for a step. Before the first look the lead is at 0, so that every proposal brakes at first."""
        place, lead_speed, rear = self._leads.T
        speed = self._speed
        closing = speed * (speed - lead_speed) / (2 * np.sqrt(ACCELERATION * DECELERATION))
        wanted = MIN_GAP_M + speed * HEADWAY_S + closing
        gap = np.maximum(place - self._distance - rear, MIN_GAP_M)
        change = ACCELERATION * (1 - (speed / self._targets) ** EXPONENT - (wanted / gap) ** 2)
        self._distance = self._distance + STEP_S * speed
        self._speed = speed + STEP_S * np.clip(change, -DECELERATION, ACCELERATION)
