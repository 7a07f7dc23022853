"""NAVSIM's metric caches: the reference part of each scene, an object of the official code packed by lzma."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from dipole_ray.driving.log import AGENTS
from dipole_ray.driving.pickles import Stub, read_pickle
from dipole_ray.driving.plans import sampled
from dipole_ray.driving.scene import FRAMES, Frame, Scene, SceneObject
from dipole_ray.driving.vehicle import REAR_AXLE_TO_CENTER, Array
from dipole_ray.driving.wkb import MAX_NUMBER
from dipole_ray.errors import DatasetError

FILE_NAME = "metric_cache.pkl"
_LAYERS = {0: "LANE", 1: "INTERSECTION", 5: "DRIVABLE_AREA", 11: "LANE_CONNECTOR", 15: "CARPARK_AREA", 17: "ROADBLOCK"}
_LAYERS |= {18: "ROADBLOCK_CONNECTOR"}
_KINDS = ("vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object", "ego")
MAX_ITEMS = 100_000


def find_caches(folder: Path) -> dict[str, Path]:
    """Return the cache file of each scene, by its token, in a folder of LOG/TYPE/TOKEN/metric_cache.pkl.

    Raises:
        DatasetError: There are none.
    """
    found = {path.parent.name: path for path in sorted(folder.glob(f"*/*/*/{FILE_NAME}"))}
    if not found:
        raise DatasetError(
            f"{folder}: no LOG/TYPE/TOKEN/{FILE_NAME} in it; give the folder that NAVSIM's caching wrote"
        )
    return found


def read_cache(path: Path) -> tuple[Scene, dict[str, str]]:
    """Return the scene of a metric cache, and what each of its objects is.

    Raises:
        DatasetError: The file is missing, damaged or hostile, or holds something else than a metric cache.
    """
    content = read_pickle(path, compressed=True)
    try:
        return _scene(content)
    except (KeyError, IndexError) as error:
        raise DatasetError(f"{path}: a metric cache of another form, it has no {error}") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DatasetError(f"{path}: a metric cache of another form ({error})") from None


def _scene(content: Any) -> tuple[Scene, dict[str, str]]:
    cache = _stub(content, "MetricCache").state
    ego, start_us = _ego(cache["ego_state"])
    observation = _stub(cache["observation"], "PDMObservation").state
    maps = _items(observation["_occupancy_maps"])
    if len(maps) != FRAMES:
        raise ValueError(f"{len(maps)} occupancy maps, {FRAMES} are needed")
    frames = [Frame(*_occupancy(_stub(one, "PDMOccupancyMap"), 1)) for one in maps]
    objects, kinds = {}, {}
    for token, one in observation["_unique_objects"].items():
        objects[token], kinds[token] = _object(one)
    if unknown := {token for frame in frames for token in frame.tokens} - objects.keys():
        raise ValueError(f"{min(unknown)} is somewhere and unknown")
    chart = _stub(cache["drivable_area_map"], "PDMDrivableMap")
    tokens, polygons = _occupancy(chart, 2)
    types = [_LAYERS[_member(one, "SemanticMapLayer", tuple(_LAYERS.values()))] for one in _items(chart.arguments[1])]
    if len(types) != len(tokens):
        raise ValueError("another number of types than of tokens")
    way = _poses(_items(_stub(cache["centerline"], "PDMPath").arguments[0]))
    states = _items(_stub(cache["trajectory"], "InterpolatedTrajectory").arguments[0])
    plan = np.array([_rear_axle(state) for state in states])
    times = np.array([_time_us(state) for state in states], dtype=np.float64)
    if len(plan) < 2 or (np.diff(times) <= 0).any():
        raise ValueError("a trajectory of less than two states in order")
    scene = Scene(
        ego=ego,
        start_us=start_us,
        frames=frames,
        objects=objects,
        centerline=shapely.LineString(way[:, :2]),
        route=frozenset(map(str, _items(cache["route_lane_ids"]))),
        map_tokens=tokens,
        map_types=types,
        map_polygons=polygons,
        reference=sampled(plan[None], times, start_us)[0],
    )
    return scene, kinds


def _occupancy(chart: Stub, place: int) -> tuple[list[str], Array]:
    """Return tokens and polygons of an occupancy map, whose polygons are its argument `place`."""
    tokens = [str(token) for token in _items(chart.arguments[0])]
    polygons = np.empty(len(tokens), dtype=object)
    polygons[:] = list(_items(chart.arguments[place]))
    if not all(isinstance(one, shapely.Polygon | shapely.MultiPolygon) for one in polygons):
        raise ValueError("something else than polygons in an occupancy map")
    return tokens, polygons


def _object(value: Any) -> tuple[SceneObject, str]:
    state = _stub(value, "Agent", "StaticObject").state
    kind = _KINDS[_member(state["_tracked_object_type"], "TrackedObjectType", _KINDS)]
    heading = _number(_slots(state["_box"], "OrientedBox")["_center"].state["heading"])
    speed = np.hypot(*_vector(state["_velocity"])) if kind in AGENTS else 0.0
    return SceneObject(kind in AGENTS, float(speed), heading), kind


def _ego(value: Any) -> tuple[Array, int]:
    """Return the state (11,) of the car and the time in microseconds."""
    state = _stub(value, "EgoState").state
    motion = _slots(state["_dynamic_car_state"], "DynamicCarState")
    rates = [motion["_tire_steering_rate"], motion["_angular_velocity"], motion["_angular_acceleration"]]
    vectors = [*_vector(motion["_rear_axle_velocity_2d"]), *_vector(motion["_rear_axle_acceleration_2d"])]
    numbers = [*vectors, _number(state["_tire_steering_angle"]), *map(_number, rates)]
    return np.array([*_rear_axle(value), *numbers]), _time_us(value)


def _rear_axle(value: Any) -> tuple[float, float, float]:
    footprint = _slots(_stub(value, "EgoState").state["_car_footprint"], "CarFootprint")
    if "rear_axle" in footprint:  # the official code kept it
        x, y, heading = _poses([footprint["rear_axle"]])[0].tolist()
        return x, y, heading
    x, y, heading = _poses([footprint["_center"]])[0].tolist()
    return x - REAR_AXLE_TO_CENTER * np.cos(heading), y - REAR_AXLE_TO_CENTER * np.sin(heading), heading


def _time_us(value: Any) -> int:
    time_us = _slots(_stub(value, "EgoState").state["_time_point"], "TimePoint")["time_us"]
    if not isinstance(time_us, int) or not 0 <= time_us < 1 << 53:
        raise ValueError("a time that is no whole number of microseconds")
    return time_us


def _poses(values: Sequence[Any]) -> Array:
    rows = [_slots(one, "StateSE2") for one in values]
    return np.array([[_number(row[name]) for name in ("x", "y", "heading")] for row in rows])


def _vector(value: Any) -> tuple[float, float]:
    slots = _slots(value, "StateVector2D")
    return _number(slots["_x"]), _number(slots["_y"])


def _member(value: Any, kind: str, names: Sequence[str]) -> int:
    """Return the number of a member of an enumeration."""
    if isinstance(value, int):
        return int(value)
    (member,) = _stub(value, kind).arguments
    if isinstance(member, int):
        return int(member)
    if kind == "SemanticMapLayer":
        return next(number for number, name in _LAYERS.items() if name == member)
    return [name.upper() for name in names].index(member)


def _slots(value: Any, kind: str) -> dict[str, Any]:
    return _stub(value, kind).state


def _stub(value: Any, *kinds: str) -> Stub:
    if not isinstance(value, Stub) or value.kind.rpartition(".")[2] not in kinds:
        raise ValueError(f"a {type(value).__name__} where a {' or '.join(kinds)} is needed")
    return value


def _items(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple | np.ndarray) or len(value) > MAX_ITEMS:
        raise ValueError(f"a {type(value).__name__} where a list is needed")
    return list(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ValueError(f"a {type(value).__name__} where a number is needed")
    if not abs(number := float(value)) <= MAX_NUMBER:
        raise ValueError("a number that is not finite or out of the world")
    return number
