"""A scene as a row of an Arrow table, and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from dipole_ray.driving.log import COMMANDS, HISTORY, KINDS, Camera
from dipole_ray.driving.plans import STEPS
from dipole_ray.driving.recorded import PLAN_POSES, RecordedScene
from dipole_ray.driving.scene import FRAMES, MAP_TYPES, RED_LIGHT, Frame, Scene, SceneObject
from dipole_ray.driving.vehicle import STATE_DIM, Array
from dipole_ray.driving.wkb import MAX_NUMBER, read_line, read_polygons

_WORDS, _BLOBS = pa.list_(pa.string()), pa.list_(pa.binary())
_FRAME = pa.struct([("tokens", _WORDS), ("polygons", _BLOBS)])
_OBJECT = pa.struct([("token", pa.string()), ("kind", pa.string()), ("agent", pa.bool_())])
_NUMBERS = pa.list_(pa.float64())
_CAMERA = pa.struct([("name", pa.string()), ("path", pa.string()), ("numbers", _NUMBERS)])
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("token", "log", "map", "command")),
        ("start_us", pa.int64()),
        *((name, _NUMBERS) for name in ("ego", "history", "motion", "human", "reference", "motions")),
        ("objects", pa.list_(_OBJECT)),
        ("frames", pa.list_(_FRAME)),
        ("past", _FRAME),
        ("centerline", pa.binary()),
        *((name, _WORDS) for name in ("route", "map_tokens", "map_types")),
        ("map_polygons", _BLOBS),
        ("cameras", pa.list_(_CAMERA)),
    ]
)
_SHAPES = {
    "ego": (STATE_DIM,),
    "history": (HISTORY, 3),
    "motion": (HISTORY, 4),
    "human": (PLAN_POSES, 3),
    "reference": (STEPS + 1, 3),
}


def scene_row(one: RecordedScene) -> dict[str, Any]:
    """Return a scene as plain values by the columns of SCHEMA."""
    scene = one.scene
    arrays = {"ego": scene.ego, "reference": scene.reference}
    arrays |= {"history": one.history, "motion": one.motion, "human": one.human}
    known = scene.objects.items()
    return {
        **{name: getattr(one, name) for name in ("token", "log", "map", "command")},
        **{name: array.ravel() for name, array in arrays.items()},
        "start_us": scene.start_us,
        "objects": [{"token": t, "kind": one.kinds.get(t, ""), "agent": o.is_agent} for t, o in known],
        "motions": [number for _, o in known for number in (o.speed, o.heading)],
        "frames": [_frame_row(frame) for frame in scene.frames],
        "past": _frame_row(one.past),
        "centerline": shapely.to_wkb(scene.centerline),
        "route": sorted(scene.route),
        "map_tokens": list(scene.map_tokens),
        "map_types": list(scene.map_types),
        "map_polygons": shapely.to_wkb(scene.map_polygons).tolist(),
        "cameras": [_camera_row(name, camera) for name, camera in one.cameras.items()],
    }


def _frame_row(frame: Frame) -> dict[str, Any]:
    return {"tokens": list(frame.tokens), "polygons": shapely.to_wkb(frame.polygons).tolist()}


def _camera_row(name: str, camera: Camera) -> dict[str, Any]:
    numbers = np.concatenate([camera.rotation.ravel(), camera.translation, camera.intrinsics.ravel()])
    return {"name": name, "path": camera.path, "numbers": numbers}


def scene_of_row(row: dict[str, Any]) -> RecordedScene:
    """Return the scene of a row's plain values.

    Raises:
        ValueError: A value is missing, of another shape, not finite, or names what is not there.
    """
    arrays = {name: _numbers(row[name], name, shape) for name, shape in _SHAPES.items()}
    tokens = [one["token"] for one in row["objects"]]
    motions = _numbers(row["motions"], "motions", (len(tokens), 2))
    objects = {
        one["token"]: SceneObject(bool(one["agent"]), float(speed), float(heading))
        for one, (speed, heading) in zip(row["objects"], motions, strict=True)
    }
    if len(row["frames"]) != FRAMES:
        raise ValueError(f"{len(row['frames'])} frames, {FRAMES} are needed")
    frames = _frames([*row["frames"], row["past"]])
    for frame in frames[:FRAMES]:
        if unknown := [t for t in frame.tokens if RED_LIGHT not in t and t not in objects]:
            raise ValueError(f"a frame has {unknown[0]!r:.40}, which is unknown")
    if strange := set(row["map_types"]) - MAP_TYPES:
        raise ValueError(f"the map has {min(strange)!r:.40}")
    if row["command"] not in COMMANDS or len(row["map_tokens"]) != len(row["map_types"]):
        raise ValueError("the command or the map's types are of another form")
    scene = Scene(
        ego=arrays["ego"],
        start_us=row["start_us"],
        frames=frames[:FRAMES],
        objects=objects,
        centerline=read_line(row["centerline"]),
        route=frozenset(row["route"]),
        map_tokens=row["map_tokens"],
        map_types=row["map_types"],
        map_polygons=_polygons(row["map_polygons"], len(row["map_tokens"])),
        reference=arrays["reference"],
    )
    return RecordedScene(
        token=row["token"],
        log=row["log"],
        map=row["map"],
        scene=scene,
        kinds={one["token"]: one["kind"] for one in row["objects"] if one["kind"] in KINDS},
        past=frames[FRAMES],
        history=arrays["history"],
        motion=arrays["motion"],
        command=row["command"],
        human=arrays["human"],
        cameras={one["name"]: _camera(one) for one in row["cameras"]},
    )


def status_array(rows: Sequence[dict[str, Any]], name: str) -> Array:
    """Return one of the columns of _SHAPES of many rows, (N, ...).

    Raises:
        ValueError: A row's value is of another size, or not finite.
    """
    shape = _SHAPES[name]
    return np.array([_numbers(row[name], name, shape) for row in rows]).reshape(-1, *shape)


def _camera(one: dict[str, Any]) -> Camera:
    numbers = _numbers(one["numbers"], "cameras", (21,))
    return Camera(one["path"], numbers[:9].reshape(3, 3), numbers[9:12], numbers[12:].reshape(3, 3))


def _frames(rows: Sequence[dict[str, Any]]) -> list[Frame]:
    """Return frames, whose polygons are read all at once."""
    blobs = [blob for row in rows for blob in row["polygons"]]
    polygons = _polygons(blobs, len(blobs))
    frames, start = [], 0
    for row in rows:
        end = start + len(row["polygons"])
        if len(row["tokens"]) != end - start or len(set(row["tokens"])) < end - start:
            raise ValueError("a frame has other tokens than polygons, or one twice")
        frames.append(Frame(row["tokens"], polygons[start:end]))
        start = end
    return frames


def _polygons(blobs: Sequence[bytes], length: int) -> Array:
    if len(blobs) != length:
        raise ValueError(f"{len(blobs)} polygons, {length} are needed")
    return read_polygons(blobs)


def _numbers(values: Sequence[float], where: str, shape: tuple[int, ...]) -> Array:
    array = np.array(values, dtype=np.float64)
    if array.size != np.prod(shape) or not (np.abs(array) <= MAX_NUMBER).all():
        raise ValueError(f"{where} is of another size, not finite or beyond {MAX_NUMBER:g}")
    return array.reshape(shape)
