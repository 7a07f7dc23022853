"""`dipole bench` as a user runs it: a suite, its report, the same command again, what diverges, and what is killed."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml

from dipole_ray.bench import group as group_module
from dipole_ray.bench.checks import planned_evaluations
from dipole_ray.bench.group import Group, grouped, train
from dipole_ray.bench.job import data_of
from dipole_ray.bench.report import read_report, scores_of
from dipole_ray.bench.suite import from_mapping, load_suite
from dipole_ray.cli import main
from dipole_ray.collect import collect
from dipole_ray.files.lock import FolderLock
from dipole_ray.files.provenance import git_commit
from dipole_ray.runs.config import RunConfig
from dipole_ray.serving.policy import load_policy
from dipole_ray.tracking.metrics_file import read_metrics
from tests.bench.small import suite_mapping, write_suite
from tests.cli.commands import LAUNCH, dipole, environment
from tests.runs.test_run import final_agent

DEADLINE_S = 240.0
ROOT = Path(__file__).resolve().parents[2]
METHODS: dict[str, Any] = {
    "dipole": {},
    "ifql": {"agent": {"weight_scheme": "bc", "omega": 0.0}},
    "bc": {"runs_of": "ifql", "candidates": [1]},
    "exploding": {"agent": {"learning_rate": 1e12, "omega": 0.0, "weight_scheme": "bc"}},
}


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


def bench(*words: str | Path) -> Ended:
    """Run `dipole bench WORDS` in this process, on the Ray of these tests."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["bench", *map(str, words)])
    return Ended(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def folder(no_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: data, and a suite of two methods and one that explodes; with Ray."""
    folder = tmp_path_factory.mktemp("user")
    data = collect("Pendulum-v1", 1000, 0, folder / "data", progress=False)[0]
    write_suite(folder / "mine.yaml", data, methods=METHODS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)  # workers make the tests' own environments
        patch.setattr("ray.train.constants.DEFAULT_STORAGE_PATH", str(folder / "ray_results"))
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)  # one worker, which imports torch once
        yield folder


@pytest.fixture(scope="module")
def finished(folder: Path) -> Ended:
    """The suite, run to its end."""
    return bench("run", "mine.yaml")


def results(folder: Path) -> dict[str, Path]:
    """Return the result files by method and seed."""
    files = folder.glob("runs/bench/mine/pendulum/*/seed-*/result.json")
    return {f"{file.parents[1].name}-{file.parent.name.rpartition('-')[0]}": file for file in files}


def test_every_cell_is_a_run_with_a_result(folder: Path, finished: Ended) -> None:
    assert finished.status == 0, finished.err
    assert "mine: 0/360 updates" in finished.err and "360/360 updates" in finished.err
    found = results(folder)
    assert sorted(found) == [f"{m}-seed-{s}" for m in ("dipole", "exploding", "ifql") for s in (0, 1)]
    run = found["dipole-seed-0"].parent
    assert {"run.yaml", "metrics.jsonl", "checkpoints", "evaluation.json", "data.json"} <= {
        path.name for path in run.iterdir()
    }
    assert load_policy(run).learner_steps == 60, "dipole evaluate takes it"


def test_a_result_holds_what_the_runs_own_metrics_say(folder: Path, finished: Ended) -> None:
    file = results(folder)["dipole-seed-1"]
    result, lines = json.loads(file.read_text()), read_metrics(file.parent)
    evaluated = [line for line in lines if "eval/return/omega_1_candidates_2" in line]
    assert [item["learner_steps"] for item in result["evaluations"]] == [20, 40, 60]
    assert set(result["cells"]) == {f"omega_{o}_candidates_{c}" for o in (0, 1) for c in (1, 2)}
    assert result["chosen"] == "omega_1_candidates_2"
    for line, item in zip(evaluated, result["evaluations"], strict=True):
        for key, scores in item["scores"].items():
            assert scores["return"] == pytest.approx(line[f"eval/return/{key}"], rel=1e-5)
            assert scores["action_bound_fraction"] == pytest.approx(line[f"eval/action_bound_fraction/{key}"], rel=1e-5)
    norms = [line["system/grad_norm"] for line in lines if "system/grad_norm" in line]
    assert result["diagnostics"]["system/grad_norm"]["max"] == pytest.approx(max(norms), rel=1e-5)
    assert result["evaluation_s"] > 0 and result["updates_per_s"] > 0
    saved = RunConfig.from_mapping(yaml.safe_load((file.parent / "run.yaml").read_text()))
    assert result["data"] == data_of(saved) and result["data"].startswith("1000 transitions, ")
    assert result["commit"] == git_commit() and date.fromisoformat(result["ended"])
    first = [line[f"eval/return/{key}"] for line in evaluated for key in ("omega_1_candidates_1",)]
    assert len(set(first)) == 3, "every evaluation has episodes of its own"


def test_a_run_that_diverges_is_a_result(folder: Path, finished: Ended) -> None:
    assert finished.out.count("diverged  exploding on pendulum") == 2
    result = json.loads(results(folder)["exploding-seed-0"].read_text())
    assert result["status"] == "diverged" and "not finite" in result["error"]
    assert result["learner_steps"] < 60 and result["phase"] == "offline"


def test_stacked_runs_have_the_results_of_runs_in_processes_of_their_own(folder: Path, finished: Ended) -> None:
    """Each with its own seed and beta; one that diverges ends alone."""
    words = ("suite.name=stacked", "suite.resources.stacked=4", "methods.steep.agent.beta=9")
    ended = bench("run", "mine.yaml", *words, "--only", "method=dipole,exploding,steep")
    assert ended.status == 0, ended.err
    assert ended.out.count("diverged  exploding on pendulum") == 2 and "6 with a result" in ended.out
    for name, file in results(folder).items():
        if name.startswith("ifql"):
            continue
        alone = json.loads(file.read_text())
        path = next(folder.glob(f"runs/bench/stacked/pendulum/{file.parents[1].name}/{file.parent.name}/{file.name}"))
        stacked = json.loads(path.read_text())
        assert (alone["stacked"], stacked["stacked"]) == (1, 2 if name.startswith("exploding") else 4)
        same = ("status", "learner_steps", "evaluations", "diagnostics", "data", "digest")
        assert {key: stacked[key] for key in same} == {key: alone[key] for key in same}, name
        if name.startswith("dipole"):
            assert final_agent(path.parent) == final_agent(file.parent)
    assert bench("report", "mine.yaml", *words, "--out", "stacked").status == 0
    assert "Up to 4 runs shared a process" in (folder / "stacked/stacked.md").read_text()


def test_runs_share_a_process_that_differ_in_what_a_stack_allows() -> None:
    methods: dict[str, Any] = {"a": {}, "b": {"agent": {"beta": 9.0}}, "c": {"agent": {"tau": 0.1}}}
    suite = from_mapping(suite_mapping(methods=methods, suite={"seeds": [0, 1, 2]}))
    found = [[(job.method, job.seed) for job in group.jobs] for group in grouped(suite.jobs(), 4)]
    assert found == [[("a", 0), ("b", 0), ("a", 1), ("b", 1)], [("c", 0), ("c", 1), ("c", 2)], [("a", 2), ("b", 2)]]
    assert [len(group.jobs) for group in grouped(suite.jobs(), 1)] == [1] * 9


def test_the_same_command_again_runs_nothing(folder: Path, finished: Ended) -> None:
    def times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in folder.glob("runs/bench/**/*") if path.is_file()}

    before = times()
    again = bench("run", "mine.yaml")
    assert again.status == 0 and times() == before
    assert not again.err and "6 with a result, 0 failed" in again.out


def test_the_report_says_what_the_runs_measured(folder: Path, finished: Ended) -> None:
    done = bench("report", "mine.yaml", "--out", "out")
    assert done.status == 0, done.err
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"mine.json", "mine.csv", "mine.md", "mine-curves.png", "mine-omega.png", "mine-intervals.png"}
    text = (folder / "out/mine.md").read_text()
    scores = []
    for seed in (0, 1):
        evaluated = json.loads(results(folder)[f"dipole-seed-{seed}"].read_text())["evaluations"][-2:]
        scores.append(np.mean([item["scores"]["omega_1_candidates_1"]["return"] for item in evaluated]))
    line = next(line for line in text.splitlines() if line.startswith("| pendulum | dipole | 1 |"))
    shown = line.split("|")[4].split()[0]
    assert float(shown) == pytest.approx(np.mean(scores), rel=1e-2)
    assert "2, 2 diverged" in text and "| pendulum | bc |" in text
    assert str(folder) not in (folder / "out/mine.json").read_text().replace(str(folder / "data"), "")
    # Its own numbers give the same report again.
    assert bench("report", folder / "out/mine.json", "--out", "again").status == 0
    assert (folder / "again/mine.md").read_text() == text
    assert len(scores_of(read_report(folder / "again/mine.json")).runs) == 6


def test_parts_and_settings_on_the_command_line(folder: Path, finished: Ended) -> None:
    training = ("training.offline_learner_steps=20", "training.online_env_steps=240")
    shape = ("evaluation.every_learner_steps=40", "suite.evaluations=1", "suite.resources={cpus: 0.5}")
    words = (*training, *shape, "suite.name=part")
    early = bench("report", "mine.yaml", *words)
    assert early.status == 2
    assert shlex.split(early.err.partition("start it with: ")[2]) == ["dipole", "bench", "run", "mine.yaml", *words]
    done = bench("run", "mine.yaml", *words, "--only", "method=bc", "--only", "seed=1")
    assert done.status == 0, done.err
    assert shlex.split(done.out.partition("next:")[2]) == ["dipole", "bench", "report", "mine.yaml", *words]
    runs = list(folder.glob("runs/bench/part/pendulum/*/seed-*"))
    assert [(path.parent.name, path.name[:6]) for path in runs] == [("ifql", "seed-1")]
    saved = yaml.safe_load((runs[0] / "run.yaml").read_text())
    assert saved["training"]["offline_learner_steps"] == 20
    result = json.loads((runs[0] / "result.json").read_text())
    found = Counter(item["phase"] for item in result["evaluations"])
    assert found == planned_evaluations(RunConfig.from_mapping(saved)) == {"offline": 1, "online": 3}
    assert result["phase"] == "online"
    assert bench("report", "mine.yaml", *words, "--out", "part").status == 0
    assert "5 runs have no result yet" in (folder / "part/part.md").read_text()
    refused = bench("report", folder / "part/part.json", "suite.evaluations=2", "--out", "part")
    assert refused.status == 2 and "part.json holds what was measured, which suite.evaluations=2" in refused.err


def test_a_run_that_fails_is_named_and_tried_again(folder: Path) -> None:
    """Its folder is in the way of a file: the others go on, the status tells, and the next start has another try."""
    words = ("suite.name=failing", "training.offline_learner_steps=20", "suite.evaluations=1", "suite.seeds=[0]")
    blocked = folder / "runs/bench/failing/pendulum/dipole"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    only = ("--only", "method=dipole,ifql")
    done = bench("run", "mine.yaml", *words, *only)
    assert done.status == 1 and "failed    dipole on pendulum, seed 0: " in done.out
    assert len(list(folder.glob("runs/bench/failing/pendulum/ifql/*/result.json"))) == 1
    blocked.unlink()
    done = bench("run", "mine.yaml", *words, *only)
    assert done.status == 0 and "2 with a result, 0 failed" in done.out, done


@pytest.mark.slow
def test_runs_that_break_are_named_and_the_others_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies is nobody's end but its run's, and a broken environment is no method's doing."""
    monkeypatch.setenv("RAY_TASK_MAX_RETRIES", "1")  # of 3: each imports torch anew
    kinds = {"kills": "Kills", "reward": "NanReward", "observation": "NanObservation"}
    tasks = {name: {"env": {"id": f"tests.broken_envs:{kind}-v0"}} for name, kind in kinds.items()}
    data = Path(yaml.safe_load((folder / "mine.yaml").read_text())["base"]["data"]["path"])
    write_suite(folder / "broken.yaml", data, tasks={**tasks, "pendulum": {}}, methods={"dipole": {}})
    words = ("training.offline_learner_steps=20", "suite.evaluations=1", "suite.seeds=[0]")
    done = bench("run", "broken.yaml", *words)
    assert done.status == 1 and "1 with a result, 3 failed" in done.out, done
    failed = dict(line.split(" on ", 1)[1].split(", seed 0: ") for line in done.out.splitlines() if "failed  " in line)
    assert "process was lost again after Ray's retries" in failed["kills"] and "suite.resources" in failed["kills"]
    assert failed["reward"].startswith("EnvironmentFault: evaluation") and "reward nan" in failed["reward"]
    assert (
        failed["observation"].startswith("EnvironmentFault: evaluation") and "observation [nan" in failed["observation"]
    )
    assert [path.parents[2].name for path in folder.glob("runs/bench/broken/*/*/*/result.json")] == ["pendulum"]


def impatient(group: Group) -> list[dict[str, Any]]:
    """Train a run, but wait no two minutes for another command."""
    group_module.LOCK_WAIT_S = 0.5
    return train(group)


def test_a_run_that_another_command_trains_is_left_to_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dipole_ray.bench.driver.train", impatient)
    words = ("suite.name=shared", "training.offline_learner_steps=20", "suite.evaluations=1", "suite.seeds=[0]")
    only = ("--only", "method=dipole,ifql")
    held = load_suite("mine.yaml", words).job("pendulum", "dipole", 0).folder
    lock = FolderLock(held, 0.0)
    done = bench("run", "mine.yaml", *words, *only)
    assert done.status == 0 and "1 with a result, 0 failed" in done.out, done
    assert "elsewhere dipole on pendulum, seed 0: " in done.out and f"(process {os.getpid()})" in done.out
    assert "1 is trained by another command" in done.out
    assert [path.name for path in held.iterdir()] == [".lock"], "nothing is written into another's folder"
    lock.release()
    assert "2 with a result, 0 failed" in bench("run", "mine.yaml", *words, *only).out


def test_how_far_a_suite_is(folder: Path, finished: Ended) -> None:
    files = sorted(folder.glob("runs/bench/**/*"))
    assert bench("list", "mine.yaml").out.splitlines() == [
        "dipole on pendulum: 2 finished",
        "exploding on pendulum: 2 diverged",
        "ifql on pendulum: 2 finished",
        "in all: 4 finished, 2 diverged",
    ]
    file = results(folder)["dipole-seed-1"]
    aside = file.rename(folder / "aside.json")
    try:
        lines = bench("list", "mine.yaml", "suite.seeds=[1,2]").out.splitlines()
    finally:
        aside.rename(file)
    assert lines[0] == "dipole on pendulum: 1 begun, 1 not begun"
    assert lines[-1] == "in all: 1 begun, 3 not begun, 1 diverged, 1 finished"
    assert sorted(folder.glob("runs/bench/**/*")) == files


def test_what_there_is_is_listed() -> None:
    assert "smoke: 4 runs, 6,000 updates" in bench("list").out
    text = bench("list", "--help-config").out
    assert "suite.metric: one of success, return = success" in text and "methods.NAME.runs_of" in text
    for words, answer in ((("smokee",), "the suites are"), (("smoke", "--only", "dipole"), "write KIND=NAME")):
        refused = bench("run", *words)
        assert refused.status == 2 and answer in refused.err


@pytest.mark.slow
def test_a_killed_suite_goes_on_from_the_checkpoints(folder: Path) -> None:
    """SIGKILL while one run is finished and another has a checkpoint: the first is untouched, the other resumed."""
    words = (
        *(
            "bench",
            "run",
            "mine.yaml",
            "suite.name=killed",
            "suite.resources.cpus=1",
            "training.offline_learner_steps=600",
        ),
        *("evaluation.every_learner_steps=200", "checkpoint.every_learner_steps=100", "--only", "method=dipole,ifql"),
    )
    place = folder / "runs/bench/killed/pendulum"
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *words], cwd=folder, env=environment(folder), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + DEADLINE_S

        def is_due() -> bool:
            done = {path.parent for path in place.glob("*/*/result.json")}
            return bool(done) and any(path.parents[1] not in done for path in place.glob("*/*/checkpoints/[0-9]*"))

        while not is_due():
            assert time.monotonic() < deadline and process.poll() is None, "no run ended while another had a checkpoint"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = {path: path.stat().st_mtime_ns for path in place.glob("*/*/result.json")}
    begun = [
        path.parents[1] for path in place.glob("*/*/checkpoints/[0-9]*") if path.parents[1] / "result.json" not in done
    ]
    before = {path: len(read_metrics(path)) for path in begun}
    again = dipole(*words, cwd=folder, timeout=DEADLINE_S)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a finished run was run again"
    assert len(list(place.glob("*/*/result.json"))) == 4
    for run in begun:
        steps = [line["learner_steps"] for line in read_metrics(run) if "critic/loss" in line]
        assert steps == list(range(20, 601, 20)), "every update once"
        assert len(steps) > before[run] or before[run] >= len(steps)
    whole = dipole(*words, "folder=whole", cwd=folder, timeout=DEADLINE_S)
    assert whole.returncode == 0, whole.stderr
    for path in place.glob("*/*/result.json"):
        other = folder / "whole" / path.relative_to(folder / "runs")
        one, two = (json.loads(file.read_text()) for file in (path, other))
        assert one["evaluations"] == two["evaluations"], "a resumed run measures what an uninterrupted one does"
