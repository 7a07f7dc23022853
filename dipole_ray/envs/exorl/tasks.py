"""ExORL's eleven tasks, and the dm_control simulation of each.

A task is a rule that rewards the state an action led to; the tasks of one domain share the physics, so states that
were recorded once can be rewarded for each of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

PREFIX = "exorl/"

RUN_BACKWARD_SPEED = 10.0
"""Speed in m/s from which cheetah's run backward is rewarded in full, as in the suite's own run."""

REACH_HEIGHT = 0.001
TARGETS = {
    "reach_top_left": (-0.09, 0.09, REACH_HEIGHT),
    "reach_top_right": (0.09, 0.09, REACH_HEIGHT),
    "reach_bottom_left": (-0.09, -0.09, REACH_HEIGHT),
    "reach_bottom_right": (0.09, -0.09, REACH_HEIGHT),
}
"""Where jaco's hand has to go, in metres: left is -x, top is +y."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """What the tasks of one domain share."""

    name: str
    """`walker`, `quadruped`, `cheetah` or `jaco`."""

    tasks: tuple[str, ...]
    """The tasks; data is collected under the first, whose reward the files carry."""

    episode_steps: int
    """Steps of every episode: none of these tasks ends by itself."""

    observation_dim: int
    """Length of the observation."""

    action_dim: int
    """Length of the action."""

    physics_dim: int
    """Length of the simulation's state: joint positions, joint velocities, actuator states."""

    relabels_per_s: float
    """Rough speed of relabelling on one core; decides whether starting Ray is worth it."""

    steps_per_s: float
    """Rough speed of stepping on one core; likewise."""


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain(
            name="walker",
            tasks=("stand", "walk", "run"),
            episode_steps=1000,
            observation_dim=24,
            action_dim=6,
            physics_dim=18,
            relabels_per_s=16_000.0,
            steps_per_s=6300.0,
        ),
        Domain(
            name="quadruped",
            tasks=("walk", "run"),
            episode_steps=1000,
            observation_dim=78,
            action_dim=12,
            physics_dim=57,
            relabels_per_s=9700.0,
            steps_per_s=5300.0,
        ),
        Domain(
            name="cheetah",
            tasks=("run", "run_backward"),
            episode_steps=1000,
            observation_dim=17,
            action_dim=6,
            physics_dim=18,
            relabels_per_s=18_600.0,
            steps_per_s=18_800.0,
        ),
        Domain(
            name="jaco",
            tasks=tuple(TARGETS),
            episode_steps=250,
            observation_dim=42,
            action_dim=9,
            physics_dim=18,
            relabels_per_s=4200.0,
            steps_per_s=1570.0,
        ),
    )
}


def task_ids() -> list[str]:
    """Return the id of every task, `exorl/{domain}-{task}`."""
    return [f"{PREFIX}{domain.name}-{task}" for domain in DOMAINS.values() for task in domain.tasks]


def domain_of(env_id: str) -> Domain:
    """Return the domain of a task id."""
    return DOMAINS[env_id.removeprefix(PREFIX).partition("-")[0]]


def primary_task(domain: str) -> str:
    """Return the id of the task under which a domain's data is collected."""
    return f"{PREFIX}{domain}-{DOMAINS[domain].tasks[0]}"


class Simulation:
    """The dm_control environment of one task, without a time limit."""

    def __init__(self, env_id: str) -> None:
        """Load the task `env_id`; reset before anything else."""
        domain, _, task = env_id.removeprefix(PREFIX).partition("-")
        self._is_arm = domain == "jaco"
        self.env = _jaco(task) if self._is_arm else _suite(domain, task)

    @property
    def physics(self) -> Any:
        """The simulation itself."""
        return self.env.physics

    def seed(self, seed: int) -> None:
        """Start the stream from which starts are drawn anew."""
        stream = np.random.RandomState(np.random.MT19937(seed))
        if self._is_arm:
            self.env._random_state = stream
        else:
            self.env.task._random = stream

    def reward_of(self, state: np.ndarray) -> float:
        """Return the reward of reaching a state of the physics, exactly as a step that leads there gives it."""
        with self.physics.reset_context():
            self.physics.set_state(state)
        return float(self.env.task.get_reward(self.physics))


def _suite(domain: str, task: str) -> Any:
    from dm_control import suite

    base = task.removesuffix("_backward")
    env = suite.load(domain, base, task_kwargs={"random": 0, "time_limit": float("inf")})
    if base != task:
        env.task.get_reward = _backward_reward  # the task's state and starts are those of the run
    return env


def _backward_reward(physics: Any) -> float:
    from dm_control.utils import rewards

    speed = RUN_BACKWARD_SPEED
    return float(
        rewards.tolerance(
            -physics.speed(), bounds=(speed, float("inf")), margin=speed, value_at_margin=0, sigmoid="linear"
        )
    )


def _jaco(task: str) -> Any:
    """Return dm_control's reach to a site, with the site fixed and left out of the observation."""
    from dm_control import composer
    from dm_control.manipulation import reach  # noqa: F401 - registers its tasks
    from dm_control.manipulation.shared import registry

    # Starts are found by inverse kinematics, which reports each draw that it cannot reach and then draws again.
    logging.getLogger("absl").addFilter(_is_no_redraw)
    target = np.array(TARGETS[task])
    reach_task = registry.get_constructor("reach_site_features")()
    reach_task._task_observables.pop("target_position")
    reach_task._target_placer = lambda random_state: target
    # The model never changes, so it need not be compiled again (1 s) for every episode.
    return composer.Environment(reach_task, random_state=0, recompile_mjcf_every_episode=False)


def _is_no_redraw(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to converge")
