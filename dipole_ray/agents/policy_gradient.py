"""A policy gradient through denoising: DPPO (Ren et al., Diffusion Policy Policy Optimization, ICLR 2025).

The way from noise to action is an episode of K steps, each a draw of a Gaussian whose mean the field gives. So a step
has a likelihood, and PPO's clipped ratio raises or lowers it by the advantage of the action at the end:

    x_(k+1) ~ N(alpha' a + sqrt(sigma'^2 - s^2) n, s^2),   s = eta sigma'/sigma sqrt(sigma^2 - (alpha sigma'/alpha')^2)
    L = -E_k min(r A_k, clip(r, 1 - c_k, 1 + c_k) A_k),    r = (p(x_(k+1) | x_k) / p_old(x_(k+1) | x_k))^(1 / A)

with a the action that the field says, clipped to the box, n the noise in x_k = alpha a + sigma n, and primes for the
next time. That is DDIM's step (Song et al., ICLR 2021, Eq. 12 and 16), which keeps the path's marginals, at eta 1
DDPM's; a flow has it likewise, with alpha = t and sigma = 1 - t. As in DPPO's code (`model/diffusion/diffusion_ppo.py`)
ratios are geometric means over the numbers of an action; the clip grows, and the discount fades, from noise to action.

Shapes: B rows, A action dim; K denoise steps, k the number of one, (B,).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch
from torch import Tensor

from dipole_ray.agents import vp
from dipole_ray.agents.config import ABOVE_ZERO, RATE, Rule, require_rules
from dipole_ray.agents.losses import gaussian_log_likelihood
from dipole_ray.columns import Column
from dipole_ray.errors import ConfigError
from dipole_ray.settings import unread

CHAINS, LIKELIHOODS = "chains", "log_likelihoods"
"""What a drawn row keeps: its chain, (K + 1, A), and how likely each step was to the policy that took it, (K,)."""
CLIP_RATE = 3.0
_SHARE = Rule(lambda x: 0 <= x <= 1, "give a number in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyGradientConfig:
    """Of `agent.weight_scheme=dppo`: how plans are drawn, and how far a step may take their likelihood."""

    denoise_discount: Annotated[float, RATE] = 0.99
    """Discount of the advantage for each denoise step that lies between a step and the action, in (0, 1]. DPPO: 0.99
    on gym's tasks, 0.9 elsewhere."""
    clip: Annotated[float, ABOVE_ZERO] = 0.05
    """c of the last denoise step, beyond which a ratio of likelihoods moves nothing any more, > 0. DPPO: 0.01."""
    clip_first: Annotated[float, ABOVE_ZERO] = 0.005
    """c of the first one, which grows to `clip` exponentially, > 0. DPPO: 0.001."""
    eta: Annotated[float, _SHARE] = 1.0
    """Share of the path's noise that is drawn anew in each denoise step, in [0, 1]: 1 is DDPM's, at 0 there is but
    `min_std`. DPPO: 1."""
    min_std: Annotated[float, ABOVE_ZERO] = 0.05
    """Least deviation of a denoise step, > 0, so that the last one explores as well. DPPO: 0.1. Plans that are said as
    `poses` bear 0.01, or drives are uncomfortable."""
    min_likelihood_std: Annotated[float, ABOVE_ZERO] = 0.1
    """Least deviation with which a step's likelihood is judged, > 0: without it the last steps, whose deviations are
    small, outweigh all others. DPPO: 0.1."""

    cloning_weight: Annotated[float, ABOVE_ZERO] = 0.03
    """Weight of the cloning loss of offline rows beside the policy gradient, > 0. At 1 it outweighs all else: its
    gradients are some thirty times as long."""

    def __post_init__(self) -> None:
        """Reject what is out of range."""
        require_rules(self, "agent.policy_gradient")


