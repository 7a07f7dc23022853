"""In one process a run continued from a checkpoint is, bit for bit, the run that was never interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from dipole_ray import DIPOLE
from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.files.checkpoint import read_checkpoint
from tests.rllib.small import LOOP, assert_same_tensors, config, train_until

pytestmark = pytest.mark.usefixtures("cluster")

ITERATIONS = 8
OWN = ("replay_directory", "policy_version")
"""What two runs of the same course may differ in: where their files lie, and how often weights were published."""


@contextmanager
def running(algorithm: DIPOLE) -> Iterator[DIPOLE]:
    """Stop the algorithm at the end."""
    try:
        yield algorithm
    finally:
        algorithm.stop()


def course(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a checkpoint's metadata that an interruption must not change."""
    return {key: value for key, value in metadata.items() if key not in OWN}


@pytest.fixture(scope="module")
def uninterrupted(
    cluster: None, pendulum: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Path], dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """One run of 8 iterations that saves after each, and what it holds at the end."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    saved = []
    with running(config(pendulum).build_algo()) as algorithm:
        for iteration in range(ITERATIONS):
            saved.append(Path(algorithm.save_to_path(folder / str(iteration))))
            algorithm.train()
        tensors, metadata = algorithm.checkpoint_contents()
    return saved, tensors, metadata


@pytest.mark.parametrize(
    ("save_point", "learner_steps", "env_steps"),
    [
        pytest.param(0, 0, 0, id="before the first update"),
        pytest.param(1, 16, 0, id="offline"),
        pytest.param(3, 40, 0, id="at the phase boundary"),
        pytest.param(5, 76, 120, id="online with episodes running"),
    ],
)
def test_resumed_run_is_bitwise_the_uninterrupted_one(
    uninterrupted: tuple[list[Path], dict[str, dict[str, torch.Tensor]], dict[str, Any]],
    save_point: int,
    learner_steps: int,
    env_steps: int,
) -> None:
    saved, tensors, metadata = uninterrupted
    with running(DIPOLE.from_checkpoint(saved[save_point])) as algorithm:
        assert (algorithm.learner_steps, algorithm.env_steps) == (learner_steps, env_steps)
        for _ in range(ITERATIONS - save_point):
            algorithm.train()
        resumed_tensors, resumed = algorithm.checkpoint_contents()
        assert_same_tensors(resumed_tensors, tensors)
        assert course(resumed) == course(metadata)
        assert metadata["limiter"]["updates_done"] > 0 and metadata["replay"]["online"]["rows_written"] > 0
        assert metadata["rollout"]["sequence"] > 0, "episodes are running in the uninterrupted run"


class After(Sized):
    """Grows after it was looked at so often, as if somebody had asked the run to stop then."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    def __len__(self) -> int:
        self._left -= 1
        return int(self._left < 0)


@pytest.mark.parametrize("per_call", [8, 1])
def test_iterations_cut_short_and_resumed_are_the_whole_ones(pendulum: Path, tmp_path: Path, per_call: int) -> None:
    """A request to stop ends an iteration after any call of the learner or any fragment; the resume does the rest."""
    settings = {"learner_steps_per_call": per_call, "updates_per_env_step": 0.5}
    with running(config(pendulum, **settings).build_algo()) as algorithm:
        for _ in range(ITERATIONS):
            algorithm.train()
        tensors, metadata = algorithm.checkpoint_contents()
    whole, cuts, looks, path, owed = 0, 0, 1, "", 0
    while whole < ITERATIONS:
        with running(DIPOLE.from_checkpoint(path) if path else config(pendulum, **settings).build_algo()) as algorithm:
            algorithm.end_early_on(After(looks))
            algorithm.train()
            while not algorithm.is_cut_short and whole < ITERATIONS:
                whole += 1
                if whole < ITERATIONS:
                    algorithm.train()
            cuts, looks = cuts + algorithm.is_cut_short, looks + 3
            path = algorithm.save_to_path(tmp_path / str(cuts))
            cut_tensors, cut = algorithm.checkpoint_contents()
            owed += cut["owed_updates"] > 0
    assert cuts >= 4 and cut["done_of_iteration"] == 0
    assert owed or per_call > 1, "no request came while updates were owed"
    assert_same_tensors(cut_tensors, tensors)
    assert course(cut) == course(metadata)


