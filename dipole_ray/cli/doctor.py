"""`dipole doctor`: says what this machine has and lacks, with a remedy for each lack."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dipole_ray.cli.command import add_command


def add_doctor_parser(subparsers: Any) -> None:
    """Add the subcommand to the parsers of `dipole`."""
    summary = "check Python, torch, GPU, MuJoCo, GL, Ray, MLflow and disk"
    text = "Check what a run needs. Ends with status 1 if something fails; a warning is no failure."
    parser = add_command(subparsers, "doctor", run_doctor, text, help=summary)
    parser.add_argument("--address", help="Ray cluster to try (default: RAY_ADDRESS, or a small local one)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    cache = Path("~/.cache/dipole_ray")
    parser.add_argument("--cache", type=Path, default=cache, help="folder of datasets (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON list")


def run_doctor(args: argparse.Namespace) -> int:
    """Print the findings as they are made, and return 1 if any is a failure, else 0."""
    from dipole_ray.cli.examine import examine

    findings = []
    for finding in examine(args.runs, args.cache, args.address):
        findings.append(finding)
        if not args.json:
            print(f"{finding.status:<5} {finding.name:<24} {finding.message}", flush=True)
            if finding.remedy:
                print(f"{'':<5} {'':<24} -> {finding.remedy}", flush=True)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        counts = {status: sum(item.status == status for item in findings) for status in ("ok", "warn", "fail")}
        print(", ".join(f"{number} {status}" for status, number in counts.items()))
    return 1 if any(finding.status == "fail" for finding in findings) else 0
