"""Measure what adapters cost and save: parameters, optimizer, bytes a version, updates/s, memory of a rollout worker.

    python -m benchmarks.adapters --out benchmarks/results

Full fine-tuning of pi+ and pi- (rank 0) against adapters on one backbone, whose frozen weights are kept in float32 or
bfloat16, each case in processes of its own, all in turn for so many rounds; 29 observations, 8 actions, critics of 3 x
512. A worker's memory is the most that its process held when it had taken a published policy and acted a few times for
4 environments, beyond what it held before it built the policy. Of DiT base the learner is counted, not run: its rates
are `benchmarks.gpu.adapters`'s; its worker acts once, that of two full networks only if asked for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.adapted import SCHEMA, learner, settings
from benchmarks.record import write_record
from dipole_ray.agents.adapters import layers_of
from dipole_ray.agents.agent import make_policy
from dipole_ray.agents.dit import DiTFields
from dipole_ray.agents.networks import Sizes
from dipole_ray.tables import markdown_table

RANKS = (0, 4, 16, 64)
KINDS = (*((rank, "float32") for rank in RANKS), (16, "bfloat16"))
"""Rank, and what the frozen backbone is kept in."""
RUN = ("mlp", "dit-small")
MEGA = 2**20


def memory(field: str) -> int:
    """Return `VmHWM`, the most that this process held, or `VmRSS`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def worker(network: str, rank: int, actions: int, dtype: str = "float32") -> dict[str, Any]:
    """Return the memory that acting takes in this process."""
    torch.set_num_threads(1)
    before = memory("VmRSS")
    policy = make_policy(settings(network, rank, dtype), SCHEMA, seed=0)
    policy.load_policy_state(policy.policy_state())
    for step in range(actions):
        policy.sample_actions(
            np.full((4, 29), step / actions, np.float32), omega=1.0 if policy.config.is_guided else None
        )
    return {"worker_bytes": memory("VmHWM") - before}


def counted(rank: int) -> dict[str, Any]:
    """Return the sizes of DiT base, of which no weight is drawn."""
    with torch.device("meta"), patch.object(DiTFields, "_draw"):
        network = DiTFields("base", ("bc",), Sizes(29, 8, (512,) * 3, 2), torch.Generator())
    backbone = sum(each.numel() for each in network.parameters())
    layers: list[Any] = [network.get_submodule(name) for name in layers_of(network, ("attention", "mlp"))]
    adapters = 2 * rank * sum(layer.in_features + layer.out_features for layer in layers)
    trained = adapters if rank else 2 * backbone
    return {"parameters": backbone + adapters if rank else trained, "trained": trained}


def in_a_process(*words: object) -> dict[str, Any]:
    """Return what this program says to these words."""
    command = [sys.executable, "-m", "benchmarks.adapters", "--case", *map(str, words)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each network and kind, medians over the rounds."""
    cases = [(network, rank, dtype) for network in RUN for rank, dtype in KINDS]
    rounds: list[dict[tuple[str, int, str], dict[str, Any]]] = []
    for _ in range(args.rounds):
        rounds.append({})
        for network, rank, dtype in cases:
            updates = 30 if network == "mlp" else 2
            found = in_a_process("learner", network, rank, updates, args.threads, "cpu", dtype)
            rounds[-1][network, rank, dtype] = found | in_a_process("worker", network, rank, 3, dtype)
    rows = []
    for case in cases:
        every, full = [one[case] for one in rounds], [one[case[0], 0, "float32"] for one in rounds]
        medians = {key: statistics.median(each[key] for each in every) for key in every[0]}
        rates = [each["updates_per_s"] / other["updates_per_s"] for each, other in zip(every, full, strict=True)]
        rows.append({**dict(zip(("network", "rank", "dtype"), case, strict=True)), **medians, "rates_to_full": rates})
    return rows + [base(rank, dtype) for rank, dtype in KINDS if rank or args.full]


def base(rank: int, dtype: str) -> dict[str, Any]:
    """Return the row of DiT base."""
    acting = in_a_process("worker", "dit-base", rank, 1, dtype)
    return {"network": "dit-base", "rank": rank, "dtype": dtype, **counted(rank), **acting}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows for a person."""
    lines = []
    for row in rows:
        kind = f"{row['rank']}, bfloat16" if row["dtype"] == "bfloat16" else row["rank"] or "full"
        cells = [row["network"], kind, f"{row['parameters'] / 1e6:.2f}", f"{row['trained'] / 1e6:.2f}"]
        for key in ("optimizer_bytes", "published_bytes", "worker_bytes"):
            cells.append(f"{row[key] / MEGA:.1f}" if key in row else "-")
        cells.append(f"{row['updates_per_s']:.2f}" if "updates_per_s" in row else "-")
        spread = [f"{each:.2f}" for each in row.get("rates_to_full", ())]
        lines.append([*map(str, cells), ", ".join(spread) or "-"])
    head = ["network", "r", "weights of the fields (M)", "trained of them (M)", "optimizer (MiB)", "a version (MiB)"]
    head += ["worker (MiB)", "updates/s", "to full, each round"]
    return "\n".join(markdown_table(head, lines, words=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="a worker with two full networks of DiT base, too")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.case:
        kind, network, *words = args.case
        given = [int(word) if word.isdigit() else word for word in words]
        print(json.dumps({"learner": learner, "worker": worker}[kind](network, *given)))
        return
    rows = measured(args)
    print(table(rows))
    if args.out is not None:
        title = "What adapters cost and save"
        command = f"python -m benchmarks.adapters --rounds {args.rounds} --threads {args.threads}"
        write_record(args.out, "adapters", command, {"rounds": args.rounds, "rows": rows}, title, table(rows))


if __name__ == "__main__":
    main()
