"""Folders of scenes made by hand, for whatever learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dipole_ray.driving.container import Origin, finish_folder, shard_bytes, start_folder, write_shard
from dipole_ray.driving.log import parsed_frames
from dipole_ray.driving.recorded import RecordedScene, scene_on_map
from tests.driving.drives import drive, town


def made_scene(token: str, log: str, **changes: Any) -> RecordedScene:
    """Return a scene of a drive through the town."""
    frames = drive(**changes)
    frames[3] |= {"token": token, "log_name": log}
    return scene_on_map(parsed_frames(frames, log), town())


def made_folder(folder: Path, scenes: int, files: int = 2) -> Path:
    """Make a folder of scenes that differ in speed and place, each log of two scenes, in so many files."""
    origin = Origin("made by hand", "nobody", {"scenes": scenes})
    start_folder(folder, origin)
    all_of_them = [
        made_scene(f"{folder.name}-{i}", f"{folder.name}-log{i // 2}", speed=4.0 + 0.7 * i, start=20.0 + 3 * i)
        for i in range(scenes)
    ]
    shards = [write_shard(folder, f"part{i}", shard_bytes(all_of_them[i::files])) for i in range(files)]
    finish_folder(folder, origin, shards)
    return folder
