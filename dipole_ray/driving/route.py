"""PDM-Closed's way: the route corrected to where the car is, its lane, and the centreline from there on."""

from collections import deque
from collections.abc import Collection, Sequence
from heapq import heappop, heappush
from itertools import pairwise

import numpy as np
import shapely

from dipole_ray.driving.roads import Lane, RoadMap
from dipole_ray.driving.vehicle import HEADING, Array, X, Y, box_points, wrap_evenly
from dipole_ray.errors import DatasetError

HEADING_ERROR, DISPLACEMENT_M = np.pi / 4, 3.0  # within which the car is on a lane
BACKWARD_DEPTH, FORWARD_DEPTH, CENTERLINE_ROADBLOCKS = 15, 30, 30
LOOP_AREA_M2 = 1.0


def corrected_route(roads: RoadMap, route: Sequence[str], ego: Array) -> list[str]:
    """Return the route, roadblock after roadblock, with the car on it, gaps filled and loops cut.

    Args:
        roads: The map.
        route: Roadblocks as the log has them; one that is there twice counts once.
        ego: State (11,) or pose (3,) of the car.

    Raises:
        DatasetError: The route is empty, or names a roadblock that the map does not have.
    """
    way = list(dict.fromkeys(route))
    if not way:
        raise DatasetError("the route is empty; scenes need one (has_route in NAVSIM's filters)")
    if missing := [token for token in way if token not in roads.roadblocks]:
        raise DatasetError(f"the route has roadblock {missing[0]}, which map {roads.name} does not have")
    start, candidates = _current_roadblock(roads, way, ego)
    if start not in way:
        back = _search(roads, way[0], candidates, BACKWARD_DEPTH, forward=False)
        if back is not None:
            way[:0] = back[:-1]
        else:
            ahead = _search(roads, start, way[:3], FORWARD_DEPTH, forward=True)
            if ahead is not None:
                way = ahead + way[way.index(ahead[-1]) + 1 :]
    return _without_loops(roads, _linked(roads, way))


def _current_roadblock(roads: RoadMap, way: Collection[str], ego: Array) -> tuple[str, list[str]]:
    """Return the roadblock that the car is most likely on, and all that it may be on."""
    near = roads.roadblocks_near(ego[X], ego[Y], 1.0) or roads.nearest_roadblocks(ego[X], ego[Y])
    if not near:
        raise DatasetError(f"map {roads.name} has no roadblocks")
    on_route: list[tuple[float, str]] = []
    others: list[tuple[float, str]] = []
    closest = []
    for block in near:
        errors = [_lane_errors(roads.lanes[token], ego) for token in block.lanes]
        closest.append(min((distance for distance, _ in errors), default=np.inf))
        fits = [distance for distance, turn in errors if turn < HEADING_ERROR and distance < DISPLACEMENT_M]
        (on_route if block.token in way else others).extend((distance, block.token) for distance in fits)
    for found in (on_route, others):
        if found:
            return min(found, key=lambda one: one[0])[1], [token for _, token in found]
    return near[int(np.argmin(closest))].token, [block.token for block in near]


def _lane_errors(lane: Lane, ego: Array) -> tuple[float, float]:
    """Return metres to the nearest point of a lane's baseline, and the angle to its heading there."""
    poses = lane.poses()
    distances = np.hypot(*(poses[:, :2] - ego[[X, Y]]).T)
    nearest = int(np.argmin(distances))
    return float(distances[nearest]), float(abs(wrap_evenly(poses[nearest, 2] - ego[HEADING])))


def _search(roads: RoadMap, start: str, targets: Collection[str], depth: int, *, forward: bool) -> list[str] | None:
    """Return the roadblocks between `start` and the nearest target in the order of driving, at most `depth`; or None.

    Of several ways to one roadblock over equally many the last one found counts, as officially.
    """
    parents: dict[str, str | None] = {start: None}
    levels = {start: 1}
    queue = deque([(start, 1)])
    while queue:
        token, level = queue.popleft()
        if token in targets:
            path = [token]
            while (parent := parents[path[-1]]) is not None:
                path.append(parent)
            return path[::-1] if forward else path
        if level < depth:
            block = roads.roadblocks[token]
            for following in block.outgoing if forward else block.incoming:
                if following not in levels:
                    levels[following] = level + 1
                    queue.append((following, level + 1))
                if levels[following] == level + 1:
                    parents[following] = token
    return None


