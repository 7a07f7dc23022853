"""NAVSIM's logs: frames at 2 Hz of one drive, a pickled list of dicts, read with every value checked, and written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.driving.pickles import dumps, read_pickle
from dipole_ray.driving.vehicle import Array
from dipole_ray.driving.wkb import MAX_NUMBER
from dipole_ray.errors import DatasetError
from dipole_ray.files.durable import replacing

SUFFIX = ".pkl"
FRAME_S, HISTORY, FUTURE = 0.5, 4, 10  # frames of a scene: those up to now, and those after
COMMANDS = ("left", "straight", "right", "unknown")
AGENTS = frozenset({"vehicle", "pedestrian", "bicycle"})
KINDS = AGENTS | {"traffic_cone", "barrier", "czone_sign", "generic_object"}
CAMERAS = ("CAM_F0", "CAM_L0", "CAM_L1", "CAM_L2", "CAM_R0", "CAM_R1", "CAM_R2", "CAM_B0")
BOX = ("x", "y", "z", "length", "width", "height", "heading")
MAX_BOXES, MAX_WORDS = 10_000, 100_000


@dataclass(frozen=True, slots=True)
class Camera:
    """Where a camera's picture lies, and where the camera stood, as NAVSIM says it."""

    path: str
    """inside the folder of the sensors"""
    rotation: Array
    """(3, 3), from the sensor to the lidar"""
    translation: Array
    """(3,), metres"""
    intrinsics: Array
    """(3, 3)"""


@dataclass(frozen=True, slots=True)
class LogFrame:
    """What was so at one time."""

    token: str
    time_us: int
    log: str
    map: str
    route: tuple[str, ...]
    """roadblocks from here on"""
    pose: Array
    """(3,) of the rear axle in the world"""
    motion: Array
    """(4,): vx, vy, ax, ay in the frame of the car, rounded to float32 as officially"""
    command: str
    """one of COMMANDS"""
    red: tuple[str, ...]
    """connectors with a red light"""
    tracks: tuple[str, ...]
    kinds: tuple[str, ...]
    """one of KINDS for each track"""
    boxes: Array
    """(M, 7) in the frame of the car, see BOX"""
    velocities: Array
    """(M, 2) in the axes of the car"""
    cameras: Mapping[str, Camera]
    """by name, such as CAM_F0"""


def read_log(path: Path) -> list[LogFrame]:
    """Return the frames of a log file.

    Raises:
        DatasetError: It is missing, damaged or hostile, or a frame lacks something; says which.
    """
    content = read_pickle(path)
    if not isinstance(content, list) or not content:
        raise DatasetError(f"{path}: a list of frames is needed, this is a {type(content).__name__}")
    return parsed_frames(content, str(path))


def parsed_frames(content: Sequence[Any], where: str) -> list[LogFrame]:
    """Return the frames of a log's dicts, checked; `where` begins what is wrong with them."""
    frames = []
    for index, one in enumerate(content):
        try:
            frames.append(_frame(one))
        except KeyError as error:
            raise DatasetError(f"{where}: frame {index} has no {error}") from None
        except (ValueError, TypeError, OverflowError) as error:
            raise DatasetError(f"{where}: frame {index}: {error}") from None
    return frames


def no_pictures() -> dict[str, dict[str, Any]]:
    """Return the cameras of a frame that has no pictures, all of which the official code asks for."""
    empty = {"sensor2lidar_rotation": np.eye(3), "sensor2lidar_translation": np.zeros(3), "cam_intrinsic": np.eye(3)}
    return {name: {"data_path": "", **empty, "distortion": np.zeros(5)} for name in CAMERAS}


