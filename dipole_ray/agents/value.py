"""What agents with a state value share: V(s) by expectile regression, the TD target, and the scaled advantage.

Shapes: B batch rows, E critics, O observation dim.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from dipole_ray.agents import losses
from dipole_ray.agents.agent import Agent
from dipole_ray.agents.encoders import seen_by

WEIGHT_QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


class ValueAgent(Agent):
    """An agent whose policy learns from the advantage Q - V."""

    has_value: ClassVar[bool] = True
    statistics: ClassVar[tuple[str, ...]] = ("running_variance", "running_mass")
    steepeners: ClassVar[tuple[str, ...]] = ("learning_rate", "beta")

    @torch.no_grad()
    def _critic_targets(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the TD target (B,) and the target critics' estimates (E, B) at the data's actions.

        The noise is that of `_bootstrap_noise`, drawn here unless it is given. Waits for all branches of the step.
        """
        pairs = torch.cat((seen_by("target_critic", batch["observations"]), batch["actions"]), dim=-1)
        noise = self._bootstrap_noise(len(pairs)) if noise is None else noise
        if noise is None:
            bootstrap = self.branches.beside("next value", self._values, seen_by("value", batch["next_observations"]))
            q_data = self.networks.target_critic(pairs).squeeze(-1)
        else:
            bootstrap, q_data = self._policy_bootstrap(batch["next_observations"], pairs, noise)
        self.branches.join()
        return self._temporal_difference_target(batch, bootstrap), q_data

    def _bootstrap_noise(self, rows: int) -> Tensor | None:
        """Draw what the policy's actions at s' begin with, (B, N, A); None where Q bootstraps from V."""
        return None if self.config.bootstrap == "value" else self._noise(rows, self.config.target_candidates)

    def _values(self, states: Tensor) -> Tensor:
        """Return V(s), (B,), of what V reads."""
        return self.networks.value.forward(states).squeeze(0).squeeze(-1)

    def _value_loss(self, v: Tensor, q_data: Tensor) -> Tensor:
        """Return the loss of the expectile regression of V(s), (B,), on the target critics' estimates (E, B)."""
        target = losses.aggregate(q_data, self.config.value_aggregation, self.config.rho)
        return losses.expectile_regression_loss(v, target, self.config.expectile)

    def _advantage(self, q: Tensor, v: Tensor) -> Tensor:
        """Return G(s, a), (B,), of estimates (E, B) and V(s), without a gradient."""
        return losses.aggregate(q.detach(), self.config.choice_aggregation, self.config.rho) - v.detach()

    def _normalized_advantage(self, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scaled advantage (B,), and the running statistics with the rows of all learners."""
        how = self.config.advantage_normalization
        if how == "none":
            return advantage, self._statistics
        gathered = self.data_parallel.all_gather(advantage)
        scaled, *updated = losses.normalized_advantage(gathered, how, *self._statistics.values())
        return self.data_parallel.shard(scaled), dict(zip(self._statistics, updated, strict=True))

    def _value_metrics(self, v: Tensor) -> dict[str, Tensor]:
        """Return the mean of V(s), (B,), over the rows of all learners."""
        return {"value/v_mean": self.data_parallel.all_gather(v.detach()).mean()}

    def _advantage_metrics(self, advantage: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Return means and spreads over the rows of all learners; given are this learner's, each (B,).

        The quantiles of the weight tell whether beta suits the advantage: all near 0.5 means it is too small,
        all at 0 or 1 too large. The advantage is the one before any normalisation, the weight the first field's.
        """
        advantage, weight = map(self.data_parallel.all_gather, (advantage, weight))
        below, above, fractions = _ranks(len(weight), weight.dtype, weight.device)
        ranked = weight.sort().values  # not torch.quantile, which a stacked step would call member by member
        quantiles = zip(WEIGHT_QUANTILES, torch.lerp(ranked[below], ranked[above], fractions), strict=True)
        return {
            "actor/advantage_mean": advantage.mean(),
            "actor/advantage_std": advantage.std(correction=0),
            "actor/effective_sample_fraction": losses.effective_sample_fraction(weight),
            **{f"actor/weight_{name}": quantile for name, quantile in quantiles},
        }


@cache
def _ranks(rows: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ranks around each quantile of so many rows, and how far it lies between them.

    They are brought to the device once: a captured step may copy nothing to it.
    """
    ranks = torch.tensor(list(WEIGHT_QUANTILES.values()), dtype=dtype, device=device) * (rows - 1)
    below, above = ranks.floor(), ranks.ceil()
    return below.long(), above.long(), ranks - below
