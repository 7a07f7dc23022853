"""The offset that a dataset's observations were stored less: whoever acts on it must subtract the same."""

from collections.abc import Sequence
from pathlib import Path

from dipole_ray.data.dataset import MANIFEST, common_offset, read_manifest
from dipole_ray.envs.make import EnvConfig
from dipole_ray.errors import ConfigError, warn_once


def settled_offset(env: EnvConfig, datasets: Sequence[str | Path]) -> dict[str, float] | None:
    """Return what an environment subtracts from observations: its own setting, or that of the datasets.

    ConfigError where the two differ; an empty setting says that the environment subtracts the datasets' itself. A
    dataset that is not there settles nothing: whoever opens it says so.
    """
    own = env.observation_offset
    if not all((Path(path) / MANIFEST).is_file() for path in datasets):
        return own
    stored = common_offset({path: read_manifest(Path(path)).source for path in datasets})
    if own is None or not datasets or own == stored:
        return stored if own is None else own
    found = f"env.observation_offset is {own}, and the observations in {datasets[0]} are stored less {stored}"
    if own:
        remedy = (
            "leave the setting out, or import the data with --offset" if stored else "import the data with --offset"
        )
        raise ConfigError(f"{found}; {remedy}")
    warn_once(f"{found}: '{env.id}' is taken to subtract that itself")
    return own
