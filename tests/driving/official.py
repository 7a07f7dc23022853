"""Metric caches pickled from classes of nuPlan's and NAVSIM's names, with the fields that theirs have.

The modules are there while a pickle is written and gone afterwards, as where the official code is not installed.
"""

from __future__ import annotations

import enum
import lzma
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import shapely

from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.vehicle import REAR_AXLE_TO_CENTER

PDM = "navsim.planning.simulation.planner.pdm_planner"
ACTOR = "nuplan.common.actor_state"
LAYERS = {"LANE": 0, "INTERSECTION": 1, "LANE_CONNECTOR": 11, "CARPARK_AREA": 15, "ROADBLOCK": 17}
KINDS = {"vehicle": 0, "pedestrian": 1, "bicycle": 2, "traffic_cone": 3}


def plain(module: str, name: str) -> type:
    """Return a class whose objects are pickled with their attributes."""
    return type(name, (), {"__module__": module})


def slotted(module: str, name: str, slots: tuple[str, ...]) -> type:
    return type(name, (), {"__module__": module, "__slots__": slots})


def remade(module: str, name: str, count: int) -> type:
    """Return a class whose objects are pickled as a call with their first attributes."""
    reduce = lambda self: (type(self), tuple(list(vars(self).values())[:count]))  # noqa: E731
    start = lambda self, *values: self.__dict__.update(enumerate(values))  # noqa: E731
    return type(name, (), {"__module__": module, "__reduce__": reduce, "__init__": start})


def classes() -> dict[str, type]:
    made = [
        plain("navsim.planning.metric_caching.metric_cache", "MetricCache"),
        remade("nuplan.planning.simulation.trajectory.interpolated_trajectory", "InterpolatedTrajectory", 1),
        plain(f"{ACTOR}.ego_state", "EgoState"),
        plain(f"{ACTOR}.car_footprint", "CarFootprint"),
        plain(f"{ACTOR}.dynamic_car_state", "DynamicCarState"),
        slotted(f"{ACTOR}.state_representation", "StateSE2", ("x", "y", "heading")),
        slotted(f"{ACTOR}.state_representation", "StateVector2D", ("_x", "_y", "_array")),
        slotted(f"{ACTOR}.state_representation", "TimePoint", ("time_us",)),
        plain(f"{ACTOR}.agent", "Agent"),
        plain(f"{ACTOR}.static_object", "StaticObject"),
        plain(f"{ACTOR}.oriented_box", "OrientedBox"),
        plain(f"{PDM}.observation.pdm_observation", "PDMObservation"),
        remade(f"{PDM}.observation.pdm_occupancy_map", "PDMOccupancyMap", 3),
        remade(f"{PDM}.observation.pdm_occupancy_map", "PDMDrivableMap", 4),
        remade(f"{PDM}.utils.pdm_path", "PDMPath", 1),
    ]
    types = enum.Enum("TrackedObjectType", {name.upper(): value for name, value in KINDS.items()})
    layers = enum.IntEnum("SemanticMapLayer", LAYERS)
    types.__module__, layers.__module__ = f"{ACTOR}.tracked_objects_types", "nuplan.common.maps.maps_datatypes"
    return {one.__name__: one for one in (*made, types, layers)}


@contextmanager
def installed(found: dict[str, type]) -> Iterator[None]:
    """Make the classes importable by the names under which they are pickled."""
    modules: dict[str, ModuleType] = {}
    for one in found.values():
        parts = one.__module__.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            modules.setdefault(name, ModuleType(name))
        setattr(modules[one.__module__], one.__name__, one)
    with patch.dict(sys.modules, modules):
        yield


def cache_bytes(one: RecordedScene, **changes: Any) -> bytes:
    """Return the metric cache of a scene, in the fields and the order of the official code."""
    known = classes()

    def made(name: str, **values: Any) -> Any:
        thing = known[name].__new__(known[name])
        for key, value in values.items():
            setattr(thing, key, value)
        return thing

    def pose(x: float, y: float, heading: float) -> Any:
        return made("StateSE2", x=float(x), y=float(y), heading=float(heading))

    def vector(x: float, y: float) -> Any:
        return made("StateVector2D", _x=float(x), _y=float(y), _array=np.array([x, y]))

    def state(at: Any, time_us: int) -> Any:
        x, y, heading = (float(value) for value in at[:3])
        center = x + REAR_AXLE_TO_CENTER * np.cos(heading), y + REAR_AXLE_TO_CENTER * np.sin(heading)
        moves = [*at[3:7], 0.0, 0.0, 0.0, 0.0] if len(at) > 3 else [0.0] * 8
        motion = made(
            "DynamicCarState",
            _rear_axle_velocity_2d=vector(*moves[:2]),
            _rear_axle_acceleration_2d=vector(*moves[2:4]),
            _tire_steering_rate=0.0,
            _angular_velocity=0.0,
            _angular_acceleration=0.0,
        )
        return made(
            "EgoState",
            _car_footprint=made("CarFootprint", _center=pose(*center, heading), _length=5.176, _width=2.297),
            _tire_steering_angle=0.0,
            _is_in_auto_mode=True,
            _time_point=made("TimePoint", time_us=time_us),
            _dynamic_car_state=motion,
        )

    scene = one.scene
    maps = []
    for frame in scene.frames:
        pairs = [(t, p) for t, p in zip(frame.tokens, frame.polygons, strict=True) if "red_light" not in t]
        maps.append(known["PDMOccupancyMap"]([t for t, _ in pairs], [p for _, p in pairs], 10))
    objects = {}
    for token, thing in scene.objects.items():
        box = made("OrientedBox", _center=pose(0, 0, thing.heading), _length=1.0, _width=1.0, _height=1.0)
        kind = known["TrackedObjectType"](KINDS[one.kinds[token]])
        speed = vector(thing.speed * np.cos(thing.heading), thing.speed * np.sin(thing.heading))
        name = "Agent" if thing.is_agent else "StaticObject"
        objects[token] = made(name, _box=box, _tracked_object_type=kind, _velocity=speed, _metadata=None)
    types = [known["SemanticMapLayer"](LAYERS[name]) for name in scene.map_types]
    times = [scene.start_us + 100_000 * step for step in range(len(scene.reference))]
    line = [pose(x, y, 0.0) for x, y in shapely.get_coordinates(scene.centerline)]
    values = {
        "file_path": Path("metric_cache.pkl"),
        "trajectory": known["InterpolatedTrajectory"](
            [state(p, t) for p, t in zip(scene.reference, times, strict=True)]
        ),
        "ego_state": state(scene.ego, scene.start_us),
        "observation": made("PDMObservation", _occupancy_maps=maps, _unique_objects=objects, _map_radius=100),
        "centerline": known["PDMPath"](line),
        "route_lane_ids": sorted(scene.route),
        "drivable_area_map": known["PDMDrivableMap"](
            list(scene.map_tokens), types, np.array(scene.map_polygons, dtype=object), 10
        ),
    }
    with installed(known):
        return lzma.compress(pickle.dumps(made("MetricCache", **(values | changes)), protocol=5), preset=0)
