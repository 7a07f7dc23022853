"""What the environment `drive` is: scenes whose plans are scored, not stepped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dipole_ray.errors import ConfigError

RECORDED = "sumo:"
"""How the name of scenes begins that are recorded once they are needed."""
DRIVE = "drive"
"""The id of the environment whose episodes are one plan for one scene; it is no environment of gymnasium's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrivingConfig:
    """The scenes of `env.id=drive`, what is seen of them, and how their plans are drawn for training."""

    scenes: tuple[str, ...] = ()
    """Folders of scenes to learn from, as `dipole drive record` or `import` makes them. Workers on other machines read
    them at the same place. `sumo:berlin:300` is 300 scenes of that map, recorded once by SUMO, with seed 0, into
    `~/.cache/dipole_ray/recorded`; a fourth part is another seed."""
    validation: tuple[str, ...] = ()
    """Folders of scenes that evaluations drive in, of other cities; none: those to learn from."""
    observation: Literal["status", "bev", "vector", "tokens", "tiny", "small", "large"] = "status"
    """What is seen: `status` (speeds, accelerations, past poses and command; 29 numbers), `bev` (besides, what is
    around from above: 5 layers of 16 x 16 cells of 4 m; 1309 numbers), `vector` (besides, the way ahead and its room, a
    red light, who leads and who is near; 322 numbers) or `tokens` (status as `ego`, and what is around
    in cells of 2 m as `context`, 64 tokens, for a head that plans:
    `agent.backbone.network=dipole_ray.agents.plan_heads:tiny`). `tiny`, `small` and `large`: status as `ego`, and as
    `context` what that encoder made of the scene, which `dipole drive encode` wrote for each folder."""
    actions: Literal["poses", "way"] = "poses"
    """What is said of a plan: `poses` in the car's own frame, 8 x 4 numbers, or `way`, speeds along the route's
    centreline and offsets aside from it, 8 x 2 numbers."""
    plans: int = 10
    """G, plans that the policy draws for a scene whenever it is its turn, at least 2."""
    logged_plan: bool = True
    """Judge the plan that was driven in each group besides, so that it is learned from as well."""
    noise: float = 0.0
    """Exploration of drawn plans, at least 0: deviation of the factor on a plan's length, and of the angle in radians
    that its last pose is turned by, or of the lanes that it goes aside along the way. It is learned from like the rest,
    so it adds up over rounds."""
    noise_rounds: int = 0
    """Rounds, of `training.env_steps_per_iteration` plans each, in which there is that noise."""
    bearing: Literal["official", "clipped"] = "clipped"
    """As `dipole drive score --bearing`: `official` for scores to be compared with NAVSIM's."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if self.actions == "way" and self.observation not in ("status", "bev", "vector"):
            found = f"env.driving.actions is way and env.driving.observation {self.observation}"
            raise ConfigError(f"{found}, which is for heads whose tokens are poses; set env.driving.actions=poses")
        if self.plans < 2:
            raise ConfigError(f"env.driving.plans is {self.plans}: a group needs at least 2")
        if not 0.0 <= self.noise < math.inf:
            raise ConfigError(f"env.driving.noise is {self.noise}: give a finite number of at least 0")
        if self.noise_rounds < 0 or bool(self.noise) != bool(self.noise_rounds):
            found = f"env.driving.noise is {self.noise} and env.driving.noise_rounds {self.noise_rounds}"
            raise ConfigError(f"{found}: give both, or set both to 0")
        for name in ("scenes", "validation"):
            folders = getattr(self, name)
            if len(set(folders)) < len(folders) or not all(folders):
                raise ConfigError(f"env.driving.{name} is {list(folders)}: name each folder once")

    @property
    def driven_in(self) -> tuple[str, ...]:
        """The folders whose scenes evaluations drive in."""
        return self.validation or self.scenes

    @property
    def group_size(self) -> int:
        """Plans that are judged together."""
        return self.plans + self.logged_plan
