"""nuPlan's maps: one GeoPackage a city, an SQLite file of layers with polygons and lines in well-known binary."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shapely

from dipole_ray.driving.roads import Lane, Roadblock, RoadMap, connected
from dipole_ray.driving.utm import project, utm_code
from dipole_ray.driving.wkb import read_line, read_polygons
from dipole_ray.errors import DatasetError, counted, warn_once
from dipole_ray.files.durable import replacing

SUFFIX = ".gpkg"
DEGREES = 4326  # EPSG of longitude and latitude
MAX_ROWS, MAX_BLOB_BYTES, MAX_STEPS = 2_000_000, 64 << 20, 500_000_000  # steps of SQLite's virtual machine
_ENVELOPE_BYTES = (0, 32, 48, 48, 64)
_EMPTY = ("boundaries", "stop_polygons", "crosswalks", "walkways")  # layers that the official code opens
_LANE = ("lane_group_fid", "speed_limit_mps")
_CONNECTOR = ("exit_lane_fid", "entry_lane_fid", "lane_group_connector_fid", "speed_limit_mps")
_SCHEMA = """
PRAGMA application_id = 0x47504B47;
PRAGMA user_version = 10300;
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY, organization TEXT NOT NULL,
  organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (table_name TEXT PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT, description TEXT,
  last_change TEXT, min_x REAL, min_y REAL, max_x REAL, max_y REAL, srs_id INTEGER);
CREATE TABLE gpkg_geometry_columns (table_name TEXT PRIMARY KEY, column_name TEXT NOT NULL,
  geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL);
CREATE TABLE meta (key TEXT, value TEXT);
"""


class _Damaged(ValueError):
    """What is wrong with a map, and where in it."""


def read_map(path: Path, name: str = "") -> RoadMap:
    """Return the roads of a map, in metres of its own projection; without a name it has the file's.

    Links to what the file lacks, as at the map's edge, are left out with a warning that counts them.

    Raises:
        DatasetError: The file is missing or damaged, or lacks a layer, a column or a projection that is known.
    """
    try:
        if not path.is_file():
            raise _Damaged("there is no such file" if not path.exists() else "not a regular file")
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            return _road_map(name or path.stem, _Layers(database))
    except (sqlite3.Error, OverflowError) as error:
        raise DatasetError(f"{path}: not a GeoPackage that can be read ({error})") from None
    except ValueError as error:
        raise DatasetError(f"{path}: {error}; maps are nuPlan's, version 1.0, one {SUFFIX} file a city") from None


@dataclass(frozen=True, slots=True)
class _Row:
    token: str
    values: Mapping[str, Any]

    def key(self, name: str) -> str:
        """Return another row's token that a column holds; empty: none."""
        value = self.values[name]
        if value is None:
            return ""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int | str):
            raise _Damaged(f"{name} of {self.token} is a {type(value).__name__}")
        return str(value)

    def speed(self) -> float | None:
        value = self.values["speed_limit_mps"]
        return float(value) if isinstance(value, int | float) and 0 < value < 100 else None


