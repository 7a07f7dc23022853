"""Stacked networks compute what separate torch layers compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dipole_ray.agents.networks import StackedMLP, gelu_tanh


def plain_twin(stacked: StackedMLP, member: int) -> nn.Sequential:
    """Build one member out of torch's own layers."""
    layers: list[nn.Module] = []
    for index, (kernel, bias) in enumerate(zip(stacked.kernels, stacked.biases, strict=True)):
        linear = nn.Linear(*kernel.shape[1:])
        linear.weight.data, linear.bias.data = kernel[member].data.T.clone(), bias[member, 0].data.clone()
        layers.append(linear)
        if index == len(stacked.kernels) - 1:
            break
        layers.append(nn.GELU(approximate="tanh"))
        if stacked.layer_norm:
            norm = nn.LayerNorm(kernel.shape[2], eps=1e-6)
            norm.weight.data = stacked.norm_scales[index][member, 0].data.clone()
            norm.bias.data = stacked.norm_shifts[index][member, 0].data.clone()
            layers.append(norm)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("per_member_inputs", [False, True])
def test_members_equal_separate_networks_in_value_and_gradient(layer_norm: bool, per_member_inputs: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    stacked = StackedMLP(3, (5, 16, 8, 2), layer_norm=layer_norm, generator=generator)
    for parameter in stacked.parameters():  # Off their initial zeros and ones.
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    inputs = torch.randn((3, 20, 5) if per_member_inputs else (20, 5), generator=generator)
    outputs = stacked(inputs)
    outputs.square().sum().backward()
    for member in range(3):
        twin = plain_twin(stacked, member)
        expected = twin(inputs[member] if per_member_inputs else inputs)
        torch.testing.assert_close(outputs[member], expected, rtol=1e-5, atol=1e-6)
        expected.square().sum().backward()
        first = twin[0]
        assert isinstance(first, nn.Linear) and first.weight.grad is not None
        assert stacked.kernels[0].grad is not None
        torch.testing.assert_close(stacked.kernels[0].grad[member], first.weight.grad.T, rtol=1e-4, atol=1e-4)
    chosen = stacked(inputs[1:2] if per_member_inputs else inputs, slice(1, 2))
    torch.testing.assert_close(chosen[0], outputs[1], rtol=1e-5, atol=1e-6)


def test_members_start_apart_with_xavier_bounds_and_zero_biases() -> None:
    stacked = StackedMLP(2, (30, 200, 7), layer_norm=True, generator=torch.Generator().manual_seed(1))
    for kernel, bias in zip(stacked.kernels, stacked.biases, strict=True):
        bound = (6 / (kernel.shape[1] + kernel.shape[2])) ** 0.5
        assert bound * 0.98 < float(kernel.detach().abs().max()) <= bound
        assert float(kernel.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.03)
        assert not torch.equal(kernel[0], kernel[1])
        assert not bias.any()


def test_gelu_equals_torch_in_value_and_derivative() -> None:
    def derivative(function: nn.Module | type[nn.Module] | object, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        function(x).sum().backward()  # type: ignore[operator]
        assert x.grad is not None
        return x.grad

    x = torch.cat((torch.linspace(-12, 12, 4001, dtype=torch.float64), torch.tensor([-1e6, 1e6], dtype=torch.float64)))
    reference = nn.GELU(approximate="tanh")
    torch.testing.assert_close(gelu_tanh(x), reference(x), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(derivative(gelu_tanh, x), derivative(reference, x), rtol=1e-10, atol=1e-13)
    large = torch.tensor([sign * 10.0**power for power in range(1, 19) for sign in (-1, 1)])
    torch.testing.assert_close(derivative(gelu_tanh, large), derivative(reference, large), rtol=1e-6, atol=1e-6)
    low = x.float()
    torch.testing.assert_close(gelu_tanh(low), reference(x).float(), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(derivative(gelu_tanh, low), derivative(reference, x).float(), rtol=3e-6, atol=3e-6)
