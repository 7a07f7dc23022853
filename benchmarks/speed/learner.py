"""Measure an agent's compiled updates on a CPU against its readable ones, side by side, idle and beside a busy process.

    python -m benchmarks.speed.learner --json benchmarks/results/speed_learner-2026-11-27.json

Both start from the same weights and take the same batches and noise. Rounds alternate, so that a change of the
machine's load meets both. One thread is counted in updates per second of its processor time, which a neighbour takes
little of; two threads per second of the clock. `--neighbour` also alternates rounds with a process beside them that
computes without end: two threads that share two cores with it and lose their share alone keep two thirds.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.learner_speed import random_batches
from benchmarks.record import write_json
from benchmarks.speed.timing import spread
from dipole_ray.agents.dipole import DipoleAgent, DipoleConfig
from dipole_ray.columns import Schema

SIZES = {"2x128": (128, 128), "3x512": (512, 512, 512)}
SCHEMA = Schema(28, 5)
Update = Callable[[int], object]


def twins(size: str, bootstrap: str, threads: int, with_jax: bool, with_bf16: bool) -> dict[str, Update]:
    """Return a readable and a compiled agent's updates, and JAX's; they are checked to differ by rounding."""
    config = DipoleConfig.preset("paper", hidden_dims=SIZES[size], bootstrap=bootstrap)
    readable, compiled, halved = (DipoleAgent(config, SCHEMA, seed=0) for _ in range(3))
    if not compiled.compile(threads):
        raise SystemExit("error: numba cannot compile here; see the warning above")
    batches = random_batches(readable, 8)
    for batch in batches[:3]:
        left, right = (agent.update(batch, diagnostics=False) for agent in (readable, compiled))
        for name, value in left.items():
            if "loss" in name and abs(float(right[name]) - float(value)) > 1e-4 * abs(float(value)):
                raise SystemExit(f"error: {name} is {float(right[name])}, but {float(value)} without compiling")

    def updates(agent: DipoleAgent) -> Update:
        return lambda number: agent.update(batches[number % len(batches)], diagnostics=False)

    found = {"readable": updates(readable), "compiled": updates(compiled)}
    if with_bf16:
        halved.compile(threads, "bf16")
        found["bf16"] = updates(halved)
    return found | {"jax": jax_updates(config, batches, threads)} if with_jax else found


def jax_updates(config: DipoleConfig, batches: list[dict[str, torch.Tensor]], threads: int) -> Update:
    """Return the updates of the same agent in JAX, checked as the others; its noise is drawn beforehand."""
    os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()}")
    from benchmarks.speed.jax_learner import JaxLearner, draw

    agent, generator = DipoleAgent(config, SCHEMA, seed=0), torch.Generator()
    learner = JaxLearner(agent)
    generator.set_state(agent.generator.get_state())
    noise = [draw(agent, generator) for _ in batches]
    plain = [{name: column.numpy() for name, column in batch.items()} for batch in batches]
    for number in range(3):
        left, right = agent.update(batches[number], diagnostics=False), learner.update(plain[number], noise[number])
        for name, value in right.items():
            if abs(float(left[name]) - float(value)) > 1e-4 * abs(float(value)):
                raise SystemExit(f"error: {name} is {float(value)} in JAX, but {float(left[name])} in torch")
    return lambda number: learner.update(plain[number % 8], noise[number % 8])["critic/loss"].block_until_ready()


def rate(update: Update, seconds: float, clock: Callable[[], float]) -> float:
    """Return updates per second of a clock, over at least so many seconds of the wall's, and two updates."""
    start, until, done = clock(), time.perf_counter() + seconds, 0
    while time.perf_counter() < until or done < 2:
        update(done)
        done += 1
    return done / (clock() - start)


@contextmanager
def neighbour() -> Iterator[Callable[[bool], None]]:
    """Start a process that computes without end, stopped at first; the function lets it go on or stops it."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        process.send_signal(signal.SIGSTOP)
        try:
            yield lambda busy: process.send_signal(signal.SIGCONT if busy else signal.SIGSTOP)
        finally:
            process.kill()


def measure(
    size: str, bootstrap: str, threads: int, rounds: int, seconds: float, busy: bool, with_jax: bool, with_bf16: bool
) -> dict[str, Any]:
    """Return rates of both ways, and the ratios of neighbouring rounds; of compiled to readable, of busy to idle."""
    torch.set_num_threads(threads)
    update = twins(size, bootstrap, threads, with_jax, with_bf16)
    clock = time.process_time if threads == 1 else time.perf_counter
    found: dict[str, list[float]] = {}
    with neighbour() as beside:
        for _ in range(rounds):
            for is_busy in (False, True) if busy else (False,):
                beside(is_busy)
                for way, step in update.items():
                    found.setdefault(f"{way}, busy" if is_busy else way, []).append(rate(step, seconds, clock))
            beside(False)

    def ratio(above: str, below: str) -> dict[str, Any]:
        return spread([x / y for x, y in zip(found[above], found[below], strict=True)])

    ratios = {"compiled / readable": ratio("compiled", "readable")}
    if with_bf16:
        ratios |= {"bf16 / readable": ratio("bf16", "readable"), "bf16 / compiled": ratio("bf16", "compiled")}
    if with_jax:
        ratios["compiled / jax"] = ratio("compiled", "jax")
    if busy:
        ratios |= {f"{way}: busy / idle": ratio(f"{way}, busy", way) for way in update}
        ratios["busy: compiled / readable"] = ratio("compiled, busy", "readable, busy")
    rates = {name: spread(values) for name, values in found.items()}
    return {"size": size, "bootstrap": bootstrap, "threads": threads, "rates": rates, "ratios": ratios}


def show(row: dict[str, Any]) -> str:
    rates = [
        f"{name} {value['median']:.1f} [{value['min']:.1f}, {value['max']:.1f}]" for name, value in row["rates"].items()
    ]
    ratios = [
        f"{name} {value['median']:.2f} [{value['min']:.2f}, {value['max']:.2f}]"
        for name, value in row["ratios"].items()
    ]
    return f"{row['size']} {row['bootstrap']}, {row['threads']} thread(s): {'; '.join(rates)} | {'; '.join(ratios)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--bootstraps", nargs="+", choices=("value", "policy"), default=["value", "policy"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one way's round")
    parser.add_argument("--neighbour", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="also with `learner.matmul_precision: bf16`")
    parser.add_argument("--jax", action="store_true", help="also against JAX; needs the extra `jax`")
    args = parser.parse_args()
    rows = []
    for size in args.sizes:
        for bootstrap in args.bootstraps:
            how = args.threads, args.rounds, args.seconds, args.neighbour, args.jax, args.bf16
            rows.append(measure(size, bootstrap, *how))
            print(show(rows[-1]), flush=True)
    unit = "updates per second of " + ("a core" if args.threads == 1 else "the clock")
    command = f"python -m benchmarks.speed.learner {' '.join(sys.argv[1:])}"
    write_json(args.json, command, {"unit": unit, "load": os.getloadavg(), "rows": rows})


if __name__ == "__main__":
    main()
