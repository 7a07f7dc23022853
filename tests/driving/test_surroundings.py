"""The way of a scene, plans seen from it, and what surrounds the car as a vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("shapely")

from dipole_ray.driving.actions import WAY_DIM, actions_of, explored, plans_of
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.surroundings import (
    AHEAD_DIM,
    LEAD_DIM,
    LIGHT_DIM,
    OTHER_DIM,
    OTHERS,
    ROOM_DIM,
    SURROUNDINGS_DIM,
    surroundings,
)
from dipole_ray.driving.vehicle import FRONT
from dipole_ray.driving.way import Way
from tests.driving.folders import made_scene
from tests.driving.scenes import add_area, add_object, crowded, moved, road, scene_of, wild_plans

ROOM, LIGHT = slice(AHEAD_DIM, AHEAD_DIM + ROOM_DIM), slice(AHEAD_DIM + ROOM_DIM, AHEAD_DIM + ROOM_DIM + LIGHT_DIM)
LEAD = slice(LIGHT.stop, LIGHT.stop + LEAD_DIM)


def recorded(content: Any, folder: Path, **changes: Any) -> RecordedScene:
    """Return a scene made by hand whose objects stood where they are 1 s ago."""
    scene = scene_of(content, folder)
    known: dict[str, Any] = {"token": "a", "log": "b", "map": "c", "command": "straight", "cameras": {}}
    known |= {"history": np.zeros((4, 3)), "motion": np.zeros((4, 4)), "human": np.zeros((8, 3))}
    return RecordedScene(scene=scene, kinds=dict.fromkeys(scene.objects, "vehicle"), past=scene.frames[0], **known)


def others(found: np.ndarray) -> np.ndarray:
    return found[LEAD.stop :].reshape(OTHERS, OTHER_DIM)


@pytest.mark.parametrize("seed", range(6))
def test_a_scene_that_is_moved_and_turned_is_seen_and_planned_for_alike(seed: int, tmp_path: Path) -> None:
    content = crowded(seed)
    here, there = recorded(content, tmp_path), recorded(moved(content, 2.0 + seed, (1000.0, -500.0)), tmp_path)
    np.testing.assert_allclose(surroundings(there), surroundings(here), atol=1e-3)
    actions = np.random.default_rng(seed).uniform(-0.5, 0.5, (4, WAY_DIM))
    np.testing.assert_allclose(plans_of(actions, Way(there)), plans_of(actions, Way(here)), atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_all_that_is_seen_is_finite_and_bounded_and_who_is_absent_is_flagged(seed: int, tmp_path: Path) -> None:
    content = crowded(seed)
    if seed == 0:  # nowhere may anybody drive, and nobody is there
        content["map"] = {key: [] for key in content["map"]}
        content["occ"], content["objs"] = [{"tokens": [], "wkb": []} for _ in content["occ"]], {}
    found = surroundings(recorded(content, tmp_path))
    assert found.shape == (SURROUNDINGS_DIM,) and found.dtype == np.float32
    assert np.isfinite(found).all() and np.abs(found).max() <= 5
    table = others(found)
    present = table[:, 0] == 1
    assert present.sum() == min(OTHERS, len(content["objs"])) and not table[~present].any()
    assert seed or (not found[LIGHT.start :].any() and not found[ROOM].any())


def test_who_leads_how_far_and_whether_it_brakes_is_seen(tmp_path: Path) -> None:
    content = road(speed=10.0)
    add_object(content, "beside", lambda t: (12.0, 4.0, 0.0))
    add_object(content, "behind", lambda t: (-9.0, 0.0, 0.0))
    alone = surroundings(recorded(content, tmp_path))
    assert not alone[LEAD].any() and others(alone)[:, 0].sum() == 2
    add_object(content, "far", lambda t: (60.0, 0.0, 0.0))
    add_object(content, "lead", lambda t: (30.0, 0.5, 0.0), speed=4.0)  # 4 m long; stood still on average, so it gains
    found = surroundings(recorded(content, tmp_path))[LEAD]
    gap = 30.0 - 2.0 - FRONT
    np.testing.assert_allclose(found, [1, gap / 20, np.exp(-gap / 10), 0.4, 4.0, 0.25], atol=1e-5)


def test_room_ends_where_nobody_may_drive_and_a_red_light_is_seen_on_the_way_alone(tmp_path: Path) -> None:
    content = road(y=0.5)
    found = surroundings(recorded(content, tmp_path))
    left, right = found[ROOM].reshape(-1, 2).T * 4
    assert (np.abs(left - 6) <= 0.25).all() and (np.abs(right - 2) <= 0.25).all()  # to either side of the middle
    assert found[0] == pytest.approx(-1.0, abs=1e-4)  # half a metre to the right of the car
    for token, bottom in (("red_light_other", 3.0), ("red_light_own", -2.0)):
        assert not surroundings(recorded(content, tmp_path))[LIGHT].any()
        add_area(content, token, "INTERSECTION", (40, bottom, 60, bottom + 3))
        content["occ"][0]["tokens"].append(token)
        content["occ"][0]["wkb"].append(content["map"]["wkb"][-1])
    np.testing.assert_allclose(surroundings(recorded(content, tmp_path))[LIGHT], [1, (40 - FRONT) / 20], atol=1e-4)


def test_the_way_of_a_straight_road_is_the_frame_of_the_car(tmp_path: Path) -> None:
    way, plans = Way(recorded(road(), tmp_path)), wild_plans(0, 20, 10.0).clip(min=0.0)
    np.testing.assert_allclose(way.courses(plans), plans, atol=1e-9)
    np.testing.assert_allclose(way.plans(plans), plans, atol=1e-9)


def test_a_plan_around_a_corner_survives_as_an_action_along_the_way() -> None:
    """Its heading becomes that of the way; who does not go aside nor change speed is at 0."""
    scene = made_scene("corner", "log", start=90.0, roadblock_ids=["1", "5", "3"])
    way = Way(scene)
    at_rest = plans_of(np.zeros((1, WAY_DIM)), way)
    assert way.speed == 8.0 and at_rest[0, -1, 1] > 5 and at_rest[0, -1, 2] > 0.5, "the road bends to the left"
    random = np.random.default_rng(0)
    actions = (random.uniform(-0.5, 0.5, (30, WAY_DIM)) * np.repeat([1, 0.8], 8)).astype(np.float32)
    plans = plans_of(actions, way)
    assert actions_of(plans, way).shape == (30, WAY_DIM)
    again = plans_of(actions_of(plans, way), way)
    assert np.abs(again[..., :2] - plans[..., :2]).max() < 0.15
    courses = way.courses(plans)
    moved = explored(courses, 0.1, random, are_courses=True)
    assert 0.2 < (moved[:, -1, 1] - courses[:, -1, 1]).std() < 0.6, "a tenth of a lane aside"
    assert 0.06 < (moved[:, -1, 0] / courses[:, -1, 0]).std() < 0.15, "a tenth longer"
