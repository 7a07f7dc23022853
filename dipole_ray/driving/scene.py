"""A scene: the car at the start, what moves and stands around it for 5 s, the map, the route and the reference plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import shapely

from dipole_ray.driving.vehicle import Array

FRAMES = 51  # 0.1 s apart: the 4 s of a plan, and 0.9 s more for the time to collision
RED_LIGHT = "red_light"  # in the tokens of occupied places that are no objects

LANES = frozenset({"LANE", "LANE_CONNECTOR"})
DRIVABLE = frozenset({"ROADBLOCK", "INTERSECTION", "DRIVABLE_AREA", "CARPARK_AREA"})
MAP_TYPES = LANES | DRIVABLE | {"ROADBLOCK_CONNECTOR"}  # which counts as neither, officially


@dataclass(frozen=True, slots=True)
class SceneObject:
    """What is known of an object when it is first seen; later only its polygon moves."""

    is_agent: bool
    """A vehicle, a pedestrian or a bicycle; False: something that stands, such as a cone."""
    speed: float
    """m/s"""
    heading: float
    """radians; only forecasts need it"""


@dataclass(frozen=True, slots=True)
class Frame:
    """The places that are occupied at one time: `tokens[i]` names what fills `polygons[i]`."""

    tokens: Sequence[str]
    polygons: Array
    """(M,) shapely polygons"""


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene, in one world frame; metres, radians, seconds."""

    ego: Array
    """(11,) state of the car at the start, see `vehicle`"""
    start_us: int
    """clock at the start, microseconds"""
    frames: Sequence[Frame]
    """51 of them, 0.1 s apart"""
    objects: Mapping[str, SceneObject]
    """by token; red lights need none"""
    centerline: shapely.LineString
    route: frozenset[str]
    """ids of the lanes on the route"""
    map_tokens: Sequence[str]
    map_types: Sequence[str]
    map_polygons: Array
    """(P,) shapely polygons, with an id and one of MAP_TYPES each"""
    reference: Array
    """(41, 3) poses at 0.1 s in the world of the plan that progress is compared with, PDM-Closed's"""
