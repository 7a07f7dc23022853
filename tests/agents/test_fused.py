"""Triton's kernels equal torch's; on a CPU they run in Triton's interpreter: TRITON_INTERPRET=1 pytest this file."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dipole_ray.agents import flow
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.fields import StackedFields
from dipole_ray.agents.networks import FUSED, LAYER_NORM_EPS, Sizes
from tests.agents.battery import DEVICE, make_agent, make_batch, tiny_config
from tests.agents.test_captured import joined, spoilt

pytest.importorskip("triton")
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's kernels run on a GPU or in its interpreter", allow_module_level=True)

from dipole_ray.agents import fused


@pytest.mark.parametrize("width", [40, 512])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_bias_gelu_and_norm_with_gradients(width: int, norm: bool, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, rows, width, generator=generator) for rows in (37, 1, 1, 1)]
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    ours = [tensor.to(DEVICE).requires_grad_() for tensor in tensors]
    gradient = torch.randn(3, 37, width, generator=generator)
    hidden = F.gelu(exact[0] + (exact[1] if has_bias else 0.0), approximate="tanh")
    if norm:
        hidden = F.layer_norm(hidden, (width,), eps=LAYER_NORM_EPS) * exact[2] + exact[3]
    hidden.backward(gradient.double())
    found = fused.activate(ours[0], ours[1] if has_bias else None, *(ours[2:] if norm else ()), epsilon=LAYER_NORM_EPS)
    found.backward(gradient.to(DEVICE))
    pairs = [(found, hidden)] + [(a.grad, b.grad) for a, b in zip(ours, exact, strict=True) if b.grad is not None]
    for a, b in pairs:
        assert a is not None and b is not None
        assert float((a.detach().cpu() - b.detach()).norm() / b.detach().norm()) < 1e-6


@pytest.mark.parametrize(("along", "omega"), [(["a"], 0.0), (["b"], -1.0), (["a", "b"], 1.5)])
@pytest.mark.parametrize("hidden_dims", [(24,), (24, 40), (64, 130, 24)])
@pytest.mark.parametrize("candidates", [1, 3])
def test_actions_are_those_of_the_sampler(
    along: list[str], omega: float, hidden_dims: tuple[int, ...], candidates: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    fields = StackedFields(("a", "b"), Sizes(5, 3, hidden_dims, 2), generator).requires_grad_(False).to(DEVICE)
    for bias in fields.mlp.biases:
        bias.normal_()
    observations, noise = torch.randn(5, 5, device=DEVICE), torch.randn(5, candidates, 3, device=DEVICE)
    with torch.no_grad():
        expected = flow.generate(fields, observations, noise, along, 4, omega)
        token = FUSED.set(fused)
        found = flow.generate(fields, observations, noise, along, 4, omega)
        FUSED.reset(token)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


AGENTS: list[dict[str, Any]] = [
    {"preset": "paper", "target_omega": 1.0, "target_candidates": 2, "advantage_normalization": "running_std"},
    {"preset": "small", "train_bc": True},
    {"preset": "fql"},
    {"preset": "iql"},
]


@pytest.mark.parametrize("settings", AGENTS, ids=lambda settings: settings["preset"])
def test_updates_end_where_eager_ones_do(settings: dict[str, Any]) -> None:
    """Also one that is not finite, which moves nothing; the generators stay equal."""
    rows = 8
    agent, other = (make_agent(tiny_config(**settings)) for _ in range(2))
    captured = CapturedUpdates(other, rows, 3)
    batches = [make_batch(step, rows) for step in range(3)]
    batches[1] = spoilt(batches[1])
    captured.update_on(joined(batches))
    for batch in batches:
        agent.update(batch)
    left, right = agent.state_dict(), other.state_dict()
    assert other.skipped_updates == 1
    for name, tensor in left.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(right[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
        else:
            assert torch.equal(right[name], tensor), name