def write_log(path: Path, frames: Sequence[dict[str, Any]]) -> None:
    """Write the dicts of a log as NAVSIM's own code reads them, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(dumps(frames))


def _frame(one: Any) -> LogFrame:
    if not isinstance(one, dict):
        raise ValueError(f"a {type(one).__name__} instead of a dict")
    notes = one["anns"]
    if not isinstance(notes, dict):
        raise ValueError(f"anns is a {type(notes).__name__} instead of a dict")
    tracks = _words(notes["track_tokens"], "track_tokens")
    kinds = _words(notes["gt_names"], "gt_names", len(tracks))
    if strange := set(kinds) - KINDS:
        raise ValueError(f"gt_names has {min(strange)!r:.40}; known are {', '.join(sorted(KINDS))}")
    if len(set(tracks)) < len(tracks):
        raise ValueError("track_tokens names a track twice")
    boxes = _numbers(notes["gt_boxes"], "gt_boxes", (len(tracks), 7))
    if (boxes[:, 3:6] < 0).any():
        raise ValueError("gt_boxes has a box of negative size")
    position = _numbers(one["ego2global_translation"], "ego2global_translation", (3,))
    motion = _numbers(one["ego_dynamic_state"], "ego_dynamic_state", (4,)).astype(np.float32).astype(np.float64)
    return LogFrame(
        token=_word(one["token"], "token"),
        time_us=_whole(one["timestamp"]),
        log=_word(one["log_name"], "log_name"),
        map=_word(one["map_location"], "map_location"),
        route=_words(one["roadblock_ids"], "roadblock_ids"),
        pose=np.array([*position[:2], _yaw(_numbers(one["ego2global_rotation"], "ego2global_rotation", (4,)))]),
        motion=motion,
        command=command_of(one["driving_command"]),
        red=_red_lights(one["traffic_lights"]),
        tracks=tracks,
        kinds=kinds,
        boxes=boxes,
        velocities=_numbers(notes["gt_velocity_3d"], "gt_velocity_3d", (len(tracks), 3))[:, :2],
        cameras=_cameras(one.get("cams") or {}),
    )


def _yaw(quaternion: Array) -> float:
    """Return the turn around z of a rotation (w, x, y, z), as pyquaternion has it."""
    size = np.linalg.norm(quaternion)
    if not size > 0:
        raise ValueError("ego2global_rotation is no rotation")
    w, x, y, z = quaternion / size
    return float(np.arctan2(2 * (w * z - x * y), 1 - 2 * (y**2 + z**2)))


def command_of(value: Any) -> str:
    """Return the command of a log's one-hot `driving_command`; ValueError if it is none."""
    hot = _numbers(value, "driving_command", (len(COMMANDS),))
    return COMMANDS[int(hot.argmax())] if hot.any() else "unknown"


def _red_lights(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_WORDS:
        raise ValueError("traffic_lights is no list")
    red = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], int | str | np.integer):
            raise ValueError("traffic_lights has something else than (connector, whether it is red)")
        if bool(pair[1]):
            red.append(str(pair[0]))
    return tuple(dict.fromkeys(red))


def _cameras(value: Any) -> dict[str, Camera]:
    if not isinstance(value, dict) or len(value) > 20:
        raise ValueError("cams is no dict of cameras")
    cameras = {}
    for name, one in value.items():
        where = f"cams[{name!r:.20}]"
        if not isinstance(one, dict) or not isinstance(name, str):
            raise ValueError(f"{where} is no dict")
        if one["data_path"] == "":  # the official code wants all cameras, also where there are no pictures
            continue
        path = _word(one["data_path"], f"{where}.data_path")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"{where}.data_path leads out of the folder of the sensors")
        cameras[name] = Camera(
            path,
            _numbers(one["sensor2lidar_rotation"], f"{where}.sensor2lidar_rotation", (3, 3)),
            _numbers(one["sensor2lidar_translation"], f"{where}.sensor2lidar_translation", (3,)),
            _numbers(one["cam_intrinsic"], f"{where}.cam_intrinsic", (3, 3)),
        )
    return cameras


def _numbers(value: Any, where: str, shape: tuple[int, ...]) -> Array:
    """Return finite numbers of a shape; lists are taken only where they are flat, for nested ones may be endless."""
    if not isinstance(value, np.ndarray):
        flat = isinstance(value, list | tuple) and len(value) <= MAX_BOXES
        if not flat or not all(isinstance(one, int | float | np.number) for one in value):
            raise ValueError(f"{where} is a {type(value).__name__}, an array of numbers is needed")
        value = np.array(value, dtype=np.float64)
    if 0 in shape and value.size == 0:
        return np.zeros(shape)
    if value.shape != shape or value.dtype.kind not in "iufb":
        raise ValueError(f"{where} is {value.shape} of {value.dtype}, {shape} numbers are needed")
    array: Array = value.astype(np.float64)
    if not (np.abs(array) <= MAX_NUMBER).all():
        raise ValueError(f"{where} holds a number that is not finite or beyond {MAX_NUMBER:g}")
    return array


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 1 << 53:
        raise ValueError("timestamp is no whole number of microseconds")
    return int(value)


def _word(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) < 1000:
        raise ValueError(f"{where} is no text")
    return str(value)


def _words(value: Any, where: str, length: int | None = None) -> tuple[str, ...]:
    """Return texts, or whole numbers as texts, of a list or an array."""
    if isinstance(value, np.ndarray):
        value = value.ravel().tolist()
    if not isinstance(value, list | tuple) or len(value) > MAX_WORDS:
        raise ValueError(f"{where} is no list of texts")
    if not all(isinstance(one, str | int | np.integer) for one in value):
        raise ValueError(f"{where} is no list of texts")
    if length is not None and len(value) != length:
        raise ValueError(f"{where} has {len(value)} entries, {length} are needed")
    return tuple(map(str, value))
