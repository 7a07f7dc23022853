"""What an iteration reports, as `group/name`s: rates, waits, and the means of the last episodes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from ray.rllib.core import ALL_MODULES
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
)

from dipole_ray.rllib.experience import FragmentReport
from dipole_ray.rllib.learner import UpdateReport

RECENT_EPISODES = 100


class RecentEpisodes:
    """Return, length and success of the last episodes (`values`), and how many there have been (`count`)."""

    def __init__(self, count: int = 0, values: Mapping[str, Sequence[float | None]] | None = None) -> None:
        self.count = count
        self.values = {name: list((values or {}).get(name, ())) for name in ("return", "length", "success")}

    @property
    def tells_success(self) -> bool:
        """Whether one of them told its success."""
        return any(value is not None for value in self.values["success"])

    def note(self, report: FragmentReport) -> None:
        """Take the episodes that ended in a fragment."""
        self.count += len(report.returns)
        for name, values in (("return", report.returns), ("length", report.lengths), ("success", report.successes)):
            told = [None if value is None else float(value) for value in values]
            self.values[name] = (self.values[name] + told)[-RECENT_EPISODES:]

    def metrics(self, has_success: bool) -> dict[str, float]:
        """Return the means; nothing before the first episode ended.

        Where the task is known to define success (`has_success`), an episode that told none has failed.
        """
        if not self.count:
            return {}
        known = {name: values for name, values in self.values.items() if values and (name != "success" or has_success)}
        means = {f"rollout/{name}": float(np.mean([value or 0.0 for value in known[name]])) for name in known}
        return {**means, "rollout/episodes": float(self.count)}


def iteration_metrics(
    updates: Sequence[UpdateReport], fragments: Sequence[FragmentReport], wall_s: float, num_workers: int, version: int
) -> dict[str, float]:
    """Return what learner and rollout workers did in an iteration of `wall_s` seconds, and the last call's losses.

    Nothing is said of workers that did nothing; `version` is that of the newest policy.
    """
    metrics = {
        **(updates[-1].metrics if updates else {}),
        "time/iteration_s": wall_s,
        "time/learner_wait_fraction": max(0.0, 1.0 - sum(report.busy_s for report in updates) / wall_s),
        "time/updates_per_s": sum(report.num_updates for report in updates) / wall_s,
    }
    if fragments:
        busy_s = sum(report.busy_s for report in fragments) / max(1, num_workers)
        oldest_version = min(report.policy_version for report in fragments)
        metrics |= {
            "time/rollout_wait_fraction": max(0.0, 1.0 - busy_s / wall_s),
            "time/env_steps_per_s": sum(report.env_steps for report in fragments) / wall_s,
            "rollout/policy_version": float(oldest_version),
            "rollout/policy_lag": float(version - oldest_version),
            "rollout/dropped_env_steps": float(sum(report.dropped_env_steps for report in fragments)),
        }
        for name in fragments[0].measures:
            values = np.concatenate([report.measures[name] for report in fragments if report.measures])
            metrics[f"rollout/{name}"] = float(values.mean())
    return metrics


def under_rllibs_keys(
    metrics: Mapping[str, float], learner_steps: int, env_steps: int, batch_size: int
) -> dict[tuple[str, ...], float]:
    """Return an iteration's metrics, and the counts so far, under the keys where RLlib and Tune look for them."""
    keyed: dict[tuple[str, ...], float] = {
        (LEARNER_RESULTS, "default_policy", *name.split("/")): value for name, value in metrics.items()
    }
    keyed[LEARNER_RESULTS, ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME] = learner_steps * batch_size
    keyed |= {("learner_steps",): learner_steps, ("env_steps",): env_steps}
    keyed[ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME] = env_steps
    for name, theirs in {"return": "episode_return_mean", "length": "episode_len_mean"}.items():
        if f"rollout/{name}" in metrics:
            keyed[ENV_RUNNER_RESULTS, theirs] = metrics[f"rollout/{name}"]
    return {key: value for key, value in keyed.items() if math.isfinite(value)}  # Tune would write what is no JSON