@dataclass(frozen=True, slots=True)
class Denoising:
    """The steps from noise to action, of each one number, (K,)."""

    times: Tensor
    """t at which the field is asked."""
    action_of_x: Tensor
    action_of_field: Tensor
    """Factors by which x_k and what the field says there make an estimate a of the action."""
    mean_of_x: Tensor
    mean_of_action: Tensor
    """Factors by which x_k and a make the mean of x_(k+1)."""
    stds: Tensor
    likelihood_stds: Tensor
    discounts: Tensor
    clips: Tensor

    def mean(self, x: Tensor, field: Tensor, k: Tensor) -> Tensor:
        """Return the mean of x_(k+1), (B, A), where x_k and what the field says there are (B, A)."""
        of = [each[k].unsqueeze(-1) for each in (self.action_of_x, self.action_of_field)]
        action = (of[0] * x + of[1] * field).clamp(-1.0, 1.0)
        return self.mean_of_x[k].unsqueeze(-1) * x + self.mean_of_action[k].unsqueeze(-1) * action

    def log_likelihood(self, following: Tensor, mean: Tensor, k: Tensor) -> Tensor:
        """Return log p(x_(k+1) | x_k), (B,), with at least the deviation that likelihoods are judged with."""
        return gaussian_log_likelihood(following, mean, self.likelihood_stds[k].log().unsqueeze(-1))


def make_denoising(
    diffusion: str, denoise_steps: int, noise_scale: float, config: PolicyGradientConfig, device: Any = "cpu"
) -> Denoising:
    """Return the steps of a `flow` at even times, or of `vp` at those of its sampler; the last ends in the action."""
    steps, is_flow = denoise_steps, diffusion == "flow"
    points = [(k / steps, 1 - k / steps, k / steps) for k in range(steps)] if is_flow else vp.schedule(steps)
    rows = []
    for k, (alpha, sigma, t) in enumerate(points):
        alpha_next, sigma_next = points[k + 1][:2] if k + 1 < steps else (1.0, 0.0)
        s = config.eta * sigma_next / sigma * math.sqrt(max(0.0, sigma**2 - (alpha * sigma_next / alpha_next) ** 2))
        kept = math.sqrt(max(0.0, sigma_next**2 - s**2))
        # a = x + (1 - t) v of a flow, and (x - sigma n) / alpha where the field says n.
        action = (1.0, sigma) if is_flow else (1.0 / alpha, -sigma / alpha)
        mean = kept / sigma, alpha_next - kept * alpha / sigma
        std = max(noise_scale * s, config.min_std)
        grown = math.expm1(CLIP_RATE * k / (steps - 1)) / math.expm1(CLIP_RATE) if steps > 1 else 1.0
        clip = config.clip_first + (config.clip - config.clip_first) * grown
        discount = config.denoise_discount ** (steps - 1 - k)
        rows.append((t, *action, *mean, std, max(std, config.min_likelihood_std), discount, clip))
    return Denoising(*torch.tensor(rows, device=device).unbind(1))


def draw_chain(field: Callable[[Tensor, float], Tensor], noise: Tensor, denoising: Denoising) -> tuple[Tensor, Tensor]:
    """Return a chain (B, K + 1, A), whose end is the action before it is clipped, and log-likelihoods (B, K).

    Of the noise (B, K + 1, A) the first is where it begins, the others what each step draws.
    """
    x, states, likelihoods = noise[:, 0], [noise[:, 0]], []
    for number, t in enumerate(denoising.times.tolist()):
        k = torch.full((len(x),), number, device=x.device)
        mean = denoising.mean(x, field(x, t), k)
        x = mean + denoising.stds[number] * noise[:, number + 1]
        states.append(x)
        likelihoods.append(denoising.log_likelihood(x, mean, k))
    return torch.stack(states, dim=1), torch.stack(likelihoods, dim=1)


