"""RLlib's callbacks in a rollout worker: whom to call, and the episodes that they are told about.

The loop has columns and no episode objects. Where a callback asks for episodes, RLlib's own `SingleAgentEpisode` is
kept beside each environment, whole from its reset to its end; where none does, nothing is built. What `on_sample_end`
makes of a fragment's episodes is what the replay gets.
"""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from dipole_ray.columns import Schema
from dipole_ray.data.schema import Rows, close_trajectory, concatenate
from dipole_ray.envs.acting import Steps
from dipole_ray.envs.observations import Observation, each, row_of
from dipole_ray.envs.spaces import schema_of
from dipole_ray.errors import CallbackFailed, first_line

ON_EPISODES = ("on_episode_created", "on_episode_start", "on_episode_step", "on_episode_end", "on_sample_end")
IN_WORKERS = ("on_environment_created", *ON_EPISODES)
IN_DRIVER = (
    *("on_algorithm_init", "on_train_result", "on_evaluate_start", "on_evaluate_end"),
    *("on_env_runners_recreated", "on_checkpoint_loaded"),
)
CALLED = (*IN_DRIVER, *IN_WORKERS, "on_workers_recreated")  # the last by RLlib, beside on_env_runners_recreated


def never_called(callback: Any) -> list[str]:
    """Return the methods of a callback's class that are overridden and that nothing calls."""
    names = [name for name in vars(RLlibCallback) if name.startswith("on_") and name not in CALLED]
    return [name for name in names if isinstance(callback, type) and _overrides(callback, name)]


def names_of(config: Any) -> list[str]:
    """Return the callbacks of a config by name, for a checkpoint, which holds no code."""
    classes = [one for one in force_list(config.callbacks_class) if one is not RLlibCallback]
    functions = {name: force_list(getattr(config, f"callbacks_{name}")) for name in (*IN_DRIVER, *IN_WORKERS)}
    return [_name(one) for one in classes] + [f"{on}={_name(one)}" for on, ones in functions.items() for one in ones]


