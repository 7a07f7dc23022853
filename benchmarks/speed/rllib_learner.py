"""Measure RLlib's own IQL learner on a CPU against IQL here, at the same widths, batch and thread, side by side.

    python -m benchmarks.speed.rllib_learner --json benchmarks/results/speed_rllib_learner-2026-11-27.json

Both learn two critics with targets, V and a Gaussian policy of the same widths from the same rows. RLlib's is
`Learner.update` on batches that are tensors already, so without connectors and its data pipeline; its critics are made
to read observation and action as one vector, as ours do (by default they have an encoder for each and a network above,
ten times the parameters), and it has no layer norms, which critics and V have here. Losses are not compared. Rounds
alternate; rates are updates per second of the processor's time.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.iql import IQLConfig
from ray.rllib.algorithms.iql.torch.default_iql_torch_rl_module import DefaultIQLTorchRLModule
from ray.rllib.algorithms.sac.sac_catalog import SACCatalog
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.models.configs import MLPEncoderConfig
from ray.rllib.core.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from benchmarks.learner_speed import random_batches
from benchmarks.record import write_json
from benchmarks.speed.learner import SCHEMA, SIZES, Update, rate, show
from benchmarks.speed.timing import spread
from dipole_ray.agents.agent import make_agent
from dipole_ray.agents.config import AgentConfig

Batch = dict[str, torch.Tensor]
POLICY = "default_policy"


class OneVector(torch.nn.Module):
    """A critic's hidden layers on observation and action together."""

    def __init__(self, layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, batch: Batch) -> Batch:
        found: Batch = self.layers({"obs": torch.cat((batch["obs"], batch["actions"]), dim=-1)})
        return {ENCODER_OUT: found[ENCODER_OUT]}


class OneVectorCatalog(SACCatalog):  # type: ignore[misc]
    """RLlib's networks, but for the critics' encoders."""

    def build_qf_encoder(self, framework: str) -> torch.nn.Module:
        """Return `OneVector` of the widths that all networks have."""
        widths, activation = self._model_config_dict["fcnet_hiddens"], self._model_config_dict["fcnet_activation"]
        config = MLPEncoderConfig(
            input_dims=[SCHEMA.observation_dim + SCHEMA.action_dim],
            hidden_layer_dims=widths[:-1],
            hidden_layer_activation=activation,
            output_layer_dim=widths[-1],
            output_layer_activation=activation,
        )
        return OneVector(config.build(framework=framework))


def rllib_updates(size: str, batches: list[Batch]) -> Update:
    """Return the updates of RLlib's learner."""
    observations = gym.spaces.Box(-np.inf, np.inf, (SCHEMA.observation_dim,), np.float32)
    actions = gym.spaces.Box(-1.0, 1.0, (SCHEMA.action_dim,), np.float32)
    widths = list(SIZES[size])
    model = DefaultModelConfig(fcnet_hiddens=widths, fcnet_activation="relu", head_fcnet_hiddens=[])
    spec = RLModuleSpec(DefaultIQLTorchRLModule, catalog_class=OneVectorCatalog, model_config=model)
    config = IQLConfig().environment(observation_space=observations, action_space=actions)
    config = config.training(tau=0.005, target_network_update_freq=0, twin_q=True).rl_module(rl_module_spec=spec)
    learner = config.learners(num_learners=0).build_learner(env=None, spaces={POLICY: (observations, actions)})
    found = [MultiAgentBatch({POLICY: SampleBatch(renamed(batch))}, len(batch["rewards"])) for batch in batches]
    steps = iter(range(10**9))

    def update(number: int) -> object:
        timesteps = {"num_env_steps_sampled_lifetime": next(steps)}
        return learner.update(batch=found[number % len(found)], timesteps=timesteps)

    return update


def renamed(batch: Batch) -> dict[str, torch.Tensor]:
    """Return a batch under RLlib's names."""
    ends = batch["masks"] == 0
    names = {"observations": "obs", "actions": "actions", "rewards": "rewards", "next_observations": "new_obs"}
    return {
        **{theirs: batch[ours] for ours, theirs in names.items()},
        "terminateds": ends,
        "truncateds": torch.zeros_like(ends),
        "weights": torch.ones_like(batch["rewards"]),
    }


def measure(size: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Return rates of all ways, and ratios of neighbouring rounds."""
    config = AgentConfig.preset("iql", hidden_dims=SIZES[size], batch_size=256)
    readable, compiled = (make_agent(config, SCHEMA, seed=0) for _ in range(2))
    if not compiled.compile(1):
        raise SystemExit("error: numba cannot compile here; see the warning above")
    batches = random_batches(readable, 8)

    def updates(agent: Any) -> Update:
        return lambda number: agent.update(batches[number % len(batches)], diagnostics=False)

    ways = {"rllib": rllib_updates(size, batches), "readable": updates(readable), "compiled": updates(compiled)}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        rate(way, seconds, time.process_time)
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(rate(way, seconds, time.process_time))
    ratios = {
        f"{name} / rllib": spread([x / y for x, y in zip(found[name], found["rllib"], strict=True)])
        for name in ("readable", "compiled")
    }
    rates = {name: spread(values) for name, values in found.items()}
    return {"size": size, "bootstrap": "value", "threads": 1, "rates": rates, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one way's round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in SIZES:
        rows.append(measure(size, args.rounds, args.seconds))
        print("IQL,", show(rows[-1]), flush=True)
    found = {"unit": "updates per second of a core", "load": os.getloadavg(), "rows": rows}
    write_json(args.json, "python -m benchmarks.speed.rllib_learner", found)


if __name__ == "__main__":
    main()
