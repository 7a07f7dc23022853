"""Check the captured updates on a GPU against the eager agent, then measure them; a part that fails says so.

python -m benchmarks.gpu.check --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.eager import SCHEMA, Batch, latencies, random_batches, rate
from dipole_ray.agents import agent as agents
from dipole_ray.agents import flow, state
from dipole_ray.agents.agent import COUNTERS, Agent
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.networks import FUSED
from dipole_ray.agents.stacked import StackedUpdates

UPDATES = 32
"""Of one call, as in a run."""
TABLE_ROWS = 200_000
WIDTHS = {"hidden_dims": (512,) * 3}
AGENTS: dict[str, AgentConfig] = {
    "dipole, value bootstrap": AgentConfig.preset(
        "paper", bootstrap="value", advantage_normalization="running_std", train_bc=True
    ),
    "dipole, policy bootstrap": AgentConfig.preset("paper"),
    "iql": AgentConfig.preset("iql", **WIDTHS),
    "fql": AgentConfig.preset("fql", **WIDTHS),
}
VARIANTS = {
    "captured": {"fused": False, "side_by_side": False},
    "side by side": {"fused": False, "side_by_side": True},
    "fused": {"fused": True, "side_by_side": False},
    "both": {"fused": True, "side_by_side": True},
}
SEEDS = 1, 8
BEGIN, SECONDS = time.perf_counter(), 120
"""Parts that would start later than this after the beginning are left out."""
PRECISIONS = {"float32": "highest", "tf32": "high"}


def make_agent(config: AgentConfig, seed: int = 0, device: str = "cuda") -> Agent:
    return agents.make_agent(config, SCHEMA, seed=seed, device=device)


def joined(batches: list[Batch]) -> Batch:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def spoilt(batch: Batch) -> Batch:
    """Return the batch with one reward that is not finite."""
    rewards = batch["rewards"].clone()
    rewards[3] = torch.nan
    return {**batch, "rewards": rewards}


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Return the largest difference of an element of two state dicts, their generators and counters left out."""
    return max(float((left[name] - right[name]).abs().max()) for name in left if left[name].is_floating_point())


def is_same(left: dict[str, Tensor], right: dict[str, Tensor], names: set[str]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in names)


def largest_relative_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest distance of two tensors of a name relative to the first's length, and that name."""
    names = [name for name in left if left[name].is_floating_point()]
    return max((float((left[name] - right[name]).norm() / left[name].norm().clamp(min=1e-6)), name) for name in names)


def equality(config: AgentConfig, variant: dict[str, bool], device: str = "cuda") -> dict[str, Any]:
    """Compare 100 captured updates with eager ones, then a batch of NaN, then a checkpoint carried on."""
    eager, agent = make_agent(config, device=device), make_agent(config, device=device)
    start = time.perf_counter()
    captured = CapturedUpdates(agent, config.batch_size, max_updates=10, **variant)
    found: dict[str, Any] = {"capture_s": time.perf_counter() - start}
    left, right = eager.state_dict(), agent.state_dict()
    found["capturing_changes_nothing"] = is_same(left, right, set(left))
    batches, worst = random_batches(10, config.batch_size, device), 0.0
    for _ in range(10):
        ours = [eager.update(batch, diagnostics=k == 9) for k, batch in enumerate(batches)]
        theirs = captured.update_on(joined(batches))
        for name in (name for name in theirs if "/loss" in name):
            mean = sum(float(metrics[name]) for metrics in ours) / len(ours)
            worst = max(worst, abs(mean - theirs[name]) / max(abs(mean), 1e-6))
    found["relative_difference_of_losses"] = worst
    left, right = eager.state_dict(), agent.state_dict()
    found["difference_of_tensors"] = largest_difference(left, right)
    networks = (
        {name: tensor for name, tensor in each.items() if name.startswith("networks.")} for each in (left, right)
    )
    found["relative_difference_of_networks"] = largest_relative_difference(*networks)
    found["bitwise"] = is_same(left, right, set(left))
    found["generator_and_counters_equal"] = is_same(left, right, {"generator", *COUNTERS})

    captured.update_on(joined([spoilt(batch) for batch in batches[:4]]))
    skipped = agent.state_dict()
    found["nan_changes_nothing"] = is_same(right, skipped, right.keys() - {"generator", *COUNTERS})
    found["nan_is_counted"] = [int(skipped[name]) for name in COUNTERS] == [104, 4, 4]

    fresh = CapturedUpdates(make_agent(config, seed=5, device=device), config.batch_size, max_updates=10, **variant)
    fresh.agent.load_state_dict(skipped)
    eager.load_state_dict(skipped)
    same_metrics = captured.update_on(joined(batches)) == fresh.update_on(joined(batches))
    for batch in batches:
        eager.update(batch, diagnostics=False)
    left, right = agent.state_dict(), fresh.agent.state_dict()
    found["checkpoint_goes_on_bitwise"] = same_metrics and is_same(left, right, set(left))
    found["checkpoint_goes_on_eagerly_within"] = largest_difference(left, eager.state_dict())
    published = captured.policy_state()
    found["published_policy_is_the_agents"] = is_same(agent.policy.policy_state(), published, set(published))
    return found


