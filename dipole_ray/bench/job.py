"""One run of a suite: a method on a task with a seed, trained in a folder that its config names.

The folder is a run's folder (`dipole evaluate` and `dipole train --resume` take it) with `result.json` beside, which
is written last: where it is, the run is over. Its name ends in a digest of what shapes the result, so that a changed
setting makes another run and never passes for the old one.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from dipole_ray import settings
from dipole_ray.bench.result import read_result
from dipole_ray.data.dataset import read_manifest
from dipole_ray.envs.make import EnvConfig
from dipole_ray.errors import ConfigError
from dipole_ray.files.durable import read_json, write_json
from dipole_ray.files.provenance import digest
from dipole_ray.files.resume import config_differences
from dipole_ray.runs.config import RunConfig, load
from dipole_ray.runs.prepare import content_of, data_key, find_dataset
from dipole_ray.runs.session import RUN_FILE
from dipole_ray.tracking.metrics_file import METRICS_FILE

DATA_FILE = "data.json"  # what an unfinished run is trained on
# Settings, or sections, that say where and how a run is kept, and do not shape its result
PLACES = ("name", "folder", "tracking", "checkpoint", "learner", "data.cache", "evaluation.trajectories")
_LATER_OF_ENV = ("env.driving.",)
"""Settings of the environment, a section that no run is without, that came after results whose digests lack them."""
_TAIL_BYTES = 1 << 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run of a suite."""

    task: str
    method: str
    seed: int
    config: RunConfig  # the run's config, with places as the suite's file has them
    start: Path = field(default_factory=Path.cwd)  # where those begin, also in a process that works elsewhere

    def __str__(self) -> str:
        return f"{self.method} on {self.task}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Folder of the run: also that of one, finished or not, whose data had another place and the same content."""
        runs = Path(self.config.folder)
        own = runs / f"seed-{self.seed}-{self.digest}"
        if own.is_dir() or self.config.data.path is None:
            return own
        return next((other for other in sorted(runs.glob(f"seed-{self.seed}-*")) if self._is_moved(other)), own)

    def _is_moved(self, folder: Path) -> bool:
        """Return whether a folder holds this run, of data that lay elsewhere."""
        known = read_result(folder) or _noted(folder)
        if known is None or not (folder / RUN_FILE).is_file():
            return False
        kept, current = load(folder / RUN_FILE), self.located
        differing = {item.key for item in config_differences(shaping(kept), shaping(current))}
        if differing != {"data.path"}:
            return False
        assert kept.data.path is not None and current.data.path is not None
        is_copy = content_of(kept.data.path) == content_of(current.data.path)
        return is_copy or (known.get("data") is not None and known["data"] == data_of(current))

    @property
    def located(self) -> RunConfig:
        """The config with its places absolute."""
        return self.config.located(self.start)

    @property
    def digest(self) -> str:
        """Eight hex digits of every setting that shapes the result and is not at its default.

        A setting that a later version adds therefore changes no digest of what was run before it.
        """
        plain = shaping(self.config)
        return digest({key: plain[key] for key in plain if (key, plain[key]) not in _DEFAULTS.items()})

    @property
    def updates(self) -> int:
        """Updates of all phases."""
        training = self.config.training
        return training.learner_steps_before_online + int(training.online_env_steps * training.updates_per_env_step)

    def stored(self) -> dict[str, Any] | None:
        """Return the result of a run that is over, or None; ConfigError if its defaults were others than today's."""
        result = read_result(self.folder)
        if result is None:
            return None
        kept, current = (shaping(config) for config in (load(self.folder / RUN_FILE), self.located))
        changed = [item for item in config_differences(kept, current) if item.key != "data.path"]
        if changed:
            raise ConfigError(
                f"{self.folder} was run when a default was another one ({'; '.join(map(str, changed))}): set the old "
                "value in the suite, or move the folder away to run it again"
            )
        return result

    def progress(self) -> int:
        """Return the updates that an unfinished run has done, from the last line of its metrics."""
        try:
            with (self.folder / METRICS_FILE).open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = stream.read().split(b"\n")[:-1]
            return int(json.loads(lines[-1])["learner_steps"])
        except (OSError, ValueError, KeyError, IndexError):
            return 0

    def note_data(self) -> None:
        """Write down what the run is trained on, as its data may move before its end."""
        if not (self.folder / DATA_FILE).exists():
            write_json(self.folder / DATA_FILE, {"data": data_of(self.located)})

    def without_result(self, status: str, error: str) -> dict[str, Any]:
        """Return what stands for the result of a run that has none."""
        return {"status": status, "error": error}


def shaping(config: RunConfig) -> dict[str, Any]:
    """Return the flat settings that shape a result."""
    flat = settings.flatten(config.to_mapping())
    return {key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{at}.") for at in PLACES)}


# Defaults of the sections of a run, those of today: `Job.stored` refuses a result that was made with others.
_SECTIONS = {field.name: field.default_factory for field in fields(RunConfig) if field.default_factory is not MISSING}
_DEFAULTS = settings.flatten({name: settings.to_mapping(section()) for name, section in _SECTIONS.items()})
_OF_ENV = settings.flatten({"env": settings.to_mapping(EnvConfig(id=""))})
_DEFAULTS |= {key: value for key, value in _OF_ENV.items() if key.startswith(_LATER_OF_ENV)}


def _noted(folder: Path) -> dict[str, Any] | None:
    """Return what an unfinished run noted of its data when it began; None where it did not."""
    try:
        noted: dict[str, Any] = read_json(folder / DATA_FILE)
    except (OSError, ValueError):
        return None
    return noted


def data_of(config: RunConfig) -> str | None:
    """Return size and digest of a run's dataset as it stands, from the checksums in its manifest; None without one.

    Data made again at the same place is other data, which no setting tells.
    """
    folder = find_dataset(config.data, config.env)
    if folder is None:
        return None
    manifest = read_manifest(folder)
    return f"{manifest.num_transitions} transitions, {digest(manifest.content, digits=12)}"


def require_same_data(found: Sequence[tuple[Job, Mapping[str, Any] | None]], *, current: bool = True) -> None:
    """Raise ConfigError where results that would stand side by side were trained on different data.

    Where `current`, the data that stands there now, which further runs would be trained on, is compared too. Results
    of earlier versions do not say what they were trained on, and pass.
    """
    configs = {data_key(job.config): job.config for job, _ in found}
    trained: dict[str, dict[str, str]] = {key: {} for key in configs}  # by data, with the first run on it
    for job, result in found:
        if result is not None and result.get("data"):
            trained[data_key(job.config)].setdefault(result["data"], str(job))
    for key, seen in trained.items():
        if seen and current and (now := data_of(configs[key])) is not None:
            seen.setdefault(now, "what is there now")
        if len(seen) > 1:
            names = "; ".join(f"{who}: {data}" for data, who in seen.items())
            remedy = "Bring the old data back, or choose another suite.name for runs on the new, or move the old "
            raise ConfigError(f"results of different data would be mixed: {names}. {remedy}results away")
