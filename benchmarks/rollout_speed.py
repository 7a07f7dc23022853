"""Measure environment steps per core-second of one rollout worker: the simulator and the policy that acts in it.

    python -m benchmarks.rollout_speed --env humanoidmaze-medium-navigate-singletask-task1-v0 --envs 4 16 --candidates 1

One thread, like a worker. Simulator and policy are timed by processor time, in turns, so that a busy machine meets both
and a share of the core is not counted as slowness. docs/cluster.md sizes clusters with the result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipole_ray.agents.agent import Agent, make_agent
from dipole_ray.agents.config import PRESETS, AgentConfig
from dipole_ray.envs.acting import ActingLoop, Episode
from dipole_ray.envs.make import EnvConfig, env_dims, make_env


def core_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the processor time of one call of `work`."""
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats


def measure(agent: Agent, env_id: str, num_envs: int, candidates: int, rounds: int, steps: int) -> dict[str, Any]:
    """Return the milliseconds of a core that one environment step takes in the simulator and in the policy."""
    envs = [make_env(EnvConfig(id=env_id)) for _ in range(num_envs)]
    seeds = itertools.count()
    loop = ActingLoop(envs, lambda *_: actions, lambda _: Episode(seed=next(seeds)))
    loop.start(range(num_envs))

    def act() -> np.ndarray:
        return agent.sample_actions(loop.observations, num_candidates=candidates).numpy()

    simulator, policy = [], []
    for _ in range(rounds):
        policy.append(1e3 * core_seconds(act, steps) / num_envs)
        actions = act()
        simulator.append(1e3 * core_seconds(loop.step, steps) / num_envs)
    for env in envs:
        env.close()
    total = [a + b for a, b in zip(simulator, policy, strict=True)]
    return {
        "envs": num_envs,
        "candidates": candidates,
        "rounds": rounds,
        "simulator_ms_per_step": _spread(simulator),
        "policy_ms_per_step": _spread(policy),
        "env_steps_per_core_s": _spread([1e3 / each for each in total]),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper", choices=sorted(PRESETS))
    parser.add_argument("--env", default="humanoidmaze-medium-navigate-singletask-task1-v0")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 4, 16], help="environments of a worker")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="steps of all environments in a round")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    schema = env_dims(args.env).schema
    agent = make_agent(AgentConfig.preset(args.preset), schema, seed=0)
    rows = [
        measure(agent, args.env, envs, candidates, args.rounds, args.steps)
        for envs in args.envs
        for candidates in args.candidates
    ]
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, one core of a shared machine",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "preset": args.preset,
        "env": args.env,
        **schema.to_json(),
        "rows": rows,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
