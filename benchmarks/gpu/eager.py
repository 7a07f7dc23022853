"""Measure today's eager agent on a GPU: equality with the CPU, updates per second, kernels, latency, publishing.

python -m benchmarks.gpu.eager --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.attempt import provenance
from dipole_ray.agents import flow
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.dipole import DipoleAgent
from dipole_ray.columns import Schema

SCHEMA = Schema(28, 5)
Batch = dict[str, Tensor]


def random_batches(count: int, rows: int, device: str) -> list[Batch]:
    """Return batches in the layout of the replay."""
    rng = np.random.default_rng(0)
    columns = {
        "observations": lambda: rng.normal(size=(rows, SCHEMA.observation_dim)),
        "actions": lambda: rng.uniform(-1, 1, size=(rows, SCHEMA.action_dim)),
        "rewards": lambda: -rng.integers(0, 2, size=rows),
        "masks": lambda: rng.random(rows) > 0.1,
        "next_observations": lambda: rng.normal(size=(rows, SCHEMA.observation_dim)),
        "discounts": lambda: np.full(rows, 0.995),
    }
    return [
        {name: torch.tensor(np.asarray(draw(), dtype=np.float32), device=device) for name, draw in columns.items()}
        for _ in range(count)
    ]


def with_noise_of_the_cpu(agent: DipoleAgent, seed: int) -> DipoleAgent:
    """Let the agent take its noise and times from one CPU generator, so that devices can be compared."""
    source = torch.Generator().manual_seed(seed)

    def noise(rows: int, *candidates: int) -> Tensor:
        return torch.randn((rows, *candidates, SCHEMA.action_dim), generator=source).to(agent.device)

    def path(actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        drawn, t = noise(len(actions)), torch.rand(len(actions), 1, generator=source).to(agent.device)
        return flow.path_point(drawn, actions, t), t, flow.path_velocity(drawn, actions)

    agent._noise, agent._path = noise, path  # type: ignore[method-assign]
    return agent


def difference_from_cpu(config: AgentConfig, updates: int = 20) -> float:
    """Return the largest relative difference of a loss between the CPU and the GPU."""
    agents = [
        with_noise_of_the_cpu(DipoleAgent(config, SCHEMA, seed=0, device=device), seed=1) for device in ("cpu", "cuda")
    ]
    worst = 0.0
    for batch in random_batches(updates, config.batch_size, "cpu"):
        ours, theirs = (agent.update(batch, diagnostics=False) for agent in agents)
        for name in (name for name in ours if name.endswith("loss") or "loss_" in name):
            worst = max(worst, abs(float(ours[name]) - float(theirs[name])) / max(abs(float(ours[name])), 1e-6))
    return worst


def spread(values: list[float]) -> dict[str, float]:
    return {"n": len(values), "median": statistics.median(values), "min": min(values), "max": max(values)}


def rate(call: Callable[[int], object], rounds: int = 3, seconds: float = 2.0) -> dict[str, float]:
    """Return calls per second of wall time over rounds, the device waited for at the end of each."""
    rates = []
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for number in range(rounds + 1):
        wait()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            call(done)
            done += 1
        wait()
        if number:  # the first warms up
            rates.append(done / (time.perf_counter() - start))
    return spread(rates)


def kernels(call: Callable[[], object]) -> dict[str, float]:
    """Return how many kernels and copies one call starts, and the milliseconds that they take on the device."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(5):
            call()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {"kernels": len(events) / 5, "device_ms": sum(event.device_time for event in events) / 5e3}


def latencies(call: Callable[[], object], calls: int = 300) -> dict[str, float]:
    """Return p50, p95 and p99 of one call in milliseconds."""
    times = []
    for _ in range(calls + 20):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return {f"p{share}": float(np.percentile(times[20:], share)) for share in (50, 95, 99)}


def measure_updates(bootstrap: str) -> dict[str, Any]:
    """Return what an update costs in float32 and TF32, with rows on the device and on the host."""
    config = AgentConfig.preset("paper", bootstrap=bootstrap)
    result: dict[str, Any] = {"largest_relative_loss_difference_from_cpu": difference_from_cpu(config)}
    on_device, on_host = (random_batches(8, config.batch_size, device) for device in ("cuda", "cpu"))
    host = [{name: column.numpy() for name, column in batch.items()} for batch in on_host]
    for precision in ("float32", "tf32"):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        agent = DipoleAgent(config, SCHEMA, seed=0, device="cuda")
        update = agent.update
        result[precision] = {
            "rows_on_device": rate(lambda i, update=update: update(on_device[i % 8], diagnostics=False)),
            "rows_on_host": rate(lambda i, update=update: update(host[i % 8], diagnostics=False)),
            **kernels(lambda update=update: update(on_device[0], diagnostics=False)),
        }
    torch.set_float32_matmul_precision("highest")
    return result


def measure_acting() -> dict[str, Any]:
    """Return latencies of acting at the paper's size, and of publishing a policy."""
    agent = DipoleAgent(AgentConfig.preset("paper"), SCHEMA, seed=0, device="cuda")
    policy, result = agent.policy, {}
    for states, candidates in ((1, 1), (1, 32), (50, 32)):
        observations = np.zeros((states, SCHEMA.observation_dim), np.float32)
        for omega in (0.0, 1.0):
            options = {"omega": omega, "num_candidates": candidates}
            result[f"{states} states, {candidates} candidates, omega {omega:g}"] = latencies(
                lambda options=options, observations=observations: policy.sample_actions(observations, **options).cpu()
            )
    result["policy_state to the CPU"] = latencies(policy.policy_state, calls=50)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out = parser.parse_args().out
    result: dict[str, Any] = {
        **provenance("python -m benchmarks.gpu.eager"),
        "sizes": {"hidden_dims": [512] * 3, "batch_size": 256, **SCHEMA.to_json()},
        "updates": {bootstrap: measure_updates(bootstrap) for bootstrap in ("value", "policy")},
        "latency_ms": measure_acting(),
    }
    print(f"{result['gpu']}, torch {torch.__version__}; 3 x 512, batch 256; updates/s, median [min, max] of 3 rounds")
    print(f"{'bootstrap':10}{'precision':10}{'rows on device':>26}{'rows on host':>26}{'kernels':>9}{'device ms':>11}")
    for bootstrap, found in result["updates"].items():
        for precision in ("float32", "tf32"):
            row = found[precision]
            cells = [
                f"{row[key]['median']:.0f} [{row[key]['min']:.0f}, {row[key]['max']:.0f}]"
                for key in ("rows_on_device", "rows_on_host")
            ]
            print(
                f"{bootstrap:10}{precision:10}{cells[0]:>26}{cells[1]:>26}"
                f"{row['kernels']:>9.0f}{row['device_ms']:>11.3f}"
            )
        print(f"  losses on GPU and CPU differ by {found['largest_relative_loss_difference_from_cpu']:.1e} at most")
    for name, found in result["latency_ms"].items():
        print(f"{name:40}" + "".join(f"{key} {value:7.3f} ms   " for key, value in found.items()))
    out.mkdir(parents=True, exist_ok=True)
    (out / f"gpu_eager-{result['date']}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
