"""The objectives equal their closed forms in float64 and stay bounded over all of float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dipole_ray.agents import losses
from dipole_ray.errors import NonFiniteError

float32 = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
positive_float32 = st.floats(min_value=2.0**-20, max_value=2.0**20, width=32)


LARGEST, SUBNORMAL = float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_subnormal)
ULP = float(np.spacing(np.float32(1.0)))


@settings(max_examples=500, deadline=None)
@given(st.lists(float32, min_size=1, max_size=20), positive_float32, st.floats(-50, 50, width=32))
@example([3e38, -3e38, LARGEST, -LARGEST], 1.0, 0.0)
@example([3e38, -3e38, LARGEST, -LARGEST], 1e4, -50.0)
@example([SUBNORMAL, -SUBNORMAL, 1e-40, -1e-40, 0.0, -0.0], 1e4, 0.0)
@example([SUBNORMAL, -SUBNORMAL, 1e-40], 2.0**-20, 50.0)
def test_dichotomous_weights_are_bounded_and_sum_to_one(values: list[float], beta: float, shift: float) -> None:
    """For every float32 advantage, subnormals and +-3e38 included; without a guard of finite numbers as with it."""
    advantage = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    positive, negative = losses.dichotomous_weights(advantage, beta, shift)
    for weight in (positive, negative):
        assert bool(((weight >= 0) & (weight <= 1)).all())
    assert float((positive.double() + negative.double() - 1).detach().abs().max()) <= ULP
    assert bool(((positive + negative - 1).abs() <= ULP).all()), "in float32 too"
    (positive.sum() + 2 * negative.sum()).backward()
    assert advantage.grad is not None and bool(torch.isfinite(advantage.grad).all())
    unchecked = losses.dichotomous_weights(advantage, beta, shift, check_finite=False)
    assert torch.equal(unchecked[0], positive) and torch.equal(unchecked[1], negative)


@settings(max_examples=200, deadline=None)
@given(st.lists(float32, min_size=2, max_size=20), st.sampled_from(["none", "batch_std", "running_std"]))
@example([LARGEST, -LARGEST], "batch_std")
@example([SUBNORMAL, 0.0, -SUBNORMAL], "batch_std")
@example([1e30, 2e30], "running_std")
def test_gradients_of_the_weighted_regression_are_finite_or_seen(values: list[float], how: str) -> None:
    """From the advantage to the gradient of a field; what overflows on the way shows in the loss that is checked."""
    advantage, zero = torch.tensor(values, dtype=torch.float32), torch.zeros(())
    scaled, *statistics = losses.normalized_advantage(advantage, how, zero, zero)
    weights = torch.stack(losses.dichotomous_weights(scaled, 1.0, check_finite=False))
    velocities = torch.linspace(-2, 2, 2 * len(values)).reshape(1, -1, 2).repeat(2, 1, 1).requires_grad_()
    loss = losses.flow_matching_losses(velocities, torch.zeros(len(values), 2), weights).sum()
    loss.backward()
    assert velocities.grad is not None
    is_finite = bool(torch.isfinite(velocities.grad).all())
    assert is_finite or not bool(torch.isfinite(loss + statistics[0]))
    if how == "none":
        assert is_finite


@pytest.mark.parametrize("extreme", [3e38, -3e38, 1e-45, -1e-45, 0.0, -0.0, 17.0, -17.0, 88.8, -104.0])
def test_dichotomous_weights_hold_at_the_edges_of_float32(extreme: float) -> None:
    positive, negative = losses.dichotomous_weights(torch.tensor([extreme]), beta=1.0)
    assert float(positive + negative) == pytest.approx(1.0, abs=1.2e-7)
    if extreme == 17.0:
        assert float(negative) == pytest.approx(1 / (1 + math.exp(17.0)), rel=1e-5), "1 - sigma(x) would be 0 here"


def test_dichotomous_weights_equal_the_closed_form() -> None:
    advantage = torch.linspace(-30, 30, 101, dtype=torch.float64)
    positive, negative = losses.dichotomous_weights(advantage, beta=0.7, shift=-0.4)
    x = 0.7 * advantage.numpy() - 0.4
    np.testing.assert_allclose(positive.numpy(), 1 / (1 + np.exp(-x)), rtol=1e-12)
    np.testing.assert_allclose(negative.numpy(), 1 / (1 + np.exp(x)), rtol=1e-12)
    np.testing.assert_allclose((positive / negative).numpy(), np.exp(x), rtol=1e-12)  # Eq. 7


def test_dichotomous_weights_name_the_first_bad_row() -> None:
    with pytest.raises(NonFiniteError, match="row 2 holds nan"):
        losses.dichotomous_weights(torch.tensor([0.0, 1.0, math.nan, math.inf]), beta=1.0)


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.9])
def test_expectile_loss_is_per_sample_and_its_minimum_is_the_expectile(expectile: float) -> None:
    residual = torch.tensor([-2.0, -0.5, 0.0, 3.0], dtype=torch.float64)
    expected = [(1 - expectile) * 4, (1 - expectile) * 0.25, 0.0, expectile * 9]
    np.testing.assert_allclose(losses.expectile_loss(residual, expectile).numpy(), expected, rtol=1e-14)

    samples = torch.randn(2001, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prediction = torch.zeros((), dtype=torch.float64)
    for _ in range(200):  # Fixed point of the expectile's first-order condition.
        weight = torch.where(samples < prediction, torch.tensor(1 - expectile, dtype=torch.float64), expectile)
        prediction = (weight * samples).sum() / weight.sum()
    prediction.requires_grad_()
    losses.expectile_loss(samples - prediction, expectile).mean().backward()
    assert prediction.grad is not None and abs(float(prediction.grad)) < 1e-12


def test_aggregation_equals_its_formula() -> None:
    q = torch.tensor([[1.0, 4.0], [3.0, 2.0], [5.0, 9.0]], dtype=torch.float64)
    assert losses.aggregate(q, "min").tolist() == [1.0, 2.0]
    assert losses.aggregate(q, "mean").tolist() == [3.0, 5.0]
    expected = q.numpy().mean(0) - 0.5 * q.numpy().std(0)
    np.testing.assert_allclose(losses.aggregate(q, "mean_minus_std", 0.5).numpy(), expected, rtol=1e-14)


def test_exponential_weight_is_capped_and_can_be_left_uncapped() -> None:
    advantage = torch.tensor([-1.0, 0.0, 2.0, 10.0], dtype=torch.float64)
    expected = np.exp(3 * advantage.numpy())
    np.testing.assert_allclose(losses.exponential_weight(advantage, 3.0).numpy(), np.minimum(expected, 100), rtol=1e-14)
    np.testing.assert_allclose(losses.exponential_weight(advantage, 3.0, math.inf).numpy(), expected, rtol=1e-14)


def test_optimality_weights_mark_advantages_of_at_least_zero() -> None:
    conditional, free = losses.optimality_weights(torch.tensor([-1.0, 0.0, 2.0]))
    assert conditional.tolist() == [0.0, 1.0, 1.0] and free.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("horizon", [1, 5, 30])
def test_shaped_rewards_equal_shaping_each_reward_of_the_window(horizon: int) -> None:
    rng = np.random.default_rng(horizon)
    rewards, discount = rng.normal(size=(7, horizon)), 0.97
    powers = discount ** np.arange(horizon)
    sums = torch.from_numpy((rewards * powers).sum(1))
    discounts = torch.full((7,), discount**horizon, dtype=torch.float64)
    shaped = losses.shaped_rewards(sums, discounts, discount, scale=2.0, shift=1.5)
    np.testing.assert_allclose(shaped.numpy(), ((2.0 * rewards + 1.5) * powers).sum(1), rtol=1e-12)


@pytest.mark.parametrize("horizon", [1, 3, 50])
@pytest.mark.parametrize("discount", [0.995, 0.9999, 0.99999, 1 - 1e-6])
def test_shaped_rewards_keep_their_digits_near_discount_1(discount: float, horizon: int) -> None:
    """The powers come in float32, as from a replay, where 1 - 0.99999 has two digits."""
    discounts = torch.full((3,), discount**horizon, dtype=torch.float32)
    shaped = losses.shaped_rewards(torch.zeros(3), discounts, discount, scale=1.0, shift=-1.0)
    expected = -np.sum(discount ** np.arange(horizon, dtype=np.float64))
    np.testing.assert_allclose(shaped.numpy(), np.full(3, expected), rtol=1e-6)
    assert shaped.dtype == torch.float32


def test_both_heads_on_both_targets_is_regression_on_the_mean_target() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 9, dtype=torch.float64, generator=generator, requires_grad=True)
    q_next = torch.randn(2, 9, dtype=torch.float64, generator=generator)
    crossed = (q.unsqueeze(1) - q_next.unsqueeze(0)).square().mean()
    (expected,) = torch.autograd.grad(crossed, q)
    (found,) = torch.autograd.grad(losses.temporal_difference_loss(q, losses.aggregate(q_next, "mean")), q)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


def test_flow_matching_losses_weigh_rows_and_average_action_dimensions() -> None:
    velocities = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [3.0, 1.0]]], dtype=torch.float64)
    weights = torch.tensor([[0.5, 1.0], [0.0, 0.25]], dtype=torch.float64)
    found = losses.flow_matching_losses(velocities, torch.zeros(2, 2, dtype=torch.float64), weights)
    assert found.tolist() == [0.5 * 0.5 * (1 + 4) / 2, 0.5 * 0.25 * (9 + 1) / 2]


def test_gaussian_log_likelihood_is_torchs_own() -> None:
    generator = torch.Generator().manual_seed(0)
    actions, mean = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    log_std = torch.tensor([[-5.0, 0.3, 2.0]], dtype=torch.float64)
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(actions).sum(dim=-1)
    torch.testing.assert_close(losses.gaussian_log_likelihood(actions, mean, log_std), expected, rtol=1e-12, atol=0)


def test_distillation_loss_averages_rows_and_action_dimensions() -> None:
    actions = torch.tensor([[[1.0, 2.0]], [[0.0, -1.0]]], dtype=torch.float64)
    assert float(losses.distillation_loss(actions, torch.zeros_like(actions))) == (1 + 4 + 0 + 1) / 4


def test_advantage_normalization_divides_by_the_batch_or_running_deviation() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    first = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    second = torch.tensor([-8.0, 1.0, 0.5], dtype=torch.float64)
    assert losses.normalized_advantage(first, "none", zero, zero)[0] is first
    batch, *_ = losses.normalized_advantage(first, "batch_std", zero, zero)
    np.testing.assert_allclose(batch.numpy(), first.numpy() / first.numpy().std(), rtol=1e-5)
    once, variance, mass = losses.normalized_advantage(first, "running_std", zero, zero)
    np.testing.assert_allclose(once.numpy(), batch.numpy(), rtol=1e-12)  # The start at zero is corrected.
    twice, variance, mass = losses.normalized_advantage(second, "running_std", variance, mass)
    decay = losses.RUNNING_DECAY
    expected = (decay * first.numpy().var() + second.numpy().var()) / (1 + decay)
    np.testing.assert_allclose(float(variance / mass), expected, rtol=1e-12)
    np.testing.assert_allclose(twice.numpy(), second.numpy() / math.sqrt(expected), rtol=1e-5)


def test_effective_sample_fraction_is_one_for_equal_weights_and_one_row_in_b_for_one_hot() -> None:
    assert float(losses.effective_sample_fraction(torch.full((8,), 0.3))) == pytest.approx(1.0)
    assert float(losses.effective_sample_fraction(torch.eye(8)[2])) == pytest.approx(1 / 8)
