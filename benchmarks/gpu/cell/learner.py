"""The cell itself: the paper's agent on one table of rows, its updates replayed as a graph where there is a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dipole_ray.agents.agent import Agent, make_agent
from dipole_ray.agents.captured import CapturedUpdates
from dipole_ray.agents.dipole import AgentConfig
from dipole_ray.columns import Schema
from dipole_ray.data.schema import Rows
from dipole_ray.errors import NonFiniteError

CALL, CURVE = 500, 10_000
"""Updates without the host, and between two lines of the curve."""
CHUNK = 50_000


def transitions(rows: Rows) -> dict[str, np.ndarray]:
    """Return the transitions, in their order, that rows of whole trajectories hold: single steps."""
    begin = np.flatnonzero(rows["remaining"] > 0)
    columns = {name: np.asarray(rows[name])[begin] for name in ("observations", "actions", "rewards", "masks")}
    return {**columns, "next_observations": np.asarray(rows["observations"])[begin + 1]}


def paper_agent(schema: Schema, seed: int, device: str, **changes: Any) -> Agent:
    """Return the agent of the paper's protocol with a cloned field beside, which acts at omega 4 on this task."""
    config = AgentConfig.preset("paper", train_bc=True, omega=4.0, **changes)
    return make_agent(config, schema, seed=seed, device=device)


def train(
    agent: Agent,
    batch: Mapping[str, np.ndarray],
    updates: int,
    until: float,
    *,
    at: Mapping[int, Callable[[], object]],
    seed: int,
    call: int = CALL,
) -> list[dict[str, float]]:
    """Take updates on uniform batches until there are so many, or so many seconds since 1970; return the curve.

    What is to be done `at` a number of updates, a multiple of `call`, is done there.
    """
    size, rows = agent.config.batch_size, len(batch["rewards"])
    start = time.perf_counter()
    captured = CapturedUpdates([agent], size, call, rows)
    captured.load([batch])
    print(f"captured after {time.perf_counter() - start:.1f} s", flush=True)
    generator = torch.Generator(agent.device).manual_seed(seed)
    curve: list[dict[str, float]] = []
    start = last = time.perf_counter()
    told = 0
    while agent.learner_steps < updates and time.time() < until:
        count = min(call, updates - agent.learner_steps)
        index = torch.randint(rows, (count, 1, size), device=agent.device, generator=generator)
        (outcome,) = captured.run(index)
        if isinstance(outcome, NonFiniteError):
            raise outcome
        done = agent.learner_steps
        if done % CURVE == 0 or done >= updates:
            now = time.perf_counter()
            rate = (done - told) / (now - last)
            curve.append({"updates": done, "seconds": now - start, "updates_per_s": rate, **outcome})
            last, told = now, done
            if done % (10 * CURVE) == 0 or done >= updates:
                print(line_of(curve[-1]), flush=True)
        if done in at:
            at[done]()
    return curve


COLUMNS: Sequence[tuple[str, str, str]] = (
    ("updates", "updates", ".0f"),
    ("updates/s", "updates_per_s", ".0f"),
    ("critic", "critic/loss", ".4f"),
    ("V", "value/loss", ".5f"),
    ("pi+", "actor/loss_positive", ".4f"),
    ("pi-", "actor/loss_negative", ".4f"),
    ("BC", "actor/loss_bc", ".4f"),
    ("mean Q", "critic/q_mean", ".2f"),
    ("std of A", "actor/advantage_std", ".3f"),
    ("weight 5 %", "actor/weight_q05", ".3f"),
    ("95 %", "actor/weight_q95", ".3f"),
    ("skipped", "system/skipped_updates", ".0f"),
)
HEAD = "\n".join(
    ["| " + " | ".join(name for name, _, _ in COLUMNS) + " |", "|" + "--:|" * len(COLUMNS)]
)  # of `line_of`


def line_of(metrics: Mapping[str, float]) -> str:
    """Return a line of the table that a person reads."""
    return "| " + " | ".join(format(metrics[key], form) for _, key, form in COLUMNS) + " |"


@torch.no_grad()
def advantages(agent: Any, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return A(s, a) of every transition, (N,), by the target critics and V as they are now."""
    found = []
    for first in range(0, len(batch["rewards"]), CHUNK):
        both = (torch.as_tensor(batch[name][first : first + CHUNK]) for name in ("observations", "actions"))
        observations, actions = (each.to(agent.device) for each in both)
        q = agent.networks.target_critic(torch.cat((observations, actions), dim=-1)).squeeze(-1)
        found.append(agent._advantage(q, agent._values(observations)).cpu().numpy())
    return np.concatenate(found)