def test_saving_does_not_change_the_course(
    uninterrupted: tuple[list[Path], dict[str, dict[str, torch.Tensor]], dict[str, Any]], pendulum: Path
) -> None:
    """A run that never saved nor evaluated is the same as one that did so after every iteration."""
    _, tensors, metadata = uninterrupted
    with running(config(pendulum).build_algo()) as algorithm:
        for _ in range(ITERATIONS):
            algorithm.train()
        unsaved_tensors, unsaved = algorithm.checkpoint_contents()
    assert_same_tensors(unsaved_tensors, tensors)
    assert course(unsaved) == course(metadata)
    with running(config(pendulum).build_algo()) as algorithm:
        for _ in range(ITERATIONS):
            algorithm.train()
            algorithm.evaluate()
        evaluated_tensors, evaluated = algorithm.checkpoint_contents()
    assert_same_tensors(evaluated_tensors, tensors)
    assert {**course(evaluated), "score": None} == course(metadata)


@pytest.mark.slow
def test_resume_in_a_new_process(
    uninterrupted: tuple[list[Path], dict[str, dict[str, torch.Tensor]], dict[str, Any]], tmp_path: Path
) -> None:
    saved, tensors, metadata = uninterrupted
    program = (
        "import sys\n"
        "from dipole_ray import DIPOLE\n"
        "algorithm = DIPOLE.from_checkpoint(sys.argv[1])\n"
        "for _ in range(int(sys.argv[3])):\n"
        "    algorithm.train()\n"
        "algorithm.save_to_path(sys.argv[2])\n"
        "algorithm.stop()\n"
    )
    words = [str(saved[5]), str(tmp_path / "end"), str(ITERATIONS - 5)]
    joining = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    subprocess.run([sys.executable, "-c", program, *words], check=True, capture_output=True, timeout=120, env=joining)
    end = read_checkpoint(tmp_path / "end")
    assert_same_tensors(end.tensors, tensors)
    assert course(end.metadata) == course(metadata)


def test_restore_into_the_live_algorithm_rolls_everything_back(
    uninterrupted: tuple[list[Path], dict[str, dict[str, torch.Tensor]], dict[str, Any]], pendulum: Path
) -> None:
    saved, tensors, metadata = uninterrupted
    with running(config(pendulum).build_algo()) as algo:
        train_until(algo, lambda a: a.env_steps >= 300)
        algo.env_runner_group.local_env_runner.collect(40)  # a course of its own
        version = algo.learner.policy.version
        algo.restore_from_path(saved[5])
        assert (algo.learner_steps, algo.env_steps, algo.iteration) == (76, 120, 5)
        assert algo.replay.sizes()["online"] == 120
        assert algo.learner.policy.version > version, "else a worker would keep the newer weights"
        algo.train()
        for _ in range(ITERATIONS - 6):
            algo.train()
        live_tensors, live = algo.checkpoint_contents()
    assert_same_tensors(live_tensors, tensors)
    assert course(live) == course(metadata)


def test_rolled_back_ten_times_at_random_it_is_the_uninterrupted_run(
    uninterrupted: tuple[list[Path], dict[str, dict[str, torch.Tensor]], dict[str, Any]],
) -> None:
    """R1 in one process: whatever was done since, and wherever it goes back to, the end is the same bit for bit."""
    saved, tensors, metadata = uninterrupted
    random = np.random.default_rng(3)
    with running(DIPOLE.from_checkpoint(saved[0])) as algorithm:
        for point in random.integers(0, ITERATIONS, 10):
            for _ in range(random.integers(0, 4)):
                algorithm.train()
            if random.random() < 0.3:
                algorithm.evaluate()
            algorithm.restore_from_path(saved[point])
        for _ in range(ITERATIONS - point):
            algorithm.train()
        end_tensors, end = algorithm.checkpoint_contents()
    assert_same_tensors(end_tensors, tensors)
    assert course(end) == course(metadata)


