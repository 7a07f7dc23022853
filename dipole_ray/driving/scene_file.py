"""Scene files: one scene with plans, as gzipped JSON that nobody vouches for."""

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from dipole_ray.driving.plans import MAX_POSE, STEPS
from dipole_ray.driving.scene import FRAMES, MAP_TYPES, RED_LIGHT, Frame, Scene, SceneObject
from dipole_ray.driving.vehicle import STATE_DIM, Array
from dipole_ray.errors import DatasetError

SUFFIX = ".json.gz"
MAX_BYTES, MAX_VALUES = 32 << 20, 2_000_000
MAX_NUMBER = 1e7  # metres, as the coordinates of a map's projection are
KEYS = ("ego0", "t0", "occ", "objs", "center", "route", "map", "pdm", "rows")
_POLYGON = 3  # the only WKB type that is read: collections may be nested until the stack ends


@dataclass(frozen=True, slots=True)
class SceneFile:
    """What a file holds: a scene, plans in it, and the sub-scores that came with them."""

    scene: Scene
    plans: tuple[Array, ...]
    """(K, 3) each"""
    stored: tuple[Array | None, ...]
    """(7,) each: NC, DAC, EP, TTC, C, DDC and PDMS, where the file says them"""


class _Damaged(ValueError):
    """What is wrong, and where in the file."""


def read_scene_file(path: Path) -> SceneFile:
    """Return what a scene file holds, every number of it checked.

    Raises:
        DatasetError: The file is missing, cut off, too large, or holds something else than a scene; says where.
    """
    try:
        content = _object(_unpacked(path), "the file", KEYS)
        rows = [_object(row, f"rows[{i}]", ("poses",)) for i, row in enumerate(_list(content["rows"], "rows"))]
        plans = tuple(_numbers(row["poses"], f"rows[{i}].poses", (None, 3), MAX_POSE) for i, row in enumerate(rows))
        results = [row.get("res") for row in rows]
        stored = tuple(None if one is None else _numbers(one, f"rows[{i}].res", (7,)) for i, one in enumerate(results))
        return SceneFile(_scene(content), plans, stored)
    except _Damaged as damage:
        raise DatasetError(f"{path}: {damage}; 'dipole drive score --help' describes a scene file") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from None


def _unpacked(path: Path) -> Any:
    if not path.is_file():
        raise _Damaged("there is no such file" if not path.exists() else "not a regular file")
    try:
        with gzip.open(path) as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _Damaged(f"unpacks to more than {MAX_BYTES >> 20} MiB, which no scene has")
        if sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise _Damaged(f"holds more than {MAX_VALUES} values, which no scene has")
        return json.loads(content.decode("utf-8"))
    except gzip.BadGzipFile:
        raise _Damaged("not gzip, or damaged") from None
    except (EOFError, zlib.error):
        raise _Damaged("the gzip stream is cut off or damaged") from None
    except RecursionError:
        raise _Damaged("nested without end") from None
    except _Damaged:
        raise
    except ValueError as error:
        raise _Damaged(f"not JSON in UTF-8 ({error})") from None


def _scene(content: Mapping[str, Any]) -> Scene:
    frames = [
        _object(one, f"occ[{i}]", ("tokens", "wkb"))
        for i, one in enumerate(_list(content["occ"], "occ", length=FRAMES))
    ]
    objects = _objects(content["objs"])
    chart = _object(content["map"], "map", ("tokens", "types", "wkb"))
    tokens = _words(chart["tokens"], "map.tokens")
    types = _words(chart["types"], "map.types", length=len(tokens))
    if strange := set(types) - MAP_TYPES:
        raise _Damaged(f"map.types has {min(strange)!r}; known are {', '.join(sorted(MAP_TYPES))}")
    reference = _numbers(content["pdm"], "pdm", (None, 3))
    if len(reference) <= STEPS:
        raise _Damaged(f"pdm has {len(reference)} poses, {STEPS + 1} are needed, 0.1 s apart")
    return Scene(
        ego=_numbers(content["ego0"], "ego0", (STATE_DIM,)),
        start_us=_microseconds(content["t0"]),
        frames=[_frame(frame, f"occ[{i}]", objects) for i, frame in enumerate(frames)],
        objects=objects,
        centerline=_line(content["center"]),
        route=frozenset(_words(content["route"], "route")),
        map_tokens=tokens,
        map_types=types,
        map_polygons=_polygons(chart["wkb"], "map.wkb", len(tokens)),
        reference=reference[: STEPS + 1],
    )


