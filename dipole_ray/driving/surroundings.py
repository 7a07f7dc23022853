"""What surrounds the car as a vector: the way ahead and its room, the next red light, who leads, and who is near.

Everything is seen from the car, so a scene that is moved or turned as a whole gives the same numbers. Units make them
about 1; what is not there is 0 with a flag of 0.
"""

from dataclasses import dataclass

import numpy as np
import shapely

from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.scene import DRIVABLE, RED_LIGHT, Frame, Scene
from dipole_ray.driving.vehicle import FRONT, WIDTH, Array, seen_from, turned, wrap_evenly
from dipole_ray.driving.way import Way

PAST_S = 1.0  # between the two times at which others are seen
WAY_M = np.concatenate([np.arange(2.0, 21.0, 2.0), np.arange(25.0, 81.0, 5.0)])  # along the centreline
ROOM_M = np.arange(0.0, 45.0, 4.0)
ASIDE_M = np.arange(0.14, 8.0, 0.25)  # not where the borders of lanes may be, to either side of which chance decides
REACH_M, SEEN_M = 80.0, 60.0  # along the way, and around the car
OTHERS, STANDING = 12, 0.1  # m/s
_KINDS = ("vehicle", "pedestrian", "bicycle")
_LIGHT_WAY_M = 2.0  # of a connector's polygon on the way, from which on its light is the car's own
AHEAD_DIM, ROOM_DIM, LIGHT_DIM, LEAD_DIM = 3 + 3 * len(WAY_M), 2 * len(ROOM_M), 2, 6
OTHER_DIM = 13 + len(_KINDS)
SURROUNDINGS_DIM = AHEAD_DIM + ROOM_DIM + LIGHT_DIM + LEAD_DIM + OTHERS * OTHER_DIM


def surroundings(one: RecordedScene, way: Way | None = None) -> Array:
    """Return the vector, (SURROUNDINGS_DIM,) float32; `way` is the scene's, where it is known already."""
    way = way or Way(one)
    others = _others(one, way)
    parts = [_ahead(way), _room(one.scene, way), _light(one.scene, way), _lead(others), _nearest(others)]
    found: Array = np.concatenate(parts).clip(-5.0, 5.0).astype(np.float32)
    return found


def _ahead(way: Way) -> Array:
    """Return where the car is beside its way, how long that is, and the way's poses ahead."""
    here, *ahead = seen_from(way.path.at(way.start + np.concatenate([[0.0], WAY_M])), way.pose)
    left = min(way.left_m, 100.0) / 50.0
    return np.concatenate([[here[1] * 2, here[2] * 5, left], (ahead / np.array([20.0, 10.0, 1.0])).ravel()])


def _room(scene: Scene, way: Way) -> Array:
    """Return the metres to the left and to the right of the way up to where nobody may drive."""
    stations = way.path.at(way.start + ROOM_M)
    area = scene.map_polygons[[kind in DRIVABLE for kind in scene.map_types]]
    side = stations[:, 2] + np.pi / 2
    across = np.column_stack([np.cos(side), np.sin(side)])
    reach = np.stack([ASIDE_M, -ASIDE_M])
    points = stations[:, None, None, :2] + reach[None, :, :, None] * across[:, None, None]
    held = np.zeros(points[..., 0].size, dtype=bool)
    if len(area):
        held[shapely.STRtree(area).query(shapely.points(points.reshape(-1, 2)), predicate="within")[0]] = True
    inside: Array = np.logical_and.accumulate(held.reshape(points.shape[:-1]), axis=-1)
    room: Array = inside.mean(axis=-1).ravel() * 2
    return room


def _light(scene: Scene, way: Way) -> Array:
    """Return whether a red light is on the way, and the metres from the car's front to it."""
    first = scene.frames[0]
    red = first.polygons[[RED_LIGHT in token for token in first.tokens]]
    met = shapely.intersection(way.path.between(way.start, way.start + REACH_M), red)
    met = met[shapely.length(met) > _LIGHT_WAY_M]
    if not len(met):
        return np.zeros(LIGHT_DIM)
    return np.array([1.0, (way.along(shapely.get_coordinates(met)).min() - way.start - FRONT) / 20.0])


