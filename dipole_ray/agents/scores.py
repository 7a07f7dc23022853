"""What chooses among candidates where rows bring their advantage: critics that regress on scores, without targets.

Shapes: E members, B rows, N candidates, A action dim; C context tokens of D numbers, O numbers of the ego's state.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.dit import PARTS
from dipole_ray.agents.networks import Sizes, StackedMLP
from dipole_ray.agents.observations import Observations
from dipole_ray.agents.plan_heads import tiny

SCORES = "scores"
"""The column of what an action was judged to be worth, which rows of a learned score keep."""


def reads_context(config: AgentConfig, given: Sizes) -> bool:
    """Whether a score attends to tokens that observations bring, as a head that plans does, and needs no encoder."""
    return config.encoder.network == "none" and set(given.observed) == {f"observations.{part}" for part in PARTS}


def draw_score(config: AgentConfig, given: Sizes, sizes: Sizes, generator: torch.Generator) -> nn.Module:
    """Return an untrained score of observations as they are `given`, or of the states of `sizes` made of them."""
    if reads_context(config, given):
        return PlanScore(given.num_critics, given, generator)
    dims = (sizes.pair_dim, *sizes.hidden_dims, 1)
    return StackedMLP(sizes.num_critics, dims, layer_norm=True, generator=generator)


class PlanScore(nn.Module):
    """E heads that plan, of the size `tiny`, each of which says how good a plan is instead: the mean of its numbers."""

    def __init__(self, num_members: int, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = nn.ModuleList([tiny(("score",), sizes, generator) for _ in range(num_members)])

    def at(self, observations: Observations, candidates: Tensor) -> Tensor:
        """Return the scores (E, B, N, 1) of plans (B, N, A) where `ego` (B, O) and `context` (B, C, D) are observed."""
        heads: list[Any] = list(self.heads)
        found = [head.velocity(head.encode(observations, ()), candidates, 0.0, ()) for head in heads]
        return torch.cat(found).mean(dim=-1, keepdim=True)
