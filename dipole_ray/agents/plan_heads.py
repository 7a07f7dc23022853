"""Heads that plan: a transformer whose tokens are the poses of a plan, with the context that an encoder computed.

A pose is four numbers of the action, and observations are two arrays: `ego`, what the car knows of itself, (O,), and
`context`, tokens (C, D). As `agent.backbone.network=dipole_ray.agents.plan_heads:base`; `base` is the published size.

Shapes: C context tokens of D numbers, O numbers of the ego's state.
"""

from dataclasses import replace
from functools import partial

import torch

from dipole_ray.agents.dit import PARTS, DiTFields
from dipole_ray.agents.networks import Sizes
from dipole_ray.errors import ConfigError

POSE = 4
"""Numbers of an action that are one pose."""


def _head(size: str, names: tuple[str, ...], sizes: Sizes, generator: torch.Generator) -> DiTFields:
    """Return a head of one of the transformer's sizes; ConfigError where observations are others."""
    ego, context = (sizes.observed.get(f"observations.{part}") for part in PARTS)
    if len(sizes.observed) != 2 or ego is None or context is None or not ego.is_vector or len(context.shape) != 2:
        found = ", ".join(f"{name.partition('.')[2] or name} {column}" for name, column in sizes.observed.items())
        remedy = "take another agent.backbone.network"
        raise ConfigError(f"a head that plans observes ego (O,) and context (C, D), found {found}; {remedy}")
    own = replace(sizes, observation_dim=ego.shape[0], observed={})
    return DiTFields(size, names, own, generator, token_dim=POSE, context_dim=context.shape[1])


tiny, small, base = (partial(_head, size) for size in ("tiny", "small", "base"))
