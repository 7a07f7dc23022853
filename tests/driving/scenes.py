"""Scenes made by hand: a straight road along x with a lane each way, and boxes that drive on it as a test says.

The car starts at the origin, in its own lane (y from -2 to 2), and looks along x; the other lane is above it.
"""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from dipole_ray.driving.plans import STEPS
from dipole_ray.driving.scene import FRAMES, Scene
from dipole_ray.driving.scene_file import read_scene_file

Pose = tuple[float, float, float]
Content = dict[str, Any]


def rectangle(left: float, bottom: float, right: float, top: float) -> str:
    return shapely.to_wkb(shapely.box(left, bottom, right, top), hex=True)


def box(pose: Pose, length: float = 4.0, width: float = 2.0) -> str:
    """Return an object's box around a pose."""
    x, y, heading = pose
    corners = np.array([(length, width), (-length, width), (-length, -width), (length, -width)]) / 2
    turn = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
    return shapely.to_wkb(shapely.Polygon(corners @ turn + [x, y]), hex=True)


def road(speed: float = 10.0, y: float = 0.0, *, way: float | None = None) -> Content:
    """Return the empty road with the car driving at `speed` and a reference plan that goes on at `way`."""
    way = speed if way is None else way
    polygons = {
        ("road", "ROADBLOCK"): (-100, -2, 200, 6),
        ("own", "LANE"): (-100, -2, 200, 2),
        ("other", "LANE"): (-100, 2, 200, 6),
    }
    return {
        "ego0": [0.0, y, 0.0, speed, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        "t0": 1_600_000_000_000_000,
        "occ": [{"tokens": [], "wkb": []} for _ in range(FRAMES)],
        "objs": {},
        "center": [[x, 0.0] for x in range(-100, 201, 10)],
        "route": ["own"],
        "map": {
            "tokens": [token for token, _ in polygons],
            "types": [kind for _, kind in polygons],
            "wkb": [rectangle(*bounds) for bounds in polygons.values()],
        },
        "pdm": [[0.1 * way * step, y, 0.0] for step in range(STEPS + 1)],
        "rows": [],
    }


def add_area(content: Content, token: str, kind: str, bounds: tuple[float, float, float, float]) -> None:
    for key, value in (("tokens", token), ("types", kind), ("wkb", rectangle(*bounds))):
        content["map"][key].append(value)


def add_object(
    content: Content, token: str, at: Callable[[float], Pose], *, agent: bool = True, speed: float = 0.0, size: Any = ()
) -> None:
    """Put a box where `at` says that it is at each time in seconds."""
    content["objs"][token] = {"agent": agent, "heading": at(0.0)[2], "speed": speed}
    for step, frame in enumerate(content["occ"]):
        frame["tokens"].append(token)
        frame["wkb"].append(box(at(0.1 * step), *size))


def straight(speed: float, y: float = 0.0) -> list[list[float]]:
    """Return the plan that goes on at a speed."""
    return [[speed * 0.5 * (k + 1), y, 0.0] for k in range(8)]


def write_scene(path: Path, content: Content) -> Path:
    path.write_bytes(gzip.compress(json.dumps(content).encode(), 1))
    return path


def scene_of(content: Content, folder: Path) -> Scene:
    """Return the scene as it is read from its file."""
    return read_scene_file(write_scene(folder / "scene.json.gz", content)).scene


def crowded(seed: int) -> Content:
    """Return the road with an intersection and a dozen boxes that cross, follow, wait and lie about."""
    random = np.random.default_rng(seed)
    content = road(random.uniform(2, 12), random.uniform(-0.5, 2.5))
    content["ego0"][2] = random.normal(0, 0.05)
    add_area(content, "crossing", "INTERSECTION", (15, -20, 30, 20))
    for index in range(12):
        start = np.array([random.uniform(-10, 45), random.uniform(-6, 9)])
        heading = random.choice([0.0, np.pi, random.uniform(-np.pi, np.pi)])
        speed = random.choice([0.0, random.uniform(0, 12)])
        along = speed * np.array([np.cos(heading), np.sin(heading)])
        agent = bool(random.random() < 0.7)

        def at(time_s: float, start: Any = start, along: Any = along, heading: float = heading) -> Pose:
            x, y = start + along * time_s
            return float(x), float(y), float(heading)

        size = random.uniform(0.5, 4, 2).tolist()
        add_object(content, f"box{index}", at, agent=agent, speed=float(speed), size=size)
    return content


def wild_plans(seed: int, count: int, speed: float) -> np.ndarray:
    """Return plans that drive on, brake, speed up and swerve."""
    random = np.random.default_rng(seed)
    speeds = speed * random.uniform(0, 1.6, (count, 1))
    turn = random.normal(0, 0.08, (count, 1))
    times = 0.5 * np.arange(1, 9)
    heading = turn * times
    plans = np.stack([speeds * times * np.cos(heading / 2), speeds * times * np.sin(heading / 2), heading], axis=-1)
    return plans + random.normal(0, 0.05, plans.shape) * [1, 1, 0.1]


def moved(content: Content, angle: float, shift: tuple[float, float]) -> Content:
    """Return the scene turned around the origin and shifted."""
    cos, sin = np.cos(angle), np.sin(angle)

    def placed(points: Any) -> Any:
        return np.asarray(points) @ np.array([[cos, sin], [-sin, cos]]) + shift

    def polygon(text: str) -> str:
        return shapely.to_wkb(shapely.transform(shapely.from_wkb(text), placed), hex=True)

    new = copy.deepcopy(content)
    new["ego0"][:3] = [*placed(new["ego0"][:2]).tolist(), new["ego0"][2] + angle]
    new["pdm"] = [[*placed(pose[:2]).tolist(), pose[2] + angle] for pose in new["pdm"]]
    new["center"] = placed(new["center"]).tolist()
    for known in new["objs"].values():
        known["heading"] += angle
    for part in (*new["occ"], new["map"]):
        part["wkb"] = [polygon(text) for text in part["wkb"]]
    return new


def without(content: Content, token: str) -> Content:
    """Return the scene without one object."""
    new = copy.deepcopy(content)
    for frame in new["occ"]:
        kept = [i for i, one in enumerate(frame["tokens"]) if one != token]
        frame["tokens"], frame["wkb"] = ([frame[key][i] for i in kept] for key in ("tokens", "wkb"))
    return new
