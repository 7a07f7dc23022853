"""Is anything learned from pixels? dm_control's point mass in pictures of 32 x 32, offline and then online.

    python -m benchmarks.pixels --seeds 3 --out benchmarks/results

The point is to be driven onto the red target and held there. A decision lasts 0.5 s (25 of dm_control's steps), an
episode 16 decisions, the reward of one is dm_control's mean over its steps, so that a return lies in [0, 16]. An
observation is the last two pictures from above. Point and target are drawn larger than in dm_control, as at 32 x 32 the
point would be a pixel: 0.025 and 0.05 in radius, and the reward counts within the larger target. The behaviour policy
knows the simulator's state: in half of its episodes it drives to the target, in the others to a random point, always
with noise. The dataset is the same for all seeds; a seed draws the agent's networks and noise, the online episodes and
those of the evaluation.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from benchmarks.record import brief, summary, write_record
from dipole_ray.agents.agent import Agent, make_agent
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.encoders import EncoderConfig
from dipole_ray.columns import Column, Schema
from dipole_ray.data.dataset import write_dataset
from dipole_ray.data.schema import Rows, close_trajectory
from dipole_ray.replay.replay import Replay

os.environ.setdefault("MUJOCO_GL", "egl")

SIDE, REPEATS, DECISIONS = 32, 25, 16
POINT_RADIUS, TARGET_RADIUS, ARENA = 0.025, 0.05, 0.25
SCHEMA = Schema(Column((SIDE, SIDE, 6), "uint8"), 2)
Act = Callable[[np.ndarray], np.ndarray]
"""From observations (B, H, W, 6) to actions (B, 2)."""


class PointMassPixels(gymnasium.Env[np.ndarray, np.ndarray]):
    """The point mass, seen from above in two pictures one after another."""

    _renderer: Any = None  # one for all: only the state differs

    def __init__(self) -> None:
        from dm_control import suite

        self.observation_space = gymnasium.spaces.Box(0, 255, (SIDE, SIDE, 6), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.simulation = suite.load("point_mass", "easy", task_kwargs={"random": 0})
        self.physics = self.simulation.physics
        sizes = self.physics.named.model.geom_size
        sizes["pointmass", 0], sizes["target", 0] = POINT_RADIUS, TARGET_RADIUS
        self.goal, self.random, self.steps, self.picture = np.zeros(2), np.random.default_rng(0), 0, np.empty(0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin anywhere in the arena, at rest."""
        self.random = np.random.default_rng(seed)
        self.simulation.task.random.seed(int(self.random.integers(2**32)))
        self.simulation.reset()
        self.goal = np.zeros(2) if self.random.random() < 0.5 else self.random.uniform(-ARENA, ARENA, 2)
        self.steps, self.picture = 0, self._drawn()
        return np.concatenate((self.picture, self.picture), axis=-1), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Act for 0.5 s."""
        reward = sum(float(self.simulation.step(action).reward or 0.0) for _ in range(REPEATS)) / REPEATS
        before, self.picture = self.picture, self._drawn()
        self.steps += 1
        return np.concatenate((before, self.picture), axis=-1), reward, False, self.steps == DECISIONS, {}

    def behave(self) -> np.ndarray:
        """Return the behaviour policy's action, which drives to this episode's goal."""
        wanted = 20.0 * (self.goal - self.physics.data.qpos) + self.random.normal(0, 0.5, 2)
        return np.clip(wanted, -1.0, 1.0).astype(np.float32)

    def _drawn(self) -> np.ndarray:
        """Return a picture from above (H, W, 3), without shadows."""
        import mujoco

        if PointMassPixels._renderer is None:
            renderer = PointMassPixels._renderer = mujoco.Renderer(self.physics.model.ptr, SIDE, SIDE)
            for flag in ("SHADOW", "REFLECTION", "SKYBOX"):
                renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        PointMassPixels._renderer.update_scene(self.physics.data.ptr, "fixed")
        picture: np.ndarray = PointMassPixels._renderer.render()
        return picture


def play(envs: Sequence[PointMassPixels], act: Act | None, seeds: Sequence[int]) -> tuple[list[Rows], list[float]]:
    """Play an episode in each environment, by the behaviour policy where no other acts; return rows and returns."""
    observations = [np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)])]
    actions, rewards = [], []
    for _ in range(DECISIONS):
        actions.append(np.stack([env.behave() for env in envs]) if act is None else act(observations[-1]))
        stepped = [env.step(action)[:2] for env, action in zip(envs, actions[-1], strict=True)]
        observations.append(np.stack([seen for seen, _ in stepped]))
        rewards.append([reward for _, reward in stepped])
    seen, taken, gained = np.stack(observations, 1), np.stack(actions, 1), np.array(rewards, np.float32).T
    ones = np.ones(DECISIONS, np.float32)
    rows = [close_trajectory(*one, ones, SCHEMA) for one in zip(seen, taken, gained, strict=True)]
    return rows, gained.sum(axis=1).tolist()


def acting(agent: Agent, seed: int, **how: Any) -> Act:
    """Return the agent's policy, with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    return lambda observations: agent.sample_actions(observations, generator=generator, **how).numpy()