def _linked(roads: RoadMap, way: Sequence[str]) -> list[str]:
    """Return the route with the roadblocks between two that do not touch."""
    linked = [way[0]]
    for here, following in pairwise(way):
        if here not in roads.roadblocks[following].incoming:
            path = _search(roads, here, [following], FORWARD_DEPTH, forward=True)
            linked += path[1:-1] if path is not None and len(path) >= 3 else []
        linked.append(following)
    return linked


def _without_loops(roads: RoadMap, way: Sequence[str]) -> list[str]:
    """Return the route up to the first connector that crosses an earlier one."""
    crossed: list[shapely.Polygon] = []
    for index, token in enumerate(way):
        block = roads.roadblocks[token]
        if block.is_connector:
            if any(shapely.area(shapely.intersection(crossed, block.polygon)) > LOOP_AREA_M2):
                return list(way[:index])
            crossed.append(block.polygon)
    return list(way)


def route_lanes(roads: RoadMap, way: Sequence[str]) -> dict[str, Lane]:
    """Return the lanes on a corrected route, by token and in its order."""
    return {token: roads.lanes[token] for block in way for token in roads.roadblocks[block].lanes}


def starting_lane(lanes: dict[str, Lane], ego: Array) -> Lane:
    """Return the lane on the route that holds the rear axle with the least error of heading, else the nearest one."""
    if not lanes:
        raise DatasetError("the route has no lanes")
    point = shapely.Point(ego[[X, Y]])
    holding = [lane for lane in lanes.values() if lane.polygon.intersects(point)]
    if holding:
        return min(holding, key=lambda lane: _lane_errors(lane, ego)[1])
    state = np.zeros(11)
    state[[X, Y, HEADING]] = ego[[X, Y, HEADING]]
    points = box_points(state)
    center, footprint = shapely.Point(points[4]), shapely.Polygon(points[:4])
    inside = [lane for lane in lanes.values() if lane.polygon.contains(center)]
    return inside[0] if inside else min(lanes.values(), key=lambda lane: lane.polygon.distance(footprint))


def centerline(roads: RoadMap, way: Sequence[str], start: Lane) -> Array:
    """Return the poses (n, 3) of the lanes from one on to the end of the route, at most 30 roadblocks on."""
    first = way.index(start.roadblock)
    lanes = _shortest(roads, start, route_lanes(roads, way), way[first : first + CENTERLINE_ROADBLOCKS][-1])
    return np.concatenate([roads.lanes[token].poses() for token in lanes])


def _shortest(roads: RoadMap, start: Lane, allowed: Collection[str], goal: str) -> list[str]:
    """Return the shortest way of lanes to the roadblock `goal`; without one, the way to what is the most lanes on.

    Of equally long ways the one found first counts.
    """
    parents: dict[str, str | None] = {start.token: None}
    best, depth = {start.token: 1.0}, {start.token: 1}
    order = {start.token: 0}
    queue, expanded = [(1.0, 0, start.token)], list[str]()
    while queue:
        cost, _, token = heappop(queue)
        if token in expanded or cost > best[token]:
            continue
        if roads.lanes[token].roadblock == goal:
            return _back(parents, token)
        expanded.append(token)
        for following in roads.lanes[token].outgoing:
            further = cost + roads.lanes[following].baseline.length
            if following in allowed and further < best.get(following, np.inf):
                parents[following], best[following], depth[following] = token, further, depth[token] + 1
                heappush(queue, (further, order.setdefault(following, len(order)), following))
    deepest = max(depth[token] for token in expanded)
    return _back(parents, min((t for t in expanded if depth[t] == deepest), key=lambda token: best[token]))


def _back(parents: dict[str, str | None], token: str) -> list[str]:
    path = [token]
    while (parent := parents[path[-1]]) is not None:
        path.append(parent)
    return path[::-1]