def test_older_checkpoint_of_the_offline_phase_brings_the_phase_back(
    uninterrupted: tuple[list[Path], dict[str, dict[str, torch.Tensor]], dict[str, Any]],
) -> None:
    saved, tensors, _ = uninterrupted
    with running(DIPOLE.from_checkpoint(saved[6])) as algorithm:
        algorithm.train()
        algorithm.restore_from_path(saved[1])
        assert algorithm.phase == "offline" and algorithm.env_steps == 0
        assert algorithm.replay.sizes() == {"offline": 2000, "online": 0}
        for _ in range(ITERATIONS - 1):
            algorithm.train()
        assert_same_tensors(algorithm.checkpoint_contents()[0], tensors)


def test_offline_data_samples_the_restored_replay(
    uninterrupted: tuple[list[Path], dict[str, dict[str, torch.Tensor]], dict[str, Any]],
) -> None:
    """RLlib's own door to the data, `algorithm.offline_data`, opens on the replay that training uses."""
    saved, _, _ = uninterrupted
    with running(DIPOLE.from_checkpoint(saved[5])) as algorithm:
        before = algorithm.replay.state()["sampler"]
        batch = algorithm.offline_data.sample(32)
        assert batch["observations"].shape == (32, 3) and np.isfinite(batch["rewards"]).all()
        assert algorithm.replay.state()["sampler"] != before, "another replay gave the batch"


def test_checkpoint_that_does_not_fit_is_refused(
    uninterrupted: tuple[list[Path], dict[str, dict[str, torch.Tensor]], dict[str, Any]], pendulum: Path, tmp_path: Path
) -> None:
    saved, _, _ = uninterrupted
    with running(config(pendulum, hidden_dims=(8, 8)).build_algo()) as algorithm:
        with pytest.raises(CheckpointError):
            algorithm.restore_from_path(saved[5])
        with pytest.raises(CheckpointError, match="folder"):
            algorithm.save_to_path()
    other = config(pendulum)
    other.env_runners(num_envs_per_env_runner=3)
    with running(other.build_algo()) as algorithm, pytest.raises((ConfigError, CheckpointError)):
        algorithm.restore_from_path(saved[5])
    with pytest.raises(CheckpointError):
        DIPOLE.from_checkpoint(tmp_path)


def test_ratio_of_the_past_is_not_billed_again(
    uninterrupted: tuple[list[Path], dict[str, dict[str, torch.Tensor]], dict[str, Any]], pendulum: Path
) -> None:
    """A resumed run with another ratio counts from there on: no burst of updates."""
    saved, _, _ = uninterrupted
    with running(config(pendulum, updates_per_env_step=2.0).build_algo()) as algorithm:
        algorithm.restore_from_path(saved[5])
        algorithm.train()
        assert algorithm.env_steps == 180
        assert algorithm.learner_steps == LOOP["offline_learner_steps"] + 36 + 2 * 60


def test_updates_per_env_step_are_exact_in_every_window_after_a_resume(
    uninterrupted: tuple[list[Path], dict[str, dict[str, torch.Tensor]], dict[str, Any]],
) -> None:
    """R3 in the loop: each window of 60 environment steps is followed by its 18 updates, the first one too."""
    saved, _, _ = uninterrupted
    with running(DIPOLE.from_checkpoint(saved[5])) as algorithm:
        counts = [algorithm.learner_steps]
        for _ in range(5):
            algorithm.train()
            counts.append(algorithm.learner_steps)
    assert np.diff(counts).tolist() == [18] * 5


def test_nothing_is_left_in_rllibs_own_folder(pendulum: Path, tmp_path: Path) -> None:
    """A run whose ring lies in its own folder leaves no empty one elsewhere."""
    algorithm = config(pendulum, replay_directory=str(tmp_path)).build_algo()
    algorithm.stop()
    assert not Path(algorithm.logdir).exists()
