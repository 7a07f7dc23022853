"""Parked cars beside the roads: boxes that stand there the whole time, on nothing that may be driven on."""

import numpy as np
import shapely

from dipole_ray.driving.roads import RoadMap
from dipole_ray.driving.vehicle import Array, corners

LENGTH_M, WIDTH_M, GAP_M, KERB_M = 4.6, 1.85, 1.0, 0.5
MAX_SPEED = 60 / 3.6  # beside faster roads nobody parks


def parked_cars(roads: RoadMap, per_km: float, random: np.random.Generator) -> Array:
    """Return poses (n, 3) of the middles of parked cars, about `per_km` a kilometre of slow lanes."""
    lanes = [lane for lane in roads.lanes.values() if not roads.roadblocks[lane.roadblock].is_connector]
    slow = [lane for lane in lanes if (lane.speed_limit or 0.0) <= MAX_SPEED]
    drivable = [block.polygon for block in roads.roadblocks.values()] + [shape for _, _, shape in roads.areas]
    tree = shapely.STRtree(drivable)
    places: list[Array] = []
    for lane in slow:
        line = lane.baseline
        aside = lane.polygon.area / line.length / 2 + KERB_M + WIDTH_M / 2
        for place in random.uniform(0, line.length, random.poisson(per_km * line.length / 1000)):
            start, end = (line.interpolate(place + way) for way in (-0.5, 0.5))
            heading = np.arctan2(end.y - start.y, end.x - start.x)
            middle = line.interpolate(place)
            right = heading - np.pi / 2
            places.append(np.array([middle.x + aside * np.cos(right), middle.y + aside * np.sin(right), heading]))
    if not places:
        return np.zeros((0, 3))
    poses = np.array(places)
    boxes = shapely.polygons(corners(poses[:, :2], poses[:, 2], LENGTH_M + GAP_M, WIDTH_M))
    free = np.ones(len(poses), dtype=bool)
    free[np.unique(tree.query(boxes, predicate="intersects")[0])] = False
    first, second = shapely.STRtree(boxes).query(boxes, predicate="intersects")
    for later, earlier in zip(first.tolist(), second.tolist(), strict=True):
        if earlier < later and free[earlier]:
            free[later] = False
    return poses[free]