def kernels(call: Callable[[], object], calls: int = 5) -> dict[str, Any]:
    """Return kernels and milliseconds of the device of one call, the milliseconds from first to last, and by name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in events:
        by_name[event.name].append(event.device_time)
    names = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    span = max(event.time_range.end for event in events) - min(event.time_range.start for event in events)
    return {
        "kernels": len(events) / calls,
        "device_ms": sum(event.device_time for event in events) / calls / 1e3,
        "span_ms": span / calls / 1e3,
        "by_name": [(name, len(times) / calls, sum(times) / calls) for name, times in names],  # number and us a call
    }


def per_update(found: dict[str, float]) -> dict[str, float]:
    """Return a rate of calls as one of updates."""
    return {name: value if name == "n" else value * UPDATES for name, value in found.items()}


def updates(bootstrap: str, precision: str) -> dict[str, Any]:
    """Return updates per second: eager and captured from a resident table, by variant; and kernels of the last."""
    torch.set_float32_matmul_precision(PRECISIONS[precision])
    config = AgentConfig.preset("paper", bootstrap=bootstrap)
    host = {name: column.numpy() for name, column in joined(random_batches(UPDATES, config.batch_size, "cpu")).items()}
    on_device, agent = random_batches(8, config.batch_size, "cuda"), make_agent(config)
    rows = joined(random_batches(TABLE_ROWS // 1000, 1000, "cuda"))
    index = torch.randint(TABLE_ROWS, (UPDATES, config.batch_size), device="cuda")
    found = {"eager": rate(lambda i: agent.update(on_device[i % 8], diagnostics=False), 2, 0.4)}
    for name, variant in VARIANTS.items():
        captured = CapturedUpdates(make_agent(config), config.batch_size, UPDATES, TABLE_ROWS, **variant)
        captured.load(rows)
        found[name] = per_update(rate(lambda _, captured=captured: captured.run(index), 3, 0.3))
    found["both, host rows"] = per_update(rate(lambda _: captured.update_on(host), 3, 0.3))
    captured._position.zero_()
    found |= kernels(captured._graphs[False].replay)
    torch.set_float32_matmul_precision("highest")
    return found


def first(batches: list[Batch], count: int) -> Batch:
    return joined(batches[:count])


def seeds(bootstrap: str, precision: str, device: str = "cuda", **changes: Any) -> dict[str, Any]:
    """Return steps per second of stacked agents by their number, an update of each a step, and their differences.

    Each agent has a seed and batches of its own, from the host, and is compared with its own eager updates.
    """
    torch.set_float32_matmul_precision(PRECISIONS[precision])
    config, found = AgentConfig.preset("paper", bootstrap=bootstrap, **changes), {}
    batches = random_batches(UPDATES, config.batch_size, device)
    for count in SEEDS:
        members = [make_agent(config, seed, device) for seed in range(count)]
        start = time.perf_counter()
        stacked = StackedUpdates(members, config.batch_size, UPDATES)
        row: dict[str, Any] = {"capture_s": time.perf_counter() - start}
        own = [batches[seed:] + batches[:seed] for seed in range(count)]
        columns = [joined(each) for each in own]
        stacked.update_on(columns)
        worst = 0.0
        for seed, agent in enumerate(members[-2:], start=max(0, count - 2)):
            eager = make_agent(config, seed, device)
            for batch in own[seed]:
                eager.update(batch, diagnostics=False)
            left, right = (
                {name: tensor for name, tensor in each.state_dict().items() if name.startswith("networks.")}
                for each in (eager, agent)
            )
            worst = max(worst, largest_relative_difference(left, right)[0])
        row["relative_difference_of_networks"] = worst
        kept = members[0].state_dict()
        stacked.update_on([joined([spoilt(batch) for batch in own[0][:4]]), *(first(each, 4) for each in own[1:])])
        after = members[0].state_dict()
        row["nan_changes_nothing"] = is_same(kept, after, kept.keys() - {"generator", *COUNTERS})
        row["nan_is_one_members"] = [agent.skipped_updates for agent in members] == [4] + [0] * (count - 1)
        row["steps/s"] = per_update(rate(lambda _, call=stacked, on=columns: call.update_on(on), 3, 0.3))
        if device == "cuda":
            stacked._position.zero_()
            row |= kernels(stacked._graphs[False].replay)
        found[str(count)] = row
    torch.set_float32_matmul_precision("highest")
    return found


def graph_us(call: Callable[[], object], repeats: int = 50) -> float:
    """Return the microseconds of one call in a graph that holds many, one after the other."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / repeats)
    return min(times)


