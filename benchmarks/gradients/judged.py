"""Policies that learn from judged plans (`benchmarks.driving.judged_plans`), each from one clone of the drivers.

Needs torch and numpy alone.

Shapes: S scenes, G plans a scene, N = S G rows, B rows of a batch.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gradients.measure import SCHEMES, Batch, Probe, Scheme
from dipole_ray.agents import plan_heads
from dipole_ray.agents.adapters import AdaptedFields, AdapterConfig, SeparateFields
from dipole_ray.agents.agent import Agent, make_agent
from dipole_ray.agents.backbones import LinearFields
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.networks import Sizes
from dipole_ray.columns import Column, Schema

BATCH, RANK, HELD_OUT = 128, 16, 512
TARGETS = "attention", "mlp"
NETWORKS = {"mlp": LinearFields, **{name: getattr(plan_heads, name) for name in ("tiny", "small", "base")}}
RATES = {"mlp": 3e-4, "tiny": 3e-4, "small": 3e-4, "base": 1e-4}


class JudgedPlans:
    """Rows of judged plans on a device."""

    def __init__(self, file: Path, device: str) -> None:
        with np.load(file, allow_pickle=False) as arrays:
            self.columns = {name: torch.from_numpy(arrays[name]).to(device) for name in arrays if name != "folders"}
            self.folders = arrays["folders"].tolist()
        self.scenes, self.plans, self.action_dim = self.columns["actions"].shape

    def schemes(self) -> list[Scheme]:
        """Return the schemes that differ on these rows: a ceiling that no weight reaches is none."""
        most = float(self.columns["advantages"].max())
        return [each for each in SCHEMES if each.is_uncut or each.beta * most > math.log(each.ceiling)]

    def rows(self, picks: Tensor, sees_context: bool, part: str = "") -> Batch:
        """Return rows by their number, 0 to N: what is seen, actions, advantages, and masks of one step."""
        scenes, columns = picks // self.plans, self.columns
        seen: Any = columns[f"{part}ego"][scenes]
        if sees_context:
            seen = {"ego": seen, "context": columns[f"{part}context"][scenes]}
        rewards = columns[f"{part}advantages"].flatten()[picks]
        own = {"actions": columns[f"{part}actions"].flatten(0, 1)[picks], "rewards": rewards}
        return {"observations": seen, "next_observations": seen, **own, "masks": torch.zeros_like(rewards)}


@dataclass(frozen=True)
class Case:
    """A network that learns from judged plans, with all of its weights or by adapters."""

    plans: JudgedPlans
    network: str
    device: str
    clone_updates: int

    @property
    def sees_context(self) -> bool:
        """Whether the network attends to the scene's tokens; an MLP reads the car's status alone."""
        return self.network != "mlp"

    def agent(self, make_fields: Any, weight_scheme: str) -> Agent:
        """Return an agent of these fields, whose rows bring their advantage."""
        config = AgentConfig(
            weight_scheme=weight_scheme,
            advantage="group",
            num_candidates=1,
            batch_size=BATCH,
            learning_rate=RATES[self.network],
        )
        columns = self.plans.columns
        ego = Column((columns["ego"].shape[-1],))
        context = Column(tuple(columns["context"].shape[1:]), "float16")
        schema = Schema({"ego": ego, "context": context} if self.sees_context else ego, self.plans.action_dim)
        return make_agent(config, schema, seed=0, device=self.device, make_fields=make_fields)

    def batches(self, seed: int, *, driven_only: bool = False) -> Iterator[Batch]:
        """Draw rows without end, of all plans or of the driven ones, which are the last of each scene."""
        generator, plans = torch.Generator(self.device).manual_seed(seed), self.plans.plans
        rows = self.plans.scenes * (1 if driven_only else plans)
        while True:
            picks = torch.randint(rows, (BATCH,), generator=generator, device=self.device)
            yield self.plans.rows(picks * plans + plans - 1 if driven_only else picks, self.sees_context)

    @cached_property
    def clone(self) -> Any:
        """The network after cloning the driven plans: what every scheme begins with."""

        def drawn(names: tuple[str, ...], sizes: Sizes, _: torch.Generator) -> SeparateFields:
            generator = torch.Generator(self.device).manual_seed(0)  # where it is needed: moving it takes longer
            with torch.device(self.device):
                return SeparateFields(names, [NETWORKS[self.network](names, sizes, generator)])

        agent = self.agent(drawn, "bc")
        batches = self.batches(0, driven_only=True)
        for _ in range(self.clone_updates):
            agent.update(next(batches), diagnostics=False)
        fields: Any = agent.networks.fields
        return fields.networks[0].requires_grad_(True)

    @cached_property
    def probe(self) -> Probe:
        """Plans of scenes that are held out."""
        columns, generator = self.plans.columns, torch.Generator().manual_seed(0)
        rows = columns["held_out_advantages"].numel()
        picks = torch.randperm(rows, generator=generator)[:HELD_OUT].to(self.device)
        found = self.plans.rows(picks, self.sees_context, "held_out_")
        return Probe.of(found["observations"], found["actions"], found["rewards"] > 0)


class Learners:
    """A case's agents of one and of two fields; each begins anew for every training, since drawing it takes long."""

    def __init__(self, case: Case, is_adapted: bool) -> None:
        self.case, self.is_adapted = case, is_adapted
        self._made: dict[str, tuple[Agent, dict[str, Tensor]]] = {}

    def fresh(self, scheme: Scheme, seed: int) -> Agent:
        """Return an agent whose fields are the clone, with moments and noise that nothing has used."""
        if scheme.weights not in self._made:
            agent = self.case.agent(self._fields, scheme.weights)
            start = {name: each.detach().clone() for name, each in agent.networks.trained_parameters().items()}
            self._made[scheme.weights] = agent, start
        agent, start = self._made[scheme.weights]
        with torch.no_grad():
            for name, parameter in agent.networks.trained_parameters().items():
                parameter.copy_(start[name])
        agent._begin_steps()
        gc.collect()  # moments of before, which may be gigabytes
        agent.generator.manual_seed(seed)
        agent.skipped_updates = agent.consecutive_skips = 0
        return agent

    def _fields(self, names: tuple[str, ...], _: Sizes, generator: torch.Generator) -> nn.Module:
        if self.is_adapted:
            config = AdapterConfig(rank=RANK, targets=TARGETS)
            return AdaptedFields(names, copy.deepcopy(self.case.clone), config, generator)
        return SeparateFields(names, [copy.deepcopy(self.case.clone) for _ in names])
