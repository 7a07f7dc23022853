"""An agent of adapters, or of full networks: what it holds, and how many updates a second it makes.

For `benchmarks.adapters` on a CPU and `benchmarks.gpu.adapters`, where neither Ray nor rich need be.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.attempt import attempt
from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import Agent, Batch, make_agent
from dipole_ray.agents.backbones import BackboneConfig
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.dipole import AgentConfig
from dipole_ray.columns import Schema

SCHEMA = Schema(29, 8)
BATCH = {"mlp": 256, "dit-tiny": 32, "dit-small": 32, "dit-base": 32}


def settings(network: str, rank: int, dtype: str = "float32") -> AgentConfig:
    """Return the paper's agent on a network, with the paper's targets where there are adapters."""
    targets = ("linear",) if network == "mlp" else ("attention", "mlp")
    adapters = AdapterConfig(rank=rank, targets=targets) if rank else AdapterConfig()
    return AgentConfig(
        backbone=BackboneConfig(network=network, dtype=dtype), adapters=adapters, batch_size=BATCH[network]
    )


def learner(
    network: str, rank: int, updates: int, threads: int, device: str = "cpu", dtype: str = "float32"
) -> dict[str, Any]:
    """Return what a learner holds, and its updates/s after one that warms up; on a GPU captured ones beside."""
    torch.set_num_threads(threads)
    rng, rows = np.random.default_rng(0), BATCH[network]
    agent = make_agent(settings(network, rank, dtype), SCHEMA, seed=0, device=device)
    agent.compile(threads)
    batch = {
        "observations": rng.normal(size=(rows, 29)),
        "next_observations": rng.normal(size=(rows, 29)),
        "actions": rng.uniform(-1, 1, size=(rows, 8)),
        "rewards": rng.normal(size=rows),
        "masks": np.ones(rows),
    }
    agent.update(batch, diagnostics=False)
    start = time.perf_counter()
    for _ in range(updates):
        agent.update(batch, diagnostics=False)
    rate = updates / (time.perf_counter() - start)
    adapted: Any = agent.networks.fields
    fields = dict(adapted.named_parameters())
    found = {
        "parameters": sum(each.numel() for each in fields.values()),
        "trained": sum(each.numel() for each in fields.values() if each.requires_grad),
        "optimizer_bytes": sum(
            each.nbytes for name, each in agent._live_tensors().items() if name.startswith("optimizer.")
        ),
        "published_bytes": sum(each.nbytes for each in agent.policy.networks.state_dict().values()),
        "updates_per_s": rate,
    }
    return found if device == "cpu" else found | attempt("captured", captured, agent, batch, updates)


def captured(agent: Agent, batch: Batch, updates: int) -> dict[str, Any]:
    """Return the rate of an agent's updates as a GPU replays them, and the most memory that it has held there."""
    peak = torch.cuda.max_memory_allocated()
    graph = CapturedUpdates([agent], len(batch["rewards"]), updates)
    columns = {name: np.concatenate([column] * updates) for name, column in batch.items()}
    graph.update_on([columns])
    start = time.perf_counter()
    graph.update_on([columns])
    return {"peak_bytes": peak, "captured_updates_per_s": updates / (time.perf_counter() - start)}
