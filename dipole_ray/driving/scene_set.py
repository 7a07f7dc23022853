"""The scenes of several folders by number, as a run learns from them or drives in them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dipole_ray.driving.container import SceneFolder, is_complete, require_each_scene_once
from dipole_ray.driving.contexts import Contexts, default_folder, require_one_encoder
from dipole_ray.driving.encoders import POLICIES
from dipole_ray.driving.observations import observe
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.vehicle import Array
from dipole_ray.envs.observations import Observation
from dipole_ray.envs.scenes import RECORDED
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.files.lock import LOCK, FolderLock

CACHE = Path("~/.cache/dipole_ray/recorded")
FILES_IN_MEMORY = 32
MIN_PART, MAX_PART, PARTS = 20, 100, 8  # scenes of one simulation, and into how many a recording is parted, about
TRAFFIC_VERSION = 2  # of what is recorded by default: 3.5 cars a kilometre at first


class SceneSet:
    """Scenes numbered through, in the order of the folders and of the files in them."""

    def __init__(self, folders: Sequence[str | Path], observation: str = "status") -> None:
        """Open the folders, with the context tokens of their scenes where the observation has such.

        Raises:
            DatasetError: One cannot be opened, two share a scene, there are no scenes at all, or scenes are not
                encoded, or not by one encoder.
        """
        self.folders = [SceneFolder(folder_of(str(folder)), FILES_IN_MEMORY) for folder in folders]
        require_each_scene_once(self.folders)
        self._places = [(folder, token) for folder in self.folders for token in folder.tokens]
        if not self._places:
            raise DatasetError(f"no scenes in {', '.join(map(str, folders))}; 'dipole drive record' makes some")
        self._observation, encoded = observation, observation in POLICIES
        opened = [Contexts(default_folder(one.folder, observation), one) for one in self.folders if encoded]
        self.encoder = require_one_encoder(opened) if encoded else None
        self._contexts = dict(zip(self.folders, opened, strict=False))

    def __len__(self) -> int:
        return len(self._places)

    def read(self, number: int) -> RecordedScene:
        """Return a scene."""
        folder, token = self._places[number]
        return folder.read(token)

    def observe(self, number: int, one: RecordedScene) -> Observation:
        """Return what is seen of the scene of this number, which was read."""
        folder, token = self._places[number]
        context = self._contexts[folder].read([token])[0] if self.encoder is not None else None
        return observe(one, self._observation, context)

    def mapped_contexts(self, path: Path) -> Array:
        """Write the context tokens of all scenes into a file, and return them mapped, (N, T, C): all need no memory."""
        shape = next(iter(self._contexts.values())).shape
        with path.open("wb") as file:  # not by the map: on a full disk that would end the process
            for folder in self.folders:
                for tokens in folder.files:
                    file.write(self._contexts[folder].read(tokens).data)
        return np.memmap(path, np.float16, "r", shape=(len(self), *shape))


def folder_of(name: str) -> Path:
    """Return the folder that a setting names: itself, or what `sumo:MAP:SCENES[:SEED]` is recorded to, once.

    Raises:
        ConfigError: There is no such map, or the numbers are none.
        DipoleError: SUMO is not installed, or failed.
    """
    out = place_of(name)
    if name.startswith(RECORDED) and not is_complete(out):
        from dipole_ray.driving.sumo.record import RecordConfig, record_scenes  # needs SUMO

        city, scenes, seed = _recording(name)
        size = min(max(scenes // PARTS, MIN_PART), MAX_PART)  # each part fills the streets anew before it records
        config = RecordConfig(map=city, scenes=scenes, seed=seed, scenes_per_part=size)
        with FolderLock(out.parent, math.inf, f".{out.name}{LOCK}"):
            if not is_complete(out):
                record_scenes(config, out)
    return out


def place_of(name: str) -> Path:
    """Return where the folder lies that a setting names, whether it is there or not; ConfigError as `folder_of`."""
    if not name.startswith(RECORDED):
        return Path(name).expanduser()
    city, scenes, seed = _recording(name)
    return CACHE.expanduser() / f"{city}-{scenes}-seed{seed}-v{TRAFFIC_VERSION}"


def _recording(name: str) -> tuple[str, int, int]:
    """Return the city, how many scenes, and the seed."""
    words = name.split(":")[1:]
    if not 2 <= len(words) <= 3 or not all(word.isdecimal() for word in words[1:]):
        raise ConfigError(f"env.driving names the scenes '{name}'; write sumo:MAP:SCENES or sumo:MAP:SCENES:SEED")
    return words[0], int(words[1]), int(words[2]) if len(words) == 3 else 0
