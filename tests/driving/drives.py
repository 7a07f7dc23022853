"""A small town made by hand, and a drive through it as NAVSIM's logs have it.

Road 1 leads east to a crossing at x = 100 to 120, with lanes 11 (right, y = -1.75) and 12 (y = 1.75). From there
connectors lead straight on to road 2, lanes 21 and 22, and from lane 12 to the left into road 3, lane 31, north.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely

from dipole_ray.driving.log import no_pictures
from dipole_ray.driving.roads import Lane, Roadblock, RoadMap, connected

Frame = dict[str, Any]
RIGHT, LEFT = -1.75, 1.75
CROSSING = shapely.box(99.5, -10, 120.5, 20)


def lane(token: str, block: str, points: Any, *ahead: str, limit: float | None = 12.0) -> Lane:
    line = shapely.LineString(points)
    return Lane(token, block, line.buffer(1.75, cap_style="flat"), line, ahead, limit)


def along(start: float, end: float, y: float) -> np.ndarray:
    x = np.arange(start, end + 1, 5.0)
    return np.column_stack([x, np.full(len(x), y)])


def town() -> RoadMap:
    turn = np.linspace(0, np.pi / 2, 9)
    left = np.column_stack([100 + 18.25 * np.sin(turn), 20 - 18.25 * np.cos(turn)])
    lanes = [
        lane("11", "1", along(0, 100, RIGHT), "51"),
        lane("12", "1", along(0, 100, LEFT), "52", "53"),
        lane("21", "2", along(120, 400, RIGHT)),
        lane("22", "2", along(120, 400, LEFT)),
        lane("31", "3", np.column_stack([np.full(37, 118.25), np.linspace(20, 200, 37)]), limit=None),
        lane("51", "4", along(100, 120, RIGHT), "21"),
        lane("52", "4", along(100, 120, LEFT), "22"),
        lane("53", "5", left, "31", limit=6.0),
    ]
    blocks = [
        Roadblock("1", shapely.box(0, -3.5, 100, 3.5), ("11", "12"), (), ("4", "5"), is_connector=False),
        Roadblock("2", shapely.box(120, -3.5, 400, 3.5), ("21", "22"), ("4",), (), is_connector=False),
        Roadblock("3", shapely.box(116.5, 20, 120, 200), ("31",), ("5",), (), is_connector=False),
        Roadblock("4", shapely.box(100, -3.5, 120, 3.5), ("51", "52"), ("1",), ("2",), is_connector=True),
        Roadblock("5", lanes[-1].polygon, ("53",), ("1",), ("3",), is_connector=True),
    ]
    return connected("town", lanes, blocks, [("61", "INTERSECTION", CROSSING)], projection="EPSG:32633")


def quaternion(heading: float) -> np.ndarray:
    return np.array([np.cos(heading / 2), 0.0, 0.0, np.sin(heading / 2)])


def frame(index: int, x: float, speed: float, objects: dict[str, tuple[str, Any, float]], **changes: Any) -> Frame:
    """Return a frame of a car in the right lane; an object is its kind, x, y, heading, length, width, and its speed."""
    boxes = [
        (ox - x, oy - RIGHT, 0.8, length, width, 1.6, turn) for _, (ox, oy, turn, length, width), _ in objects.values()
    ]
    ways = [(pace * np.cos(turn), pace * np.sin(turn), 0.0) for _, (_, _, turn, *_), pace in objects.values()]
    return {
        "token": f"{index:016x}",
        "frame_idx": index,
        "timestamp": 1_600_000_000_000_000 + 500_000 * index,
        "log_name": "drive",
        "log_token": "log",
        "scene_name": "scene",
        "scene_token": "scene",
        "map_location": "town",
        "roadblock_ids": ["1", "4", "2"],
        "vehicle_name": "car",
        "can_bus": np.zeros(18),
        "lidar_path": "",
        "ego2global_translation": np.array([x, RIGHT, 0.0]),
        "ego2global_rotation": quaternion(0.0),
        "ego_dynamic_state": [speed, 0.0, 0.0, 0.0],
        "traffic_lights": [(51, False), (53, True)],
        "driving_command": np.array([0, 1, 0, 0]),
        "cams": no_pictures(),
        "anns": {
            "gt_boxes": np.array(boxes, dtype=np.float32).reshape(-1, 7),
            "gt_names": np.array([kind for kind, *_ in objects.values()]),
            "gt_velocity_3d": np.array(ways, dtype=np.float32).reshape(-1, 3),
            "instance_tokens": [f"i-{token}" for token in objects],
            "track_tokens": list(objects),
        },
    } | changes


def drive(count: int = 14, speed: float = 8.0, start: float = 20.0, **changes: Any) -> list[Frame]:
    """Return a drive: a car ahead, a parked one, a walker seen once, a cone, and a rider who is gone for a while."""
    frames = []
    for index in range(count):
        x, now = start + speed * 0.5 * index, 0.5 * index
        objects: dict[str, tuple[str, Any, float]] = {
            "lead": ("vehicle", (x + 35, RIGHT, 0.0, 4.5, 1.9), speed),
            "parked": ("vehicle", (70.0, -5.5, 0.1, 4.5, 1.9), 0.0),
            "cone": ("traffic_cone", (60.0, 5.0, 0.0, 0.5, 0.5), 0.0),
        }
        if index == 6:
            objects["walker"] = ("pedestrian", (50.0, 8.0, 1.0, 0.6, 0.6), 1.0)
        if index in (5, 9):
            objects["rider"] = ("bicycle", (30 + 4 * now, 2.0, 0.0, 1.8, 0.6), 4.0)
        frames.append(frame(index, x, speed, objects, **changes))
    return frames
