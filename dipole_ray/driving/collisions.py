"""Whom the car meets, now and within a second, and whether that is its fault: NC and TTC."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely

from dipole_ray.driving.area import EgoArea
from dipole_ray.driving.plans import STEP_S
from dipole_ray.driving.scene import RED_LIGHT, Scene
from dipole_ray.driving.vehicle import HEADING, VX, VY, Array, X, Y

LOOK_AHEAD = (0, 3, 6, 9)  # steps
STOPPED_SPEED, STANDING_SPEED = 0.05, 0.005  # of NC, of TTC
AHEAD, BEHIND = np.deg2rad(30), np.deg2rad(150)

Bearing = Literal["official", "clipped"]


@dataclass(frozen=True, slots=True)
class _Meetings:
    """Boxes of the car that touch an object, E of them: plan, step, steps looked ahead, and the object."""

    plan: Array
    step: Array
    ahead: Array
    frame: Array
    slot: Array  # the object's place in its frame
    token: Array

    @classmethod
    def all_of(cls, parts: Sequence["_Meetings"]) -> "_Meetings":
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))

    def first_of_each(self) -> "_Meetings":
        """Return the earliest meeting of each plan with each object: the later ones change nothing.

        One that is no fault makes the official code ignore the object from then on; one that is a fault has already
        brought the score down to all that this object can bring it to.
        """
        order = np.lexsort((self.ahead, self.step, self.token, self.plan))
        plan, token = self.plan[order], self.token[order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = (plan[1:] != plan[:-1]) | (token[1:] != token[:-1])
        return self.where(order[new])

    def where(self, chosen: Array) -> "_Meetings":
        return _Meetings(*(getattr(self, name)[chosen] for name in self.__slots__))


class Traffic:
    """The objects of a scene, prepared for many plans."""

    def __init__(self, scene: Scene, bearing: Bearing) -> None:
        self._bearing = bearing
        frames = [
            [(t, p) for t, p in zip(f.tokens, f.polygons, strict=True) if RED_LIGHT not in t] for f in scene.frames
        ]
        tokens = sorted({token for frame in frames for token, _ in frame})
        index = {token: i for i, token in enumerate(tokens)}
        self._is_agent = np.array([scene.objects[token].is_agent for token in tokens], dtype=bool)
        self._speed = np.array([scene.objects[token].speed for token in tokens], dtype=float)
        shape = (len(frames), max(map(len, frames), default=0))
        self._polygons = np.full(shape, None, dtype=object)
        self._tokens = np.full(shape, -1)
        for row, frame in enumerate(frames):
            for slot, (token, polygon) in enumerate(frame):
                self._polygons[row, slot], self._tokens[row, slot] = polygon, index[token]
        self._bounds = np.moveaxis(shapely.bounds(self._polygons), -1, 0)  # NaN where there is none
        self._centers = np.stack([shapely.get_x(c := shapely.centroid(self._polygons)), shapely.get_y(c)], axis=-1)

    def judge(self, states: Array, points: Array, area: EgoArea) -> tuple[Array, Array]:
        """Return NC and TTC, (B,) each, of the car with states (B, 41, 11) and corners (B, 41, 5, 2)."""
        speed = np.hypot(states[..., VX], states[..., VY])
        along = np.stack([np.cos(states[..., HEADING]), np.sin(states[..., HEADING])], axis=-1) * speed[..., None]
        rings = points[..., [0, 1, 2, 3, 0], :]
        found = [self._meetings(rings + along[:, :, None] * (ahead * STEP_S), ahead) for ahead in LOOK_AHEAD]
        now = found[0].first_of_each()
        moving = [one.where(speed[one.plan, one.step] >= STANDING_SPEED) for one in found]
        soon = _Meetings.all_of(moving).first_of_each()
        return self._collision_score(states, speed, rings, area, now), self._time_score(states, area, soon)

    def _meetings(self, rings: Array, ahead: int) -> _Meetings:
        """Return which of the boxes (B, 41, 5, 2) touch what is there `ahead` steps later."""
        frames = np.arange(rings.shape[1]) + ahead
        low, high = rings.min(axis=2)[:, :, None], rings.max(axis=2)[:, :, None]
        left, bottom, right, top = self._bounds[:, None, frames]
        near = (low[..., 0] <= right) & (high[..., 0] >= left) & (low[..., 1] <= top) & (high[..., 1] >= bottom)
        plan, step, slot = np.nonzero(near)
        boxes, box = np.unique(plan * rings.shape[1] + step, return_inverse=True)
        polygons = shapely.polygons(rings.reshape(-1, 5, 2)[boxes])
        shapely.prepare(polygons)
        touches = shapely.intersects(polygons[box], self._polygons[step + ahead, slot])
        plan, step, slot = plan[touches], step[touches], slot[touches]
        return _Meetings(plan, step, np.full(len(plan), ahead), step + ahead, slot, self._tokens[step + ahead, slot])

    def _collision_score(self, states: Array, speed: Array, rings: Array, area: EgoArea, met: _Meetings) -> Array:
        """Return NC (B,): 0 after a collision with an agent that is the car's fault, 1/2 with a static object."""
        at = met.plan, met.step
        polygons = self._polygons[met.frame, met.slot]
        stands = ~self._is_agent[met.token] | (self._speed[met.token] <= STOPPED_SPEED)
        front = shapely.intersects(shapely.linestrings(rings[at][:, [0, 3]]), polygons)
        astray = area.multiple_lanes[at] | area.off_road[at]
        hit = stands | (~(self._bearings(states, met) > BEHIND) & (front | astray))
        hit &= speed[at] > STOPPED_SPEED
        score = np.ones(len(states))
        np.minimum.at(score, met.plan[hit], np.where(self._is_agent[met.token[hit]], 0.0, 0.5))
        return score

    def _time_score(self, states: Array, area: EgoArea, met: _Meetings) -> Array:
        """Return TTC (B,): 0 if the car, going straight on, would within 0.9 s touch what is ahead of it."""
        at = met.plan, met.step
        bearing = self._bearings(states, met)
        aside = area.multiple_lanes[at] | area.off_road[at] | area.intersection[at]
        score = np.ones(len(states))
        score[met.plan[(bearing < AHEAD) | (aside & ~(bearing > BEHIND))]] = 0.0
        return score

    def _bearings(self, states: Array, met: _Meetings) -> Array:
        """Return the angles (E,) between the car's heading and the way from its rear axle to the objects' centres.

        Officially the cosine of an object exactly ahead may round to more than 1, and its angle is NaN: then it is
        neither ahead nor behind. With `clipped` it is 0.
        """
        pose = states[met.plan, met.step]
        way = self._centers[met.frame, met.slot] - pose[:, [X, Y]]
        heading = np.stack([np.cos(pose[:, HEADING]), np.sin(pose[:, HEADING])], axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = (heading * way).sum(axis=-1) / np.linalg.norm(way, axis=-1)
            if self._bearing == "clipped":
                cosine = np.clip(cosine, -1.0, 1.0)
            else:  # where the last bit decides, as the official code computes it: a product of two vectors at a time
                for i in np.flatnonzero(np.abs(np.abs(cosine) - 1.0) < 1e-9):
                    cosine[i] = np.dot(heading[i], way[i] / np.linalg.norm(way[i]))
            angle: Array = np.arccos(cosine)
        return angle
