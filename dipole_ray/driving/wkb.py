"""Polygons and lines in well-known binary that nobody vouches for.

GEOS reads geometries inside geometries by recursion, as deep as a file says; so only plain types are given to it, and
the parts of a multipolygon one by one.
"""

import struct
from collections.abc import Sequence

import numpy as np
import shapely

from dipole_ray.driving.vehicle import Array

LINE, POLYGON, MULTILINE, MULTIPOLYGON = 2, 3, 5, 6
MAX_NUMBER = 1e7  # metres, as the coordinates of a map's projection are


def read_polygons(blobs: Sequence[bytes]) -> Array:
    """Return the (n,) polygons, or multipolygons, of WKB.

    Raises:
        ValueError: One of them is something else, empty, not finite or out of the world; says which.
    """
    kinds = np.array([_kind(blob) for blob in blobs], dtype=int)
    polygons = np.empty(len(blobs), dtype=object)
    plain = kinds == POLYGON
    if plain.any():
        polygons[plain] = _parsed([blob for blob, one in zip(blobs, plain, strict=True) if one])
    for i in np.flatnonzero(kinds == MULTIPOLYGON).tolist():
        polygons[i] = shapely.multipolygons(_parsed(_parts(blobs[i], POLYGON)))
    if strange := np.flatnonzero(~plain & (kinds != MULTIPOLYGON)).tolist():
        raise ValueError(f"[{strange[0]}] is no polygon in WKB")
    return _checked(polygons)


def read_line(blob: bytes) -> shapely.LineString:
    """Return the line of WKB; of several that are one geometry, the first.

    Raises:
        ValueError: It is something else, has no length, is not finite or out of the world.
    """
    kind = _kind(blob)
    if kind not in (LINE, MULTILINE):
        raise ValueError("no line in WKB")
    line = _checked(_parsed([blob if kind == LINE else next(iter(_parts(blob, LINE)), b"")]))[0]
    if not line.length > 0:
        raise ValueError("a line without length")
    return line


def _kind(blob: bytes) -> int:
    """Return the type that a geometry says it is, without its further dimensions; 0 for nothing of the kind."""
    if len(blob) < 9 or blob[0] not in (0, 1):
        return 0
    return int.from_bytes(blob[1:5], "little" if blob[0] else "big") & 0x0FFFFFFF


def _parsed(blobs: Sequence[bytes]) -> Array:
    try:
        return np.atleast_1d(shapely.force_2d(shapely.from_wkb(np.array(blobs, dtype=object))))
    except shapely.errors.ShapelyError as error:
        raise ValueError(f"not WKB ({error})") from None


def _checked(geometries: Array) -> Array:
    points = shapely.get_coordinates(geometries)
    if (shapely.get_num_coordinates(geometries) == 0).any() or not (np.abs(points) <= MAX_NUMBER).all():
        raise ValueError(f"a geometry is empty, or has a point that is not finite or beyond {MAX_NUMBER:g} m")
    return geometries


def _parts(blob: bytes, kind: int) -> list[bytes]:
    """Return the parts of a multipolygon or of several lines."""
    try:
        (count,) = struct.unpack_from("<I" if blob[0] else ">I", blob, 5)
        parts, place = list[bytes](), 9
        while len(parts) < count:
            if _kind(blob[place : place + 9]) != kind:
                raise ValueError("its parts are something else")
            end = _end(blob, place, kind)
            parts.append(blob[place:end])
            place = end
        return parts
    except (struct.error, IndexError):
        raise ValueError("its parts lead out of it") from None


def _end(blob: bytes, place: int, kind: int) -> int:
    """Return where a polygon or a line ends."""
    order = "<I" if blob[place] else ">I"
    rings, place = (struct.unpack_from(order, blob, place + 5)[0], place + 9) if kind == POLYGON else (1, place + 5)
    for _ in range(rings):
        place += 4 + 16 * int(struct.unpack_from(order, blob, place)[0])
    if place > len(blob):
        raise ValueError("its parts lead out of it")
    return place
