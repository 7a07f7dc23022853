"""Maps as GeoPackages, the route on them, and the centreline from where the car is."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("shapely")

import shapely

from dipole_ray.driving.geopackage import find_map, read_map, write_map
from dipole_ray.driving.roads import RoadMap, connected
from dipole_ray.driving.route import centerline, corrected_route, route_lanes, starting_lane
from dipole_ray.driving.utm import project, utm_code
from dipole_ray.driving.wkb import read_line, read_polygons
from dipole_ray.errors import DatasetError
from tests.driving.drives import LEFT, RIGHT, town


def car(x: float, y: float, heading: float = 0.0) -> np.ndarray:
    return np.array([x, y, heading, *[0.0] * 8])


def test_a_map_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    roads = town()
    write_map(tmp_path / "town.gpkg", roads)
    found = read_map(find_map(tmp_path, "town"))
    assert found.lanes.keys() == roads.lanes.keys() and list(found.roadblocks) == list(roads.roadblocks)
    for token, lane in roads.lanes.items():
        other = found.lanes[token]
        assert (other.outgoing, other.roadblock, other.speed_limit) == (lane.outgoing, lane.roadblock, lane.speed_limit)
        assert other.polygon.equals_exact(lane.polygon) and other.baseline.equals_exact(lane.baseline)
    for token, block in roads.roadblocks.items():
        other = found.roadblocks[token]
        assert (other.lanes, other.incoming, other.outgoing) == (block.lanes, block.incoming, block.outgoing)
        assert other.is_connector == block.is_connector
    assert [row[:2] for row in found.areas] == [("61", "INTERSECTION")] and found.projection == "EPSG:32633"


# Longitude, latitude, EPSG code, east and north as PROJ 9.8 has them.
PLACES = [
    (-71.05, 42.35, 32619, 331154.0108377113, 4690672.815281517),
    (-66.0, 45.0, 32619, 736446.0261012074, 4987329.504698914),
    (-73.5, 41.0, 32619, 121488.42717311485, 4548519.611286188),
    (103.79, 1.29, 32648, 365381.1270389745, 142616.00641782815),
    (103.79, -1.29, 32748, 365381.1270389745, 9857383.993582172),
]


def test_degrees_become_the_metres_of_a_zone(tmp_path: Path) -> None:
    for longitude, latitude, code, east, north in PLACES:
        found = project(np.array([[longitude, latitude]]), code)
        np.testing.assert_allclose(found, [[east, north]], atol=1e-6)
    assert [utm_code(text) for text in ("EPSG:32619", " epsg:32748 ", "EPSG:4326", "EPSG:32661")] == [
        32619,
        32748,
        None,
        None,
    ]


def in_degrees(path: Path) -> None:
    """Make a map's middles into degrees around a place in zone 33, as nuPlan's maps are in degrees."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE gpkg_geometry_columns SET srs_id = 4326 WHERE table_name = 'baseline_paths'")
        rows = database.execute("SELECT fid, geom FROM baseline_paths").fetchall()
        for token, blob in rows:
            line = shapely.transform(shapely.from_wkb(blob[8:]), lambda xy: xy * [1e-5, 1e-5] + [13.5, 52.4])
            head = b"GP\0\3" + struct.pack("<i4d", 4326, *line.bounds)
            database.execute("UPDATE baseline_paths SET geom = ? WHERE fid = ?", (head + shapely.to_wkb(line), token))


def test_a_map_in_degrees_is_projected(tmp_path: Path) -> None:
    write_map(tmp_path / "town.gpkg", town())
    in_degrees(tmp_path / "town.gpkg")
    points = shapely.get_coordinates(read_map(tmp_path / "town.gpkg").lanes["11"].baseline)
    wanted = project(np.column_stack([13.5 + np.arange(0, 101, 5) * 1e-5, np.full(21, 52.4 + RIGHT * 1e-5)]), 32633)
    np.testing.assert_allclose(points, wanted, atol=1e-9)
    assert 3.3e5 < points[0, 0] < 4.7e5


def changed(sql: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            database.executescript(sql)

    return change


ENDLESS = """
DROP TABLE intersections;
CREATE VIEW intersections AS
  WITH RECURSIVE n(fid) AS (SELECT 1 UNION ALL SELECT fid + 1 FROM n) SELECT fid, NULL AS geom FROM n;
"""
GENERATED = """
CREATE TABLE other (fid INTEGER PRIMARY KEY, big BLOB AS (zeroblob(900000000)) VIRTUAL, geom BLOB);
INSERT INTO other (fid) VALUES (1);
UPDATE gpkg_geometry_columns SET column_name = 'big' WHERE table_name = 'intersections';
DROP TABLE intersections; ALTER TABLE other RENAME TO intersections;
"""
DEEP = "010600000001000000" * 100_000  # multipolygons, each in the one before
DAMAGED = {
    "text": (lambda path: path.write_text("no map"), "not a GeoPackage"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:9000]), "not a GeoPackage"),
    "no layer": (changed("DROP TABLE baseline_paths"), "has no layer baseline_paths"),
    "a view without end": (changed(ENDLESS), "has no layer intersections"),
    "a column that is computed": (changed(GENERATED), "layer intersections has no column big"),
    "no column": (changed("ALTER TABLE lanes_polygons DROP COLUMN speed_limit_mps"), "no column speed_limit_mps"),
    "no geometry": (changed("UPDATE baseline_paths SET geom = x'00'"), "has no geometry"),
    "a point": (
        changed("UPDATE lanes_polygons SET geom = x'4750000100000000010100000000000000000000000000000000000000'"),
        "no polygon in WKB",
    ),
    "geometries in geometries": (
        changed(f"UPDATE lanes_polygons SET geom = CAST(x'4750000100000000' || x'{DEEP}' AS BLOB)"),
        "its parts are something else",
    ),
    "no projection": (changed("DELETE FROM meta"), "no projectedCoordSystem"),
    "a projection of its own": (changed("UPDATE meta SET value = 'EPSG:2154'"), "UTM zones are known"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_hostile_map_is_one_sentence(tmp_path: Path, name: str) -> None:
    change, said = DAMAGED[name]
    write_map(tmp_path / "town.gpkg", town())
    change(tmp_path / "town.gpkg")
    with pytest.raises(DatasetError, match=said) as caught:
        read_map(tmp_path / "town.gpkg")
    assert str(caught.value).startswith(str(tmp_path / "town.gpkg"))


def test_geometries_inside_geometries_are_not_followed() -> None:
    deep = bytes.fromhex(DEEP)
    for read in (lambda blob: read_polygons([blob]), read_line):
        with pytest.raises(ValueError):
            read(deep)
    two = shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(2, 0, 3, 1)])
    assert read_polygons([shapely.to_wkb(two), shapely.to_wkb(two.geoms[0])])[0].equals_exact(two)
    lines = shapely.MultiLineString([[(0, 0), (1, 0)], [(5, 5), (6, 6)]])
    assert read_line(shapely.to_wkb(lines)).equals_exact(lines.geoms[0])
    assert not shapely.has_z(read_line(shapely.to_wkb(shapely.LineString([(0, 0, 1), (1, 0, 1)]), output_dimension=3)))


