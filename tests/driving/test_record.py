"""Recording scenes from SUMO; what needs SUMO itself is skipped without it."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("shapely")

import shapely

from dipole_ray.driving.container import SceneFolder
from dipole_ray.driving.curation import going_on, is_worth_keeping, speed_of
from dipole_ray.driving.geopackage import read_map, write_map
from dipole_ray.driving.importing import import_logs
from dipole_ray.driving.log import parsed_frames
from dipole_ray.driving.recorded import scene_on_map
from dipole_ray.driving.score import PDMScorer
from dipole_ray.driving.sumo import cities
from dipole_ray.driving.sumo.drives import Drives
from dipole_ray.driving.sumo.network import Network, network_of
from dipole_ray.driving.sumo.parked import parked_cars
from dipole_ray.driving.sumo.record import RecordConfig, record_scenes
from dipole_ray.driving.sumo.traffic import Presence, Traffic, TrafficConfig
from dipole_ray.driving.vehicle import FRONT, corners
from dipole_ray.errors import ConfigError, DatasetError, DipoleError
from tests.cli.commands import dipole_here

needs_sumo = pytest.mark.skipif(
    importlib.util.find_spec("sumo") is None, reason="needs eclipse-sumo: pip install -e '.[driving]'"
)

NET = """<?xml version="1.0"?>
<net>
 <location netOffset="-1000,-2000" projParameter="+proj=utm +zone=33 +ellps=WGS84"/>
 <edge id=":j_0" function="internal">
  <lane id=":j_0_0" index="0" speed="8" shape="100,-2 110,-2"/></edge>
 <edge id=":j_1" function="internal">
  <lane id=":j_1_0" index="0" speed="5" shape="100,-2 106,0"/></edge>
 <edge id=":j_2" function="internal">
  <lane id=":j_2_0" index="0" speed="5" shape="106,0 108,10"/></edge>
 <edge id="a" from="i" to="j"><lane id="a_0" index="0" allow="pedestrian" speed="2" shape="0,-5 100,-5"/>
  <lane id="a_1" index="1" disallow="tram" speed="13.89" shape="0,-2 100,-2"/></edge>
 <edge id="b" from="j" to="k"><lane id="b_0" index="0" speed="13.89" shape="110,-2 300,-2" width="3"/></edge>
 <edge id="c" from="j" to="l"><lane id="c_0" index="0" speed="8.33" shape="108,10 108,200"/></edge>
 <edge id="rail" from="j" to="l"><lane id="rail_0" index="0" allow="tram" speed="8" shape="108,10 108,200"/></edge>
 <junction id="j" shape="100,0 100,-8 110,-8 110,10 106,10"/>
 <connection from="a" to="b" fromLane="1" toLane="0" via=":j_0_0" tl="light" linkIndex="0" dir="s" state="O"/>
 <connection from="a" to="c" fromLane="1" toLane="0" via=":j_1_0" tl="light" linkIndex="1" dir="l" state="o"/>
 <connection from="a" to="rail" fromLane="1" toLane="0" via=":j_1_0" dir="l" state="o"/>
 <connection from=":j_0" to="b" fromLane="0" toLane="0" dir="s" state="M"/>
 <connection from=":j_1" to="c" fromLane="0" toLane="0" via=":j_2_0" dir="l" state="m"/>
 <connection from=":j_2" to="c" fromLane="0" toLane="0" dir="l" state="M"/>