def clipped_losses(log_ratio: Tensor, advantage: Tensor, clip: Tensor) -> Tensor:
    """Return PPO's loss of each row, -min(r A, clip(r, 1 - c, 1 + c) A) with r = exp(log_ratio); all are (B,)."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)


def chain_loss(
    field_at: Callable[[Tensor, Tensor], Tensor],
    batch: Mapping[str, Any],
    path: tuple[Tensor, Tensor, Tensor],
    uniform: Tensor,
    denoising: Denoising,
    cloning_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean loss over rows, a scalar, and what tells how far the policy is from who drew them.

    A drawn row, whose reward is its advantage, gives the clipped loss of one of its denoise steps; an offline one,
    which was not drawn, that of the diffusion.

    Args:
        field_at: What the field says, (1, B, A), at points (B, A) and times (B, 1).
        batch: With actions, rewards, is_offline and the `kept_columns`.
        path: Points, times and what the field is to say there, for cloning.
        uniform: Numbers in [0, 1), (B,), that choose the denoise steps.
        denoising: Its steps.
        cloning_weight: Of the losses of offline rows.
    """
    (x, t, target), chains, steps = path, batch[CHAINS], len(denoising.times)
    k = (uniform * steps).long().clamp(max=steps - 1)
    place = k.view(-1, 1, 1).expand(-1, 1, chains.shape[-1])
    following = chains.gather(1, place + 1).squeeze(1)
    # One pass of the networks: offline rows are where flow matching puts them, the others where their chain was.
    is_cloned = batch["is_offline"] > 0
    x = torch.where(is_cloned.unsqueeze(1), x, chains.gather(1, place).squeeze(1))
    t = torch.where(is_cloned.unsqueeze(1), t, denoising.times[k].unsqueeze(1))
    field = field_at(x, t)[0]

    likelihood = denoising.log_likelihood(following, denoising.mean(x, field, k), k)
    log_ratio = (likelihood - batch[LIKELIHOODS].gather(1, k.unsqueeze(1)).squeeze(1)) / chains.shape[-1]
    log_ratio = log_ratio.masked_fill(is_cloned, 0.0)
    climbing = clipped_losses(log_ratio, denoising.discounts[k] * batch["rewards"], denoising.clips[k])
    cloning = cloning_weight * (field - target).square().mean(dim=-1)
    ratio, drawn = log_ratio.detach().exp(), (~is_cloned).float().mean().clamp(min=1.0 / len(k))
    measured = {
        "actor/clip_fraction": ((ratio - 1.0).abs() > denoising.clips[k]).float().mean() / drawn,
        "actor/kl": (ratio - 1.0 - log_ratio.detach()).mean() / drawn,  # of an action's number, by Schulman's estimate
    }
    return torch.where(is_cloned, cloning, climbing).mean(), measured


def require_settings(config: Any) -> None:
    """Reject what the policy gradient of a `DipoleConfig` is not for; settings of one, where there is none."""
    scheme = f"weight_scheme '{config.weight_scheme}'"
    if config.weight_scheme != "dppo":
        for one in fields(PolicyGradientConfig):
            if (found := getattr(config.policy_gradient, one.name)) != one.default:
                key, remedy = f"agent.policy_gradient.{one.name}", "agent.weight_scheme=dppo"
                raise unread(key, found, one.default, f"{scheme} does not read it", remedy)
        return
    if config.advantage != "group":
        found = f"{scheme} climbs the advantage of whole plans, and agent.advantage is '{config.advantage}'"
        raise ConfigError(f"agent.weight_scheme: {found}; set agent.advantage=group and agent.num_candidates=1")
    for name, neutral in {"beta": 1.0, "train_bc": False}.items():
        config.require(name, neutral, f"{scheme} weighs no rows and trains one field", "agent.weight_scheme=dipole")
    if config.backbone.dtype != "float32":
        found = f"found {config.backbone.dtype}, but workers merge adapters in float32"
        raise ConfigError(f"agent.backbone.dtype: {found}: likelihoods of {scheme} would not agree; set float32")


def kept_columns(denoise_steps: int, action_dim: int) -> dict[str, Column]:
    """Return what a row keeps of how its action was drawn."""
    return {CHAINS: Column((denoise_steps + 1, action_dim)), LIKELIHOODS: Column((denoise_steps,))}
