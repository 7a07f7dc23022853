"""What environment ids exist, and which family an id belongs to."""

import difflib
import importlib

import gymnasium

from dipole_ray.envs.control import suite_ids
from dipole_ray.envs.exorl.tasks import task_ids
from dipole_ray.envs.faults import described
from dipole_ray.envs.gl import disable_rendering_by_default
from dipole_ray.envs.scenes import DRIVE
from dipole_ray.errors import ConfigError

DATASET_TYPES = {
    "pointmaze": ("navigate", "stitch"),
    "antmaze": ("navigate", "stitch", "explore"),
    "humanoidmaze": ("navigate", "stitch"),
    "antsoccer": ("navigate", "stitch"),
    "cube": ("play", "noisy"),
    "scene": ("play", "noisy"),
    "puzzle": ("play", "noisy"),
}
"""Kinds of data that OGBench publishes per domain; the word stands before `singletask` in an id."""
VISUAL = "visual-"
"""Begins the ids of the tasks that OGBench shows as images."""


def is_visual(env_id: str) -> bool:
    """Return whether this is a task, or a dataset, of OGBench's that is seen as images."""
    return env_id.startswith(VISUAL)


def load_ogbench() -> None:
    """Import ogbench (2 s), which registers its environments with gymnasium."""
    disable_rendering_by_default()
    importlib.import_module("ogbench")


def ogbench_ids() -> list[str]:
    """Return every single-task id, `[visual-]{domain}-{data}-singletask[-taskK]-v0`."""
    load_ogbench()
    ids = []
    for name in gymnasium.registry:
        head, mark, tail = name.partition("-singletask")
        domain = head.removeprefix(VISUAL).partition("-")[0]
        if mark and domain in DATASET_TYPES:
            ids += [f"{head}-{kind}{mark}{tail}" for kind in DATASET_TYPES[domain]]
    return ids


_LISTED = {"ogbench": ogbench_ids, "dm_control": suite_ids, "exorl": task_ids}
"""The ids of the families that list theirs; those of the last two begin with the family and a slash."""


def family(env_id: str) -> str:
    """Return the family of `env_id`: `ogbench`, `dm_control`, `exorl`, `drive` or `gymnasium`.

    Raises:
        ConfigError: If no environment has this id (names the nearest ones), or if it is one of OGBench's
            goal-conditioned ones.
    """
    name = "ogbench" if "singletask" in env_id.split("-") else env_id.partition("/")[0]
    if env_id == DRIVE:
        return DRIVE
    if name in _LISTED:
        disable_rendering_by_default()  # listing the suite's tasks imports MuJoCo
        ids = _LISTED[name]()
        if env_id in ids:
            return name
        raise _unknown(env_id, ids)
    if _in_gymnasium(env_id):
        if _entry(env_id).startswith("ogbench."):
            why = "its observation does not hold the goal, so no single policy can solve it"
            remedy = f"take one of its tasks{_nearest(env_id, ogbench_ids())}"
            raise ConfigError(f"environment '{env_id}' is goal-conditioned: {why}; {remedy}")
        return "gymnasium"
    raise _unknown(env_id, [*gymnasium.registry, *ogbench_ids(), *suite_ids(), *task_ids()])


def _in_gymnasium(env_id: str) -> bool:
    """Whether gymnasium knows the id; `module:Name-v0` imports the module first, as gymnasium does."""
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # any module's any error
            missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
            if missing and f"{module}.".startswith(f"{missing}."):
                found = f"environment '{env_id}': cannot import '{module}' ({error})"
                raise ConfigError(f"{found}; install it, or put its folder on PYTHONPATH") from error
            found = f"environment '{env_id}': '{module}' fails while it is imported: {described(error)}"
            remedy = f"install '{missing}', or mend it there" if missing else "mend it there"
            raise ConfigError(f"{found}; {remedy}") from error
    return name in gymnasium.registry


def is_registered_by_hand(env_id: str) -> bool:
    """Whether this process knows the id by a call of `gymnasium.register` that another process may not have made."""
    return ":" not in env_id and family(env_id) == "gymnasium" and not _entry(env_id).startswith("gymnasium.")


def _entry(env_id: str) -> str:
    return str(gymnasium.spec(env_id.rpartition(":")[2]).entry_point)


def _nearest(env_id: str, ids: list[str]) -> str:
    near = difflib.get_close_matches(env_id, ids, n=3, cutoff=0.4)
    return ": " + ", ".join(f"'{name}'" for name in near) if near else ""


def _unknown(env_id: str, ids: list[str]) -> ConfigError:
    near = _nearest(env_id, ids)
    forms = (
        "'pointmaze-medium-navigate-singletask-task1-v0', 'exorl/walker-walk', 'dm_control/walker-walk', 'Pendulum-v1'"
    )
    module, colon, name = env_id.rpartition(":")
    found = f"unknown environment '{env_id}'; {f'the nearest{near}' if near else f'ids look like {forms}'}"
    if colon:
        return ConfigError(f"{found}; '{module}' is imported, but registers no such id: call gymnasium.register there")
    own = f"one that a script registers is known there alone: let a module register it, and say 'your_module:{name}'"
    return ConfigError(f"{found}; {own}")
