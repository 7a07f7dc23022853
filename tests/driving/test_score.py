"""The PDM score on maps made by hand, where the right numbers are known, and what must hold in any scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("shapely")

import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from dipole_ray.driving.area import DrivableMap, EgoArea
from dipole_ray.driving.plans import reference_poses
from dipole_ray.driving.score import PDMScorer, Scores
from dipole_ray.driving.simulation import simulate
from dipole_ray.driving.vehicle import FRONT, REAR, box_points
from dipole_ray.errors import ConfigError, NonFiniteError
from tests.driving.scenes import (
    Content,
    add_area,
    add_object,
    box,
    crowded,
    moved,
    road,
    scene_of,
    straight,
    wild_plans,
    without,
)
from tests.driving.sequential import collision, time_to_collision

DISCRETE = ("nc", "dac", "ttc", "c", "ddc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


def scored(content: Content, folder: Path, *plans: Any, bearing: Any = "official") -> Scores:
    return PDMScorer(scene_of(content, folder), bearing).score(np.array(plans))


def one(content: Content, folder: Path, plan: Any, **options: Any) -> dict[str, float]:
    return scored(content, folder, plan, **options).rows()[0]


def test_driving_on_an_empty_road_as_the_reference_does_is_perfect(folder: Path) -> None:
    found = one(road(10), folder, straight(10))
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=1e-6)


def test_progress_is_measured_against_the_better_of_plan_and_reference(folder: Path) -> None:
    """At constant speed the car drives 40 m; along the centreline that is 40 cos(60 deg) of the plan's 40."""
    content = road(10)
    content["center"] = [[x, np.sqrt(3) * x] for x in (-200.0, 200.0)]
    reference = np.array([[0.1 * 10 * step, 0.0, 0.0] for step in range(41)])
    content["pdm"] = reference.tolist()
    half = scored(content, folder, straight(10), straight(12)).ep
    assert half[0] == pytest.approx(1.0, abs=1e-6) and half[1] == 1.0
    slow = scored(road(10, way=0.0), folder, straight(10)).ep[0]
    assert slow == 1.0
    behind = scored(road(10), folder, straight(5), straight(0)).ep
    assert 0 < behind[1] < behind[0] < 1
    content["center"] = [[0.0, -200.0], [0.0, 200.0]]  # nobody comes forward: below 5 m everyone is at the goal
    assert scored(content, folder, straight(10), straight(0)).ep.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("agent", "nc", "pdms"), [(True, 0.0, 0.0), (False, 0.5, 0.5 * (5 + 0 + 2) / 12)])
def test_driving_into_what_stands_in_the_lane(folder: Path, agent: bool, nc: float, pdms: float) -> None:
    content = road(10)
    add_object(content, "thing", lambda time_s: (30.0, 0.0, 0.0), agent=agent)
    found = one(content, folder, straight(10))
    assert (found["nc"], found["ttc"], found["dac"]) == (nc, 0.0, 1.0)
    assert found["pdms"] == pytest.approx(pdms, abs=1e-6)


def test_who_is_hit_from_behind_is_not_at_fault_unless_the_other_was_standing_at_first_sight(folder: Path) -> None:
    def follow(time_s: float) -> tuple[float, float, float]:
        return -12.0 + 15 * time_s, 0.0, 0.0

    moving, still = road(10), road(10)
    add_object(moving, "fast", follow, speed=15.0)
    add_object(still, "fast", follow, speed=0.0)
    assert one(moving, folder, straight(10))["nc"] == 1.0
    assert one(still, folder, straight(10))["nc"] == 0.0


def test_a_side_collision_is_the_cars_fault_where_it_is_across_lanes(folder: Path) -> None:
    """The other drives beside the car and leans into its rear half from the right."""

    def lean(time_s: float) -> tuple[float, float, float]:
        return 1.0 + 10 * time_s, y - 3.2 + min(2.0 * time_s, 1.6), 0.0

    for y, nc in ((0.0, 1.0), (1.5, 0.0)):
        content = road(10, y)
        add_area(content, "shoulder", "CARPARK_AREA", (-100, -6, 200, -1.9))
        add_object(content, "side", lean, speed=10.0, size=(2.0, 1.5))
        found = one(content, folder, straight(10))
        assert (found["nc"], found["dac"]) == (nc, 1.0), y


