"""Triton's kernels equal torch's; on a CPU they run in Triton's interpreter: TRITON_INTERPRET=1 pytest this file."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from dipole_ray.agents import flow
from dipole_ray.agents.branches import Branches
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.fields import StackedFields
from dipole_ray.agents.networks import PASSES, Sizes, StackedMLP
from tests.agents.battery import DEVICE, make_agent, make_batch, tiny_config
from tests.agents.test_captured import joined, spoilt

pytest.importorskip("triton")
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's kernels run on a GPU or in its interpreter", allow_module_level=True)

from dipole_ray.agents import fused, fused_layers


def with_passes(passes: Any, function: Any, *arguments: Any) -> Any:
    """Return what a function does with these passes."""
    token = PASSES.set(passes)
    try:
        return function(*arguments)
    finally:
        PASSES.reset(token)


def mlp_of(dims: tuple[int, ...], norm: bool, seed: int) -> StackedMLP:
    """Return a stack of three whose biases and norms are off their beginnings."""
    generator = torch.Generator().manual_seed(seed)
    mlp = StackedMLP(3, dims, layer_norm=norm, generator=generator)
    for parameter in (*mlp.biases, *mlp.norm_scales, *mlp.norm_shifts):
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) / 2)
    return mlp


FEW, MANY = fused_layers.Tile(32, 32, 64, 4), fused_layers.Tile(32, 128, 32, 4)
PASSES_OF: list[tuple[tuple[int, ...], bool, Any, Any]] = [
    ((9, 40, 2), False, None, FEW),
    ((9, 70, 40, 1), True, None, FEW),
    ((9, 40, 130, 3), True, None, MANY),
    ((9, 24, 40, 2), True, slice(1, 3), FEW),
    ((9, 24, 40, 2), False, [2, 0], MANY),
]
"""Sizes, whether there are norms, members and tile."""


@pytest.mark.parametrize(("dims", "norm", "members", "tile"), PASSES_OF)
def test_a_pass_and_its_gradients_are_those_in_float64(
    dims: tuple[int, ...], norm: bool, members: Any, tile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of inputs whose rows lie apart in memory, and of ones that each member has its own of."""
    monkeypatch.setattr("dipole_ray.agents.fused_pass.tile_for", lambda *_: tile)
    if DEVICE == "cpu":  # all kernels; the interpreter rounds nothing
        monkeypatch.setattr("dipole_ray.agents.fused_pass.precision", lambda: "tf32")
    ours, exact = mlp_of(dims, norm, 0).to(DEVICE), mlp_of(dims, norm, 0).double()
    parameters = list(ours.parameters())
    places = [torch.full((1, *each.shape), torch.nan, device=DEVICE) for each in parameters]
    passes = fused.FusedPasses(parameters, places, Branches())
    for inputs in (torch.randn(35, dims[0] + 4)[:, 2:-2], torch.randn(3 if members is None else 2, 35, dims[0])):
        seen, exactly = inputs.to(DEVICE).requires_grad_(), inputs.double().requires_grad_()
        found, expected = with_passes(passes, ours, seen, members), exact(exactly, members)
        gradient = torch.randn(expected.shape)
        left = torch.autograd.grad(found, [seen, *parameters], gradient.to(DEVICE))
        right = torch.autograd.grad(expected, [exactly, *exact.parameters()], gradient.double())
        with torch.no_grad():
            assert torch.equal(with_passes(passes, ours, seen, members), found)
        for a, b in zip((found, *left), (expected, *right), strict=True):
            assert float((a.detach().cpu() - b.detach()).norm() / b.detach().norm()) < 2e-6
        # Gradients of whole stacks go to their places, once a step.
        took = [each.data_ptr() == place.data_ptr() for each, place in zip(left[1:], places, strict=True)]
        assert all(took) if members is None and inputs.dim() == 2 else not any(took)


@pytest.mark.parametrize(
    ("along", "omega", "hidden_dims", "candidates"),
    [
        (["a"], 0.0, (24,), 3),
        (["b"], -1.0, (24, 40), 1),
        (["a", "b"], 1.5, (24,), 1),
        (["a", "b"], 1.5, (64, 130, 24), 3),
    ],
)
def test_actions_are_those_of_the_sampler(
    along: list[str], omega: float, hidden_dims: tuple[int, ...], candidates: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    fields = StackedFields(("a", "b"), Sizes(5, 3, hidden_dims, 2), generator).requires_grad_(False).to(DEVICE)
    for bias in fields.mlp.biases:
        bias.normal_()
    observations, noise = torch.randn(3, 5, device=DEVICE), torch.randn(3, candidates, 3, device=DEVICE)
    arguments = fields, observations, noise, along, 3, omega
    with torch.no_grad():
        found = with_passes(fused.FusedPasses([], [], Branches()), flow.generate, *arguments)
        torch.testing.assert_close(found, flow.generate(*arguments), rtol=1e-5, atol=1e-5)


AGENTS: list[dict[str, Any]] = [
    {"preset": "paper", "target_omega": 1.0, "advantage_normalization": "running_std", "denoise_steps": 2},
    {"preset": "small", "train_bc": True},
    {"preset": "fql", "denoise_steps": 2},
    {"preset": "iql"},
]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("settings", AGENTS, ids=lambda settings: settings["preset"])
def test_updates_end_where_eager_ones_do(settings: dict[str, Any], count: int) -> None:
    """Also one that is not finite, which moves nothing of its agent; the generators stay equal."""
    rows, own = 4, [{}, {"beta": 7.0, "learning_rate": 3e-4}, {"expectile": 0.7}][:count]
    alone, others = (
        [make_agent(tiny_config(**settings, **each), seed=seed) for seed, each in enumerate(own)] for _ in range(2)
    )
    captured = CapturedUpdates(others, rows, 2)
    batches = [[make_batch(10 * member + step, rows) for step in range(2)] for member in range(count)]
    batches[0][1] = spoilt(batches[0][1])
    captured.update_on([joined(each) for each in batches])
    for agent, other, each in zip(alone, others, batches, strict=True):
        for batch in each:
            agent.update(batch)
        left, right = agent.state_dict(), other.state_dict()
        for name, tensor in left.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(right[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
            else:
                assert torch.equal(right[name], tensor), name
    assert [other.skipped_updates for other in others] == [1] + [0] * (count - 1)
