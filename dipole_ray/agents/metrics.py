"""What the learner reports about one update beside its losses.

Shapes: B batch rows, E critics.
"""

import torch
from torch import Tensor

from dipole_ray.agents.losses import effective_sample_fraction

WEIGHT_QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


def critic_metrics(q: Tensor, q_target: Tensor) -> dict[str, Tensor]:
    """Return means and spread of the critics' estimates (E, B) and of their target (B,) by metric name."""
    return {
        "critic/q_mean": q.mean(),
        "critic/q_spread": q.std(dim=0, correction=0).mean(),
        "critic/target_mean": q_target.mean(),
    }


def learning_metrics(q: Tensor, q_target: Tensor, v: Tensor, advantage: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Return means and spreads of one batch by metric name, detached scalars.

    The quantiles of the weight tell whether beta suits the advantage: all near 0.5 means it is too small,
    all at 0 or 1 too large. The advantage is the one before any normalisation, the weight the first field's. All are
    (B,) but the online critics' `q`, (E, B).
    """
    levels = torch.tensor(list(WEIGHT_QUANTILES.values()), dtype=weight.dtype, device=weight.device)
    return {
        **critic_metrics(q, q_target),
        "value/v_mean": v.mean(),
        "actor/advantage_mean": advantage.mean(),
        "actor/advantage_std": advantage.std(correction=0),
        "actor/effective_sample_fraction": effective_sample_fraction(weight),
        **{f"actor/weight_{name}": x for name, x in zip(WEIGHT_QUANTILES, torch.quantile(weight, levels), strict=True)},
    }