def test_red_lights_and_what_comes_after_a_standing_car_hurt_nobody(folder: Path) -> None:
    content = road(0)
    add_object(content, "red_light_7", lambda time_s: (5.0, 0.0, 0.0))
    del content["objs"]["red_light_7"]
    add_object(content, "car", lambda time_s: (12.0 - 5 * time_s, 0.0, np.pi), speed=5.0)
    found = one(content, folder, straight(0))
    assert found == dict.fromkeys(found, 1.0)


def test_a_corner_off_the_road_costs_everything(folder: Path) -> None:
    reach = 2.0 - 2.297 / 2
    for y, dac in ((-reach + 1e-6, 1.0), (-reach - 1e-6, 0.0)):
        found = one(road(10, y), folder, straight(10))
        assert (found["dac"], found["ep"] > 0, found["pdms"] > 0) == (dac, dac > 0, dac > 0)
    content = road(10, -reach - 1e-6)
    add_area(content, "lane is not enough", "LANE", (-100, -6, 200, -1))
    assert one(content, folder, straight(10))["dac"] == 0.0
    add_area(content, "car park", "CARPARK_AREA", (-100, -6, 200, -1))
    assert one(content, folder, straight(10))["dac"] == 1.0


@pytest.mark.parametrize(("speed", "ddc"), [(1.8, 1.0), (1.9, 0.5), (5.4, 0.5), (5.5, 0.0)])
def test_metres_against_the_traffic_are_summed_over_eleven_steps(folder: Path, speed: float, ddc: float) -> None:
    """11 steps of 0.1 s: 1.98 m, 2.09, 5.94 and 6.05 m."""
    assert one(road(speed, 4.0), folder, straight(speed))["ddc"] == ddc
    assert one(road(speed, 0.0), folder, straight(speed))["ddc"] == 1.0


def test_braking_hard_is_uncomfortable_and_braking_softly_is_not(folder: Path) -> None:
    times = 0.5 * np.arange(1, 9)
    soft = np.stack([10 * times - 0.5 * times**2, 0 * times, 0 * times], axis=-1)
    assert scored(road(10), folder, straight(0), soft).c.tolist() == [0.0, 1.0]


def test_the_look_ahead_sees_what_is_ahead_within_nine_tenths_of_a_second(folder: Path) -> None:
    """The front bumper moves 9 m in 0.9 s, and the other, which goes at the same speed from then on, stays ahead."""
    for gap, ttc in ((8.99, 0.0), (9.01, 1.0)):
        content = road(10)
        back = FRONT + gap
        add_object(content, "lead", lambda time_s, back=back: (back + 2 + (40.0 if time_s > 0.95 else 0.0), 0.0, 0.0))
        assert one(content, folder, straight(10))["ttc"] == ttc, gap


def test_what_is_beside_the_car_counts_in_an_intersection_only(folder: Path) -> None:
    content = road(10)
    add_object(content, "beside", lambda time_s: (3.0 + 10 * time_s, 1.9, 0.0), speed=10.0, size=(2.0, 1.6))
    assert one(content, folder, straight(10))["ttc"] == 1.0
    add_area(content, "crossing", "INTERSECTION", (-100, -2, 200, 6))
    assert one(content, folder, straight(10))["ttc"] == 0.0


def test_an_object_exactly_ahead_is_ahead_with_the_clipped_bearing_only(folder: Path) -> None:
    """Where the cosine rounds above 1, the official angle is not a number, and the object is ignored from then on."""
    for heading in np.linspace(0.1, 1.5, 200):
        along = np.array([np.cos(heading), np.sin(heading)])
        x, y = 12 * along
        polygon = shapely.from_wkb(box((x, y, heading)))
        way = shapely.get_coordinates(polygon.centroid)[0]
        if np.dot(along, way / np.linalg.norm(way)) > 1:
            break
    else:
        pytest.skip("no rounding above 1 on this machine")
    content = road(10, way=0.0)
    content["ego0"][2] = heading
    add_area(content, "field", "LANE", (-200, -200, 200, 200))
    add_object(content, "ahead", lambda time_s: (x, y, heading))
    stop = [[3.0, 0.0, 0.0]] * 8
    scores = {bearing: one(content, folder, stop, bearing=bearing) for bearing in ("official", "clipped")}
    assert scores["clipped"]["ttc"] == 0.0
    assert scores["official"]["ttc"] == 1.0