@dataclass(frozen=True, slots=True)
class _Others:
    """N others, as the car and its way see them."""

    places: Array
    """(N, 2), from the car"""
    heading: Array
    """(N,), from the car"""
    speed: Array
    gained: Array
    """(N,) m/s^2, twice the speed now less the mean of the last second"""
    sizes: Array
    """(N, 2)"""
    kinds: Array
    """(N,) words"""
    gap: Array
    """(N,) metres along the way from the car's front to the nearest corner"""
    aside: Array
    """(N,) metres to the left of the way"""
    spread: Array
    """(N,) metres from its middle to its furthest corner, across the way"""
    turn: Array
    """(N,) heading beside the way's"""


def _others(one: RecordedScene, way: Way) -> _Others:
    scene, first = one.scene, one.scene.frames[0]
    chosen = np.flatnonzero([RED_LIGHT not in token for token in first.tokens])
    tokens = [first.tokens[i] for i in chosen.tolist()]
    boxes, known = _corners(first, chosen), [scene.objects[token] for token in tokens]
    middles = boxes.mean(axis=1)
    speed = np.array([obj.speed if obj.is_agent else 0.0 for obj in known])
    heading = np.array([obj.heading for obj in known])
    before = dict(zip(one.past.tokens, _corners(one.past, np.arange(len(one.past.tokens))).mean(axis=1), strict=True))
    gone = np.array([before.get(token, middle) for token, middle in zip(tokens, middles, strict=True)]).reshape(-1, 2)
    mean = np.where([token in before for token in tokens], np.hypot(*(middles - gone).T) / PAST_S, speed)
    beside = way.path.at(way.along(middles))
    across = turned(boxes - beside[:, None, :2], -beside[:, None, 2])[..., 1]
    aside = turned(middles - beside[:, :2], -beside[:, 2])[:, 1]
    sides = np.hypot(*np.moveaxis(boxes[:, 1:3] - boxes[:, 0:2], 2, 0))
    return _Others(
        places=turned(middles - way.pose[:2], -way.pose[2]),
        heading=wrap_evenly(heading - way.pose[2]),
        speed=speed,
        gained=2 * (speed - mean) / PAST_S,
        sizes=np.sort(sides, axis=1)[:, ::-1],
        kinds=np.array([one.kinds.get(token, "") for token in tokens]),
        gap=way.along(boxes).min(axis=1, initial=np.inf) - way.start - FRONT,
        aside=aside,
        spread=np.abs(across - aside[:, None]).max(axis=1, initial=0.0),
        turn=wrap_evenly(heading - beside[:, 2]),
    )


def _corners(frame: Frame, chosen: Array) -> Array:
    """Return the corners (N, 4, 2) of boxes of a frame."""
    found: Array = np.array([shapely.get_coordinates(frame.polygons[i])[:4] for i in chosen]).reshape(-1, 4, 2)
    return found


def _lead(others: _Others) -> Array:
    """Return who is next on the way: whether there is one, the gap, speed along the way, what it gained, its place."""
    on_way = np.abs(others.aside) - others.spread < WIDTH / 2
    ahead = np.flatnonzero(on_way & (others.gap > -FRONT) & (others.gap < REACH_M))
    if not len(ahead):
        return np.zeros(LEAD_DIM)
    i = ahead[others.gap[ahead].argmin()]
    gap, going = others.gap[i], others.speed[i] * np.cos(others.turn[i])
    near = np.exp(-max(gap, 0.0) / 10)
    return np.array([1.0, gap / 20, near, going / 10, others.gained[i] / 2, others.aside[i] / 2])


def _nearest(others: _Others) -> Array:
    """Return the others that are near: nearest first, those further back that are behind, or stand far from the way."""
    distance = np.hypot(*others.places.T)
    stands_off = (others.speed < STANDING) * np.abs(others.aside)
    order = np.argsort(distance + 10 * (stands_off - 2).clip(min=0) + 20 * (others.places[:, 0] < -5), kind="stable")
    order = order[distance[order] < SEEN_M][:OTHERS]
    table = np.zeros((OTHERS, OTHER_DIM))
    cos, sin = np.cos(others.heading), np.sin(others.heading)
    columns = [
        np.ones_like(distance),
        *others.places.T / 20,
        cos,
        sin,
        others.speed * cos / 10,
        others.speed * sin / 10,
    ]
    columns += [others.gained / 2, *others.sizes.T / 5, others.gap / 20, others.aside / 5]
    columns += [others.speed * np.cos(others.turn) / 10, *(others.kinds == kind for kind in _KINDS)]
    table[: len(order)] = np.column_stack(columns)[order]
    return table.ravel()
