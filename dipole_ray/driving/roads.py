"""A road map: lanes that lead into each other, the roadblocks that hold them, and what else may be driven on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import shapely

from dipole_ray.driving.vehicle import Array
from dipole_ray.errors import DatasetError, counted, warn_once

AREAS = ("INTERSECTION", "CARPARK_AREA")  # drivable, and on no lane


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane, or a connector: the way of one lane into another across an intersection."""

    token: str
    roadblock: str
    polygon: shapely.Polygon
    baseline: shapely.LineString
    outgoing: tuple[str, ...]
    """the lanes that it leads into"""
    speed_limit: float | None
    """m/s; None: not known"""

    def poses(self) -> Array:
        """Return the baseline's points with the heading to the next one, (n, 3); the last looks as the one before."""
        points = shapely.get_coordinates(self.baseline)
        steps = np.diff(points, axis=0)
        heading = np.arctan2(steps[:, 1], steps[:, 0])
        return np.column_stack([points, np.append(heading, heading[-1:])])


@dataclass(frozen=True, slots=True)
class Roadblock:
    """The lanes side by side of one piece of road, or the connectors from one such piece to another."""

    token: str
    polygon: shapely.Polygon
    lanes: tuple[str, ...]
    incoming: tuple[str, ...]
    outgoing: tuple[str, ...]
    is_connector: bool


@dataclass(frozen=True)
class RoadMap:
    """A city's roads, in metres; prepared once for many scenes."""

    name: str
    lanes: Mapping[str, Lane]
    roadblocks: Mapping[str, Roadblock]
    """roads first, then connectors; `lanes` and these have their own tokens, none is there twice"""
    areas: Sequence[tuple[str, str, shapely.Polygon]]
    """token, one of AREAS, and polygon"""
    origin: str = ""
    """whose map it is, to be said wherever it is shown"""
    projection: str = ""
    """`EPSG:...` of the coordinates, if they are those of the earth"""

    @cached_property
    def _blocks(self) -> tuple[list[Roadblock], shapely.STRtree]:
        blocks = list(self.roadblocks.values())
        return blocks, shapely.STRtree([block.polygon for block in blocks])

    @cached_property
    def _area_tree(self) -> shapely.STRtree:
        return shapely.STRtree([polygon for _, _, polygon in self.areas])

    def roadblocks_near(self, x: float, y: float, radius: float) -> list[Roadblock]:
        """Return the roadblocks that reach into a square of `radius` metres to each side, in the map's order."""
        blocks, tree = self._blocks
        found = tree.query(shapely.box(x - radius, y - radius, x + radius, y + radius), predicate="intersects")
        return [blocks[i] for i in sorted(found.tolist())]

    def nearest_roadblocks(self, x: float, y: float) -> list[Roadblock]:
        """Return the nearest road and the nearest connector."""
        point, found = shapely.Point(x, y), []
        for is_connector in (False, True):
            blocks = [block for block in self._blocks[0] if block.is_connector is is_connector]
            if blocks:
                found.append(blocks[int(np.argmin(shapely.distance(point, [block.polygon for block in blocks])))])
        return found

    def drivable(self, x: float, y: float, radius: float) -> tuple[list[str], list[str], Array]:
        """Return tokens, types and polygons (P,) of what may be driven on around a point, in NAVSIM's order.

        Connectors bring their lanes, but are no drivable roadblocks: intersections are.
        """
        near = self.roadblocks_near(x, y, radius)
        roads = [block for block in near if not block.is_connector]
        rows = [(block.token, "ROADBLOCK", block.polygon) for block in roads]
        rows += _lanes(self, roads, "LANE")
        rows += _lanes(self, [block for block in near if block.is_connector], "LANE_CONNECTOR")
        patch = shapely.box(x - radius, y - radius, x + radius, y + radius)
        inside = [self.areas[i] for i in sorted(self._area_tree.query(patch, predicate="intersects").tolist())]
        rows += [area for kind in AREAS for area in inside if area[1] == kind]
        polygons = np.empty(len(rows), dtype=object)
        polygons[:] = [polygon for _, _, polygon in rows]
        return [token for token, _, _ in rows], [kind for _, kind, _ in rows], polygons


def _lanes(roads: RoadMap, blocks: Iterable[Roadblock], kind: str) -> list[tuple[str, str, shapely.Polygon]]:
    return [(token, kind, roads.lanes[token].polygon) for block in blocks for token in block.lanes]


def connected(
    name: str,
    lanes: Sequence[Lane],
    roadblocks: Sequence[Roadblock],
    areas: Sequence[tuple[str, str, shapely.Polygon]],
    *,
    origin: str = "",
    projection: str = "",
) -> RoadMap:
    """Return a map in which every link leads to something: what leads out of it is left out, with a warning.

    Raises:
        DatasetError: A token is there twice.
    """
    blocks = {block.token: block for block in roadblocks}
    known = {lane.token: lane for lane in lanes}
    for found, given in ((blocks, roadblocks), (known, lanes)):
        if len(found) < len(given):
            raise DatasetError(f"map {name}: two lanes or two roadblocks have one token")
    known = {token: lane for token, lane in known.items() if lane.roadblock in blocks}
    lost = len(lanes) - len(known)

    def there(tokens: Sequence[str], all_of: Mapping[str, object]) -> tuple[str, ...]:
        nonlocal lost
        kept = tuple(token for token in tokens if token in all_of)
        lost += len(tokens) - len(kept)
        return kept

    known = {token: replace(lane, outgoing=there(lane.outgoing, known)) for token, lane in known.items()}
    for token, block in blocks.items():
        ways = there(block.incoming, blocks), there(block.outgoing, blocks)
        blocks[token] = replace(block, lanes=there(block.lanes, known), incoming=ways[0], outgoing=ways[1])
    if lost:
        warn_once(f"map {name}: {counted(lost, 'lane or link', verb='lead')} out of it, left out")
    return RoadMap(name, known, blocks, areas, origin, projection)
