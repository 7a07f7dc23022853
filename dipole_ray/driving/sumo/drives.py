"""What one car of the traffic met, as frames of a log in NAVSIM's form."""

import hashlib
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import shapely

from dipole_ray.driving.log import FRAME_S, no_pictures
from dipole_ray.driving.path import PosePath
from dipole_ray.driving.recorded import PLAN_POSES
from dipole_ray.driving.route import centerline
from dipole_ray.driving.sumo.parked import LENGTH_M, WIDTH_M
from dipole_ray.driving.sumo.traffic import SIZES, Traffic
from dipole_ray.driving.vehicle import FRONT, Array, turned, wrap_evenly

SEEN_M = 100.0  # how far the log tells of others
ROUTE_BLOCKS = 20
COMMAND_AHEAD_M, COMMAND_ASIDE_M = 20.0, 2.0
START_US = 1_600_000_000_000_000
_HEIGHTS = {"parked": 1.6}


class Drives:
    """The drives of a traffic's cars, a frame every 0.5 s."""

    def __init__(self, traffic: Traffic, parked: Array, name: str) -> None:
        """Prepare the traffic around every car.

        Args:
            traffic: What happened.
            parked: Poses (n, 3) of parked cars.
            name: Begins the logs' names; with it the tokens are made, so it must be there once.
        """
        self._traffic, self._name = traffic, name
        self._network = traffic.network
        self._still = _Boxes(
            [f"parked{i}" for i in range(len(parked))],
            ["vehicle"] * len(parked),
            np.column_stack([parked, np.zeros(len(parked))]),
            np.tile([LENGTH_M, WIDTH_M, _HEIGHTS["parked"]], (len(parked), 1)),
        )

    def cars(self) -> dict[str, range]:
        """Return the times at which each car, whose way is known, was on it."""
        cars = {}
        for name, one in self._traffic.present.items():
            if one.kind == "vehicle" and name in self._traffic.routes:
                cars[name] = range(one.first, one.first + len(one.states))
        return cars

    def strayed(self, name: str) -> Array:
        """Return how far, at most within 4 s, each time of a car is from going straight on at its speed there."""
        states = self._traffic.present[name].states
        rear = states[:, :2] - FRONT * np.column_stack([np.cos(states[:, 2]), np.sin(states[:, 2])])
        ways = states[:, 3:4] * np.column_stack([np.cos(states[:, 2]), np.sin(states[:, 2])])
        most = np.zeros(len(states))
        for step in range(1, PLAN_POSES + 1):
            aside = np.hypot(*(rear[step:] - rear[:-step] - ways[:-step] * (FRAME_S * step)).T)
            most[: len(aside)] = np.maximum(most[: len(aside)], aside)
        return most

    def frames(self, name: str, times: range) -> list[dict[str, Any]]:
        """Return the frames of one car's log."""
        one = self._traffic.present[name]
        places = self._places(name)
        log = f"{self._name}_{name}"
        frames = []
        for time in times:
            x, y, heading, speed, acceleration = one.states[time - one.first]
            pose = np.array([x - FRONT * np.cos(heading), y - FRONT * np.sin(heading), heading])
            edge, lane = places[time - one.first]
            route = self._route(name, edge, lane.startswith(":"))
            frames.append(
                {
                    "token": hashlib.sha256(f"{log}/{time}".encode()).hexdigest()[:16],
                    "frame_idx": time - one.first,
                    "timestamp": START_US + round(time * FRAME_S * 1e6),
                    "log_name": log,
                    "log_token": hashlib.sha256(log.encode()).hexdigest()[:16],
                    "scene_name": log,
                    "scene_token": hashlib.sha256(f"{log}/scene".encode()).hexdigest()[:16],
                    "map_location": self._network.city,
                    "roadblock_ids": list(route),
                    "vehicle_name": "sumo",
                    "can_bus": np.zeros(18),
                    "lidar_path": "",
                    "lidar2ego_translation": np.zeros(3),
                    "lidar2ego_rotation": np.array([1.0, 0.0, 0.0, 0.0]),
                    "ego2global_translation": np.array([*pose[:2], 0.0]),
                    "ego2global_rotation": np.array([np.cos(heading / 2), 0.0, 0.0, np.sin(heading / 2)]),
                    "ego_dynamic_state": [float(speed), 0.0, float(acceleration), 0.0],
                    "traffic_lights": [(int(token), True) for token in self._traffic.red[time]],
                    "driving_command": self._command(route, pose),
                    "cams": no_pictures(),
                    "anns": self._annotations(name, time, pose),
                }
            )
        return frames

    def _places(self, name: str) -> list[tuple[int, str]]:
        """Return how far along its route a car is at each time: the number of its edge, and SUMO's lane."""
        route = self._traffic.routes[name]
        places, edge = [], 0
        for lane in self._traffic.present[name].lanes:
            here = lane.rpartition("_")[0]
            if not lane.startswith(":") and here in route[edge:]:
                edge = route.index(here, edge)
            places.append((edge, lane))
        return places

    def _route(self, name: str, edge: int, between: bool) -> tuple[str, ...]:
        """Return the roadblocks ahead of a car on an edge of its route, or between it and the next one."""
        blocks: list[str] = []
        edges = [one for one in self._traffic.routes[name][edge:] if one in self._network.blocks]
        for here, following in pairwise(edges[: ROUTE_BLOCKS // 2 + 1]):
            blocks.append(self._network.blocks[here])
            if (here, following) in self._network.joints:
                blocks.append(self._network.joints[here, following])
        blocks += [self._network.blocks[one] for one in edges[-1:] if len(edges) <= ROUTE_BLOCKS // 2 + 1]
        return tuple(blocks[1:] if between and len(blocks) > 1 else blocks)

    def _command(self, route: tuple[str, ...], pose: Array) -> Array:
        """Return left, straight, right or unknown, by where the centreline is 20 m on; one-hot (4,)."""
        path = self._path(route) if route else None
        hot = np.zeros(4)
        if path is None:
            hot[3] = 1.0
            return hot
        place = path.line.project(shapely.Point(pose[:2])) + COMMAND_AHEAD_M
        aside = float(turned(path.at(np.array([place]))[0, :2] - pose[:2], -pose[2])[1])
        hot[0 if aside >= COMMAND_ASIDE_M else 2 if aside <= -COMMAND_ASIDE_M else 1] = 1.0
        return hot

    @cached_property
    def _path(self) -> Any:
        roads = self._network.roads

        @lru_cache(maxsize=1024)
        def path(route: tuple[str, ...]) -> PosePath | None:
            best: Array | None = None
            for token in roads.roadblocks[route[0]].lanes:
                poses = centerline(roads, route, roads.lanes[token])
                best = poses if best is None or len(poses) > len(best) else best
            return None if best is None else PosePath(best)

        return path

    @cached_property
    def _moving(self) -> list["_Boxes"]:
        """Everything that moves, at each time."""
        rows: list[list[tuple[str, str, Array]]] = [[] for _ in range(self._traffic.count)]
        for name, one in self._traffic.present.items():
            for step, state in enumerate(one.states):
                if 0 <= one.first + step < self._traffic.count:
                    rows[one.first + step].append((name, one.kind, state))
        return [_Boxes.of(found) for found in rows]

    def _annotations(self, ego: str, time: int, pose: Array) -> dict[str, Any]:
        boxes = [part.near(pose, ego) for part in (self._moving[time], self._still)]
        names, kinds = [n for b in boxes for n in b.names], [k for b in boxes for k in b.kinds]
        states, sizes = (np.concatenate([getattr(b, key) for b in boxes]) for key in ("states", "sizes"))
        places = turned(states[:, :2] - pose[:2], -pose[2])
        heading = wrap_evenly(states[:, 2] - pose[2])
        ways = np.column_stack([states[:, 3] * np.cos(heading), states[:, 3] * np.sin(heading), np.zeros(len(names))])
        return {
            "gt_boxes": np.column_stack([places, sizes[:, 2] / 2, sizes, heading]),
            "gt_names": np.array(kinds, dtype=np.str_),
            "gt_velocity_3d": ways,
            "instance_tokens": [f"{name}-{time}" for name in names],
            "track_tokens": names,
        }


class _Boxes:
    """Boxes at one time: x and y of the middle, heading, and speed."""

    def __init__(self, names: list[str], kinds: list[str], states: Array, sizes: Array) -> None:
        self.names, self.kinds, self.states, self.sizes = names, kinds, states, sizes

    @classmethod
    def of(cls, found: list[tuple[str, str, Array]]) -> "_Boxes":
        """Return the boxes whose fronts are where SUMO says."""
        kinds = [kind for _, kind, _ in found]
        sizes = np.array([SIZES[kind] for kind in kinds]).reshape(-1, 3)
        states = np.array([state[:4] for _, _, state in found]).reshape(-1, 4)
        along = np.column_stack([np.cos(states[:, 2]), np.sin(states[:, 2])])
        back = np.where(np.array(kinds) == "pedestrian", 0.0, sizes[:, 0] / 2)  # whose place is their middle
        states[:, :2] -= back[:, None] * along
        return cls([name for name, _, _ in found], kinds, states, sizes)

    def near(self, pose: Array, but: str) -> "_Boxes":
        """Return the boxes within sight of a pose."""
        close = np.hypot(*(self.states[:, :2] - pose[:2]).T) < SEEN_M
        chosen = [i for i in np.flatnonzero(close).tolist() if self.names[i] != but]
        return _Boxes(
            [self.names[i] for i in chosen], [self.kinds[i] for i in chosen], self.states[chosen], self.sizes[chosen]
        )
