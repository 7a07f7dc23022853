"""The dataset of scenes to learn from: what is seen of each, stored once, and the plan that was driven there."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dipole_ray.collect.convert import CACHE, made_once
from dipole_ray.columns import flattened
from dipole_ray.data.dataset import write_dataset
from dipole_ray.driving.actions import actions_of, way_of
from dipole_ray.driving.container import SceneFolder
from dipole_ray.driving.group import judged_rows
from dipole_ray.driving.observations import observe, schema_of
from dipole_ray.driving.scene_set import SceneSet
from dipole_ray.envs.observations import Observations, each, stacked
from dipole_ray.envs.scenes import DrivingConfig
from dipole_ray.files.provenance import digest
from dipole_ray.parallel import map_tasks

VERSION = 1  # of observations and actions
SCENES_A_SECOND = 100.0  # that one core observes, which decides whether starting Ray pays


def scene_dataset(driving: DrivingConfig, cache: Path = CACHE, *, make: bool = True) -> Path:
    """Return the dataset folder of the scenes to learn from, which is made once; with `make` false, where it would be.

    A row is a driven plan, an episode of one step, whose observation is a reference to the side table of scenes. It
    belongs to no group of plans, so its reward, which is its advantage, is 0: both fields clone it alike.

    Raises:
        DatasetError: A folder of scenes cannot be opened, or the dataset cannot be written.
        CorruptSegment: A file of scenes is damaged.
    """
    scenes = SceneSet(driving.scenes, driving.observation)
    encoder = [] if scenes.encoder is None else [scenes.encoder]
    kinds = [driving.observation] if driving.actions == "poses" else [driving.observation, driving.actions]
    key = digest([VERSION, *kinds, [folder.content for folder in scenes.folders], *encoder])
    name = "-".join(folder.folder.name for folder in scenes.folders)
    out = cache.expanduser() / "converted" / f"{name:.60}-{'-'.join(kinds)}-{key}"
    return made_once(out, lambda: _write(driving, scenes, out)) if make else out


@dataclass(frozen=True, slots=True)
class _File:
    """The scenes of one file."""

    folder: Path
    tokens: tuple[str, ...]
    observation: str
    actions: str

    def __str__(self) -> str:
        return f"{self.folder}, {self.tokens[0]} and so on"


def _write(driving: DrivingConfig, scenes: SceneSet, out: Path) -> None:
    files = [
        _File(folder.folder, tokens, "status" if scenes.encoder else driving.observation, driving.actions)
        for folder in scenes.folders
        for tokens in folder.files
        if tokens
    ]
    shown: Any = {"description": "observe scenes", "unit": "scenes", "rate": SCENES_A_SECOND}
    found = map_tasks(_observed, files, size=lambda one: len(one.tokens), **shown)
    observations = each(lambda *parts: np.concatenate(parts), *(seen for seen, _ in found))
    actions = np.concatenate([plans for _, plans in found])
    source: dict[str, Any] = {
        "reader": "scenes",
        "observation": driving.observation,
        "folders": [str(folder.folder) for folder in scenes.folders],
        "attribution": sorted({folder.origin.attribution for folder in scenes.folders}),
        "offset": {},
    }
    rows = judged_rows(np.arange(len(actions)), actions, np.zeros(len(actions)), driving)
    schema = schema_of(driving.observation, driving.actions)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as place:
        if scenes.encoder is not None:
            observations = {"ego": observations, "context": scenes.mapped_contexts(Path(place) / "contexts")}
        arrays = flattened({"observations": observations})
        tables = {table: arrays[name] for name, table in schema.references.items()}
        write_dataset(out, [rows], schema, source, tables=tables)


def _observed(file: _File) -> tuple[Observations, np.ndarray]:
    """Return what is seen of a file's n scenes, and the driven plans as actions (n, A)."""
    folder = SceneFolder(file.folder)
    seen = [folder.read(token) for token in file.tokens]
    observations = stacked([observe(one, file.observation) for one in seen])
    return observations, np.stack([actions_of(one.human, way_of(one, file.actions)) for one in seen])