def parts() -> dict[str, float]:
    """Return microseconds of the parts of an update at 3 x 512, each alone in a graph."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda")

    found = {}
    for precision, name in PRECISIONS.items():
        torch.set_float32_matmul_precision(name)
        for members, rows in ((1, 256), (2, 256)):
            x, w, y = normal(members, rows, 512), normal(members, 512, 512), normal(members, rows, 512)
            b = normal(members, 1, 512)
            what = f"{precision} [{members},{rows},512]"
            found[f"{what} bmm"] = graph_us(lambda x=x, w=w: torch.bmm(x, w))
            found[f"{what} baddbmm with bias"] = graph_us(lambda x=x, w=w, b=b: torch.baddbmm(b, x, w))
            found[f"{what} gradient of the input"] = graph_us(lambda y=y, w=w: torch.bmm(y, w.transpose(1, 2)))
            found[f"{what} gradient of the kernel"] = graph_us(lambda x=x, y=y: torch.bmm(x.transpose(1, 2), y))
        found |= {f"{precision} {what}": us for what, us in fused_parts().items()}
    torch.set_float32_matmul_precision("highest")
    x, scale, shift, scalar = normal(2, 256, 512), normal(2, 1, 512), normal(2, 1, 512), normal(1)[0]
    found["[2,256,512] GELU"] = graph_us(lambda: F.gelu(x, approximate="tanh"))
    found["[2,256,512] layer norm"] = graph_us(lambda: F.layer_norm(x, (512,)))
    found["[2,256,512] addcmul"] = graph_us(lambda: torch.addcmul(shift, x, scale))
    found["[2,256,512] sum over rows"] = graph_us(lambda: x.sum(dim=1, keepdim=True))
    found["[2,256,512] multiply"] = graph_us(lambda: x * x)
    found["scalar add"] = graph_us(lambda: scalar + 1.0)
    return found | parameter_parts()


def fused_parts() -> dict[str, float]:
    """Return microseconds of the fused kernels at 3 x 512, and of the sampler as torch does it."""
    from dipole_ray.agents import fused

    agent = make_agent(AgentConfig.preset("paper"))
    fields = agent.networks.fields
    noise, observations = torch.randn(256, 1, 5, device="cuda"), torch.randn(256, 28, device="cuda")
    found = {}
    with torch.no_grad():
        for name, kernels_of in {"torch": None, "fused": fused}.items():
            token = FUSED.set(kernels_of)
            call = lambda: flow.generate(fields, observations, noise, ["positive"], 10)  # noqa: E731
            found[f"sampler of 10 steps, {name}"] = graph_us(call, repeats=5)
            FUSED.reset(token)
        (kernels, biases), layer = fields.layers_of(["positive"]), torch.randn(1, 256, 512, device="cuda")
        for tile, depth, warps in ((32, 64, 4), (32, 128, 4), (32, 64, 2), (64, 64, 4), (16, 128, 2)):
            for kind in ("tf32",) if torch.get_float32_matmul_precision() == "high" else ("ieee", "tf32x3"):
                grid, out = (-(-256 // tile), -(-512 // tile), 1), torch.empty_like(layer)
                options = {"WIDTH": 512, "H": 512, "TILE": tile, "DEPTH": depth, "PRECISION": kind, "num_warps": warps}
                found[f"product + bias + GELU, tile {tile}, depth {depth}, {warps} warps, {kind}"] = attempt_us(
                    lambda grid=grid, out=out, options=options: fused._dense[grid](
                        layer, kernels[1], biases[1], out, 256, **options
                    )
                )
        z, one = torch.randn(2, 256, 512, device="cuda"), torch.randn(2, 1, 512, device="cuda")
        found["[2,256,512] bias + GELU + norm"] = graph_us(lambda: fused.activate(z, one, one, one, 1e-6))
    return found


def attempt_us(call: Callable[[], object]) -> float:
    """Return what `graph_us` does, or NaN for a shape that the device has no room for."""
    try:
        return graph_us(call)
    except Exception:
        traceback.print_exc()
        return float("nan")


def parameter_parts() -> dict[str, float]:
    """Return microseconds of what goes over all parameters, flat and by parameter."""
    agent = make_agent(AgentConfig.preset("paper"))
    tensors = agent._parameters
    found = {}
    gradients = [torch.randn_like(tensor) for tensor in tensors]
    steps = [agent.optimizer.state[tensor]["step"] for tensor in tensors]
    moments = [[agent.optimizer.state[tensor][kind] for tensor in tensors] for kind in ("exp_avg", "exp_avg_sq")]
    rest = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8}
    rest |= {"amsgrad": False, "maximize": False}
    with torch.no_grad():
        found["Adam by parameter"] = graph_us(
            lambda: torch._fused_adam_(list(tensors), gradients, *moments, [], steps, **rest)
        )
        found["norm by parameter"] = graph_us(lambda: torch.nn.utils.get_total_norm(gradients))
        flat = [state.flatten(part) for part in (tensors, gradients, *moments)]
        found["Adam, flat"] = graph_us(lambda: torch._fused_adam_(*([each] for each in flat), [], steps[:1], **rest))
        found["norm, flat"] = graph_us(lambda: torch.linalg.vector_norm(flat[1]))
        found["copy of the gradients, flat"] = graph_us(lambda: torch._foreach_copy_(gradients, moments[0]))
        from dipole_ray.agents import fused

        group, one = agent.optimizer.param_groups[0], torch.ones((), device="cuda")
        place = flat[1].clone()[: len(flat[0]) // 3], 0, 0.005, False
        found["Adam + Polyak, fused"] = graph_us(
            lambda: fused.adam(flat[0], flat[1], (flat[2], flat[3]), steps[:1][0], one - 1.0, place, group)
        )
        weight = torch.tensor(0.005, device="cuda")
        critics = flat[0][: len(flat[0]) // 2]
        found["Polyak, flat"] = graph_us(lambda: flat[1][: len(critics)].lerp_(critics, weight))
        scattered = [torch.randn_like(tensor) for tensor in tensors]
        found["copy of the gradients from apart"] = graph_us(lambda: torch._foreach_copy_(gradients, scattered))
    return found


def publishing() -> dict[str, Any]:
    """Return the milliseconds until the host has the policy."""
    agent = make_agent(AgentConfig.preset("paper"))
    found = {"tensor by tensor": latencies(agent.policy.policy_state, calls=50)}
    captured = CapturedUpdates(agent, 256, UPDATES)
    return found | {"one flat pinned copy": latencies(captured.policy_state, calls=50)}


def attempt(what: str, part: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a part found; of one that fails print the traceback, and return its last line."""
    start = time.perf_counter()
    if start - BEGIN > SECONDS:
        return {"failed": "no time was left"}
    try:
        found = part(*arguments)
    except Exception as error:  # a part that fails must not hide the others
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"}
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)
    return found