WAYS: dict[str, dict[str, Any]] = {
    "BC": {"policy": "bc"},
    **{f"omega {omega:g}": {"omega": omega} for omega in (0.0, 1.0, 3.0)},
    "omega 1, best of 8": {"omega": 1.0, "num_candidates": 8},
}


def evaluate(agent: Agent, envs: Sequence[PointMassPixels], episodes: int, seed: int) -> dict[str, float]:
    """Return the mean return of each way of acting over the same episodes."""
    found = {}
    for way, how in WAYS.items():
        returns: list[float] = []
        while len(returns) < episodes:
            seeds = [10**6 * (seed + 1) + len(returns) + i for i in range(len(envs))]
            returns += play(envs, acting(agent, seed, **{"num_candidates": 1, **how}), seeds)[1]
        found[way] = float(np.mean(returns))
    return found


def updates_per_second(agent: Agent, replay: Replay, updates: int, batch_size: int) -> float:
    """Take updates, and return how many a second of processor time."""
    start = time.process_time()
    for _ in range(updates):
        agent.update(replay.sample(batch_size), diagnostics=False)
    return updates / (time.process_time() - start)


def run(seed: int, data: Path, envs: Sequence[PointMassPixels], options: argparse.Namespace) -> dict[str, Any]:
    """Train one agent offline, then online, and return its returns after each phase and its rate."""
    encoder = EncoderConfig(network=options.network, sharing=options.sharing, pad=1)
    settings = {"discount": 0.9, "train_bc": True, "batch_size": options.batch_size}
    config = AgentConfig.preset("small", encoder=encoder, **settings)
    agent = make_agent(config, SCHEMA, seed=seed)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        online = {"online": Path(folder) / "ring", "capacity": 20_000, "offline_fraction": 0.5}
        replay = Replay(schema=SCHEMA, offline=[data], discount=config.discount, seed=seed, **online)
        found["updates_per_core_s"] = updates_per_second(agent, replay, options.offline, config.batch_size)
        found["offline"] = evaluate(agent, envs, options.episodes, seed)
        print(f"seed {seed} offline: {found}", flush=True)
        act = acting(agent, seed + 100, omega=1.0, num_candidates=1)
        for part in range(options.online // len(envs)):
            rows, _ = play(envs, act, [10**5 * (seed + 1) + part * len(envs) + i for i in range(len(envs))])
            for i, piece in enumerate(rows):
                replay.insert(piece, worker=i, incarnation=0, sequence=part)
            updates_per_second(agent, replay, len(envs) * DECISIONS // 2, config.batch_size)
        found["online"] = evaluate(agent, envs, options.episodes, seed)
        print(f"seed {seed} online: {found['online']}", flush=True)
        replay.close()
    return found


def main() -> None:
    """Collect, train and write what was learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=int, default=480, help="episodes of the behaviour policy")
    parser.add_argument("--offline", type=int, default=2000, help="updates of the offline phase")
    parser.add_argument("--online", type=int, default=128, help="episodes of the online phase, two decisions an update")
    parser.add_argument("--episodes", type=int, default=32, help="episodes of an evaluation, a way of acting and seed")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--network", default="impala_tiny")
    parser.add_argument("--sharing", default="shared")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    envs = [PointMassPixels() for _ in range(16)]
    with tempfile.TemporaryDirectory() as folder:
        played = [play(envs, None, range(start, start + 16)) for start in range(0, options.data, 16)]
        behaviour = [each for _, returns in played for each in returns]
        data = Path(folder) / "data"
        write_dataset(data, (rows for pieces, _ in played for rows in pieces), SCHEMA, {"collector": "point mass"})
        print(f"behaviour {np.mean(behaviour):.1f} over {len(behaviour)} episodes", flush=True)
        runs = []
        for seed in range(options.seeds):
            runs.append(run(seed, data, envs, options))
            report(runs, behaviour, options)


def report(runs: Sequence[dict[str, Any]], behaviour: Sequence[float], options: argparse.Namespace) -> None:
    """Print what the agents so far have learned, and write it if that was asked for."""
    phases = {
        phase: {way: summary([one[phase][way] for one in runs]) for way in WAYS} for phase in ("offline", "online")
    }
    rate = float(np.median([one["updates_per_core_s"] for one in runs]))
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    numbers = {"behaviour": float(np.mean(behaviour)), "updates_per_core_s": rate, **phases, "settings": settings}
    lines = ["| acting | after the offline phase | after the online phase |", "|---|---|---|"]
    lines += [f"| {way} | {brief(phases['offline'][way], 1)} | {brief(phases['online'][way], 1)} |" for way in WAYS]
    about = (
        f"Return of an episode in [0, {DECISIONS}], mean and 95 % interval over {len(runs)} seeds, "
        f"{options.episodes} episodes each. The behaviour policy's is {np.mean(behaviour):.1f} ({len(behaviour)} "
        f"episodes, {len(behaviour) * DECISIONS} decisions). {options.offline} updates offline and "
        f"{options.online * DECISIONS // 2} online at {rate:.0f} a second of one core, batches of {options.batch_size}."
    )
    print("\n".join([about, *lines]), flush=True)
    if options.out is not None:
        command = f"python -m benchmarks.pixels --seeds {len(runs)} --out benchmarks/results"
        write_record(options.out, "pixels", command, numbers, "Point mass from pixels", "\n".join([about, "", *lines]))


if __name__ == "__main__":
    main()
