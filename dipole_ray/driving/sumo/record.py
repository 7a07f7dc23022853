"""Recording: traffic is simulated part by part, and of the drives in it the scenes are kept that are worth it."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.driving.container import (
    Origin,
    Shard,
    finish_folder,
    shard_bytes,
    shard_entry,
    start_folder,
    write_shard,
)
from dipole_ray.driving.curation import is_worth_keeping
from dipole_ray.driving.geopackage import SUFFIX as MAP_SUFFIX
from dipole_ray.driving.geopackage import write_map
from dipole_ray.driving.log import FUTURE, parsed_frames, write_log
from dipole_ray.driving.log import SUFFIX as LOG_SUFFIX
from dipole_ray.driving.recorded import NOW, RecordedScene, scene_on_map
from dipole_ray.driving.sumo.cities import ATTRIBUTION, SOURCE, city
from dipole_ray.driving.sumo.drives import Drives
from dipole_ray.driving.sumo.network import Network, read_network
from dipole_ray.driving.sumo.parked import parked_cars
from dipole_ray.driving.sumo.traffic import TrafficConfig, simulate_traffic
from dipole_ray.errors import ConfigError, DatasetError, DipoleError
from dipole_ray.files.place import make_folder
from dipole_ray.parallel import map_tasks

MIN_SECONDS, MAX_SECONDS, CARS = 200.0, 900.0, 200.0  # of traffic at a time, in which about so many cars drive
MAX_ROUNDS = 20  # of traffic for one part
SCENES_A_SECOND = 1.5  # that one core records, which decides whether starting Ray pays
# Where going straight on is never further from the driver than this, it mostly scores what the driver does, and such a
# try would not be kept: of 44 scenes that were kept in two cities, 2 were of this kind.
NEVER_ASIDE_M = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordConfig:
    """What is recorded."""

    map: str = "berlin"
    """a city: berlin or koenigs_wusterhausen (train), ingolstadt (validation), braunschweig or braunschweig_junction
    (test)"""
    scenes: int = 2000
    """scenes in all"""
    seed: int = 0
    """decides who drives where"""
    scenes_per_part: int = 100
    """scenes of one simulation, which are one file; parts are recorded side by side"""
    curated: bool = True
    """keep only scenes in which the driver scores at least 0.8 and going straight on at most 0.8, as NAVSIM does"""
    traffic: TrafficConfig = field(default_factory=TrafficConfig)
    """who is on the road"""

    def __post_init__(self) -> None:
        """Reject what cannot be recorded."""
        city(self.map)
        for name in ("scenes", "scenes_per_part"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 1 is needed")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; a whole number from 0 on is needed")


@dataclass(frozen=True, slots=True)
class _Part:
    """One simulation, and the scenes that it is to give."""

    config: RecordConfig
    index: int
    scenes: int
    logs: Path | None

    @property
    def name(self) -> str:
        return f"{self.config.map}-{self.config.seed}-{self.index:04d}"

    def __str__(self) -> str:
        return self.name


def record_scenes(config: RecordConfig, out: Path, *, logs: Path | None = None) -> list[Shard]:
    """Record scenes into a folder, and return what its files hold. What was interrupted goes on.

    Args:
        config: What is recorded.
        out: The folder of scenes.
        logs: Where the drives of the scenes are kept besides, as logs in NAVSIM's form, with the map as a GeoPackage.

    Raises:
        DatasetError: The folder holds something else.
        DipoleError: SUMO is not installed, or failed.
    """
    network = _network(config.map)
    settings = asdict(config) | {"logs": logs is not None}
    origin = Origin(SOURCE, ATTRIBUTION, settings)
    start_folder(out, origin)
    if logs is not None:
        make_folder(logs)
        write_map(logs / f"{config.map}{MAP_SUFFIX}", network.roads)
    size = config.scenes_per_part
    parts = [
        _Part(config, index, min(size, config.scenes - start), logs)
        for index, start in enumerate(range(0, config.scenes, size))
    ]

    def save(part: _Part, made: tuple[bytes, dict[str, list[dict[str, Any]]]]) -> Shard:
        content, drives = made
        for name, frames in drives.items():
            write_log((logs or out) / f"{name}{LOG_SUFFIX}", frames)
        return write_shard(out, part.name, content)

    def saved(part: _Part) -> Shard | None:
        path = out / f"{part.name}.arrow"
        return shard_entry(path) if path.is_file() else None

    shards: list[Shard] = map_tasks(
        _recorded_part,
        parts,
        description="record",
        unit="scenes",
        size=lambda part: part.scenes,
        rate=SCENES_A_SECOND,
        saved=saved,
        save=save,
    )
    finish_folder(out, origin, shards)
    return shards


@lru_cache(maxsize=1)
def _network(name: str) -> Network:
    return read_network(city(name))


def _recorded_part(part: _Part) -> tuple[bytes, dict[str, list[dict[str, Any]]]]:
    """Return the Arrow file of a part's scenes, and the logs of the drives in them if they are wanted."""
    scenes: list[RecordedScene] = []
    logs: dict[str, list[dict[str, Any]]] = {}
    for scene, log in _scenes(part):
        scenes.append(scene)
        if part.logs is not None:
            logs[scene.log] = log
        if len(scenes) == part.scenes:
            break
    if len(scenes) < part.scenes:
        raise DipoleError(
            f"{part.name}: {len(scenes)} of {part.scenes} scenes in {MAX_ROUNDS} rounds of traffic; "
            "record fewer scenes a part, or more cars_per_km"
        )
    return shard_bytes(scenes), logs


def _scenes(part: _Part) -> Iterator[tuple[RecordedScene, list[dict[str, Any]]]]:
    """Yield scenes that are kept, each of another car, in an order that chance decides; with the car's log."""
    network, config = _network(part.config.map), part.config
    for turn in range(MAX_ROUNDS):
        random = np.random.default_rng([config.seed, part.index, turn])
        seed = int(random.integers(2**31))
        with tempfile.TemporaryDirectory(prefix="dipole-sumo-") as folder:
            traffic = simulate_traffic(network, config.traffic, seed, _seconds(network, config), Path(folder))
        parked = parked_cars(network.roads, config.traffic.parked_per_km, random)
        drives = Drives(traffic, parked, f"{part.name}-{turn}")
        for name, now in _tries(drives, random, config.curated):
            log = drives.frames(name, range(now - NOW, now + FUTURE + 1))
            try:
                scene = scene_on_map(parsed_frames(log, name), network.roads)
            except DatasetError:  # a way that the map lacks; this is a try, of which most are not kept
                continue
            if not config.curated or is_worth_keeping(scene):
                yield scene, log


def _seconds(network: Network, config: RecordConfig) -> float:
    lanes_km = sum(lane.baseline.length for lane in network.roads.lanes.values()) / 1000
    return float(
        np.clip(MIN_SECONDS * CARS / (config.traffic.cars_per_km * lanes_km), MIN_SECONDS, MAX_SECONDS).round()
    )


def _tries(drives: Drives, random: np.random.Generator, curated: bool) -> Iterator[tuple[str, int]]:
    """Yield each car with one time at which it has past and future enough; if curated, one that may be worth it."""
    found = []
    for name, times in drives.cars().items():
        moments = np.arange(times.start + NOW, times.stop - FUTURE)
        if curated and len(moments):
            moments = moments[drives.strayed(name)[NOW : NOW + len(moments)] > NEVER_ASIDE_M]
        if len(moments):
            found.append((name, int(random.choice(moments))))
    yield from (found[i] for i in random.permutation(len(found)).tolist())
