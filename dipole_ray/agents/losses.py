"""The objectives as pure functions of tensors; every one also works in float64.

Shapes: B rows, E critics, F fields, A action dim.
"""

import math
from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor

from dipole_ray.errors import NonFiniteError

SQUARES: ContextVar[Callable[..., Tensor] | None] = ContextVar("squares", default=None)
"""What computes mean weighted squares in a captured step: see `fused_losses.weighted_squares`.

It takes numbers (F, B, A) with a gradient, a target (C, A) that repeats after C rows, and weights (F, B) or none.
"""
RUNNING_DECAY = 0.99
STD_FLOOR = 1e-6


def dichotomous_weights(
    advantage: Tensor, beta: float, shift: float = 0.0, *, check_finite: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the bounded regression weights of the two policies, sigma(x) and sigma(-x) with x = beta G + k.

    Eq. 9 of Liang et al. (ICLR 2026); k moves the knee. Each is (B,) in [0, 1], and they sum to 1 within one unit in
    the last place.

    Args:
        advantage: G(s, a), (B,).
        beta: Steepness, > 0, per unit of advantage. Large values approach a step function.
        shift: k; the product density of Eq. 7 does not depend on it.
        check_finite: Look at the values first, which waits for the device; an agent checks loss and gradient instead.

    Raises:
        NonFiniteError: If `advantage` holds NaN or infinity; names the first bad row.
    """
    if check_finite:
        require_finite(advantage, "advantage")
    x = beta * advantage + shift
    # Two sigmoids: 1 - sigma(x) is exactly 0 in float32 from x = 17 on, while sigma(-x) keeps its relative accuracy.
    return torch.sigmoid(x), torch.sigmoid(-x)


def exponential_weight(advantage: Tensor, beta: float, maximum: float = 100.0) -> Tensor:
    """Return min(exp(beta G), maximum), the weight of Eq. 4; `maximum` may be infinite. Shape (B,)."""
    return torch.exp(beta * advantage).clamp(max=maximum)


def optimality_weights(advantage: Tensor) -> tuple[Tensor, Tensor]:
    """Return CFGRL's weights: 1 where G >= 0 for the conditional field, 1 everywhere for the other. Shapes (B,)."""
    return (advantage >= 0).to(advantage.dtype), torch.ones_like(advantage)


def effective_sample_fraction(weight: Tensor) -> Tensor:
    """Return (sum w)^2 / (B sum w^2), in (0, 1]: the share of the batch that the weights (B,) leave in use."""
    squares = (len(weight) * weight.square().sum()).clamp(min=torch.finfo(weight.dtype).tiny)
    return weight.sum().square() / squares


def expectile_loss(residual: Tensor, expectile: float) -> Tensor:
    """Return |expectile - 1[residual < 0]| residual^2 for each sample; the residual is target minus prediction.

    Expectile 0.5 is half the squared error; towards 1 the prediction approaches the maximum.
    """
    # Not torch.where on two numbers: that makes a float32 tensor, and float64 input would lose its digits.
    square = residual.square()
    return torch.where(residual < 0, (1.0 - expectile) * square, expectile * square)


def expectile_regression_loss(v: Tensor, target: Tensor, expectile: float) -> Tensor:
    """Return the mean of `expectile_loss` of predictions V(s) and their targets, (B,) both, a scalar."""
    residual = target - v
    if (squares := SQUARES.get()) is not None:
        # Not torch.where on two numbers, which it would bring to the device: no graph may do that.
        weights = ((residual.detach() < 0) * (1.0 - 2.0 * expectile) + expectile).to(v.dtype)
        return squares(v.view(1, -1, 1), target.unsqueeze(1), weights.unsqueeze(0)).squeeze(0)
    return expectile_loss(residual, expectile).mean()


def aggregate(q: Tensor, how: str, rho: float = 0.0) -> Tensor:
    """Reduce estimates (E, ...) to (...) by `min`, `mean`, or `mean_minus_std`: mean - rho (population deviation)."""
    if how == "min":
        return q.amin(dim=0)
    if how == "mean":
        return q.mean(dim=0)
    assert how == "mean_minus_std", how
    return q.mean(dim=0) - rho * q.std(dim=0, correction=0)


def shaped_rewards(rewards: Tensor, discounts: Tensor, discount: float, scale: float, shift: float) -> Tensor:
    """Scale and shift the rewards inside a discounted n-step sum.

    Equal to replacing each reward r by scale r + shift before summing, since h rewards carry the total
    weight 1 + g + ... + g^(h-1) = (1 - g^h) / (1 - g).

    Rewards (B,) are sums over each row's own horizon h, discounts (B,) hold g^h, and g < 1 unless the shift is 0.
    """
    if shift == 0.0:
        return rewards if scale == 1.0 else scale * rewards
    # In float32 1 - g^h loses its digits as g nears 1. The whole number h gives them back, where g^h is one.
    powers = discounts.double()
    logarithms = (powers.log() / math.log(discount)).round().clamp(min=1.0) * math.log(discount)
    is_power = (logarithms.exp() - powers).abs() <= torch.finfo(torch.float32).eps
    total = torch.where(is_power, -torch.expm1(logarithms), 1.0 - powers) / (1.0 - discount)
    return scale * rewards + (shift * total).to(rewards.dtype)


def temporal_difference_loss(q: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of all critics (E, B) against one target (B,), a scalar."""
    if (squares := SQUARES.get()) is not None:
        return squares(q.reshape(1, -1, 1), target.unsqueeze(1)).squeeze(0)
    return (q - target).square().mean()


def score_regression_loss(q: Tensor, scores: Tensor, weight: Tensor) -> Tensor:
    """Return the mean over critics (E, B) and rows of w times the squared error against the scores (B,), a scalar."""
    return flow_matching_losses(q.unsqueeze(-1), scores.unsqueeze(-1), weight.expand(q.shape)).mean()


def weighted_correlation(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return the correlation of x and y, (B,), with weights (B,) of 0 or 1, a scalar; 0 where nothing varies."""
    count, tiny = weight.sum().clamp(min=1), torch.finfo(weight.dtype).tiny
    x, y = ((values - (weight * values).sum() / count) * weight for values in (x, y))
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt().clamp(min=tiny)


def flow_matching_losses(velocities: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return each field's loss (F,), the mean over rows of w times the mean squared error over A (Eq. 9).

    Velocities are (F, B, A), weights (F, B); the target u = a - x_0, (B, A), is shared by the fields.
    """
    if (squares := SQUARES.get()) is not None:
        return squares(velocities, target, weights)
    return (weights * (velocities - target).square().mean(dim=-1)).mean(dim=-1)


def distillation_loss(actions: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared distance of actions to a teacher's of the same shape, a scalar; FQL's."""
    return (actions - target).square().mean()


def gaussian_log_likelihood(actions: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return log N(a; mean, diag(std^2)), (B,), summed over action dimensions; all are (B, A) or broadcast to it."""
    standardized = (actions - mean) * torch.exp(-log_std)
    return -(0.5 * standardized.square() + log_std + 0.5 * math.log(2.0 * math.pi)).sum(dim=-1)


def normalized_advantage(
    advantage: Tensor, how: str, running_variance: Tensor, running_mass: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Divide the advantage by a standard deviation; its sign is kept, so nothing is subtracted.

    The deviation is that of this batch (`batch_std`), or from an exponential average of the batch variances with decay
    0.99, this batch included, corrected for its start at zero (`running_std`); `none` divides by nothing. Returns the
    scaled advantage (B,), the average and the total weight in it: two scalars that start at 0.
    """
    if how == "none":
        return advantage, running_variance, running_mass
    variance = advantage.var(correction=0)
    if how == "batch_std":
        return advantage / (variance.sqrt() + STD_FLOOR), running_variance, running_mass
    assert how == "running_std", how
    running_variance = torch.lerp(variance, running_variance, RUNNING_DECAY)
    running_mass = RUNNING_DECAY * running_mass + (1.0 - RUNNING_DECAY)
    return advantage / ((running_variance / running_mass).sqrt() + STD_FLOOR), running_variance, running_mass


def require_finite(values: Tensor, name: str) -> None:
    """Raise NonFiniteError if `values` (rows first) holds NaN or infinity, naming the first bad row."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        index = tuple((~finite).nonzero()[0].tolist())
        raise NonFiniteError(
            f"{name}: row {index[0]} holds {values[index].item()} ({int((~finite).sum())} of "
            f"{values.numel()} values are not finite); check the rewards and observations it came from"
        )