def test_first_meetings_say_what_the_official_order_of_events_says(folder: Path) -> None:
    seen: set[tuple[float, float]] = set()
    for seed in range(6):
        content = crowded(seed)
        scene = scene_of(content, folder)
        plans = wild_plans(seed, 12, content["ego0"][3])
        found = PDMScorer(scene).score(plans)
        states = simulate(reference_poses(plans, scene.ego, scene.start_us), scene.ego)
        points = box_points(states)
        area = DrivableMap(scene).locate(states, points)
        for plan in range(len(plans)):
            where = EgoArea(*(getattr(area, name)[plan] for name in EgoArea.__slots__))
            alone = scene, states[plan], points[plan], where
            expected = collision(*alone), time_to_collision(*alone)
            assert (found.nc[plan], found.ttc[plan]) == expected, (seed, plan)
            seen.add(expected)
    assert {nc for nc, _ in seen} == {0.0, 0.5, 1.0} and {ttc for _, ttc in seen} == {0.0, 1.0}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(-np.pi, np.pi), st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_scores_are_the_same_wherever_the_scene_lies(
    folder: Path, seed: int, angle: float, east: float, north: float
) -> None:
    content = crowded(seed)
    plans = wild_plans(seed, 8, content["ego0"][3])
    here = scored(content, folder, *plans)
    there = scored(moved(content, angle, (east, north)), folder, *plans)
    for name in DISCRETE:
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name), err_msg=name)
    np.testing.assert_allclose(here.ep, there.ep, atol=1e-6)
    np.testing.assert_allclose(here.pdms, there.pdms, atol=1e-6)


def test_a_batch_is_scored_as_its_plans_alone_would_be(folder: Path) -> None:
    content = crowded(3)
    scorer = PDMScorer(scene_of(content, folder))
    plans = wild_plans(3, 70, content["ego0"][3])  # more than are computed at a time
    batch = scorer.score(plans).rows()
    for plan, row in zip(plans, batch, strict=True):
        assert scorer.score(plan[None]).rows()[0] == pytest.approx(row, abs=1e-9)
    assert scorer.score(plans[:0]).rows() == []


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 11))
def test_removing_an_object_never_lowers_nc(folder: Path, seed: int, index: int) -> None:
    content = crowded(seed)
    plans = wild_plans(seed, 8, content["ego0"][3])
    fewer = without(content, f"box{index}")
    assert (scored(fewer, folder, *plans).nc >= scored(content, folder, *plans).nc).all()


def test_plans_of_any_length_hold_their_last_pose(folder: Path) -> None:
    short = [[5.0, 0.0, 0.0]]
    assert one(road(10), folder, short) == pytest.approx(one(road(10), folder, short * 8), abs=1e-9)


def test_the_box_is_the_cars() -> None:
    state = np.zeros((1, 1, 11))
    np.testing.assert_allclose(
        box_points(state)[0, 0],
        [[FRONT, 1.1485], [-REAR, 1.1485], [-REAR, -1.1485], [FRONT, -1.1485], [1.461, 0]],
        atol=1e-12,
    )


def test_plans_that_cannot_be_scored_are_refused(folder: Path) -> None:
    scorer = PDMScorer(scene_of(road(), folder))
    plans = np.zeros((3, 8, 3))
    with pytest.raises(ConfigError, match=r"shape \(8, 3\)"):
        scorer.score(plans[0])
    with pytest.raises(ConfigError, match=r"shape \(3, 8, 2\)"):
        scorer.score(plans[..., :2])
    with pytest.raises(ConfigError, match="plan 1 has a pose beyond"):
        scorer.score(plans + np.array([0, 1e7, 0])[:, None, None])
    plans[2, 4, 1] = np.nan
    with pytest.raises(NonFiniteError, match="plan 2 holds nan in pose 4"):
        scorer.score(plans)


def test_absurd_plans_have_a_score_all_the_same(folder: Path) -> None:
    random = np.random.default_rng(0)
    scale = 10.0 ** random.uniform(-6, 6, (200, 1, 1))
    found = scored(crowded(1), folder, *(random.normal(size=(200, 8, 3)) * scale).clip(-1e6, 1e6))
    for row in found.rows():
        assert all(0 <= value <= 1 for value in row.values())
