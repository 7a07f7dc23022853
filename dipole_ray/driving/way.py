"""A scene's way: the path on which the car follows its centreline, in whose frame plans can be said."""

import numpy as np
import shapely

from dipole_ray.driving.curation import speed_of
from dipole_ray.driving.path import PosePath
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.vehicle import FRONT, HEADING, LENGTH, Array, X, Y, seen_from, turned, wrap_evenly

BEHIND_M, AHEAD_M, STEP_M = 6.0, 170.0, 0.5


class Way:
    """The poses of the rear axle while the middles of the car's front and rear are on the centreline.

    Beyond its ends the centreline goes straight on. A course is a plan seen from the way: metres along it since the
    start, metres to the left of it, and the heading beside its own.
    """

    def __init__(self, one: RecordedScene) -> None:
        """Lay the way from a little behind the car of a scene."""
        self.pose, self.speed = one.scene.ego[[X, Y, HEADING]], speed_of(one)
        center = PosePath.through(one.scene.centerline)
        here = float(shapely.line_locate_point(center.line, shapely.Point(self.pose[:2])))
        fronts = here + FRONT + np.arange(-BEHIND_M, AHEAD_M, STEP_M)
        front, rear = _on(center, fronts), _on(center, fronts - LENGTH)
        ahead = np.arctan2(front[:, 1] - rear[:, 1], front[:, 0] - rear[:, 0])
        axle = front - FRONT * np.column_stack([np.cos(ahead), np.sin(ahead)])
        steps = np.gradient(axle, axis=0)
        self.path = PosePath(np.column_stack([axle, np.arctan2(steps[:, 1], steps[:, 0])]))
        """looks along itself, which on a bend is not where the car looks"""
        self._faces = PosePath(np.column_stack([axle, ahead]))
        self.start = float(self.along(self.pose[:2]))
        self.left_m = center.length - here
        """metres of centreline that are left"""

    def along(self, points: Array) -> Array:
        """Return how far along the path points (..., 2) of the world are, from its beginning."""
        found: Array = shapely.line_locate_point(self.path.line, shapely.points(points))
        return found

    def courses(self, plans: Array) -> Array:
        """Return plans (..., 3), poses in the frame of the car, as courses."""
        places = turned(plans[..., :2], self.pose[2]) + self.pose[:2]
        along = self.along(places)
        beside, faces = self._at(along)
        aside = turned(places - beside[..., :2], -beside[..., 2])[..., 1]
        return np.stack([along - self.start, aside, wrap_evenly(plans[..., 2] + self.pose[2] - faces)], axis=-1)

    def plans(self, courses: Array) -> Array:
        """Return courses (..., 3) as plans in the frame of the car."""
        beside, faces = self._at(courses[..., 0] + self.start)
        side = beside[..., 2] + np.pi / 2
        places = beside[..., :2] + courses[..., 1:2] * np.stack([np.cos(side), np.sin(side)], axis=-1)
        return seen_from(np.concatenate([places, (faces + courses[..., 2])[..., None]], axis=-1), self.pose)

    def _at(self, along: Array) -> tuple[Array, Array]:
        """Return the path's poses (..., 3) at distances from its beginning, and where the car looks there (...)."""
        poses, faces = self.path.at(along.ravel()), self._faces.at(along.ravel())[:, 2]
        return poses.reshape(*along.shape, 3), faces.reshape(along.shape)


def _on(center: PosePath, distances: Array) -> Array:
    """Return the points (n, 2) of a line that goes straight on beyond its ends."""
    poses = center.at(distances)
    beyond = distances - distances.clip(0.0, center.length)
    points: Array = poses[:, :2] + beyond[:, None] * np.column_stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])])
    return points
