"""docs/cluster.md: its commands are ones the project takes, ten lines a cluster, and its arithmetic is right."""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
from pathlib import Path

import pytest

from dipole_ray.cli import doctor, sweep, train
from dipole_ray.runs.config import load
from dipole_ray.sweep.plan import load_plan
from tests.clusters.files import CLUSTERS, ROOT, kubernetes_documents

pytestmark = pytest.mark.slow  # files that change seldom

GUIDE = (ROOT / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", GUIDE, re.S)
RESULTS = ROOT / "benchmarks" / "results"


def dipole_commands() -> list[list[str]]:
    """Return the words after `dipole` of every command in the guide and of the RayJob's entry point."""
    lines = [line.split("#")[0].strip(" &\n") for block in BLOCKS for line in block.splitlines()]
    lines += [item["spec"]["entrypoint"] for item in kubernetes_documents() if item["kind"] == "RayJob"]
    found = [re.split(r"(?:^|-- )dipole ", line, maxsplit=1) for line in lines]
    return [shlex.split(parts[1]) for parts in found if len(parts) == 2]


def test_the_commands_are_taken() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    subparsers = parser.add_subparsers(dest="command")
    for command in (train, doctor, sweep):
        command.add_parser(subparsers)
    counts = {"train": 0, "doctor": 0, "sweep": 0}
    for words in dipole_commands():
        counts[words[0]] += 1
        args = parser.parse_args(words)
        if words[0] == "sweep":
            assert args.source.startswith("tune_configs/")
            folder = load_plan(ROOT / args.source, args.overrides).run["folder"]
            assert Path(folder).is_absolute(), "a folder in the job's working directory is refused"
        if words[0] == "train" and args.resume is None:
            config = load(args.source, args.overrides)
            assert Path(config.folder).is_absolute(), "a folder in the job's working directory is deleted"
            assert config.rollout.num_workers * config.rollout.cpus_per_worker <= 2 * 8
    assert min(counts.values()) >= 4 and counts["train"] >= 6


def test_a_command_that_is_not_taken_is_seen() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    train.add_parser(parser.add_subparsers(dest="command"))
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parser.parse_args(["train", "quickstart", "--cluster", "auto"])


def test_each_kind_of_cluster_takes_ten_lines() -> None:
    section = GUIDE.split("## Ten lines for each kind")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.S)
    assert len(blocks) == 5
    for block in blocks:
        assert len(block.splitlines()) <= 10
        assert "RAY_AUTH_MODE=token" in block
        assert "dipole train" in block and "dipole sweep" in block


def test_files_and_links_are_there() -> None:
    named = re.findall(r"(clusters/[\w./]+\.yaml|clusters/Containerfile)", GUIDE)
    assert {CLUSTERS / "Containerfile", *CLUSTERS.rglob("*.yaml")} == {ROOT / name for name in named}
    for text, base in ((GUIDE, ROOT / "docs"), ((CLUSTERS / "README.md").read_text(), CLUSTERS)):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            if target != "reliability.md":
                assert (base / target).exists(), target


def rates() -> dict[str, float]:
    """Return the committed measurements that the guide quotes, by the words of its table."""
    found = {}
    for threads, words in ((1, "1 thread"), (2, "2 threads")):
        name = f"learner_speed-paper-{threads}thread{'s' if threads > 1 else ''}-2026-11-21.json"
        report = json.loads((RESULTS / name).read_text())
        found[f"learner, CPU, {words}"] = report["updates_per_s"]["dipole_ray"]["median"]
    for row in json.loads((RESULTS / "rollout_speed-paper-humanoidmaze-2026-11-21.json").read_text())["rows"]:
        plural = "candidate" if row["candidates"] == 1 else "candidates"
        words = f"worker, {row['envs']} environments, {row['candidates']} {plural}"
        found[words] = row["env_steps_per_core_s"]["median"]
    return found


def test_quoted_rates_are_the_measured_ones() -> None:
    quoted = re.findall(
        r"^\| ((?:learner|worker), [^|(]+?)(?: \([^|]*\))? \| ([\d.]+) (?:updates|steps)/s", GUIDE, re.M
    )
    assert len(quoted) == 5
    for words, figure in quoted:
        assert float(figure) == pytest.approx(rates()[words], rel=0.01), words


def test_the_arithmetic_is_right() -> None:
    sums = re.findall(r"\| ([\d.]+) / ([\d.]+) / ([\d.]+) = ([\d.]+), so (\d+) \|", GUIDE)
    assert len(sums) == 6
    measured = {round(rate, 1) for rate in rates().values()} | {round(rate) for rate in rates().values()}
    for updates, ratio, steps, shown, workers in sums:
        exact = float(updates) / float(ratio) / float(steps)
        assert float(shown) == pytest.approx(exact, abs=0.051)
        assert int(workers) == math.ceil(exact)
        assert float(steps) in measured
        assert float(updates) in measured or "(GPU, assumed)" in GUIDE
    seconds = 400_000 / 1281 + 400_000 / 156
    assert f"{seconds:_.0f}".replace("_", " ") in GUIDE and f"{seconds / 2 / 60:.0f} minutes on two workers" in GUIDE
    assert f"100 000 / 156 = {100_000 / 156:.0f} s" in GUIDE
    assert f"= 6 667 s = {2e6 / 300 / 3600:.1f} h" in GUIDE and f"2 000 000 / 15.0 = {2e6 / 15.0 / 3600:.0f} h" in GUIDE
    assert f"1.9 x (0.98 + 2 x 0.36) = ${1.9 * (0.98 + 2 * 0.36):.1f}" in GUIDE
