"""ExORL's eleven tasks, and the dm_control simulation of each.

A task is a rule that rewards the state an action led to; the tasks of one domain share the physics, so states that
were recorded once can be rewarded for each of them.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

PREFIX = "exorl/"

# Speed in m/s from which cheetah's run backward is rewarded in full, as in the suite's own run.
RUN_BACKWARD_SPEED = 10.0
# Where jaco's hand has to go, in metres: left is -x, top is +y.
REACH_HEIGHT = 0.001
TARGETS = {
    "reach_top_left": (-0.09, 0.09, REACH_HEIGHT),
    "reach_top_right": (0.09, 0.09, REACH_HEIGHT),
    "reach_bottom_left": (-0.09, -0.09, REACH_HEIGHT),
    "reach_bottom_right": (0.09, -0.09, REACH_HEIGHT),
}


@dataclass(frozen=True, slots=True)
class Domain:
    """What the tasks of one domain share."""

    name: str
    tasks: tuple[str, ...]  # data is collected under the first, whose reward the files carry
    episode_steps: int  # of every episode: none of these tasks ends by itself
    observation_dim: int
    action_dim: int
    physics_dim: int  # length of the simulation's state: joint positions, joint velocities, actuator states
    relabels_per_s: float  # rough speed of relabelling on one core; decides whether starting Ray is worth it
    steps_per_s: float  # rough speed of stepping on one core; likewise


DOMAINS = {
    domain.name: domain
    for domain in (
        # name, tasks, steps of an episode, observation, action, physics, relabels/s, steps/s
        Domain("walker", ("stand", "walk", "run"), 1000, 24, 6, 18, 16_000.0, 6300.0),
        Domain("quadruped", ("walk", "run"), 1000, 78, 12, 57, 9700.0, 5300.0),
        Domain("cheetah", ("run", "run_backward"), 1000, 17, 6, 18, 18_600.0, 18_800.0),
        Domain("jaco", tuple(TARGETS), 250, 42, 9, 18, 4200.0, 1570.0),
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


def load(env_id: str) -> Any:
    """Load the dm_control environment of a task, without a time limit; reset it before anything else."""
    domain, _, task = env_id.removeprefix(PREFIX).partition("-")
    return _jaco(task) if domain == "jaco" else _suite(domain, task)


def _suite(domain: str, task: str) -> Any:
    from dm_control import suite

    base = task.removesuffix("_backward")
    env = suite.load(domain, base, task_kwargs={"random": 0, "time_limit": float("inf")})
    if base != task:
        env.task.get_reward = _backward_reward  # the task's state and starts are those of the run
    return env


def _backward_reward(physics: Any) -> float:
    from dm_control.utils import rewards

    bounds = (RUN_BACKWARD_SPEED, float("inf"))
    shape = {"margin": RUN_BACKWARD_SPEED, "value_at_margin": 0, "sigmoid": "linear"}
    return float(rewards.tolerance(-physics.speed(), bounds=bounds, **shape))


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
