"""The outlines of a scene in the frame of the car, for whoever draws it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.scene import DRIVABLE, LANES, RED_LIGHT
from dipole_ray.driving.vehicle import HEADING, Array, X, Y, box_points, turned


@dataclass(frozen=True, slots=True)
class Outlines:
    """Rings (n, 2) in metres, ahead and to the left."""

    drivable: list[Array]
    lanes: list[Array]
    route: list[Array]
    """lanes on the route"""
    red: list[Array]
    """connectors on the route with a red light"""
    others: list[tuple[str, Array]]
    """what they are, and where"""
    car: Array


def outlines(one: RecordedScene) -> Outlines:
    """Return what surrounds the car at the start of a scene."""
    scene = one.scene
    types, tokens = np.array(scene.map_types), np.array(scene.map_tokens)
    lanes = np.isin(types, list(LANES))
    now = scene.frames[0]
    red = np.array([RED_LIGHT in token for token in now.tokens], dtype=bool)
    kinds = [one.kinds.get(token, "") for token, light in zip(now.tokens, red, strict=True) if not light]
    return Outlines(
        drivable=rings(scene.map_polygons[np.isin(types, list(DRIVABLE))], scene.ego),
        lanes=rings(scene.map_polygons[lanes], scene.ego),
        route=rings(scene.map_polygons[lanes & np.isin(tokens, list(scene.route))], scene.ego),
        red=rings(now.polygons[red], scene.ego),
        others=list(zip(kinds, rings(now.polygons[~red], scene.ego), strict=True)),
        car=_seen(box_points(scene.ego)[:4], scene.ego),
    )


def rings(polygons: Iterable[Any], ego: Array) -> list[Array]:
    """Return the outer rings (n, 2) of polygons in the frame of the car; of several in one, each."""
    parts = shapely.get_parts(np.array(list(polygons), dtype=object))
    return [_seen(shapely.get_coordinates(part.exterior), ego) for part in parts]


def _seen(points: Array, ego: Array) -> Array:
    return turned(points - ego[[X, Y]], -ego[HEADING])
