"""Check the captured updates on a GPU against the eager agent, then measure them; a part that fails says so.

python -m benchmarks.gpu.check --out benchmarks/results

Triton takes most of a second to compile a kernel, and keeps it on disk; so processes side by side go through every
part once, before one of them measures.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.attempt import BEGIN, attempt, provenance
from benchmarks.gpu.eager import SCHEMA, Batch, latencies, random_batches, rate
from benchmarks.gpu.parts import PRECISIONS, fused_parts, make_agent, parts
from dipole_ray.agents import fused_layers
from dipole_ray.agents.agent import COUNTERS
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.fused_layers import Tile

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
    "both": {"fused": True, "side_by_side": True},
}
OTHER_TILES = [
    (1, "hidden", Tile(32, 64, 64, 4)),
    (1, "kernel", Tile(32, 32, 64, 4)),
    (8, "hidden", Tile(64, 64, 32, 2)),
    (8, "kernel", Tile(64, 64, 32, 2)),
    (8, "input", Tile(128, 128, 32, 8)),
]
"""For so many agents, in place of those that `fused_layers` chooses for a product in TF32."""
SEEDS = 1, 8
WARM_S = 60
"""How long the processes that compile may take."""


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
    captured = CapturedUpdates([agent], config.batch_size, max_updates=10, **variant)
    found: dict[str, Any] = {"capture_s": time.perf_counter() - start}
    left, right = eager.state_dict(), agent.state_dict()
    found["capturing_changes_nothing"] = is_same(left, right, set(left))
    batches, worst = random_batches(10, config.batch_size, device), 0.0
    for _ in range(10):
        ours = [eager.update(batch, diagnostics=k == 9) for k, batch in enumerate(batches)]
        (theirs,) = captured.update_on([joined(batches)])
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

    captured.update_on([joined([spoilt(batch) for batch in batches[:4]])])
    skipped = agent.state_dict()
    found["nan_changes_nothing"] = is_same(right, skipped, right.keys() - {"generator", *COUNTERS})
    found["nan_is_counted"] = [int(skipped[name]) for name in COUNTERS] == [104, 4, 4]

    fresh = CapturedUpdates([make_agent(config, seed=5, device=device)], config.batch_size, max_updates=10, **variant)
    fresh.agents[0].load_state_dict(skipped)
    eager.load_state_dict(skipped)
    same_metrics = captured.update_on([joined(batches)]) == fresh.update_on([joined(batches)])
    for batch in batches:
        eager.update(batch, diagnostics=False)
    left, right = agent.state_dict(), fresh.agents[0].state_dict()
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
        # Number and us a call.
        "by_name": [(name[:160], len(times) / calls, sum(times) / calls) for name, times in names],
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
    index = torch.randint(TABLE_ROWS, (UPDATES, 1, config.batch_size), device="cuda")
    found = {"eager": rate(lambda i: agent.update(on_device[i % 8], diagnostics=False), 1, 0.3)}
    for name, variant in VARIANTS.items():
        captured = CapturedUpdates([make_agent(config)], config.batch_size, UPDATES, TABLE_ROWS, **variant)
        captured.load([rows])
        found[name] = per_update(rate(lambda _, captured=captured: captured.run(index), 2, 0.3))
    found["both, host rows"] = per_update(rate(lambda _: captured.update_on([host]), 2, 0.3))
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
        stacked = CapturedUpdates(members, config.batch_size, UPDATES)
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
        row["steps/s"] = per_update(rate(lambda _, call=stacked, on=columns: call.update_on(on), 2, 0.3))
        if device == "cuda":
            stacked._position.zero_()
            row |= kernels(stacked._graphs[False].replay)
        found[str(count)] = row
    torch.set_float32_matmul_precision("highest")
    return found


def tiles() -> dict[str, Any]:
    """Return steps per second of one agent and of many, and with other tiles for a product, in TF32."""
    torch.set_float32_matmul_precision("high")
    found = {f"{count} agents": attempt(f"{count} agents", speed_of, count) for count in SEEDS}
    for number, (count, product, tile) in enumerate(OTHER_TILES):
        what = f"{count} agents, {product} {tuple(tile)}"
        with other_tile(number):
            found[what] = attempt(what, speed_of, count)
    torch.set_float32_matmul_precision("highest")
    return found


@contextmanager
def other_tile(number: int) -> Iterator[None]:
    """Compute a product by one of `OTHER_TILES` in this block."""
    _, product, tile = OTHER_TILES[number]
    kept = fused_layers.TILES[product, "tf32"]
    fused_layers.TILES[product, "tf32"] = {math.inf: tile}
    try:
        yield
    finally:
        fused_layers.TILES[product, "tf32"] = kept


def speed_of(count: int) -> dict[str, float]:
    """Return the steps per second of so many agents with the value bootstrap, from a resident table."""
    config = AgentConfig.preset("paper", bootstrap="value")
    captured = CapturedUpdates([make_agent(config, seed) for seed in range(count)], config.batch_size, UPDATES)
    rows = joined(random_batches(UPDATES, config.batch_size, "cuda"))
    captured.load([rows] * count)
    index = torch.randint(UPDATES * config.batch_size, (UPDATES, count, config.batch_size), device="cuda")
    return per_update(rate(lambda _: captured.run(index), 2, 0.2))


def warm_up(what: str) -> None:
    """Compile the kernels of some parts."""
    kind, *names = what.split()
    if kind == "tile":
        torch.set_float32_matmul_precision("high")
        with other_tile(int(names[0])):
            speed_of(OTHER_TILES[int(names[0])][0])
    elif kind == "parts":
        torch.set_float32_matmul_precision(PRECISIONS[names[0]])
        fused_parts()
    elif kind == "agents":
        for config in AGENTS.values():
            CapturedUpdates([make_agent(config)], config.batch_size, 1)
    else:
        torch.set_float32_matmul_precision(PRECISIONS[names[0]])
        config = AgentConfig.preset("paper", bootstrap=kind)
        for count in SEEDS:
            CapturedUpdates([make_agent(config) for _ in range(count)], config.batch_size, 1)


def warm_up_all(with_parts: bool) -> None:
    """Compile everything, in processes side by side."""
    what = [f"{bootstrap} {precision}" for bootstrap in ("value", "policy") for precision in PRECISIONS]
    what += [f"tile {number}" for number in range(len(OTHER_TILES))]
    what += ["agents", *(f"parts {precision}" for precision in PRECISIONS if with_parts)]
    command = [sys.executable, "-m", "benchmarks.gpu.check", "--warm-up"]
    with tempfile.TemporaryDirectory() as folder:
        said = [(Path(folder) / str(number)).open("w+") for number in range(len(what))]
        processes = [
            subprocess.Popen([*command, each], stdout=file, stderr=file) for each, file in zip(what, said, strict=True)
        ]
        for each, process, file in zip(what, processes, said, strict=True):
            try:
                code = process.wait(max(0.1, BEGIN + WARM_S - time.perf_counter()))
                print(f"compiled {each}: exit {code}, {time.perf_counter() - BEGIN:.1f} s after the beginning")
            except subprocess.TimeoutExpired:
                process.kill()
                print(f"not compiled in {WARM_S} s: {each}")
            file.seek(0)
            print(file.read()[-1500:], end="", flush=True)


def publishing() -> dict[str, Any]:
    """Return the milliseconds until the host has the policy."""
    agent = make_agent(AgentConfig.preset("paper"))
    found = {"tensor by tensor": latencies(agent.policy.policy_state, calls=50)}
    captured = CapturedUpdates([agent], 256, UPDATES)
    return found | {"one flat pinned copy": latencies(captured.policy_state, calls=50)}


def print_seeds(result: dict[str, Any]) -> None:
    """Print steps of many agents per second, how much longer one takes than with one agent, and updates of all."""
    print("\nagents in one step, rows from the host: steps/s, time of a step against one agent's, updates/s of all")
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
                    f"{speed['max']:.0f}] steps/s, {one / speed['median']:.2f} times the time, "
                    f"{int(count) * speed['median']:.0f} updates/s of all; {checks}"
                )


def print_kernels(title: str, by_name: list[tuple[str, float, float]]) -> None:
    """Print the kernels that take longest."""
    print(f"\nkernels of {title}")
    for name, number, us in by_name[:32]:
        print(f"{number:6.1f} x {us / number:6.2f} us = {us:6.1f} us  {name[:110]}")


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
                print(f"{bootstrap} {precision} {row}")
                continue
            cells = [f"{row[key]['median']:.0f} [{row[key]['min']:.0f}, {row[key]['max']:.0f}]" for key in columns]
            cells += [f"{row['kernels']:.1f}", f"{row['device_ms']:.3f}", f"{row['span_ms']:.3f}"]
            print(f"{bootstrap:7}{precision:9}" + "".join(f"{cell:>22}" for cell in cells))
    print_seeds(result["seeds"])
    for bootstrap in ("value", "policy"):
        print_kernels(f"{bootstrap}, tf32, one agent", result["updates"][bootstrap]["tf32"].get("by_name", []))
        many = result["seeds"][bootstrap]["tf32"].get(str(max(SEEDS)), {})
        print_kernels(f"{bootstrap}, tf32, {max(SEEDS)} agents", many.get("by_name", []))
    print("\nsteps/s from a resident table, value bootstrap, tf32, and with another tile for a product")
    for name, speed in result["tiles"].items():
        print(f"  {name}: {speed}")
    print("\nmicroseconds in a graph")
    for name, us in result["parts"].items():
        print(f"  {name:52} {us if isinstance(us, str) else round(us, 2)}")
    for name, found in result["publishing_ms"].items():
        print(f"publishing, {name}: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--parts", action="store_true", help="also time the parts of an update, by the tiles of products"
    )
    parser.add_argument("--warm-up", metavar="PART", help="compile the kernels of a part, and end")
    arguments = parser.parse_args()
    out = arguments.out
    if arguments.warm_up is not None:
        warm_up(arguments.warm_up)
        return
    result: dict[str, Any] = {
        **provenance("python -m benchmarks.gpu.check"),
        "sizes": {"hidden_dims": [512] * 3, "batch_size": 256, **SCHEMA.to_json()},
    }
    warm_up_all(arguments.parts)
    for name, part in {"updates": updates, "seeds": seeds}.items():
        result[name] = {
            bootstrap: {
                precision: attempt(f"{name}, {bootstrap}, {precision}", part, bootstrap, precision)
                for precision in reversed(PRECISIONS)
            }
            for bootstrap in ("value", "policy")
        }
    result["tiles"] = attempt("tiles", tiles)
    result["equality"] = {}
    for variant in ("both", "side by side"):
        for name, config in AGENTS.items():
            what = f"{name}, {variant}"
            result["equality"][what] = attempt(what, equality, config, VARIANTS[variant])
    result["publishing_ms"] = attempt("publishing", publishing)
    result["parts"] = attempt("parts", parts) if arguments.parts else {}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"gpu_check-{result['date']}.json").write_text(json.dumps(result, indent=1) + "\n")
    print_tables(result)


if __name__ == "__main__":
    main()
