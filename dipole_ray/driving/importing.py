"""NAVSIM's logs as a folder of scenes: a file a log, made by Ray tasks, continued where it was interrupted."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dipole_ray.driving.container import (
    Origin,
    Shard,
    finish_folder,
    shard_bytes,
    shard_entry,
    start_folder,
    write_shard,
)
from dipole_ray.driving.geopackage import find_map, read_map
from dipole_ray.driving.log import SUFFIX, read_log
from dipole_ray.driving.metric_cache import find_caches, read_cache
from dipole_ray.driving.recorded import NOW, RecordedScene, recorded, scene_on_map, windows
from dipole_ray.driving.roads import RoadMap
from dipole_ray.driving.split import ALL_SCENES, Split
from dipole_ray.errors import DatasetError
from dipole_ray.parallel import map_tasks

WORTH_RAY_BYTES = 8 << 20  # of logs, above which starting Ray pays


@dataclass(frozen=True, slots=True)
class LogTask:
    """One log, and what is taken of it."""

    path: Path
    maps: Path | None
    caches: Mapping[str, Path] | None
    split: Split

    def __str__(self) -> str:
        return self.path.name


def import_logs(
    logs: Path, out: Path, *, maps: Path | None = None, caches: Path | None = None, split: Split = ALL_SCENES
) -> list[Shard]:
    """Write the scenes of a folder of logs into a folder, and return what its files hold.

    Args:
        logs: NAVSIM's logs, one .pkl file each.
        out: The folder of scenes; one that was interrupted goes on.
        maps: nuPlan's maps. Without caches the route, the centreline and PDM-Closed's plan are made from them.
        caches: The folder of NAVSIM's metric caches, whose scenes are then taken as they are.
        split: Which scenes are wanted.

    Raises:
        DatasetError: There is neither map nor cache, no log, or something is damaged.
    """
    if (maps is None) == (caches is None):
        raise DatasetError("give the maps of nuPlan, or the metric caches of NAVSIM: one of the two")
    if not logs.is_dir():
        raise DatasetError(f"{logs}: no such folder; give that of NAVSIM's logs, *{SUFFIX}")
    names = {path.stem: path for path in sorted(logs.glob(f"*{SUFFIX}"))}
    wanted = names.keys() if split.logs is None else names.keys() & split.logs
    if not wanted:
        raise DatasetError(f"{logs}: has {len(names)} logs, *{SUFFIX}, none of them of split {split.name}")
    found = None if caches is None else find_caches(caches)
    settings = {"split": split.name, "logs": sorted(wanted), "caches": caches is not None}
    origin = Origin("NAVSIM v1, own import", "OpenScene and nuPlan, CC BY-NC-SA 4.0", settings)
    start_folder(out, origin)
    shards: list[Shard] = map_tasks(
        scenes_of_log,
        [LogTask(names[name], maps, found, split) for name in sorted(wanted)],
        description="import",
        unit="logs",
        local=sum(names[name].stat().st_size for name in wanted) < WORTH_RAY_BYTES,
        saved=lambda task: _saved(out / f"{task.path.stem}.arrow"),
        save=lambda task, content: write_shard(out, task.path.stem, content),
    )
    finish_folder(out, origin, shards)
    return shards


def _saved(path: Path) -> Shard | None:
    return shard_entry(path) if path.is_file() else None


def scenes_of_log(task: LogTask) -> bytes:
    """Return the Arrow file of a log's scenes.

    A scene that cannot be made, as one whose route leaves the map, is left out and said in the file.
    """
    frames = read_log(task.path)
    scenes: list[RecordedScene] = []
    lost: list[str] = []
    for window in windows(frames, task.split.every):
        now = window[NOW]
        if task.split.tokens is not None and now.token not in task.split.tokens:
            continue
        if task.maps is not None:
            roads = _roads(find_map(task.maps, now.map), now.map)
            try:
                scenes.append(scene_on_map(window, roads))
            except DatasetError as error:
                lost.append(str(error))
        elif task.caches is not None and now.token in task.caches:
            scenes.append(recorded(window, *read_cache(task.caches[now.token])))
        else:
            lost.append(f"scene {now.token} of {now.log} has no metric cache")
    return shard_bytes(scenes, lost)


@lru_cache(maxsize=2)  # a worker meets logs of few cities, and a map takes seconds and hundreds of megabytes
def _roads(path: Path, name: str) -> RoadMap:
    return read_map(path, name)