def test_links_out_of_the_map_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    roads = town()
    lanes = [lane for lane in roads.lanes.values() if lane.token not in ("21", "22")]
    blocks = [block for block in roads.roadblocks.values() if block.token != "2"]
    cut = connected("cut town", lanes, blocks, roads.areas)
    assert cut.lanes["51"].outgoing == () and cut.roadblocks["4"].outgoing == ()
    assert "map cut town: 3 lane or links lead out of it" in caplog.text


def test_the_route_begins_where_the_car_is_and_has_no_gaps() -> None:
    roads = town()
    assert corrected_route(roads, ["1", "4", "2", "4"], car(50, RIGHT)) == ["1", "4", "2"]
    assert corrected_route(roads, ["1", "2"], car(50, RIGHT)) == ["1", "4", "2"]
    # Off the route: backward from its start to the car, or forward from the car to it.
    assert corrected_route(roads, ["2"], car(50, RIGHT)) == ["1", "4", "2"]
    assert corrected_route(roads, ["4", "2"], car(50, RIGHT)) == ["1", "4", "2"]
    # A connector that crosses an earlier one makes a loop.
    assert corrected_route(roads, ["1", "4", "5", "3"], car(50, RIGHT)) == ["1", "4"]
    with pytest.raises(DatasetError, match="roadblock 9, which map town does not have"):
        corrected_route(roads, ["9"], car(50, RIGHT))
    with pytest.raises(DatasetError, match="the route is empty"):
        corrected_route(roads, [], car(50, RIGHT))


def test_the_car_starts_on_the_lane_that_it_looks_along() -> None:
    roads = town()
    lanes = route_lanes(roads, ["1", "5", "3"])
    assert list(lanes) == ["11", "12", "53", "31"]
    assert starting_lane(lanes, car(50, 0.5)).token == "12"
    # At the end of lane 12 the connector to the left lies over it: the heading decides.
    at = car(104, 2.2, 0.2)
    assert lanes["53"].polygon.contains(shapely.Point(at[:2]))
    assert starting_lane(lanes, at).token == "53"
    # Off all lanes: the nearest one.
    assert starting_lane(lanes, car(50, 6.0)).token == "12"


def test_the_centreline_takes_the_shortest_lanes_to_the_end_of_the_route() -> None:
    roads = town()
    left = centerline(roads, ["1", "5", "3"], roads.lanes["12"])
    assert left[0].tolist() == [0.0, LEFT, 0.0] and left[-1].tolist() == [118.25, 200.0, np.pi / 2]
    assert (np.hypot(*np.diff(left[:, :2], axis=0).T) < 5.01).all()
    # Lane 11 does not lead to the left: the way goes as far as lanes of the route go.
    assert centerline(roads, ["1", "5", "3"], roads.lanes["11"])[-1].tolist() == [100.0, RIGHT, 0.0]


def diamond() -> RoadMap:
    """Return road 1 with two ways, over 6 and over 7, to road 2."""
    roads = town()
    blocks = dict(roads.roadblocks)
    for token in ("6", "7"):
        blocks[token] = replace(blocks["4"], token=token, lanes=())
    blocks["1"] = replace(blocks["1"], outgoing=("6", "7"))
    blocks["2"] = replace(blocks["2"], incoming=("6", "7"))
    return RoadMap("diamond", roads.lanes, blocks, ())


def test_of_two_ways_the_last_one_found_counts_as_officially() -> None:
    assert corrected_route(diamond(), ["1", "2"], car(50, RIGHT)) == ["1", "7", "2"]


def test_the_drivable_map_is_in_the_official_order() -> None:
    tokens, types, polygons = town().drivable(90.0, 0.0, 20.0)
    assert list(zip(tokens, types, strict=True)) == [
        ("1", "ROADBLOCK"),
        ("11", "LANE"),
        ("12", "LANE"),
        ("51", "LANE_CONNECTOR"),
        ("52", "LANE_CONNECTOR"),
        ("53", "LANE_CONNECTOR"),
        ("61", "INTERSECTION"),
    ]
    assert polygons.shape == (7,)