def print_seeds(result: dict[str, Any]) -> None:
    """Print the stacked agents: steps of all per second, and how much longer one takes than with one agent."""
    print("\nstacked agents, rows from the host: steps/s (an update of each), time of a step against one agent's")
    for bootstrap, found in result.items():
        for precision, row in found.items():
            if "failed" in row:
                print(f"{bootstrap} {precision} {row}")
                continue
            one = row[str(SEEDS[0])]["steps/s"]["median"]
            for count, each in row.items():
                speed = each["steps/s"]
                checks = {name: value for name, value in each.items() if name not in ("steps/s", "by_name")}
                print(
                    f"{bootstrap:7}{precision:9}{count:>3} agents {speed['median']:.0f} [{speed['min']:.0f}, "
                    f"{speed['max']:.0f}] steps/s, {one / speed['median']:.2f} times the time; {checks}"
                )


def print_tables(result: dict[str, Any]) -> None:
    """Print all that was found."""
    for name, found in result["equality"].items():
        print(f"{name}: " + ", ".join(f"{what} {value}" for what, value in found.items()))
    columns = ("eager", *VARIANTS, "both, host rows")
    print("\nupdates/s, median [min, max]; 3 x 512, batch 256; one seed")
    print(f"{'':16}" + "".join(f"{name:>22}" for name in (*columns, "kernels", "device ms", "span ms")))
    for bootstrap, found in result["updates"].items():
        for precision, row in found.items():
            if "failed" in row:
                print(f"{bootstrap} {row}")
                continue
            cells = [f"{row[key]['median']:.0f} [{row[key]['min']:.0f}, {row[key]['max']:.0f}]" for key in columns]
            cells += [f"{row['kernels']:.1f}", f"{row['device_ms']:.3f}", f"{row['span_ms']:.3f}"]
            print(f"{bootstrap:7}{precision:9}" + "".join(f"{cell:>22}" for cell in cells))
    print_seeds(result["seeds"])
    print("\nkernels of both, fused and side by side")
    for bootstrap, found in result["updates"].items():
        for name, number, us in found["tf32"].get("by_name", [])[:24]:
            print(f"{bootstrap:7}{number:6.1f} x {us / number:6.2f} us = {us:6.1f} us  {name[:110]}")
    print("\nmicroseconds in a graph")
    for name, us in result["parts"].items():
        print(f"  {name:52} {us if isinstance(us, str) else round(us, 2)}")
    for name, found in result["publishing_ms"].items():
        print(f"publishing, {name}: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--seeds-on", metavar="DEVICE", help="the stacked agents alone; on cpu with small networks and without graphs"
    )
    arguments = parser.parse_args()
    out = arguments.out
    if arguments.seeds_on is not None:
        torch.set_num_threads(1)
        small = {"hidden_dims": (32, 32), "batch_size": 32} if arguments.seeds_on == "cpu" else {}
        print_seeds(
            {
                bootstrap: {
                    precision: seeds(bootstrap, precision, arguments.seeds_on, **small) for precision in PRECISIONS
                }
                for bootstrap in ("value", "policy")
            }
        )
        return
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks.gpu.check",
        "gpu": torch.cuda.get_device_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        "commit": commit or None,
        "sizes": {"hidden_dims": [512] * 3, "batch_size": 256, **SCHEMA.to_json()},
        "updates": {
            bootstrap: {
                precision: attempt(f"{bootstrap}, {precision}", updates, bootstrap, precision)
                for precision in PRECISIONS
            }
            for bootstrap in ("value", "policy")
        },
        "seeds": {
            bootstrap: {
                precision: attempt(f"seeds, {bootstrap}, {precision}", seeds, bootstrap, precision)
                for precision in PRECISIONS
            }
            for bootstrap in ("value", "policy")
        },
        "equality": {
            f"{name}, {variant}": attempt(f"{name}, {variant}", equality, config, VARIANTS[variant])
            for name, config in AGENTS.items()
            for variant in ("side by side", "both")
        },
        "parts": attempt("parts", parts),
        "publishing_ms": attempt("publishing", publishing),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"gpu_check-{result['date']}.json").write_text(json.dumps(result, indent=1) + "\n")
    print_tables(result)


if __name__ == "__main__":
    main()
