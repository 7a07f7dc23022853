"""What weighted regression does to gradients: the schemes, and one training whose gradients are kept.

Needs torch and numpy alone, so that it runs where neither Ray nor a simulator is.

Shapes: P parameters' tensors, F fields, B rows, A action dim.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dipole_ray.agents import flow
from dipole_ray.agents.adapters import SeparateFields
from dipole_ray.agents.agent import Agent
from dipole_ray.agents.encoders import seen_by
from dipole_ray.errors import NonFiniteError

POINTS, PROBES = 100, 5
"""At most so many points of a curve are kept, and so many of the error on held-out rows."""
BETAS = 1.0, 3.0, 10.0
EQUAL_BETA = 1e-9
"""With it exp weights are 1 to float32's last digit: cloning, in the very networks that exp weights train."""
MEASURED = {
    "gradient": "",  # of pi+: norm over the square root of its number
    "loss": "actor/loss_positive",
    "effective": "actor/effective_sample_fraction",
}
Batch = dict[str, Any]


class Scheme(NamedTuple):
    """How rows are weighed."""

    weights: str  # `dipole` or `exp`
    beta: float
    ceiling: float = 100.0  # of exp weights

    @property
    def name(self) -> str:
        """Return what tables and pictures call it."""
        if self.beta == EQUAL_BETA:
            return "cloning"
        if self.weights == "dipole":
            return f"sigmoid, beta {self.beta:g}"
        cut = "uncut" if math.isinf(self.ceiling) else f"cut at {self.ceiling:g}"
        return f"exp, {cut}, beta {self.beta:g}"

    @property
    def is_uncut(self) -> bool:
        """Whether no ceiling is meant to bite."""
        return self.weights == "dipole" or self.beta == EQUAL_BETA or math.isinf(self.ceiling)

    def settings(self) -> dict[str, Any]:
        """Return what of an agent's config the scheme sets."""
        return {"weight_scheme": self.weights, "beta": self.beta, "exp_weight_max": self.ceiling}


SCHEMES = [
    Scheme("exp", EQUAL_BETA),
    *(Scheme("dipole", beta) for beta in BETAS),
    *(Scheme("exp", beta, math.inf) for beta in BETAS),
    *(Scheme("exp", beta) for beta in BETAS),
]


@dataclass(frozen=True, slots=True)
class Probe:
    """Rows that nothing is learned from, and where on the paths to their actions the field is asked."""

    observations: Any
    actions: Tensor
    is_better: Tensor  # (B,), whether the row's advantage is known and above 0
    noise: Tensor
    times: Tensor

    @classmethod
    def of(cls, observations: Any, actions: Tensor, is_better: Tensor) -> Probe:
        """Draw the places, the same for all schemes and networks."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(actions.shape, generator=generator).to(actions.device)
        times = torch.rand(len(actions), 1, generator=generator).to(actions.device)
        return cls(observations, actions, is_better, noise, times)

    @torch.no_grad()
    def error(self, agent: Agent) -> Tensor:
        """Return pi+'s squared error there, mean over A, of all rows weighing alike and of the better ones, (2,)."""
        seen = agent.policy.normalized(self.observations, networks=agent.networks)
        x = flow.path_point(self.noise, self.actions, self.times)
        velocity = agent.networks.fields(seen_by("fields", seen), x, self.times)[0]
        errors = (velocity - flow.path_velocity(self.noise, self.actions)).square().mean(dim=-1)
        return torch.stack((errors.mean(), errors[self.is_better].mean()))


def kind_of(name: str) -> str:
    """Return the group of a field's parameter: the kind of layer it lies in, or which side of an adapter it is."""
    if ".lora_" in name:
        return f"adapter {name.partition('.lora_')[2][0]}"
    words = name.split(".")
    if "layers" in words:  # of an MLP
        return f"layer {int(words[words.index('layers') + 1]) + 1}"
    kinds = {"attention": "self-attention", "mlp": "MLP", "cross": "cross-attention", "cross_mlp": "MLP"}
    of_block = words[words.index("blocks") + 2] if "blocks" in words else ""
    return kinds.get(of_block, "modulation" if "modulation" in words else "embeddings and head")


