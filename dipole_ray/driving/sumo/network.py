"""A road network of SUMO as a map: edges are roadblocks, and chains of internal lanes connectors."""

import gzip
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import shapely

from dipole_ray.driving.roads import Lane, Roadblock, RoadMap, connected
from dipole_ray.driving.sumo.cities import ATTRIBUTION, City, sumo_home
from dipole_ray.driving.vehicle import Array
from dipole_ray.errors import DatasetError

LANE_WIDTH_M = 3.2  # SUMO's own where a lane says none
# Cars of SUMO cut corners by less than this; without it the driver of the log leaves the road in one scene of six.
ROADBLOCK_MARGIN_M, JUNCTION_MARGIN_M = 0.4, 0.5
STUB_M = 0.1  # length of a connector between lanes that touch


@dataclass(frozen=True, slots=True)
class Network:
    """A map, and how SUMO calls what is on it."""

    city: str
    path: Path
    roads: RoadMap
    blocks: dict[str, str]
    """the roadblock of an edge"""
    joints: dict[tuple[str, str], str]
    """the roadblock of the connectors from one edge to another"""
    lanes: dict[str, str]
    """the lane's token, by SUMO's id of a lane that cars may use"""
    signals: dict[str, list[tuple[int, str]]]
    """by traffic light: places in its state, and the connectors that they are for"""
    offset: Array
    """(2,), what is added to SUMO's metres for those of the map"""
    walks: tuple[str, ...]
    """edges with room for pedestrians"""
    rides: tuple[str, ...]
    """edges for bicycles"""


@dataclass(slots=True)
class _Read:
    """What the file says."""

    edges: dict[str, dict[str, str]] = field(default_factory=dict)
    lanes: dict[str, list[dict[str, str]]] = field(default_factory=lambda: defaultdict(list))
    links: list[dict[str, str]] = field(default_factory=list)
    junctions: dict[str, dict[str, str]] = field(default_factory=dict)
    location: dict[str, str] = field(default_factory=dict)


def read_network(city: City) -> Network:
    """Return the map of a city.

    Raises:
        DatasetError: The installed wheel has no such network.
    """
    path = sumo_home() / city.network
    if not path.is_file():
        raise DatasetError(f"{path}: this version of eclipse-sumo has no such network; 1.28 has it")
    return network_of(city.name, path)


def network_of(name: str, path: Path) -> Network:
    """Return the map of a network's file, .net.xml, also gzipped."""
    return _Builder(name, path, _read(path)).network()


def _read(path: Path) -> _Read:
    found = _Read()
    edge = ""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        for event, element in ElementTree.iterparse(stream, ("start", "end")):
            values = dict(element.attrib)
            if event == "end":
                element.clear()
            elif element.tag == "edge":
                edge = values["id"]
                found.edges[edge] = values
            elif element.tag == "lane":
                found.lanes[edge].append(values)
            elif element.tag == "connection":
                found.links.append(values)
            elif element.tag == "junction":
                found.junctions[values["id"]] = values
            elif element.tag == "location":
                found.location = values
    return found


def _allows(lane: dict[str, str], kind: str) -> bool:
    if "allow" in lane:
        return kind in lane["allow"].split() or lane["allow"] == "all"
    return kind not in lane.get("disallow", "").split() and lane.get("disallow") != "all"


def _points(text: str) -> Array:
    return np.array([[float(number) for number in pair.split(",")[:2]] for pair in text.split()])