class WorkerCallbacks:
    """The callbacks of one rollout worker, and the running episodes of its environments."""

    def __init__(self, env_runner: EnvRunner) -> None:
        self._env_runner, self._config = env_runner, env_runner.config
        self._objects = [make() for make in force_list(self._config.callbacks_class)]
        self._asked = {
            name
            for name in IN_WORKERS
            if getattr(self._config, f"callbacks_{name}") or any(_overrides(type(one), name) for one in self._objects)
        }
        self._env: Any = None
        self._episodes: dict[int, SingleAgentEpisode] = {}
        self._delivered: dict[int, int] = {}  # steps of a running episode that earlier fragments held
        self._samples: list[SingleAgentEpisode] = []

    @property
    def is_asked(self) -> bool:
        """Whether there is a callback that only rollout workers call."""
        return bool(self._asked)

    @property
    def listener(self) -> "WorkerCallbacks | None":
        """Who is told of resets and steps; None where no callback asks for episodes."""
        return self if self._asked.intersection(ON_EPISODES) else None

    def take_environments(self, envs: Sequence[gym.Env], *, are_new: bool = True) -> None:
        """Tell of these environments from now on, as one vector, as RLlib's own runner does."""
        if not self._asked:
            return
        envs[0].metadata = dict(envs[0].metadata)  # the vector writes into it, and it belongs to the class
        self._env = gym.vector.SyncVectorEnv([lambda env=env: env for env in envs])  # type: ignore[misc]
        if not are_new:
            return
        runner, workers = self._env_runner, self._config.num_env_runners
        where = {"worker_index": runner.worker_index, "num_workers": workers, "remote": bool(runner.worker_index)}
        context = EnvContext(dict(self._config.env_config), **where)
        self._call("on_environment_created", env=self._env, env_context=context)

    @contextmanager
    def in_evaluation(self, envs: Sequence[gym.Env], *, are_new: bool) -> Iterator["EvaluationMetrics"]:
        """Tell of the episodes played in this block apart from the training episodes that run beside them.

        Callbacks see `env_runner.config.in_evaluation`, and what they log is the evaluation's.
        """
        runner, metrics = self._env_runner, EvaluationMetrics()
        before = runner.metrics, runner.config.in_evaluation, self._env, self._episodes, self._delivered, self._samples
        runner.metrics, self._episodes, self._delivered, self._samples = MetricsLogger(root=False), {}, {}, []
        runner.config.in_evaluation = True
        try:
            self.take_environments(envs, are_new=are_new)
            yield metrics
            metrics.logged = self.metrics()
        finally:
            runner.metrics, runner.config.in_evaluation = before[:2]
            self._env, self._episodes, self._delivered, self._samples = before[2:]

    def metrics(self) -> Any:
        """Return what callbacks logged since the last call, for the driver to merge; None where there are none."""
        return self._env_runner.metrics.reduce() if self._asked else None

    # ---- what the acting loop tells ----

    def created(self, i: int) -> None:
        """Begin the episode object of environment `i`, which is about to be reset."""
        spaces = {"observation_space": self._env.single_observation_space}
        self._episodes[i] = SingleAgentEpisode(**spaces, action_space=self._env.single_action_space)
        self._delivered[i] = 0
        self._call_on_episode("on_episode_created", i)

    def started(self, i: int, observation: Observation, info: dict[str, Any]) -> None:
        """Take what the reset gave."""
        self._episodes[i].add_env_reset(observation=observation, infos=dict(info))
        self._call_on_episode("on_episode_start", i)

    def stepped(self, steps: Steps, row: int, info: dict[str, Any]) -> None:
        """Take one step; a broken one, with NaN or infinity, ends the episode and is no part of a sample."""
        i, broken = steps.indices[row], bool(steps.broken[row])
        episode, reward = self._episodes[i], float(steps.rewards[row])
        ends = {"terminated": bool(steps.terminated[row]) and not broken}
        ends["truncated"] = bool(steps.truncated[row]) or broken
        action, observation = steps.actions[row].copy(), each(np.copy, row_of(steps.next_observations, row))
        taken = {"action": action, "reward": reward, "observation": observation}
        episode.add_env_step(**taken, infos=dict(info), **ends)
        self._call_on_episode("on_episode_step", i)
        if episode.is_done:
            self._deliver(i, len(episode) - broken)
            self._call_on_episode("on_episode_end", i, prev_episode_chunks=[])

    # ---- fragments ----

    def begin_fragment(self) -> None:
        """Begin anew: what was stepped before belongs to an earlier fragment, or is lived again."""
        self._samples = []
        self._delivered = {i: len(episode) for i, episode in self._episodes.items()}

    def edited(self, rows: Rows) -> Rows:
        """Return a fragment's rows as `on_sample_end` leaves them; the rows themselves where no callback asks."""
        if "on_sample_end" not in self._asked:
            return rows
        for i in sorted(self._episodes):
            self._deliver(i, len(self._episodes[i]))
        self._call("on_sample_end", samples=self._samples)
        schema = schema_of(self._config.observation_space, self._config.action_space)
        pieces = [_rows(episode, schema) for episode in self._samples if len(episode)]
        return concatenate(pieces) if pieces else {}

    def _deliver(self, i: int, end: int) -> None:
        """Add to the samples what environment `i`'s episode has of this fragment, up to the step `end`."""
        episode, start = self._episodes[i], self._delivered[i]
        if end > start and "on_sample_end" in self._asked:
            # A copy: what a callback changes in a sample must not change the whole episode.
            self._samples.append(episode[start:end].to_numpy())
        self._delivered[i] = len(episode)

    # ---- calls ----

    def _call_on_episode(self, name: str, i: int, **more: Any) -> None:
        rl_module = self._env_runner.module
        self._call(name, episode=self._episodes[i], env=self._env, rl_module=rl_module, env_index=i, **more)

    def _call(self, name: str, **arguments: Any) -> None:
        """Call one callback of all; CallbackFailed, with the user's own line, where one raises."""
        if name not in self._asked:
            return
        runner = self._env_runner
        arguments |= {"env_runner": runner, "metrics_logger": runner.metrics}
        try:
            make_callback(name, self._objects, getattr(self._config, f"callbacks_{name}"), kwargs=arguments)
        except Exception as error:  # any code's any error
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise CallbackFailed(
                f"callback {name} failed: {type(error).__name__}: {first_line(error)} ({where.filename}, line "
                f"{where.lineno}); mend it, or leave it out of config.callbacks(...)"
            ) from error


class EvaluationMetrics:
    """What callbacks logged in one evaluation, once it is over."""

    logged: Any = None


def _overrides(cls: type, name: str) -> bool:
    return getattr(cls, name, None) is not getattr(RLlibCallback, name)


def _name(callback: Any) -> str:
    return str(getattr(callback, "__qualname__", type(callback).__qualname__))


def _rows(episode: SingleAgentEpisode, schema: Schema) -> Rows:
    """Return the rows of a piece of an episode, closed by its last observation."""
    actions = np.asarray(episode.get_actions(), np.float32)
    observations, rewards = each(np.asarray, episode.get_observations()), np.asarray(episode.get_rewards(), np.float32)
    masks = np.ones(len(actions), np.float32)
    masks[-1] = not episode.is_terminated
    return close_trajectory(observations, actions, rewards, masks, schema)