class _Layers:
    """The tables of a GeoPackage, of which nothing is run but plain reading."""

    def __init__(self, database: sqlite3.Connection) -> None:
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BLOB_BYTES)
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("PRAGMA query_only = ON")
        steps = iter(range(MAX_STEPS // 1_000_000))
        database.set_progress_handler(lambda: next(steps, None) is None, 1_000_000)
        self._database = database
        # Views and virtual tables could compute anything.
        plain = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
        self._tables = {name for (name,) in database.execute(plain)}
        columns = database.execute("SELECT table_name, column_name, srs_id FROM gpkg_geometry_columns")
        self._geometry = {table: (column, int(system)) for table, column, system in columns}
        wanted = self._meta("projectedCoordSystem")
        if wanted is None:
            raise _Damaged("its table meta says no projectedCoordSystem")
        self.code, self.projection = utm_code(wanted), wanted.strip()
        self.origin = self._meta("origin") or "nuPlan"

    def _meta(self, key: str) -> str | None:
        if "meta" not in self._tables:
            return None
        row = self._database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row is not None and isinstance(row[0], str) else None

    def rows(self, table: str, columns: Sequence[str] = (), *, needed: bool = True) -> list[_Row]:
        """Return the rows of a layer; its geometry is the value `geometry`."""
        if table not in self._tables or table not in self._geometry:
            if needed:
                raise _Damaged(f"has no layer {table}")
            return []
        geometry, system = self._geometry[table]
        listed = self._database.execute(f"PRAGMA table_info({_quoted(table)})").fetchall()
        key = next((name for _, name, _, _, _, primary in listed if primary), "fid")
        if missing := {key, geometry, *columns} - {name for _, name, *_ in listed}:
            raise _Damaged(f"layer {table} has no column {min(missing)}")
        names = ", ".join(map(_quoted, (key, geometry, *columns)))
        found = self._database.execute(f"SELECT {names} FROM {_quoted(table)} ORDER BY 1 LIMIT {MAX_ROWS + 1}")
        rows = []
        for token, blob, *values in found:
            named = dict(zip(columns, values, strict=True))
            rows.append(_Row(str(token), named | {"geometry": _wkb(blob, f"{table} {token}"), "system": system}))
        if len(rows) > MAX_ROWS:
            raise _Damaged(f"layer {table} has more than {MAX_ROWS} rows")
        return rows

    def projected(self, geometry: Any, system: int) -> Any:
        """Return a geometry in the map's metres."""
        if system == DEGREES and self.code is not None:
            code = self.code
            return shapely.transform(geometry, lambda points: project(points, code))
        if system <= 0 or self.projection.upper() == f"EPSG:{system}":  # 0 and -1 are of no place on earth
            return geometry
        raise _Damaged(f"coordinates of EPSG {system} are not turned into {self.projection!r:.40}; UTM zones are known")

    def polygons(self, rows: Sequence[_Row]) -> Iterator[tuple[_Row, Any]]:
        """Yield each row with its polygon."""
        shapes = read_polygons([row.values["geometry"] for row in rows])
        for row, shape in zip(rows, shapes, strict=True):
            yield row, self.projected(shape, row.values["system"])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _wkb(blob: Any, where: str) -> bytes:
    """Return the well-known binary in a GeoPackage's geometry."""
    if not isinstance(blob, bytes) or len(blob) < 8 or blob[:2] != b"GP" or (blob[3] >> 1 & 7) > 4:
        raise _Damaged(f"{where} has no geometry of a GeoPackage")
    return blob[8 + _ENVELOPE_BYTES[blob[3] >> 1 & 7] :]


def _road_map(name: str, layers: _Layers) -> RoadMap:
    shapes = {row.token: (row, shape) for row, shape in layers.polygons(layers.rows("lanes_polygons", _LANE))}
    connectors = {row.token: row for row in layers.rows("lane_connectors", _CONNECTOR)}
    widths = layers.rows("gen_lane_connectors_scaled_width_polygons", ("lane_connector_fid",))
    corridors = {row.key("lane_connector_fid"): shape for row, shape in layers.polygons(widths)}
    shapes |= {token: (row, corridors[token]) for token, row in connectors.items() if token in corridors}
    lines = _baselines(layers)
    outgoing: dict[str, list[str]] = defaultdict(list)
    for row in connectors.values():
        outgoing[row.key("exit_lane_fid")].append(row.token)
    lanes = []
    for token, (row, shape) in shapes.items():
        link = token in connectors
        block = row.key("lane_group_connector_fid" if link else "lane_group_fid")
        ahead = (row.key("entry_lane_fid"),) if link else tuple(outgoing[token])
        if token in lines:
            lanes.append(Lane(token, block, shape, lines[token], ahead, row.speed()))
    bare = len(connectors.keys() | shapes.keys()) - len(lanes)
    if bare:
        warn_once(f"map {name}: {counted(bare, 'lane')} without a polygon or a baseline, left out")
    areas = [
        (row.token, kind, shape)
        for layer, kind in (("intersections", "INTERSECTION"), ("carpark_areas", "CARPARK_AREA"))
        for row, shape in layers.polygons(layers.rows(layer, needed=kind == "INTERSECTION"))
    ]
    return connected(name, lanes, _roadblocks(layers, lanes), areas, origin=layers.origin, projection=layers.projection)


def _roadblocks(layers: _Layers, lanes: Sequence[Lane]) -> list[Roadblock]:
    inside: dict[str, list[str]] = defaultdict(list)
    for lane in lanes:
        inside[lane.roadblock].append(lane.token)
    links = list(layers.polygons(layers.rows("lane_group_connectors", ("from_lane_group_fid", "to_lane_group_fid"))))
    incoming: dict[str, list[str]] = defaultdict(list)
    outgoing: dict[str, list[str]] = defaultdict(list)
    for row, _ in links:
        outgoing[row.key("from_lane_group_fid")].append(row.token)
        incoming[row.key("to_lane_group_fid")].append(row.token)
    blocks = []
    for row, shape in layers.polygons(layers.rows("lane_groups_polygons")):
        ways = tuple(incoming[row.token]), tuple(outgoing[row.token])
        blocks.append(Roadblock(row.token, shape, tuple(inside[row.token]), *ways, is_connector=False))
    for row, shape in links:
        ways = (row.key("from_lane_group_fid"),), (row.key("to_lane_group_fid"),)
        blocks.append(Roadblock(row.token, shape, tuple(inside[row.token]), *ways, is_connector=True))
    return blocks


def _baselines(layers: _Layers) -> dict[str, shapely.LineString]:
    """Return the middle of each lane and connector, by its token."""
    lines = {}
    for row in layers.rows("baseline_paths", ("lane_fid", "lane_connector_fid")):
        try:
            line = read_line(row.values["geometry"])
        except ValueError as error:
            raise _Damaged(f"baseline_paths {row.token}: {error}") from None
        token = row.key("lane_fid") or row.key("lane_connector_fid")
        lines[token] = layers.projected(line, row.values["system"])
    return lines


def find_map(folder: Path, name: str) -> Path:
    """Return the file of a city in a folder as nuPlan's maps are: NAME/VERSION/map.gpkg; or NAME.gpkg.

    Raises:
        DatasetError: There is none, or there are several versions.
    """
    name = "us-nv-las-vegas-strip" if name == "las_vegas" else name
    found = [
        path for path in (folder / f"{name}{SUFFIX}", *sorted(folder.glob(f"{name}/*/map{SUFFIX}"))) if path.is_file()
    ]
    if len(found) != 1:
        there = ", ".join(map(str, found)) or "neither is there"
        raise DatasetError(
            f"{folder}: one map of {name!r:.60} is needed, {name}{SUFFIX} or {name}/VERSION/map{SUFFIX}; {there}"
        )
    return found[0]


def write_map(path: Path, roads: RoadMap) -> None:
    """Write a map as `read_map` and nuPlan's own code read it; its tokens must be whole numbers.

    A map without a projection is in metres of no place on earth (srs_id -1).
    """
    code = utm_code(roads.projection) or -1
    with replacing(path) as temporary:
        temporary.unlink(missing_ok=True)
        with closing(sqlite3.connect(temporary)) as database, database:
            database.executescript(_SCHEMA)
            system = (f"EPSG {code}", code, "EPSG" if code > 0 else "NONE", code, "undefined", None)
            database.execute("INSERT OR REPLACE INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, ?)", system)
            database.execute("INSERT INTO meta (key, value) VALUES ('projectedCoordSystem', ?)", (roads.projection,))
            database.execute("INSERT INTO meta (key, value) VALUES ('origin', ?)", (roads.origin,))
            for table, (columns, rows) in _tables(roads).items():
                _write_layer(database, table, columns, rows, code)


def _tables(roads: RoadMap) -> dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
    """Return the columns and rows, geometry last, of each layer."""
    none: dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]] = {name: (("fid",), []) for name in _EMPTY}
    start = {ahead: lane.token for lane in roads.lanes.values() for ahead in lane.outgoing}
    links = {block.token for block in roads.roadblocks.values() if block.is_connector}
    plain = [lane for lane in roads.lanes.values() if lane.roadblock not in links]
    across = [lane for lane in roads.lanes.values() if lane.roadblock in links]
    blocks = [block for block in roads.roadblocks.values() if not block.is_connector]
    joints = [block for block in roads.roadblocks.values() if block.is_connector]
    return none | {
        "lanes_polygons": (("fid", *_LANE), [(i.token, i.roadblock, i.speed_limit, i.polygon) for i in plain]),
        "lane_connectors": (
            ("fid", *_CONNECTOR),
            [(i.token, start.get(i.token), _one(i.outgoing), i.roadblock, i.speed_limit, i.baseline) for i in across],
        ),
        "gen_lane_connectors_scaled_width_polygons": (
            ("fid", "lane_connector_fid"),
            [(i.token, i.token, i.polygon) for i in across],
        ),
        "baseline_paths": (
            ("fid", "lane_fid", "lane_connector_fid"),
            [(i.token, i.token, None, i.baseline) for i in plain]
            + [(i.token, None, i.token, i.baseline) for i in across],
        ),
        "lane_groups_polygons": (("fid",), [(i.token, i.polygon) for i in blocks]),
        "lane_group_connectors": (
            ("fid", "from_lane_group_fid", "to_lane_group_fid"),
            [(i.token, _one(i.incoming), _one(i.outgoing), i.polygon) for i in joints],
        ),
        "intersections": (("fid",), [(token, shape) for token, kind, shape in roads.areas if kind == "INTERSECTION"]),
        "carpark_areas": (("fid",), [(token, shape) for token, kind, shape in roads.areas if kind == "CARPARK_AREA"]),
    }


def _one(tokens: Sequence[str]) -> str | None:
    return tokens[0] if tokens else None


def _write_layer(
    database: sqlite3.Connection, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], code: int
) -> None:
    kinds = ["INTEGER PRIMARY KEY", *("REAL" if name == "speed_limit_mps" else "INTEGER" for name in columns[1:])]
    body = ", ".join(f"{name} {kind}" for name, kind in zip(columns, kinds, strict=True))
    database.execute(f"CREATE TABLE {table} ({body}, geom BLOB)")
    database.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, srs_id) VALUES (?, 'features', ?)", (table, code)
    )
    database.execute("INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'GEOMETRY', ?, 0, 0)", (table, code))
    head = b"GP\x00\x01" + code.to_bytes(4, "little", signed=True)
    values = [(*row[:-1], head + shapely.to_wkb(row[-1])) for row in rows]
    marks = ", ".join("?" * (len(columns) + 1))
    database.executemany(f"INSERT INTO {table} VALUES ({marks})", values)
