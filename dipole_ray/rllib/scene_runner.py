"""Experience of judged plans: workers that draw a group of plans for a scene and score it, in the place of steps.

They are rollout workers like those that step environments: asked, replaced, retired and resumed in the same way.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from dipole_ray.agents.policy import Policy
from dipole_ray.agents.policy_gradient import CHAINS
from dipole_ray.agents.scores import SCORES
from dipole_ray.columns import Column
from dipole_ray.driving.actions import actions_of, explored, plans_of, way_of
from dipole_ray.driving.group import group_advantages, judged_rows
from dipole_ray.driving.scene_set import SceneSet
from dipole_ray.driving.score import PDMScorer
from dipole_ray.driving.way import Way
from dipole_ray.envs.acting import Episode
from dipole_ray.envs.observations import Observations, row_of, stacked
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.pieces import Piece
from dipole_ray.evaluation.plans import MEASURES, evaluate_plans
from dipole_ray.evaluation.play import CellResult
from dipole_ray.rllib.env_runner import DIPOLEEnvRunner
from dipole_ray.rllib.experience import FragmentReport, PublishedPolicy, SourceState
from dipole_ray.rllib.rollouts import Rollouts

_SCENE_STREAM, _NOISE_STREAM = 1 << 20, 1 << 21  # apart from those of environments, which are numbered from 0


class SceneRollouts(Rollouts):
    """Experience of scenes, which also tells its workers how many plans there have been: early rounds have noise."""

    def __init__(self, group: EnvRunnerGroup, config: AlgorithmConfig) -> None:
        super().__init__(group, config)
        self._num_scenes = len(SceneSet(config.env_settings().driving.driven_in))
        self._num_plans = 0

    def _wanted(self) -> dict[str, Any]:
        return {**super()._wanted(), "env_steps": self._num_plans}

    def gather(self, policy: Callable[[], PublishedPolicy]) -> Iterator[FragmentReport]:
        """Yield fragments, see `Rollouts.gather`."""
        for fragment in super().gather(policy):
            self._num_plans += fragment.env_steps
            yield fragment

    def restore(self, state: SourceState | None, life: int) -> None:
        """Go on from `state` after `life` plans, see `Rollouts.restore`."""
        super().restore(state, life)
        self._num_plans = life

    def evaluate(
        self, cells: Sequence[Cell], policy: PublishedPolicy, *, episodes: int, **how: Any
    ) -> Iterator[CellResult | None]:
        """Yield the results of cells, each in as many scenes, at most in all there are."""
        return super().evaluate(cells, policy, episodes=min(episodes, self._num_scenes), **how)


class SceneRunner(DIPOLEEnvRunner):
    """Draws plans for scenes and has them scored, for training and evaluation."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        if self._callbacks.is_asked:
            remedy = "leave on_environment_created, on_episode_* and on_sample_end out"
            raise ConfigError(f"callbacks: scenes have neither environments nor episode objects to tell of; {remedy}")
        self._driving = self._env_config.driving
        self._scenes: SceneSet | None = None  # opened on first use
        self._driven_in: SceneSet | None = None
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))  # of an epoch, its number first

    def make_env(self) -> None:
        """Build nothing: there is nothing to step."""
        self.env = []

    def collect(
        self, num_steps: int, version: int = 0, policy: Any = None, backbone: Any = None, env_steps: int = 0
    ) -> FragmentReport:
        """Judge a group of plans for each of the next `num_steps` times `num_envs` scenes; see the base class.

        The `env_steps` are the plans so far, of all workers, by which a round has noise or none.
        """
        start = time.perf_counter()
        if policy is not None:
            self.set_policy(version, policy, backbone)
        noisy_plans = self._driving.noise_rounds * self.config.training_settings().env_steps_per_iteration
        noise = self._driving.noise if env_steps < noisy_plans else 0.0
        judged = [group for _ in range(num_steps) for group in self._judged(noise)]
        self._sequence += 1
        size, drawn = self._driving.group_size, slice(self._driving.plans)
        scores = np.stack([group.scores for group in judged])  # (S, G, measures)
        every = scores[..., MEASURES.index("pdms")]
        advantages = group_advantages(every)
        numbers = np.array([group.number for group in judged]).repeat(size)
        actions = np.concatenate([group.actions for group in judged])
        kept = {name: np.concatenate([group.kept[name] for group in judged]) for name in judged[0].kept}
        if SCORES in self._kept_columns():
            kept[SCORES] = every.ravel()
        pdms = every[:, drawn]
        measures = {name: scores[:, drawn, column].ravel() for column, name in enumerate(MEASURES)}
        measures |= {"best_of_group": pdms.max(axis=1), "has_spread": (advantages != 0).any(axis=1).astype(float)}
        if self.module.policy.config.has_critic:
            chosen = pdms[np.arange(len(pdms)), [group.chosen for group in judged]]
            mean = pdms.mean(axis=1)
            beats_mean = np.where(pdms.max(axis=1) == pdms.min(axis=1), 0.5, chosen > mean)
            measures |= {"chosen_pdms": chosen, "chosen_beats_mean": beats_mean}
        if self._driving.logged_plan:
            measures["logged_pdms"] = every[:, -1]
        return FragmentReport(
            rows=judged_rows(numbers, actions, advantages.ravel(), self._driving, kept),
            worker=self.worker_index,
            incarnation=self._incarnation,
            sequence=self._sequence,
            env_steps=len(actions),
            dropped_env_steps=0,
            returns=pdms.ravel().tolist(),
            lengths=[1] * pdms.size,
            successes=[None] * pdms.size,
            policy_version=self.policy_version,
            busy_s=time.perf_counter() - start,
            measures=measures,
        )

    def evaluate(
        self, piece: Piece, *, num_envs: int, version: int, policy: Any, backbone: Any = None, **how: Any
    ) -> tuple[Piece, list[CellResult]]:
        """Play a piece of a grid with a published policy; see the base class."""
        self.set_policy(version, policy, backbone)
        self._driven_in = self._driven_in or SceneSet(self._driving.driven_in, self._driving.observation)
        own: Any = {"seed": how["seed"], "num_envs": num_envs, "scenes": self._driven_in, "on_scene": self._beat}
        return piece, evaluate_plans(self.module.policy, self._driving, piece.cells, episodes=piece.episodes, **own)

    def _judged(self, noise: float) -> "list[_Group]":
        """Return the groups of the next scenes, whose plans are drawn by one call of the policy."""
        self._scenes = scenes = self._scenes or SceneSet(self._driving.scenes, self._driving.observation)
        numbers = [self._next_scene(i, len(scenes)) for i in range(self.num_envs)]
        seen = [scenes.read(number) for number in numbers]
        self._beat()
        observations = stacked([scenes.observe(number, one) for number, one in zip(numbers, seen, strict=True)])
        drawn_for = np.arange(len(seen)).repeat(self._driving.plans)
        ways = [way_of(one, self._driving.actions) for one in seen]
        drawn, kept = self._drawn(row_of(observations, drawn_for))
        plans = [plans_of(own, way) for own, way in zip(np.split(drawn, len(seen)), ways, strict=True)]
        if noise:
            random = np.random.default_rng(self._derived_seed(_NOISE_STREAM, sum(self._num_episodes)))
            plans = _explored(plans, ways, noise, random)
        if self._driving.logged_plan:
            plans = [np.concatenate([own, one.human[None]]) for own, one in zip(plans, seen, strict=True)]
        judged = [actions_of(own, way) for own, way in zip(plans, ways, strict=True)]
        chosen = self._chosen(observations, np.stack(judged)[:, : self._driving.plans])
        groups = []
        each_kept = [{name: values[drawn_for == i] for name, values in kept.items()} for i in range(len(seen))]
        for number, one, way, actions, best, own in zip(numbers, seen, ways, judged, chosen, each_kept, strict=True):
            scores = PDMScorer(one.scene, self._driving.bearing).score(plans_of(actions, way))
            table = np.stack([getattr(scores, name) for name in MEASURES], axis=1)
            groups.append(_Group(number, actions, table, best, own))
            self._beat()
        return groups

    def _drawn(self, observations: Observations) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return plans as actions (B, A), and what their rows keep of how they were drawn, (B, ...)."""
        policy: Any = self.module.policy
        if CHAINS not in self._kept_columns():
            return self._act(observations, ()), {}
        actions, kept = policy.draw_chains(observations, self._generator)
        return actions.numpy(), {name: values.numpy() for name, values in kept.items()}

    def _kept_columns(self) -> dict[str, Column]:
        """Return what rows keep of a plan."""
        policy: Policy = self.module.policy
        return policy.config.kept_columns(policy.sizes.action_dim)

    def _act(self, observations: Observations, episodes: Sequence[Episode]) -> np.ndarray:
        """Return drawn plans: a group is drawn, and nothing is chosen among candidates."""
        how: Any = {"num_candidates": 1, "generator": self._generator, "explore": True}
        return np.asarray(self.module.policy.sample_actions(observations, **how))

    def _chosen(self, observations: Observations, actions: np.ndarray) -> list[int]:
        """Return which of the plans (S, G, A) the policy's learned score would take; the first where it has none."""
        policy = self.module.policy
        if not policy.config.has_critic:
            return [0] * len(actions)
        found: list[int] = policy.estimates(observations, actions).argmax(dim=1).tolist()
        return found

    def _next_scene(self, i: int, count: int) -> int:
        """Return the scene whose turn it is: each comes once an epoch, in an order of this worker and life."""
        turn = self._num_episodes[i] * self.num_envs + i
        self._num_episodes[i] += 1
        epoch, place = divmod(turn, count)
        if self._order[0] != epoch:
            random = np.random.default_rng(self._derived_seed(_SCENE_STREAM, epoch))
            self._order = epoch, random.permutation(count)
        return int(self._order[1][place])

    def _beat(self) -> None:
        """Tell the driver that this worker lives: nothing takes long but many scenes."""
        if self._heartbeat is not None:
            self._heartbeat.beat()

    def begin_life(self, life: int) -> None:
        """Draw scenes in another order from now on; see the base class."""
        super().begin_life(life)
        self._order = (-1, self._order[1])

    def load_rollout_state(self, tensors: Any, state: Any) -> None:
        """Go on with the scenes where they were; see the base class."""
        super().load_rollout_state(tensors, state)
        self._order = (-1, self._order[1])


def _explored(
    plans: list[np.ndarray], ways: Sequence[Way | None], noise: float, random: np.random.Generator
) -> list[np.ndarray]:
    """Return the plans of scenes with noise, along the way where actions are said along it."""
    courses = [own if way is None else way.courses(own) for own, way in zip(plans, ways, strict=True)]
    changed = explored(np.concatenate(courses), noise, random, are_courses=ways[0] is not None)
    return [
        own if way is None else way.plans(own) for own, way in zip(np.split(changed, len(plans)), ways, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Group:
    """The judged plans of one scene."""

    number: int
    actions: np.ndarray  # (G, A)
    scores: np.ndarray  # (G, measures)
    chosen: int  # which of the drawn plans the policy's learned score would have taken; 0 where there is none
    kept: dict[str, np.ndarray]  # of a method that asks for it, how the plans were drawn, (G, ...)
