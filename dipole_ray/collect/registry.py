"""Which datasets can be collected here, and by what."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dipole_ray.collect.episode import Collector
from dipole_ray.collect.manipulation import P_STACK, ManipulationCollector
from dipole_ray.collect.pendulum import PendulumCollector
from dipole_ray.collect.pointmaze import PointmazeCollector
from dipole_ray.envs.registry import VISUAL
from dipole_ray.errors import ConfigError

PENDULUM = "Pendulum-v1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How one dataset is collected."""

    collector: str  # the controller and its version: rows change only when this does
    open: Callable[..., Collector]  # takes arguments of the environment
    episode_steps: int = 1000  # transitions of a whole episode
    transitions_per_s: float  # rough speed on one core; decides whether starting Ray is worth it
    validation_share: int = 10  # one transition in this many more goes into the validation file; 0 for none


_SCENES = (*(f"cube-{size}" for size in P_STACK), "scene", *(f"puzzle-{n}" for n in ("3x3", "4x4", "4x5", "4x6")))
# How each dataset that there is a collector for is made, by its name.
RECIPES = {
    f"pointmaze-{size}-navigate-v0": Recipe(
        collector="pointmaze-navigate-1",
        open=partial(PointmazeCollector, f"pointmaze-{size}-v0"),
        episode_steps=2000 if size == "giant" else 1000,
        transitions_per_s=8000.0,
    )
    for size in ("medium", "large", "giant", "teleport")
}
RECIPES |= {
    f"{seen}{scene}-{kind}-v0": Recipe(
        collector=f"manipulation-{kind}-1",
        open=partial(ManipulationCollector, f"{seen}{scene}-v0", kind),
        transitions_per_s=20.0 if seen else 500.0,
    )
    for seen in ("", VISUAL)
    for scene in _SCENES
    if not seen or scene != "cube-octuple"  # which OGBench has no images of
    for kind in ("play", "noisy")
}
RECIPES[PENDULUM] = Recipe(
    collector="pendulum-mixed-1",
    open=PendulumCollector,
    episode_steps=200,
    transitions_per_s=30_000.0,
    validation_share=0,
)


def recipe(name: str) -> Recipe:
    """Return the recipe of the dataset `name`.

    Raises:
        ConfigError: If there is none; says whether it has to be downloaded, or names the nearest valid ones.
    """
    if name in RECIPES:
        return RECIPES[name]
    if name.removeprefix(VISUAL).startswith(("antmaze", "humanoidmaze", "antsoccer")):
        remedy = f"download OGBench's own files instead: dipole data download ogbench {name}"
        raise ConfigError(f"cannot collect '{name}': its walkers need trained experts; {remedy}")
    if name.startswith("exorl"):
        raise ConfigError(
            f"cannot collect '{name}' like this: its data is made once for all tasks of a domain; use 'dipole data "
            "collect exorl walker --algo rnd --steps 100000 --out DIR' and train with data.path=DIR/walker/rnd"
        )
    if "singletask" in name:
        dataset = "-".join(word for word in name.split("-") if not word.startswith(("singletask", "task")))
        why = "data is collected without a task, and labelled for one when it is read"
        raise ConfigError(f"cannot collect '{name}': {why}; collect '{dataset}'")
    near = difflib.get_close_matches(name, list(RECIPES), n=3, cutoff=0.4) or sorted(RECIPES)
    raise ConfigError(f"no collector for '{name}'; there are collectors for " + ", ".join(f"'{n}'" for n in near))
