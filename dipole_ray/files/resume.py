"""The guard of a resume: what differs from the saved run is refused or named, never ignored.

Settings that a checkpoint cannot be continued with are an error; all other changed settings, and packages of another
version, stand in one warning.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from dipole_ray.errors import ConfigError
from dipole_ray.files.provenance import package_versions
from dipole_ray.settings import flatten

ABSENT = "(absent)"

_log = logging.getLogger(__name__)


class Difference(NamedTuple):
    """One setting or package that is not what the saved run had."""

    key: str  # dotted key of a setting, or `version of` a package
    saved: Any
    current: Any

    def __str__(self) -> str:
        """Return the change as `agent.beta: 1.0 -> 5.0`."""
        return f"{self.key}: {self.saved} -> {self.current}"


def config_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[Difference]:
    """Return every setting that differs between two nested plain configs, in the order of the keys."""
    before, after = flatten(saved), flatten(current)
    keys = sorted(before.keys() | after.keys())
    pairs = [Difference(key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in keys]
    return [pair for pair in pairs if pair.saved != pair.current]


def version_differences(saved: Mapping[str, str]) -> list[Difference]:
    """Return every package whose version is not the one a checkpoint was written with, its `versions`."""
    differences = config_differences(saved, package_versions())
    return [difference._replace(key=f"version of {difference.key}") for difference in differences]


def guard_resume(saved: Mapping[str, Any], current: Mapping[str, Any], fixed: Collection[str]) -> list[Difference]:
    """Return what changed if a checkpoint can be continued with it; the caller then says so with `warn_of`.

    A ConfigError names every difference under `fixed`, the dotted keys or sections that must not change, as `env.id`.
    """
    differences = config_differences(saved, current)
    refused = [item for item in differences if any(f"{item.key}.".startswith(f"{key}.") for key in fixed)]
    if refused:
        found = f"the checkpoint cannot be continued with other settings: {'; '.join(map(str, refused))}"
        raise ConfigError(f"{found}; put them back to the saved values, or start a new run")
    return differences


def warn_of(differences: Sequence[Difference]) -> None:
    """Name every difference in one warning; say nothing where there is none."""
    if differences:
        _log.warning("resumed with changes: %s", "; ".join(map(str, differences)))
