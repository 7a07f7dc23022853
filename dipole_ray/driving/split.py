"""NAVSIM's splits: which logs and scenes belong to navtrain or navtest, from the user's own checkout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dipole_ray.driving.log import FUTURE, HISTORY
from dipole_ray.errors import DatasetError

FOLDER = Path("navsim/planning/script/config/common/train_test_split/scene_filter")
MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Split:
    """The scenes of a split; None: all of them."""

    name: str
    logs: frozenset[str] | None
    tokens: frozenset[str] | None
    every: int
    """frames from the start of one scene to that of the next"""


ALL_SCENES = Split("all_scenes", None, None, HISTORY + FUTURE)


def read_split(checkout: Path, name: str) -> Split:
    """Return a split by its name, such as `navtest`.

    Raises:
        DatasetError: The checkout has no such file, or it is no filter of scenes of 4 and 10 frames with a route.
    """
    folder = checkout / FOLDER
    path = folder / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        known = ", ".join(sorted(one.stem for one in folder.glob("*.yaml"))) or "none"
        raise DatasetError(f"{folder}: no split {name!r:.60}, known are: {known}; give a checkout of NAVSIM v1.1")
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"longer than {MAX_BYTES >> 20} MiB")
        return _split(name, getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text).get_single_data())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DatasetError(f"{path}: not a filter of scenes ({' '.join(str(error).split())})") from None


def _split(name: str, found: Any) -> Split:
    if not isinstance(found, dict):
        raise ValueError("it holds no settings")
    for key, wanted in (("num_history_frames", HISTORY), ("num_future_frames", FUTURE), ("has_route", True)):
        if found.get(key, wanted) != wanted:
            raise ValueError(f"{key} is {found[key]!r:.40}, scenes here have {wanted}")
    if found.get("max_scenes") is not None:
        raise ValueError("max_scenes is not followed; leave it out")
    every = found.get("frame_interval") or HISTORY + FUTURE
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"frame_interval is {every!r:.40}")
    return Split(name, _words(found.get("log_names"), "log_names"), _words(found.get("tokens"), "tokens"), every)


def _words(value: Any, where: str) -> frozenset[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{where} is no list of texts")
    return frozenset(value)