def _objects(content: Any) -> dict[str, SceneObject]:
    objects = {}
    for token, one in _object(content, "objs", ()).items():
        where = f"objs[{token!r:.40}]"
        known = _object(one, where, ("agent", "heading", "speed"))
        if not isinstance(known["agent"], bool):
            raise _Damaged(f"{where}.agent is {known['agent']!r:.40}, true or false is needed")
        speed, heading = (float(_numbers(known[key], f"{where}.{key}", ())) for key in ("speed", "heading"))
        objects[token] = SceneObject(known["agent"], speed, heading)
    return objects


def _frame(content: Mapping[str, Any], where: str, objects: Mapping[str, SceneObject]) -> Frame:
    tokens = _words(content["tokens"], f"{where}.tokens")
    if len(set(tokens)) < len(tokens):
        raise _Damaged(f"{where}.tokens names an object twice")
    if unknown := [token for token in tokens if RED_LIGHT not in token and token not in objects]:
        raise _Damaged(f"{where}.tokens has {unknown[0]!r:.40}, which objs does not know")
    return Frame(tokens, _polygons(content["wkb"], f"{where}.wkb", len(tokens)))


def _polygons(texts: Any, where: str, length: int) -> Array:
    """Return the (length,) polygons of hexadecimal WKB."""
    polygons = np.empty(length, dtype=object)
    for i, text in enumerate(_words(texts, where, length)):
        try:
            head = bytes.fromhex(text[:10])
            kind = int.from_bytes(head[1:5], "little" if head[0] else "big") & 0x0FFFFFFF
            if kind % 1000 != _POLYGON:
                raise ValueError("another type")
            polygons[i] = shapely.from_wkb(text)
        except (ValueError, IndexError, shapely.errors.ShapelyError):
            raise _Damaged(f"{where}[{i}] is no polygon in hexadecimal WKB") from None
        points = shapely.get_coordinates(polygons[i])
        if not len(points) or not (np.abs(points) <= MAX_NUMBER).all():
            raise _Damaged(f"{where}[{i}] is empty, or has a point that is not finite or beyond {MAX_NUMBER:g} m")
    return polygons


def _line(content: Any) -> shapely.LineString:
    points = _numbers(content, "center", (None, 2))
    line = shapely.LineString(points) if len(points) > 1 else shapely.LineString()
    if not line.length > 0:
        raise _Damaged(f"center has {len(points)} points and no length")
    return line


def _microseconds(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise _Damaged(f"t0 is {value!r:.40}, a whole number of microseconds is needed")
    return value


def _numbers(value: Any, where: str, shape: tuple[int | None, ...], most: float = MAX_NUMBER) -> Array:
    """Return finite numbers of a shape in which None stands for any length but 0."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        array = np.array(None)
    wanted = " x ".join("K" if size is None else str(size) for size in shape) or "one number"
    if array.dtype.kind not in "iuf":
        raise _Damaged(f"{where} is not an array of numbers, {wanted} is needed")
    fits = [have == size or (size is None and have > 0) for have, size in zip(array.shape, shape, strict=False)]
    if array.ndim != len(shape) or not all(fits):
        raise _Damaged(f"{where} is {' x '.join(map(str, array.shape)) or 'one number'}, {wanted} is needed")
    array = array.astype(np.float64)
    if not (np.abs(array) <= most).all():
        bad = array[~(np.abs(array) <= most)][0]
        raise _Damaged(f"{where} holds {bad:g}; numbers are finite and at most {most:g}")
    return array


def _object(value: Any, where: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Damaged(f"{where} is a {type(value).__name__}, an object is needed")
    if missing := [key for key in keys if key not in value]:
        raise _Damaged(f"{where} has no {', '.join(map(repr, missing))}")
    return value


def _list(value: Any, where: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list):
        raise _Damaged(f"{where} is a {type(value).__name__}, a list is needed")
    if length is not None and len(value) != length:
        raise _Damaged(f"{where} has {len(value)} entries, {length} are needed")
    return value


def _words(value: Any, where: str, length: int | None = None) -> list[str]:
    words = _list(value, where, length)
    if not all(isinstance(word, str) for word in words):
        raise _Damaged(f"{where} is not a list of texts")
    return words
