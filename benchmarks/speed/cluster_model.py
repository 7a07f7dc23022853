"""What a cluster would do: environment steps a second, and what is used up first, for W workers and G learners.

    python -m benchmarks.speed.cluster_model --workers 16 128 1024 --learners 1 8 --act-ms 4.4 --env-ms 0.2
    python -m benchmarks.speed.cluster_model --check --json benchmarks/results/cluster_model-2026-11-27.json

The rates are those measured on the machines in question: `benchmarks.speed.acting` and `dipole latency` give --act-ms,
`benchmarks.learner_speed` or `benchmarks/gpu/check.sh` --update-ms. A bound is what one part alone would allow:

    workers    W n / (act + n env + wait)    n environments a worker, stepped in turn after one call of the policy; and
                                             what a worker waits between two fragments, a call's share of it
    cores      cores / core-seconds a step   where the workers share them; --cores 0: each has its own
    learners   1 / (update / G + reduce)     updates a second, by the ratio of updates to steps
    driver     n fragment_steps / driver     what the one process that asks, inserts and asks again spends on a fragment
    network    what is left of it beside the weights, by the bytes of a step and of its batches

--check measures the rates of this machine with one worker's loop and a run of one worker, then runs DIPOLE with 1, 2, 4
and 8 workers whose environments only sleep, and prints the model beside it.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.record import write_json

ENV = "benchmarks.speed.sleeping:Sleeping-v0"


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What was measured, and how the run is set up."""

    act_ms: float = 4.4  # one call of the policy for the environments of a worker
    env_ms: float = 0.2  # one step of one environment
    worker_core_ms: float = 0.0  # of a core, of one call and the steps after it; 0: all of their time
    envs_per_worker: int = 4
    fragment_steps: int = 64  # of each environment
    wait_ms: float = 0.0  # of a worker between two fragments
    update_ms: float = 0.5
    reduce_ms: float = 10.0  # of an update, to average the gradients of several learners
    ratio: float = 1.0  # updates a step
    driver_ms: float = 1.5  # of a fragment
    cores: float = 0.0
    step_bytes: float = 148.0
    batch_bytes: float = 67_000.0
    weights_mb: float = 8.7
    publish_s: float = 0.5
    nodes: int = 1
    network_mb_s: float = 1000.0


def bounds(rates: Rates, workers: int, learners: int) -> dict[str, float]:
    """Return the environment steps a second that each part alone would allow."""
    envs, ratio = rates.envs_per_worker, rates.ratio
    call_ms = rates.act_ms + envs * rates.env_ms + rates.wait_ms / rates.fragment_steps
    found = {"workers": 1e3 * workers * envs / call_ms}
    if rates.cores:
        found["cores"] = 1e3 * rates.cores * envs / (rates.worker_core_ms or call_ms)
    if ratio:
        update_ms = rates.update_ms / learners + (rates.reduce_ms if learners > 1 else 0.0)
        found["learners"] = 1e3 / update_ms / ratio
    found["driver"] = 1e3 * envs * rates.fragment_steps / rates.driver_ms
    left = 1e6 * (rates.network_mb_s - rates.weights_mb * (rates.nodes - 1) / rates.publish_s)
    # A row goes from its worker to the driver and on to the replay; every learner gets the whole batch.
    found["network"] = max(0.0, left) / (2 * rates.step_bytes + ratio * learners * rates.batch_bytes)
    return found


def first_used_up(found: dict[str, float]) -> tuple[float, str]:
    """Return the steps a second, and the part that allows no more."""
    part = min(found, key=lambda name: found[name])
    return found[part], part


def config(workers: int, rates: Rates) -> Any:
    """Return a DIPOLE whose workers step sleeping environments, without updates."""
    from dipole_ray import DIPOLEConfig

    made = DIPOLEConfig().environment(ENV, env_config={"kwargs": {"sleep_s": rates.env_ms / 1e3}})
    made = made.training(preset="small", num_candidates=1, offline_learner_steps=0, online_env_steps=10**6)
    made = made.training(updates_per_env_step=0.0, env_steps_per_iteration=1, replay_capacity=100_000)
    return made.env_runners(
        num_env_runners=workers,
        num_cpus_per_env_runner=0.1,
        num_envs_per_env_runner=rates.envs_per_worker,
        rollout_fragment_length=rates.fragment_steps,
    )


