"""PDM-Closed on roads made by hand, and its intelligent driver against the formula written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("shapely")

import shapely

from dipole_ray.driving.closed import pdm_closed, reference_plan
from dipole_ray.driving.path import PosePath
from dipole_ray.driving.score import PDMScorer
from dipole_ray.driving.vehicle import FRONT, Array
from dipole_ray.errors import ConfigError
from tests.driving.scenes import add_object, crowded, moved, rectangle, road, scene_of


def speeds(plan: Array) -> Array:
    return np.hypot(*np.diff(plan[:, :2], axis=0).T) / 0.1


@pytest.mark.parametrize(("limit", "target"), [(12.0, 12.0), (None, 15.0)])
def test_on_an_empty_road_the_fastest_driver_goes_for_the_limit(
    tmp_path: Path, limit: float | None, target: float
) -> None:
    """Before its first look the lead is at 0, so that the driver brakes with 3 m/s^2 once; so does the official one."""
    plan = pdm_closed(scene_of(road(10), tmp_path), limit)
    distance, speed, end = 100.0, 10.0, 300.0
    expected = []
    for step in range(50):
        lead, rear = (end, 5.176 / 2) if step else (0.0, 0.0)
        wanted = 1 + speed * 1.5 + speed * speed / (2 * np.sqrt(1.5 * 3))
        gap = max(lead - distance - rear, 1.0)
        change = 1.5 * (1 - (speed / target) ** 10 - (wanted / gap) ** 2)
        expected.append(speed)
        distance, speed = distance + 0.1 * speed, speed + 0.1 * min(max(change, -3.0), 1.5)
    assert plan.shape == (51, 3) and plan[0].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(speeds(plan), expected, atol=1e-9)
    assert (plan[:, 1:] == 0).all()


def test_it_stops_behind_what_stands_and_before_a_red_light(tmp_path: Path) -> None:
    standing, red = road(8), road(8)
    add_object(standing, "car", lambda time_s: (32.0, 0.0, 0.0))
    for frame in red["occ"]:
        frame["tokens"].append("red_light_1")
        frame["wkb"].append(rectangle(30, -2, 34, 2))
    for content in (standing, red):
        scene = scene_of(content, tmp_path)
        plan = pdm_closed(scene, 10.0)
        assert 15 < plan[-1, 0] + FRONT < 30 and speeds(plan)[-1] < 3
        scored = PDMScorer(replace(scene, reference=plan[:41]))
        assert scored.score(plan[None, 5::5]).pdms[0] > 0.9


def test_it_follows_a_moving_car_that_is_forecast_to_go_on(tmp_path: Path) -> None:
    """The forecast is made from the first frame: that the car then stops at once is not foreseen."""
    content, surprise = road(8), road(8)
    add_object(content, "lead", lambda time_s: (18.0 + 6 * time_s, 0.0, 0.0), speed=6.0)
    add_object(surprise, "lead", lambda time_s: (18.0, 0.0, 0.0), speed=6.0)
    plans = [pdm_closed(scene_of(one, tmp_path), 10.0) for one in (content, surprise)]
    np.testing.assert_array_equal(plans[0], plans[1])
    assert 5 < speeds(plans[0])[-1] < 7


def test_it_swerves_by_a_metre_where_that_scores_more(tmp_path: Path) -> None:
    content = road(8)
    add_object(content, "bin", lambda time_s: (35.0, -1.6, 0.0), agent=False, size=(1.0, 1.6))
    assert pdm_closed(scene_of(content, tmp_path), 10.0)[-1, 1] == pytest.approx(1.0)


def test_what_touches_the_car_at_the_start_is_ignored(tmp_path: Path) -> None:
    free, touched = road(8), road(8)
    add_object(touched, "over it", lambda time_s: (4.0, 0.0, 0.0))
    plans = [pdm_closed(scene_of(one, tmp_path), 10.0) for one in (free, touched)]
    np.testing.assert_array_equal(plans[0], plans[1])


def test_the_plan_moves_with_the_scene(tmp_path: Path) -> None:
    for seed in range(4):
        content = crowded(seed)
        angle, shift = 1.0 + seed, (300.0, -200.0)
        turned = moved(content, angle, shift)
        here, there = (pdm_closed(scene_of(one, tmp_path), 10.0) for one in (content, turned))
        cos, sin = np.cos(angle), np.sin(angle)
        np.testing.assert_allclose(there[:, :2], here[:, :2] @ [[cos, sin], [-sin, cos]] + shift, atol=1e-6)


def test_a_speed_limit_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="speed_limit is 0"):
        pdm_closed(scene_of(road(), tmp_path), 0.0)


def test_the_reference_is_the_plan_at_cut_times(tmp_path: Path) -> None:
    content = road(10)
    content["t0"] += 111
    scene = scene_of(content, tmp_path)
    plan, reference = pdm_closed(scene, 12.0), reference_plan(scene, 12.0)
    assert reference.shape == (41, 3)
    np.testing.assert_allclose(reference, plan[:41], atol=2e-5)


def test_a_path_looks_along_its_own_lane_where_two_lanes_meet() -> None:
    line = shapely.LineString([(0, 0), (1, 0), (2, 0), (2, 0), (2, 1), (2, 2)])
    path = PosePath.through(line)
    np.testing.assert_allclose(path.at(np.array([0.5, 1.5, 2.5, 9.0]))[:, 2], [0, 0, np.pi / 2, np.pi / 2])
    np.testing.assert_allclose(path.parallel(1.0).at(np.array([0.5, 1.5]))[:, :2], [[0.5, 1], [1.5, 1]])
    assert (
        path.length == 4 and path.between(0.5, 3.5).length == 2 and path.between(0.2, 0.4).length == pytest.approx(0.2)
    )
