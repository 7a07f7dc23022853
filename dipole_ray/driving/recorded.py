"""A scene out of a drive that was recorded: what surrounds the car, where it came from, and what its driver did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely

from dipole_ray.driving.closed import reference_plan
from dipole_ray.driving.log import FUTURE, HISTORY, Camera, LogFrame
from dipole_ray.driving.path import PosePath
from dipole_ray.driving.plans import STEPS
from dipole_ray.driving.roads import RoadMap
from dipole_ray.driving.route import centerline, corrected_route, route_lanes, starting_lane
from dipole_ray.driving.scene import RED_LIGHT, Frame, Scene
from dipole_ray.driving.tracks import frame_boxes, occupancy
from dipole_ray.driving.vehicle import AX, HEADING, STATE_DIM, VX, Array, X, Y, box_points, seen_from
from dipole_ray.errors import DatasetError

NOW = HISTORY - 1
PAST = NOW - 2  # the frame of 1 s ago
PLAN_POSES = 8
MAP_RADIUS_M = 100.0


@dataclass(frozen=True, slots=True)
class RecordedScene:
    """A scene with its token, what an agent may see besides it, and the driver's own plan."""

    token: str
    log: str
    map: str
    scene: Scene
    kinds: Mapping[str, str]
    """vehicle, pedestrian and so on, by the token of an object"""
    past: Frame
    """what was where 1 s before, in the world"""
    history: Array
    """(4, 3) poses of the car at -1.5, -1, -0.5 and 0 s, in its frame at 0 s"""
    motion: Array
    """(4, 4) vx, vy, ax, ay at those times"""
    command: str
    """left, straight, right or unknown"""
    human: Array
    """(8, 3), the plan that was driven: poses 0.5 s apart in the frame at 0 s"""
    cameras: Mapping[str, Camera]
    """pictures of the moment, where there are any"""


def windows(frames: Sequence[LogFrame], every: int = 1) -> list[Sequence[LogFrame]]:
    """Return the frames of each scene of a log that is long enough and has a route, `every` frames one."""
    length = HISTORY + FUTURE
    starts = range(0, len(frames) - length + 1, every)
    return [frames[start : start + length] for start in starts if frames[start + NOW].route]


def recorded(frames: Sequence[LogFrame], scene: Scene, kinds: Mapping[str, str]) -> RecordedScene:
    """Return a scene with what its 14 frames say besides."""
    now = frames[NOW]
    poses = seen_from(np.array([frame.pose for frame in frames]), now.pose)
    return RecordedScene(
        token=now.token,
        log=now.log,
        map=now.map,
        scene=scene,
        kinds=kinds,
        past=frame_boxes(frames[PAST]),
        history=poses[:HISTORY],
        motion=np.array([frame.motion for frame in frames[:HISTORY]]),
        command=now.command,
        human=poses[HISTORY : HISTORY + PLAN_POSES],
        cameras=now.cameras,
    )


def scene_on_map(frames: Sequence[LogFrame], roads: RoadMap) -> RecordedScene:
    """Return the scene of 14 frames on a map, with the route, the centreline and the reference of PDM-Closed.

    Raises:
        DatasetError: The route does not fit the map; names the scene.
    """
    now = frames[NOW]
    around = occupancy(frames[NOW:])
    ego = np.zeros(STATE_DIM)
    ego[[X, Y, HEADING]] = now.pose
    ego[VX : AX + 2] = now.motion
    try:
        way = corrected_route(roads, now.route, ego)
        lanes = route_lanes(roads, way)
        start = starting_lane(lanes, ego)
        center = centerline(roads, way, start)
    except DatasetError as error:
        raise DatasetError(f"scene {now.token} of {now.log}: {error}") from None
    middle = box_points(ego)[4]
    tokens, types, polygons = roads.drivable(float(middle[0]), float(middle[1]), MAP_RADIUS_M)
    red = [token for token in now.red if token in lanes]
    first = around.frames[0]
    lights = Frame(
        [*first.tokens, *(f"{RED_LIGHT}_{token}" for token in red)],
        np.concatenate([first.polygons, _objects([lanes[token].polygon for token in red])]),
    )
    scene = Scene(
        ego=ego,
        start_us=now.time_us,
        frames=[lights, *around.frames[1:]],
        objects=around.objects,
        centerline=shapely.LineString(center[:, :2]),
        route=frozenset(lanes),
        map_tokens=tokens,
        map_types=types,
        map_polygons=polygons,
        reference=np.zeros((STEPS + 1, 3)),
    )
    reference = reference_plan(scene, start.speed_limit, PosePath(center))
    return recorded(frames, replace(scene, reference=reference), around.kinds)


def _objects(polygons: Sequence[shapely.Polygon]) -> Array:
    array = np.empty(len(polygons), dtype=object)
    array[:] = polygons
    return array