class OfPositive:
    """Which of an agent's gradients are pi+'s, and in what groups."""

    def __init__(self, agent: Agent) -> None:
        names = list(agent.networks.trained_parameters())
        fields: Any = agent.networks.fields
        own = ".networks.0." if isinstance(fields, SeparateFields) else ".positive."
        self.places = [place for place, name in enumerate(names) if name.startswith("fields.") and own in name]
        sizes = [parameter.numel() for parameter in agent.networks.trained_parameters().values()]
        self.kinds: dict[str, list[int]] = {}
        for place, own_place in enumerate(self.places):
            self.kinds.setdefault(kind_of(names[own_place]), []).append(place)
        self.counts = {kind: sum(sizes[self.places[each]] for each in places) for kind, places in self.kinds.items()}
        self.parameters = sum(self.counts.values())

    def squares(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the squared norms of pi+'s gradients (P,), in float64, where the largest do not overflow."""
        return torch.stack(torch._foreach_norm([gradients[place] for place in self.places])).double().square()


def trained(
    agent: Agent, scheme: Scheme, batches: Iterator[Batch], probe: Probe, updates: int, deadline: float
) -> dict[str, Any]:
    """Update the agent, weighing rows by the scheme, and return what its gradients, loss and error did.

    It ends before its time at the deadline, by `time.perf_counter`, and when ten updates in a row are not finite.
    """
    agent.config = replace(agent.config, **scheme.settings())
    agent.policy.config = agent.config
    own, squares, rest, errors = OfPositive(agent), [], [], []
    start, diverged = time.perf_counter(), False
    for update in range(updates):
        if time.perf_counter() > deadline:
            break
        if update % max(1, updates // PROBES) == 0:
            errors.append((update, probe.error(agent)))
        try:
            metrics = agent.update(next(batches))
        except NonFiniteError:
            diverged = True
            break
        squares.append(own.squares(agent.steps.gradients))
        rest.append(torch.stack([metrics[name] for name in MEASURED.values() if name]))
    done = len(squares)
    errors.append((done, probe.error(agent)))
    found: dict[str, Any] = {
        "scheme": scheme.name,
        "updates": done,
        "seconds": time.perf_counter() - start,
        "parameters": own.parameters,
        "diverged": diverged,
        "skipped": agent.skipped_updates,
    }
    if not done:
        return found
    by_tensor, others = torch.stack(squares).cpu(), torch.stack(rest).double().cpu()
    columns = [(by_tensor.sum(dim=1) / own.parameters).sqrt(), *others.unbind(dim=1)]
    found |= {name: summary(column) for name, column in zip(MEASURED, columns, strict=True)}
    found["kinds"] = {
        kind: {"parameters": own.counts[kind], **spread((by_tensor[:, places].sum(dim=1) / own.counts[kind]).sqrt())}
        for kind, places in own.kinds.items()
    }
    all_rows, better = torch.stack([error for _, error in errors]).cpu().unbind(dim=1)
    curves = {"error": list(map(number, all_rows)), "error_of_better": list(map(number, better))}
    found["held_out"] = {"update": [at for at, _ in errors], **curves}
    return found


def spread(column: Tensor) -> dict[str, Any]:
    """Return median, 90th percentile and largest of what is finite."""
    finite = column[torch.isfinite(column)]
    if not len(finite):
        return {"median": None, "p90": None, "max": None}
    ranks = torch.tensor([0.5, 0.9, 1.0], dtype=column.dtype)
    return dict(zip(("median", "p90", "max"), map(number, torch.quantile(finite, ranks)), strict=True))


def summary(column: Tensor) -> dict[str, Any]:
    """Return the spread over all updates, and a curve of the median and the largest of each few updates."""
    width = max(1, math.ceil(len(column) / POINTS))
    parts = column.split(width)
    ends = [min((place + 1) * width, len(column)) for place in range(len(parts))]
    curve = {"update": ends, "median": [number(part.median()) for part in parts]}
    return {**spread(column), "curve": {**curve, "most": [number(part.max()) for part in parts]}}


def number(value: Tensor) -> float | None:
    """Return a number with four digits; None if it is not finite, which JSON has no word for."""
    return float(f"{float(value):.4g}") if math.isfinite(float(value)) else None
