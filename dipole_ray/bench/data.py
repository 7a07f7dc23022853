"""Which data a result was trained on: data made again at the same place is other data, which no setting tells."""

from collections.abc import Mapping, Sequence
from typing import Any

from dipole_ray.data.dataset import read_manifest
from dipole_ray.errors import ConfigError
from dipole_ray.files.provenance import digest
from dipole_ray.runs.build import data_key
from dipole_ray.runs.config import RunConfig
from dipole_ray.runs.prepare import find_dataset


def data_of(config: RunConfig) -> str | None:
    """Return size and digest of a run's dataset as it stands, from the checksums in its manifest; None without one."""
    folder = find_dataset(config.data, config.env)
    if folder is None:
        return None
    manifest = read_manifest(folder)
    content = digest([[entry.rows, entry.crc32] for entry in manifest.files], digits=12)
    return f"{manifest.num_transitions} transitions, {content}"


def require_same_data(
    configs: Sequence[RunConfig], results: Sequence[Mapping[str, Any] | None], *, current: bool = True
) -> None:
    """Raise ConfigError where results that would stand side by side were trained on different data.

    Where `current`, the data that stands there now, which further runs would be trained on, is compared too. Results
    of earlier versions do not say what they were trained on, and pass.
    """
    found: dict[str, dict[str, str]] = {}
    for config, result in zip(configs, results, strict=True):
        if result is not None and result.get("data"):
            who = f"{result['method']} on {result['task']}, seed {result['seed']}"
            found.setdefault(data_key(config), {}).setdefault(result["data"], who)
    for key, trained in found.items():
        now = data_of(next(config for config in configs if data_key(config) == key)) if current else None
        seen = {**trained, **({} if now is None or now in trained else {now: "what is there now"})}
        if len(seen) > 1:
            names = "; ".join(f"{who}: {data}" for data, who in seen.items())
            remedy = "Bring the old data back, or choose another suite.name for runs on the new, or move the old "
            raise ConfigError(f"results of different data would be mixed: {names}. {remedy}results away")
