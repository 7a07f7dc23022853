"""A path through points: the pose at a distance along it, and its parallel to the side."""

import numpy as np
import shapely
from shapely.ops import substring

from dipole_ray.driving.vehicle import Array, wrap_evenly


class PosePath:
    """A polyline of poses (n, 3)."""

    def __init__(self, poses: Array) -> None:
        self._poses = poses.copy()
        self._poses[:, 2] = np.unwrap(poses[:, 2])
        steps = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1)
        self._distances = np.concatenate([[0.0], np.cumsum(steps)])
        self.line = shapely.LineString(poses[:, :2])

    @classmethod
    def through(cls, line: shapely.LineString) -> "PosePath":
        """Return the path along a line, which looks from each point to the next.

        A point that is there twice is where two lanes meet: the first one looks back along its own lane.
        """
        points = shapely.get_coordinates(line)
        steps = np.diff(points, axis=0)
        moves = np.flatnonzero(steps.any(axis=1))
        chord = np.maximum(np.searchsorted(moves, np.arange(len(points)), side="right") - 1, 0)
        east, north = steps[moves[chord]].T
        return cls(np.column_stack([points, np.arctan2(north, east)]))

    @property
    def length(self) -> float:
        """Metres."""
        return float(self._distances[-1])

    def parallel(self, offset: float) -> "PosePath":
        """Return the path `offset` metres to the left."""
        side = self._poses[:, 2] + np.pi / 2
        shift = offset * np.column_stack([np.cos(side), np.sin(side), np.zeros(len(side))])
        return PosePath(self._poses + shift)

    def at(self, distances: Array) -> Array:
        """Return the poses (B, 3) at distances (B,) from the start; beyond the ends, those of the ends."""
        distances = np.clip(distances, 1e-5, self.length)
        columns = [np.interp(distances, self._distances, column) for column in self._poses.T]
        return np.column_stack([*columns[:2], wrap_evenly(columns[2])])

    def between(self, start: float, end: float) -> shapely.LineString:
        """Return the piece from one distance to another, by the path's points between them."""
        start, end = (min(max(one, 0.0), self.length) for one in (start, end))
        points = self._poses[(self._distances >= start) & (self._distances <= end), :2]
        if len(points) > 1:
            return shapely.LineString(points)
        return substring(self.line, start, end)
