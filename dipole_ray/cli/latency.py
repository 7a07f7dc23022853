"""`dipole latency`: how long a trained policy takes for an action, and what a control rate leaves time for."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dipole_ray.cli.command import add_command, require_place, write_file

_EPILOG = """\
examples:
  dipole latency runs/quickstart-20260101-120000 --hz 50
  dipole latency RUN --hz 100 --steps 3 5 --solver midpoint --candidates 1 8 32 --json latency.json
  dipole latency RUN --device cpu cuda --batch 1 64 --calls 1000

A call is what a control loop waits for: observations in the host's memory in, actions there out, at the run's omega.
p99 is the time that 99 of 100 calls stay within. For --hz the best setting is the one with the most candidates x steps
whose p99 fits into a period. Measure on the machine that will act, with its other work running.
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the parsers of `dipole`."""
    text = "Measure how long a trained policy takes for an action."
    summary = "p50, p95 and p99 of an action's time, and the best setting for a control rate"
    parser = add_command(subparsers, "latency", run_latency, text, help=summary, epilog=_EPILOG)
    parser.add_argument("policy", metavar="RUN", type=Path, help="a run's folder, or one checkpoint's")
    parser.add_argument("--hz", type=float, help="actions a second that the control loop asks for")
    parser.add_argument(
        "--steps", nargs="+", type=int, metavar="K", help="steps of the flow's solver (default: 3 5 10)"
    )
    parser.add_argument("--solver", choices=["euler", "midpoint"], help="how the flow is followed (default: the run's)")
    parser.add_argument("--candidates", nargs="+", type=int, metavar="N", help="actions per step (default: 1 4 16 32)")
    parser.add_argument("--batch", nargs="+", type=int, metavar="B", help="states of a call (default: 1)")
    parser.add_argument("--device", nargs="+", metavar="D", help="cpu, cuda or both (default: cpu, and cuda if there)")
    parser.add_argument("--calls", type=int, default=200, help="calls of each setting (default: 200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")


def run_latency(arguments: argparse.Namespace) -> int:
    """Measure, print the table, and name the best setting where a rate is given."""
    import torch

    from dipole_ray.errors import ConfigError
    from dipole_ray.files.durable import json_text
    from dipole_ray.progress import Progress
    from dipole_ray.serving.latency import Grid, best_for, measure
    from dipole_ray.tables import DASH, print_table, terminal_table

    if arguments.hz is not None and not 0 < arguments.hz < float("inf"):
        raise ConfigError(f"--hz {arguments.hz}: give a finite number above 0")
    require_place("--json", arguments.json)
    devices = arguments.device or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    given = {"steps": arguments.steps, "candidates": arguments.candidates, "batches": arguments.batch}
    given = {key: tuple(dict.fromkeys(value)) for key, value in given.items() if value is not None}
    grid = Grid(**given, devices=tuple(dict.fromkeys(devices)), calls=arguments.calls)
    acting = {} if arguments.solver is None else {"solver": arguments.solver}
    found = measure(arguments.policy, grid, Progress("measuring", unit="calls"), **acting)
    cells = [
        [one.device, str(one.batch), str(one.candidates), DASH if one.steps is None else str(one.steps)]
        + [f"{value:.2f}" for value in (one.p50_ms, one.p95_ms, one.p99_ms)]
        for one in found
    ]
    head = ["device", "states", "candidates", "steps", "p50 ms", "p95 ms", "p99 ms"]
    best: dict[str, dict[str, Any] | None] = {}
    print_table(terminal_table(head, cells, numbers=range(1, 7)), width=100)
    for device, batch in dict.fromkeys((one.device, one.batch) for one in found) if arguments.hz else ():
        rows = [one for one in found if (one.device, one.batch) == (device, batch)]
        chosen, place = best_for(rows, arguments.hz), f"{device}, {batch} state{'s' * (batch > 1)}"
        best[place] = None if chosen is None else asdict(chosen)
        fastest = min(rows, key=lambda one: one.p99_ms)
        none = f"no setting fits; the fastest is {fastest}: take fewer steps, a smaller network or a faster device"
        print(f"{place} at {arguments.hz:g} Hz ({1e3 / arguments.hz:.2f} ms): {chosen or none}")
    if arguments.json is not None:
        text = json_text({"hz": arguments.hz, "rows": [asdict(one) for one in found], "best": best})
        write_file("--json", arguments.json, text)
        print(f"rows      {arguments.json}")
    return 0