</net>
"""


@pytest.fixture
def network(tmp_path: Path) -> Network:
    (tmp_path / "town.net.xml").write_text(NET)
    return network_of("town", tmp_path / "town.net.xml")


def test_a_network_becomes_a_map_that_a_geopackage_can_hold(network: Network, tmp_path: Path) -> None:
    roads = network.roads
    assert set(network.lanes) == {"a_1", "b_0", "c_0"} and set(network.blocks) == {"a", "b", "c"}
    assert set(network.joints) == {("a", "b"), ("a", "c")} and roads.projection == "EPSG:32633"
    lane = roads.lanes[network.lanes["a_1"]]
    assert shapely.get_coordinates(lane.baseline).tolist() == [[1000.0, 1998.0], [1100.0, 1998.0]]
    assert lane.polygon.area == pytest.approx(320) and lane.speed_limit == 13.89
    assert [roads.lanes[token].speed_limit for token in lane.outgoing] == [8.0, 5.0]
    left = roads.lanes[lane.outgoing[1]]  # over two internal lanes, without the points that are there twice
    assert shapely.get_coordinates(left.baseline).tolist() == [[1100, 1998], [1106, 2000], [1108, 2010]]
    assert left.outgoing == (network.lanes["c_0"],)
    assert network.signals == {"light": [(0, lane.outgoing[0]), (1, lane.outgoing[1])]}
    ((_, kind, area),) = roads.areas
    assert kind == "INTERSECTION" and all(area.contains(roads.lanes[token].polygon) for token in lane.outgoing)
    block = roads.roadblocks[network.blocks["a"]]
    assert block.polygon.covers(lane.polygon.buffer(0.39)) and "a" in network.walks and "rail" not in network.rides
    write_map(tmp_path / "town.gpkg", roads)
    assert read_map(tmp_path / "town.gpkg").lanes.keys() == roads.lanes.keys()
    assert "OpenStreetMap" in read_map(tmp_path / "town.gpkg").origin


def traffic_on(network: Network) -> Traffic:
    """Return a car that follows one which brakes, a rider, and a walker who comes later."""
    times = 0.5 * np.arange(20)

    def driving(x: Any, y: float, speed: Any, lane: str, kind: str, first: int = 0) -> Presence:
        states = np.zeros((len(np.atleast_1d(x)), 5))
        states[:, 0], states[:, 1], states[:, 3] = np.asarray(x) + 1000, y + 2000, speed
        return Presence(kind, first, states, [lane] * len(states))

    slower = np.maximum(8 - 2 * np.maximum(times - 2, 0), 0)
    lead = 64 + np.concatenate([[0], np.cumsum(slower[:-1] * 0.5)])
    present = {
        "vehicle0": driving(20 + 3 * times, -2.0, 3.0, "a_1", "vehicle"),
        "vehicle1": driving(lead, -2.0, slower, "a_1", "vehicle"),
        "bicycle0": driving(30 + 4 * times, 0.5, 4.0, "a_1", "bicycle"),
        "pedestrian0": driving(np.full(5, 60.0), -5.0, 0.0, "", "pedestrian", 10),
    }
    red = [(network.signals["light"][0][1],)] * 20
    return Traffic(network, 20, present, {"vehicle0": ("a", "b"), "vehicle1": ("a", "c")}, red)


def test_a_drive_is_told_as_a_log_tells_it(network: Network) -> None:
    drives = Drives(traffic_on(network), np.array([[1050.0, 1993.0, 0.0]]), "town-0")
    assert drives.cars() == {"vehicle0": range(20), "vehicle1": range(20)}
    frames = parsed_frames(drives.frames("vehicle0", range(2, 16)), "town")
    first, later = frames[0], frames[9]
    np.testing.assert_allclose(first.pose, [1020 + 3 - FRONT, 1998.0, 0.0])
    assert first.motion.tolist() == [3.0, 0.0, 0.0, 0.0] and first.command == "straight"
    assert first.route == (network.blocks["a"], network.joints["a", "b"], network.blocks["b"])
    assert first.red == (network.signals["light"][0][1],)
    assert first.tracks == ("vehicle1", "bicycle0", "parked0") and "pedestrian0" in later.tracks
    where = first.boxes[first.tracks.index("vehicle1")]
    np.testing.assert_allclose(where[:2], [72.0 - 2.588 - (23 - FRONT), 0.0], atol=1e-9)
    turn = parsed_frames(drives.frames("vehicle1", range(14, 16)), "town")
    assert turn[0].command == "left"
    other = Drives(traffic_on(network), np.zeros((0, 3)), "town-1").frames("vehicle0", range(2, 3))
    assert other[0]["token"] != frames[0].token
    scene = scene_on_map(frames, network.roads)
    assert scene.scene.frames[0].tokens[-1].startswith("red_light_")
    assert PDMScorer(scene.scene, "clipped").score(scene.human[None]).dac[0] == 1.0


def test_a_car_that_goes_straight_on_is_no_try(network: Network) -> None:
    drives = Drives(traffic_on(network), np.zeros((0, 3)), "town-0")
    assert drives.strayed("vehicle0").max() == pytest.approx(0.0, abs=1e-9)
    assert drives.strayed("vehicle1")[4] == pytest.approx(8 * 4 - (8 + 7 + 6 + 5 + 4 + 3 + 2 + 1) * 0.5)


def test_scenes_are_kept_by_the_rule_of_navsim(network: Network) -> None:
    drives = Drives(traffic_on(network), np.zeros((0, 3)), "town-0")
    kept = {}
    for name in ("vehicle0", "vehicle1"):
        scene = scene_on_map(parsed_frames(drives.frames(name, range(2, 16)), "town"), network.roads)
        plans = np.stack([scene.human, going_on(speed_of(scene))])
        human, straight = PDMScorer(scene.scene, "clipped").score(plans).pdms
        kept[name] = is_worth_keeping(scene)
        assert kept[name] == (human >= 0.8 and straight <= 0.8)
    assert not kept["vehicle0"]


def test_parked_cars_stand_beside_the_road_and_not_in_each_other(network: Network) -> None:
    poses = parked_cars(network.roads, 80.0, np.random.default_rng(0))
    assert len(poses) > 5
    boxes = shapely.polygons(corners(poses[:, :2], poses[:, 2], 4.6, 1.85))
    for block in network.roads.roadblocks.values():
        assert not shapely.intersects(block.polygon, boxes).any()
    first, second = shapely.STRtree(boxes).query(boxes, predicate="intersects")
    assert (first == second).all()
    assert len(parked_cars(network.roads, 0.0, np.random.default_rng(0))) == 0


def test_no_city_is_in_two_splits_and_every_split_has_one() -> None:
    assert {one.split for one in cities.CITIES.values()} == {"train", "validation", "test"}
    towns = {(one.name.partition("_")[0], one.split) for one in cities.CITIES.values()}
    assert len({name for name, _ in towns}) == len(towns)


def test_without_sumo_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "sumo" else find(name, *rest))
    with pytest.raises(DipoleError, match=re.escape("pip install 'dipole-ray[driving]'")):
        record_scenes(RecordConfig(map="ingolstadt", scenes=1), tmp_path / "scenes")


def test_settings_that_cannot_be_are_refused_with_what_can() -> None:
    with pytest.raises(ConfigError, match=r"no map 'paris'; choose one of berlin \(train\)"):
        RecordConfig(map="paris")
    for changes, said in ((dict(scenes=0), "scenes is 0"), (dict(seed=-1), "seed is -1")):
        with pytest.raises(ConfigError, match=said):
            RecordConfig(**changes)
    with pytest.raises(ConfigError, match="cars_per_km is 0"):
        TrafficConfig(cars_per_km=0)
    with pytest.raises(ConfigError, match="lane_drift is nan"):
        TrafficConfig(lane_drift=float("nan"))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    words = ["--map", "braunschweig_junction", "--scenes", "4", "--seed", "3", "--logs", "logs", "--out", "scenes"]
    done = dipole_here("drive", "record", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "4 scenes of braunschweig_junction, for test; SUMO-OSM, not NAVSIM" in done.stdout
    assert "OpenStreetMap contributors, ODbL" in done.stdout
    return folder


@needs_sumo
def test_what_sumo_recorded_is_read_back_by_the_reader_of_navsims_logs(recording: Path) -> None:
    import_logs(recording / "logs", recording / "again", maps=recording / "logs")
    recorded, again = SceneFolder(recording / "scenes"), SceneFolder(recording / "again")
    assert sorted(recorded.tokens) == sorted(again.tokens) and len(recorded) == 4
    for token in recorded.tokens:
        one, other = recorded.read(token), again.read(token)
        for field in dataclasses.fields(one):
            if field.name not in ("scene", "past"):
                np.testing.assert_equal(getattr(one, field.name), getattr(other, field.name))
        np.testing.assert_array_equal(one.scene.reference, other.scene.reference)
        for mine, its in zip(one.scene.frames, other.scene.frames, strict=True):
            assert list(mine.tokens) == list(its.tokens) and shapely.equals_exact(mine.polygons, its.polygons).all()
        assert is_worth_keeping(one)


@needs_sumo
def test_one_seed_is_one_recording_and_another_seed_another(recording: Path, tmp_path: Path) -> None:
    config = RecordConfig(map="braunschweig_junction", scenes=4, seed=3)
    record_scenes(config, tmp_path / "scenes")
    first = SceneFolder(recording / "scenes")
    assert SceneFolder(tmp_path / "scenes").tokens == first.tokens
    with pytest.raises(DatasetError, match="made with other settings"):
        record_scenes(dataclasses.replace(config, seed=4), tmp_path / "scenes")
    logs = {one.log for one in first}
    assert len(logs) == 4, "every scene is another car's"


@needs_sumo
def test_every_network_of_the_wheel_is_a_map() -> None:
    from dipole_ray.driving.sumo.network import read_network

    kilometres = {}
    for city in cities.CITIES.values():
        network = read_network(city)
        plain = [lane for lane in network.roads.lanes.values() if lane.token in set(network.lanes.values())]
        kilometres[city.name] = round(sum(lane.baseline.length for lane in plain) / 1000, 1)
        assert all(lane.polygon.area > 0 for lane in network.roads.lanes.values())
    assert kilometres == {
        "berlin": 47.7,
        "koenigs_wusterhausen": 33.7,
        "ingolstadt": 2.5,
        "braunschweig": 17.4,
        "braunschweig_junction": 3.4,
    }
