"""Two learners on halves of a batch end where one learner on the whole batch ends: two real processes, over gloo."""

from __future__ import annotations

import multiprocessing
import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.data_parallel import DataParallel, RankLost
from dipole_ray.errors import NonFiniteError
from tests.agents.battery import Batch, assert_same, make_agent, make_batch, tiny_config

UPDATES = 100
SIZE = 2
SCHEMES = {
    "dipole": tiny_config(advantage_normalization="running_std"),
    "dipole with candidates": tiny_config(target_candidates=3, target_omega=1.0, train_bc=True),
    "value bootstrap": tiny_config(bootstrap="value", advantage_normalization="running_std", beta=3.0),
    "exp": tiny_config("exp", advantage_normalization="batch_std"),
    "cfgrl": tiny_config("cfgrl"),
    "bc": tiny_config("bc"),
    "fql": tiny_config("fql", target_candidates=2, normalize_q_loss=True),
    "iql": tiny_config("iql", advantage_normalization="running_std", beta=3.0),
}
POISONED = 5
"""The update of which one row, the second learner's, has an infinite reward."""


def batch_of(step: int) -> Batch:
    """Return the joined batch of a step."""
    batch = make_batch(step)
    if step == POISONED:
        batch["rewards"][-1] = np.inf
    return batch


def learn(config: AgentConfig, parallel: DataParallel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state after 100 updates on this learner's share of each batch, and the last metrics."""
    agent = make_agent(config)
    agent.data_parallel = parallel
    metrics: dict[str, Tensor] = {}
    for step in range(UPDATES):
        share = {name: parallel.shard(column) for name, column in batch_of(step).items()}
        metrics = agent.update(share, diagnostics=step == UPDATES - 1)
    return agent.state_dict(), metrics


def fail_together(parallel: DataParallel, folder: Path) -> str:
    """Return the error that ends ten updates with one infinite reward, on whichever learner it lies."""
    keeps = folder / "failures" if parallel.rank == 0 else None
    agent = make_agent(tiny_config(), failure_directory=keeps)
    agent.data_parallel = parallel
    share = {name: parallel.shard(column) for name, column in batch_of(POISONED).items()}
    try:
        for _ in range(20):
            agent.update(share)
    except NonFiniteError as error:
        return str(error)
    return "no error"


def be_left_alone(parallel: DataParallel) -> str:
    """Return what a learner sees when the other one's process is gone."""
    if parallel.rank == 1:
        os._exit(0)
    try:
        learn(tiny_config("bc"), parallel)
    except RankLost as error:
        return f"RankLost: {error}"
    return "no error"


def run_one(rank: int, folder: Path) -> None:
    """Be one of two learners: all schemes, then the failures."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=SIZE, timeout=timedelta(seconds=120))
    parallel = DataParallel.of_process_group()
    for name, config in SCHEMES.items():
        state, metrics = learn(config, parallel)
        save_file(state, folder / f"{name}-{rank}.state")
        save_file(metrics, folder / f"{name}-{rank}.metrics")
    (folder / f"nonfinite-{rank}").write_text(fail_together(parallel, folder))
    (folder / f"alone-{rank}").write_text(be_left_alone(parallel))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two learners left their results in."""
    folder = tmp_path_factory.mktemp("pair")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_one, args=(rank, folder)) for rank in range(SIZE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0]
    return folder


@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_learners_equal_one_on_the_joined_batch(pair: Path, scheme: str) -> None:
    """Parameters, targets, optimizer, running statistics and noise generator, to 1e-5 after 100 updates."""
    first, second = (load_file(pair / f"{scheme}-{rank}.state") for rank in range(SIZE))
    assert_same(first, second)
    alone, metrics = learn(SCHEMES[scheme], DataParallel())
    assert alone.keys() == first.keys() and int(first["skipped_updates"]) == 1
    worst = {name: float((tensor.double() - first[name].double()).abs().max()) for name, tensor in alone.items()}
    print(f"{scheme}: {max(worst.values()):.1e}")
    assert {name: gap for name, gap in worst.items() if gap > 1e-5} == {}
    assert torch.equal(alone["generator"], first["generator"])
    found = load_file(pair / f"{scheme}-1.metrics")
    for name, value in metrics.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_learners_give_up_together_and_one_saves_the_whole_batch(pair: Path) -> None:
    assert "10 updates in a row" in (pair / "nonfinite-1").read_text()
    assert "nonfinite-batch-10.safetensors" in (pair / "nonfinite-0").read_text()
    saved = load_file(pair / "failures" / "nonfinite-batch-10.safetensors")
    for name, column in batch_of(POISONED).items():
        np.testing.assert_array_equal(saved[name].numpy(), column)


def test_a_learner_whose_partner_is_gone_says_so_instead_of_waiting(pair: Path) -> None:
    assert (pair / "alone-0").read_text().startswith("RankLost: ")


def test_shards_are_consecutive_rows_of_every_batch() -> None:
    rows = np.arange(12)
    shards = [DataParallel(rank, 2).shard(rows, 4).tolist() for rank in range(2)]
    assert shards == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    assert DataParallel(1, 2).shard(torch.from_numpy(rows)).tolist() == [6, 7, 8, 9, 10, 11]
