"""Updates without a branch equal `Agent.update`, skipped ones included; on a GPU they come from a CUDA graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import Agent
from dipole_ray.agents.backbones import BackboneConfig
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.errors import NonFiniteError
from tests.agents.battery import ROWS, Batch, assert_same, make_agent, make_batch, tiny_config

UPDATES = 10
AGENTS: list[dict[str, Any]] = [
    {"preset": "paper"},
    {"preset": "small", "train_bc": True},
    {"preset": "paper", "target_omega": 1.0, "target_candidates": 3, "advantage_normalization": "batch_std"},
    {"preset": "cfgrl"},
    {"preset": "exp"},
    {"preset": "fql", "normalize_q_loss": True},
    {"preset": "iql", "advantage_normalization": "running_std"},
]


def named(settings: dict[str, Any]) -> str:
    return ",".join(str(value) for value in settings.values())


def joined(batches: list[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def spoilt(batch: Batch) -> Batch:
    """Return the batch with one reward that is not finite."""
    rewards = batch["rewards"].copy()
    rewards[3] = np.nan
    return {**batch, "rewards": rewards}


def pair(settings: dict[str, Any], **options: Any) -> tuple[Agent, CapturedUpdates]:
    """Return an agent, and the captured updates of its twin."""
    twins = [make_agent(tiny_config(**settings), **options) for _ in range(2)]
    return twins[0], CapturedUpdates([twins[1]], ROWS, UPDATES, fused=False)


def update_on(captured: CapturedUpdates, batches: list[Batch]) -> dict[str, float]:
    """Return the metrics of an agent's updates, or raise its error."""
    (outcome,) = captured.update_on([joined(batches)])
    if isinstance(outcome, NonFiniteError):
        raise outcome
    return outcome


def assert_close(agent: Agent, other: Agent) -> None:
    """Check equal counters and noise, and tensors to rounding."""
    left, right = agent.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(right[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
        else:
            assert torch.equal(right[name], tensor), name


@pytest.mark.parametrize("settings", AGENTS, ids=named)
def test_a_hundred_updates_end_where_eager_ones_do(settings: dict[str, Any]) -> None:
    """Some are skipped, up to nine in a row and beyond the end of a call, and counted alike."""
    agent, captured = pair(settings)
    for call in range(0, 100, UPDATES):
        batches = [make_batch(step) for step in range(call, call + UPDATES)]
        bad = {20: (4,), 30: range(6, UPDATES), 40: range(5)}.get(call, ())
        batches = [spoilt(batch) if k in bad else batch for k, batch in enumerate(batches)]
        eager = [agent.update(batch, diagnostics=k == UPDATES - 1) for k, batch in enumerate(batches)]
        metrics = update_on(captured, batches)
        assert captured.agents[0].skipped_updates == agent.skipped_updates
        assert captured.agents[0].consecutive_skips == agent.consecutive_skips
        assert metrics.keys() == eager[-1].keys()
        if not bad:
            for name, value in metrics.items():
                expected = [float(each[name]) for each in eager] if "/loss" in name else [float(eager[-1][name])]
                assert value == pytest.approx(np.mean(expected), rel=1e-4, abs=1e-5), name
    assert agent.skipped_updates == 10
    assert_close(agent, captured.agents[0])


@pytest.mark.parametrize("settings", AGENTS, ids=named)
def test_a_call_whose_losses_are_not_finite_changes_no_tensor(settings: dict[str, Any]) -> None:
    _, captured = pair(settings)
    update_on(captured, [make_batch(step) for step in range(UPDATES)])
    before = captured.agents[0].state_dict()
    update_on(captured, [spoilt(make_batch(step)) for step in range(4)])
    after = captured.agents[0].state_dict()
    assert (int(after["skipped_updates"]), int(after["consecutive_skips"])) == (4, 4)
    kept = before.keys() - {"learner_steps", "skipped_updates", "consecutive_skips", "generator"}
    assert_same({name: before[name] for name in kept}, {name: after[name] for name in kept})


def test_making_it_changes_nothing_and_a_checkpoint_goes_on_bitwise(tmp_path: Path) -> None:
    """Also with an eager update between two calls: both act on the same tensors, generator and counters."""
    agent = make_agent(tiny_config("small"))
    before = agent.state_dict()
    captured = CapturedUpdates([agent], ROWS, UPDATES, fused=False)
    assert_same(before, agent.state_dict())
    calls = [[make_batch(10 * call + k) for k in range(UPDATES)] for call in range(3)]
    update_on(captured, calls[0])
    agent.update(make_batch(77))
    update_on(captured, calls[1])
    resumed = CapturedUpdates([make_agent(agent.config, seed=9)], ROWS, UPDATES, fused=False)
    update_on(resumed, calls[0])
    resumed.agents[0].load_state_dict(agent.state_dict())
    assert update_on(captured, calls[2]) == update_on(resumed, calls[2])
    assert_same(agent.state_dict(), resumed.agents[0].state_dict())
    assert_same(agent.policy.policy_state(), captured.policy_state())


def test_ten_skips_in_a_row_end_the_call_with_the_tenth_batch_saved(tmp_path: Path) -> None:
    """Good batches after it are not learned from, as if the error had come at once."""
    agent, captured = pair({"preset": "small"})
    agent.failure_directory, captured.agents[0].failure_directory = tmp_path / "eager", tmp_path / "captured"
    batches = [make_batch(0), *(spoilt(make_batch(step)) for step in range(1, 11)), *map(make_batch, range(11, 15))]
    update_on(captured, batches[:8])
    with pytest.raises(NonFiniteError, match="in 10 updates in a row"):
        update_on(captured, batches[8:])
    with pytest.raises(NonFiniteError):
        for batch in batches:
            agent.update(batch)
    assert captured.agents[0].learner_steps == agent.learner_steps == 11
    left, right = (load_file(tmp_path / side / "nonfinite-batch-11.safetensors") for side in ("eager", "captured"))
    for name, column in left.items():
        np.testing.assert_array_equal(column.numpy(), right[name].numpy())
    captured.agents[0].generator.set_state(agent.generator.get_state())
    assert_close(agent, captured.agents[0])


def test_rows_are_gathered_from_a_table_that_stays() -> None:
    agent, other = (make_agent(tiny_config("small")) for _ in range(2))
    rows = make_batch(0, rows=200)
    index = torch.from_numpy(np.random.default_rng(1).integers(200, size=(4, ROWS)))
    captured = CapturedUpdates([other], ROWS, max_updates=4, table_rows=200, fused=False)
    captured.load([rows])
    captured.run(index.unsqueeze(1))
    for picked in index.numpy():
        agent.update({name: column[picked] for name, column in rows.items()})
    assert_close(agent, other)


class OnTheDevice(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: tensors made of numbers of the host's, and numbers read from tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten.lift_fresh.default, torch.ops.aten._local_scalar_dense.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("diffusion", ["flow", "vp"])
def test_a_captured_step_of_a_transformer_asks_the_host_for_nothing(diffusion: str, rank: int) -> None:
    changes = {"diffusion": "vp"} if diffusion == "vp" else {}
    backbone, adapters = BackboneConfig(network="dit-tiny"), AdapterConfig(rank=rank)
    config = tiny_config(bootstrap="policy", backbone=backbone, adapters=adapters, **changes)
    captured = CapturedUpdates([make_agent(config)], ROWS, 1)
    captured.load([make_batch(0)])
    with OnTheDevice():
        captured._update(diagnostics=True)