class _Builder:
    """A map in the making; tokens are whole numbers, as nuPlan's are."""

    def __init__(self, name: str, path: Path, read: _Read) -> None:
        self._name, self._path, self._read = name, path, read
        self._numbers = itertools.count(1)
        earth = "proj=utm" in read.location["projParameter"]
        zone = read.location["projParameter"].partition("+zone=")[2].split(" ")[0]
        self._projection = f"EPSG:{32600 + int(zone)}" if earth else ""
        x, y = (float(number) for number in read.location["netOffset"].split(","))
        self._offset = np.array([-x, -y]) if earth else np.zeros(2)
        self._chains = {one["via"]: one for one in read.links if "via" in one}
        self._after = {f"{one['from']}_{one['fromLane']}": one for one in read.links if one["from"].startswith(":")}
        self._inner = {lane["id"]: lane for edge, lanes in read.lanes.items() if edge.startswith(":") for lane in lanes}

    def network(self) -> Network:
        """Return the network."""
        roads = {edge: self._car_lanes(edge) for edge in self._read.edges if not edge.startswith(":")}
        roads = {edge: lanes for edge, lanes in roads.items() if lanes}
        blocks = {edge: self._token() for edge in roads}
        lanes = {lane["id"]: self._token() for found in roads.values() for lane in found}
        links = [one for one in self._read.links if self._leads(one, lanes)]
        joints = {pair: self._token() for pair in dict.fromkeys((one["from"], one["to"]) for one in links)}
        ends: dict[str, list[str]] = defaultdict(list)
        connectors: list[Lane] = []
        signals: dict[str, list[tuple[int, str]]] = defaultdict(list)
        inside: dict[str, list[shapely.Polygon]] = defaultdict(list)
        for one in links:
            connector = self._connector(one, lanes, joints)
            connectors.append(connector)
            ends[f"{one['from']}_{one['fromLane']}"].append(connector.token)
            inside[self._read.edges[one["from"]]["to"]].append(connector.polygon)
            if "tl" in one:
                signals[one["tl"]].append((int(one["linkIndex"]), connector.token))
        plain = [
            self._lane(lane, lanes[lane["id"]], blocks[edge], ends[lane["id"]])
            for edge, found in roads.items()
            for lane in found
        ]
        areas = self._junctions(inside)
        chart = connected(
            self._name,
            [*plain, *connectors],
            self._roadblocks(plain, connectors, blocks, joints),
            areas,
            origin=ATTRIBUTION,
            projection=self._projection,
        )
        named = self._name, self._path, chart, blocks, joints, lanes, dict(signals), self._offset
        return Network(*named, self._edges_for("pedestrian"), self._edges_for("bicycle"))

    def _token(self) -> str:
        return str(next(self._numbers))

    def _car_lanes(self, edge: str) -> list[dict[str, str]]:
        if self._read.edges[edge].get("function", "normal") not in ("normal", ""):
            return []
        return [lane for lane in self._read.lanes[edge] if _allows(lane, "passenger")]

    def _edges_for(self, kind: str) -> tuple[str, ...]:
        plain = [edge for edge in self._read.edges if not edge.startswith(":")]
        return tuple(edge for edge in plain if any(_allows(lane, kind) for lane in self._read.lanes[edge]))

    def _leads(self, link: dict[str, str], lanes: dict[str, str]) -> bool:
        ends = (f"{link['from']}_{link['fromLane']}", f"{link['to']}_{link['toLane']}")
        return all(end in lanes for end in ends)

    def _lane(self, lane: dict[str, str], token: str, block: str, ahead: Sequence[str]) -> Lane:
        line = shapely.LineString(_points(lane["shape"]) + self._offset)
        return Lane(token, block, _strip(line, lane), line, tuple(ahead), float(lane["speed"]))

    def _connector(self, link: dict[str, str], lanes: dict[str, str], joints: dict[tuple[str, str], str]) -> Lane:
        start, end = (self._shape(f"{link[way]}_{link[f'{way}Lane']}", link[way]) for way in ("from", "to"))
        pieces, via, width, speed = [start[-1:]], link.get("via"), None, None
        while via is not None and via in self._inner:
            lane = self._inner[via]
            pieces.append(_points(lane["shape"]) + self._offset)
            width, speed = width or lane.get("width"), speed or float(lane["speed"])
            via = self._after.get(via, {}).get("via")
        pieces.append(end[:1])
        points = np.concatenate(pieces)
        apart = np.append(True, np.hypot(*np.diff(points, axis=0).T) > 0.01)
        points = points[apart]
        if len(points) < 2:
            ahead = end[1] - end[0]
            points = np.array([points[0], points[0] + STUB_M * ahead / np.hypot(*ahead)])
        line = shapely.LineString(points)
        last = self._read.lanes[link["to"]][int(link["toLane"])]
        shape = _strip(line, {"width": width or last.get("width", str(LANE_WIDTH_M))})
        following = (lanes[f"{link['to']}_{link['toLane']}"],)
        return Lane(
            self._token(), joints[link["from"], link["to"]], shape, line, following, speed or float(last["speed"])
        )

    def _shape(self, lane: str, edge: str) -> Array:
        points: Array = (
            next(_points(one["shape"]) for one in self._read.lanes[edge] if one["id"] == lane) + self._offset
        )
        return points

    def _roadblocks(
        self, plain: Sequence[Lane], links: Sequence[Lane], blocks: dict[str, str], joints: dict[tuple[str, str], str]
    ) -> list[Roadblock]:
        inside: dict[str, list[Lane]] = defaultdict(list)
        for lane in (*plain, *links):
            inside[lane.roadblock].append(lane)
        incoming: dict[str, list[str]] = defaultdict(list)
        outgoing: dict[str, list[str]] = defaultdict(list)
        for (start, end), token in joints.items():
            outgoing[blocks[start]].append(token)
            incoming[blocks[end]].append(token)
        found = []
        for token in blocks.values():
            found.append(_roadblock(token, inside[token], incoming[token], outgoing[token], is_connector=False))
        for (start, end), token in joints.items():
            found.append(_roadblock(token, inside[token], [blocks[start]], [blocks[end]], is_connector=True))
        return found

    def _junctions(self, inside: dict[str, list[shapely.Polygon]]) -> list[tuple[str, str, Any]]:
        """Return the junctions, each with the connectors over it, which may be driven on, too."""
        areas = []
        for name, polygons in inside.items():
            corners = _points(self._read.junctions[name].get("shape", ""))
            margins = [polygon.buffer(ROADBLOCK_MARGIN_M) for polygon in polygons]
            if len(corners) > 2:
                margins.append(shapely.make_valid(shapely.Polygon(corners + self._offset)).buffer(JUNCTION_MARGIN_M))
            areas.append((self._token(), "INTERSECTION", shapely.union_all(margins)))
        return areas


def _strip(line: shapely.LineString, lane: dict[str, str]) -> shapely.Polygon:
    """Return the polygon of a lane around its middle."""
    return line.buffer(
        float(lane.get("width", LANE_WIDTH_M)) / 2, cap_style="flat", join_style="mitre", mitre_limit=2.0
    )


def _roadblock(
    token: str, lanes: Sequence[Lane], incoming: Sequence[str], outgoing: Sequence[str], *, is_connector: bool
) -> Roadblock:
    shape = shapely.union_all([lane.polygon for lane in lanes]).buffer(ROADBLOCK_MARGIN_M, join_style="mitre")
    tokens = tuple(lane.token for lane in lanes)
    return Roadblock(token, shape, tokens, tuple(incoming), tuple(outgoing), is_connector=is_connector)
