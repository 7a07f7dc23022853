"""One run of the cube study, on one core: fields of a method learn from advantages that are the same for all methods.

The advantages stand where a dataset has its rewards, over their deviation. So critics are no part of a run, and what
differs between methods is the fields: two full networks, or LoRA on a backbone that was cloned or only drawn. The
method `clone` trains a backbone from the dataset itself.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cell.policies import save
from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import make_agent
from dipole_ray.agents.backbones import BackboneConfig, save_backbone
from dipole_ray.agents.dipole import AgentConfig
from dipole_ray.data.dataset import open_dataset
from dipole_ray.replay.replay import Replay

RANKS = {"full": 0, "lora-4": 4, "lora-16": 16, "lora-64": 64, "scratch-16": 16, "clone": 16}
CLONED = ("lora-4", "lora-16", "lora-64")
METHODS = ("full", *CLONED, "scratch-16")
SETTINGS: dict[str, Any] = {
    "advantage": "group",
    "num_candidates": 1,
    "hidden_dims": (256, 256),
    "learning_rate": 1e-3,
    "beta": 3.0,
    "omega": 1.0,
    "observation_normalization": "dataset",
}
CALL = 100
"""Updates between two looks at the clock."""


def config_of(method: str, backbone: Path | None) -> AgentConfig:
    """Return the settings of a method; `backbone` is the file of a cloned one."""
    adapters = AdapterConfig(rank=RANKS[method]) if RANKS[method] else AdapterConfig()
    path = None if backbone is None else str(backbone)
    config: AgentConfig = AgentConfig(**SETTINGS, adapters=adapters, backbone=BackboneConfig(path=path))
    return config


def train(
    method: str, seed: int, data: Path, out: Path, *, marks: Sequence[int], until: float, backbone: Path | None = None
) -> dict[str, Any]:
    """Train up to the last of the marks, or until so many seconds since 1970; save at each mark, or else at the end.

    A backbone goes into the file `out`, policies are checkpoints of the folder `out`.
    """
    torch.set_num_threads(1)
    schema = open_dataset(data).schema
    config = config_of(method, backbone)
    replay = Replay(schema=schema, offline=[data], n_step=1, discount=config.discount, seed=seed)
    agent: Any = make_agent(config, schema, seed=seed)
    agent.fit_observations(*replay.observation_statistics())
    if method == "clone":
        agent.clone(True)
    is_compiled = agent.compile(1)
    start, losses = time.perf_counter(), {}
    while agent.learner_steps < marks[-1] and time.time() < until:
        size = config.batch_size
        count = min(CALL, min(mark for mark in marks if mark > agent.learner_steps) - agent.learner_steps)
        batches = replay.sample(size, count)
        for k in range(count):
            batch = {name: column[k * size : (k + 1) * size] for name, column in batches.items()}
            metrics = agent.update(batch, diagnostics=False)
        losses = {name: float(value) for name, value in metrics.items() if "/loss" in name}
        if method != "clone" and agent.learner_steps in marks:
            save(out, agent, schema)
    seconds = time.perf_counter() - start
    if method == "clone":
        agent.clone(False)
        save_backbone(agent.networks.fields, out)
    elif agent.learner_steps < marks[0]:
        save(out, agent, schema)
    found = {"method": method, "seed": seed, "updates": agent.learner_steps, "is_compiled": is_compiled}
    return {**found, "updates_per_s": agent.learner_steps / seconds, **losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=RANKS)
    parser.add_argument("seed", type=int)
    parser.add_argument("data", type=Path, help="a dataset, whose rewards are advantages but for clone")
    parser.add_argument("out", type=Path, help="the folder of the policies, or the backbone's file")
    parser.add_argument("--marks", type=int, nargs="+", required=True, help="updates to save at, the last to end at")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds since 1970 to end at")
    parser.add_argument("--backbone", type=Path, help="the file of a cloned one")
    args = vars(parser.parse_args())
    words = [args.pop(name) for name in ("method", "seed", "data", "out")]
    print(json.dumps(train(*words, **args)))


if __name__ == "__main__":
    main()