def one_loop(rates: Rates, seconds: float) -> Rates:
    """Return the rates with what one worker's loop takes on this machine, measured in this process."""
    from dipole_ray.rllib.env_runner import DIPOLEEnvRunner

    made = config(0, rates)
    made.validate()
    runner = DIPOLEEnvRunner(config=made)
    runner.collect(5)
    start, core, calls = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        runner.collect(rates.fragment_steps)
        calls += rates.fragment_steps
    wall_ms, core_ms = (1e3 * (now - then) / calls for now, then in
                        ((time.perf_counter(), start), (time.process_time(), core)))  # fmt: skip
    runner.stop()
    return replace(rates, act_ms=wall_ms - rates.envs_per_worker * rates.env_ms, worker_core_ms=core_ms)


def run(workers: int, rates: Rates, seconds: float) -> tuple[float, float]:
    """Return the steps a second of a run, and the milliseconds of the driver's core for a fragment."""
    algorithm = config(workers, rates).build_algo()
    try:
        while algorithm.env_steps < 2 * workers * rates.envs_per_worker * rates.fragment_steps:
            algorithm.train()
        start, core, before = time.perf_counter(), time.process_time(), algorithm.env_steps
        while time.perf_counter() - start < seconds:
            algorithm.train()
        steps, elapsed = algorithm.env_steps - before, time.perf_counter() - start
        fragments = steps / rates.envs_per_worker / rates.fragment_steps
        return steps / elapsed, 1e3 * (time.process_time() - core) / fragments
    finally:
        algorithm.stop()


def check(rates: Rates, workers: list[int], seconds: float) -> dict[str, Any]:
    """Run with workers that only sleep; print and return the model beside what was measured."""
    rates = one_loop(replace(rates, ratio=0.0, wait_ms=0.0, cores=float(len(os.sched_getaffinity(0)))), seconds)
    rows: list[dict[str, Any]] = []
    print(f"{'workers':>8}{'measured':>12}{'model':>12}{'error':>9}  used up first")
    for count in workers:
        measured, driver_ms = run(count, rates, seconds)
        if not rows:
            missing = 1e3 * rates.envs_per_worker * (1 / measured - 1 / bounds(rates, 1, 1)["workers"])
            rates = replace(rates, driver_ms=driver_ms, wait_ms=max(0.0, missing * rates.fragment_steps))
        model, part = first_used_up(bounds(rates, count, 1))
        rows.append({"workers": count, "measured": measured, "model": model, "part": part, "driver_ms": driver_ms})
        print(f"{count:>8}{measured:>10.0f}/s{model:>10.0f}/s{100 * (model / measured - 1):>8.0f}%  {part}", flush=True)
    return {"rates": asdict(rates), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=None, help="(default: 1 16 128 1024; checked 1 2 4 8)"
    )
    parser.add_argument("--learners", type=int, nargs="+", default=[1])
    for name, value in asdict(Rates()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument(
        "--check", action="store_true", help="measure this machine with environments that sleep --env-ms"
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of each run that is checked")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    args = parser.parse_args()
    rates = Rates(**{name: getattr(args, name) for name in asdict(Rates())})
    if args.check:
        found = check(rates, args.workers or [1, 2, 4, 8], args.seconds)
    else:
        rows = []
        print(f"{'workers':>8}{'learners':>9}{'steps/s':>12}  used up first, then what the others allow")
        for learners in args.learners:
            for workers in args.workers or [1, 16, 128, 1024]:
                allowed = bounds(rates, workers, learners)
                steps, part = first_used_up(allowed)
                rows.append({"workers": workers, "learners": learners, "steps_per_s": steps, "bounds": allowed})
                rest = ", ".join(f"{name} {value:,.0f}" for name, value in allowed.items() if name != part)
                print(f"{workers:>8}{learners:>9}{steps:>12,.0f}  {part}; {rest}")
        found = {"rates": asdict(rates), "rows": rows}
    write_json(args.json, "python -m benchmarks.speed.cluster_model" + " --check" * args.check, found)


if __name__ == "__main__":
    main()
