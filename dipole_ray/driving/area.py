"""Where the car is on the map at each step: across lanes, off the road, or against the traffic."""

from dataclasses import dataclass

import numpy as np
import shapely

from dipole_ray.driving.scene import DRIVABLE, LANES, Scene
from dipole_ray.driving.vehicle import Array, X, Y


@dataclass(frozen=True, slots=True)
class EgoArea:
    """What holds of the car's box at each step; (B, T) booleans."""

    multiple_lanes: Array
    """at least two lanes hold a corner, and none holds all four"""
    off_road: Array
    """a corner is on nothing that may be driven on"""
    oncoming: Array
    """the centre is on no lane of the route"""
    intersection: Array
    """the rear axle is in an intersection"""


class DrivableMap:
    """The polygons of a scene's map, prepared for many points. A point on a border is in neither polygon."""

    def __init__(self, scene: Scene) -> None:
        self._polygons = scene.map_polygons
        shapely.prepare(self._polygons)
        self._bounds = shapely.bounds(self._polygons)
        types = list(scene.map_types)
        self._lanes = np.array([kind in LANES for kind in types], dtype=bool)
        self._drivable = np.array([kind in DRIVABLE for kind in types], dtype=bool)
        self._intersections = np.array([kind == "INTERSECTION" for kind in types], dtype=bool)
        self._route = self._lanes & np.array([token in scene.route for token in scene.map_tokens], dtype=bool)

    def locate(self, states: Array, points: Array) -> EgoArea:
        """Return the areas of the car with the states (B, T, 11) and the corners and centre (B, T, 5, 2)."""
        inside = self._inside(np.concatenate([points, states[..., None, [X, Y]]], axis=-2))  # (P, B, T, 6)
        corners = inside[..., :4]
        num_corners = corners[self._lanes].sum(axis=-1)
        return EgoArea(
            multiple_lanes=((num_corners > 0).sum(axis=0) > 1) & ~(num_corners == 4).any(axis=0),
            off_road=~corners[self._drivable].any(axis=0).all(axis=-1),
            oncoming=~np.logical_or.reduce(inside[self._route, ..., 4]),
            intersection=np.logical_or.reduce(inside[self._intersections, ..., 5]),
        )

    def _inside(self, points: Array) -> Array:
        """Return whether each polygon holds each point, (P, ...) of points (..., 2)."""
        x, y = points[..., 0].ravel(), points[..., 1].ravel()
        inside = np.zeros((len(self._polygons), x.size), dtype=bool)
        low_x, high_x, low_y, high_y = x.min(), x.max(), y.min(), y.max()
        for row, polygon, (left, bottom, right, top) in zip(inside, self._polygons, self._bounds, strict=True):
            if left < high_x and right > low_x and bottom < high_y and top > low_y:
                near = np.flatnonzero((x > left) & (x < right) & (y > bottom) & (y < top))
                row[near] = shapely.contains_xy(polygon, x[near], y[near])
        return inside.reshape(len(self._polygons), *points.shape[:-1])


def oncoming_score(points: Array, area: EgoArea) -> Array:
    """Return DDC (B,): 1, 1/2 or 0 by the most metres driven against the traffic within a second."""
    centers = points[:, :, 4]
    lengths = np.zeros(area.oncoming.shape)
    lengths[:, 1:] = np.linalg.norm(np.diff(centers, axis=1), axis=-1)
    lengths[~area.oncoming] = 0.0
    padded = np.pad(lengths, ((0, 0), (10, 0)))
    most = np.lib.stride_tricks.sliding_window_view(padded, 11, axis=1).sum(axis=-1).max(axis=1)
    return np.where(most < 2.0, 1.0, np.where(most < 6.0, 0.5, 0.0))
