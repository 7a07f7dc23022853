"""NC and TTC as the official rules are written down: one event after the other, with a list of what is ignored."""

from __future__ import annotations

import numpy as np
import shapely

from dipole_ray.driving.area import EgoArea
from dipole_ray.driving.scene import Scene
from dipole_ray.driving.vehicle import HEADING, VX, Array, X, Y


def bearing(state: Array, polygon: shapely.Polygon) -> float:
    way = shapely.get_coordinates(polygon.centroid)[0] - state[[X, Y]]
    return float(np.arccos(np.dot([np.cos(state[HEADING]), np.sin(state[HEADING])], way / np.linalg.norm(way))))


def met(scene: Scene, step: int, ego: shapely.Polygon, harmless: set[str]) -> list[tuple[str, shapely.Polygon]]:
    frame = scene.frames[step]
    pairs = zip(frame.tokens, frame.polygons, strict=True)
    return [(t, p) for t, p in pairs if "red_light" not in t and t not in harmless and ego.intersects(p)]


def collision(scene: Scene, states: Array, points: Array, area: EgoArea) -> float:
    """Return NC of one plan: states (41, 11), points (41, 5, 2)."""
    nc, harmless = 1.0, set[str]()
    for step, (state, corners) in enumerate(zip(states, points[:, :4], strict=True)):
        for token, polygon in met(scene, step, shapely.Polygon(corners), harmless):
            known = scene.objects[token]
            if state[VX] <= 0.05:
                fault = False
            elif not known.is_agent or known.speed <= 0.05:
                fault = True
            elif bearing(state, polygon) > np.deg2rad(150):
                fault = False
            else:
                front = shapely.LineString(corners[[0, 3]]).intersects(polygon)
                fault = bool(front or area.multiple_lanes[step] or area.off_road[step])
            if fault:
                nc = min(nc, 0.0 if known.is_agent else 0.5)
            else:
                harmless.add(token)
    return nc


def time_to_collision(scene: Scene, states: Array, points: Array, area: EgoArea) -> float:
    """Return TTC of one plan."""
    ttc, harmless = 1.0, set[str]()
    for step, state in enumerate(states):
        aside = area.multiple_lanes[step] or area.off_road[step] or area.intersection[step]
        along = np.array([np.cos(state[HEADING]), np.sin(state[HEADING])]) * state[VX]
        for ahead in (0, 3, 6, 9):
            ego = shapely.Polygon(points[step, :4] + along * 0.1 * ahead)
            for token, polygon in met(scene, step + ahead, ego, harmless):
                if state[VX] < 0.005:
                    continue
                angle = bearing(state, polygon)
                if angle < np.deg2rad(30) or (aside and not angle > np.deg2rad(150)):
                    ttc = 0.0
                else:
                    harmless.add(token)
    return ttc
