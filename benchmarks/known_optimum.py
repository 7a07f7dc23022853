"""What do learned advantages cost? On a line world whose optimum is known, fields trained on learned and on true ones.

    python -m benchmarks.known_optimum --seeds 0 1 2 3 4 --out benchmarks/results

A point on [-1, 1] moves by 0.15 a. Reward: a high bump at 0.7, a lower one at -0.6, a small cost of moving. The data
come from a policy with two modes (left and right). Q of that policy, Q* and the best return follow from dynamic
programming on a fine grid, so the same fields can be trained on advantages that the agent learned, on those of the
behaviour policy, and on those of the optimal policy. The score is 0 for the behaviour policy and 1 for the optimum.

Shapes: S grid states, U grid actions, R data rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import brief, summary, write_record
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.dipole import DipoleAgent
from dipole_ray.plots import style
from dipole_ray.plots.panels import Line, Panel, draw_panels

DISCOUNT, STRIDE, HORIZON, ROWS, STARTS = 0.95, 0.15, 60, 20_000, 100
STATES, ACTIONS = np.linspace(-1, 1, 401), np.linspace(-1, 1, 161)
OMEGAS, CANDIDATES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0), (1, 16)
SMALL = {
    "hidden_dims": (64, 64),
    "learning_rate": 1e-3,
    "discount": DISCOUNT,
    "beta": 3.0,
    "advantage_normalization": "running_std",
    "train_bc": True,
}
Table = np.ndarray
Policy = Callable[[np.ndarray], np.ndarray]


def move(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Return the next states."""
    return np.clip(states + STRIDE * actions, -1, 1)


def reward(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Return the reward of an action in a state."""
    high, low = np.exp(-(((states - 0.7) / 0.15) ** 2)), 0.4 * np.exp(-(((states + 0.6) / 0.2) ** 2))
    return high + low - 0.02 * actions**2


def behave(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return actions of the policy that made the data: left or right, whatever the state."""
    return np.clip(rng.choice([-0.5, 0.5], len(states)) + 0.25 * rng.normal(size=len(states)), -1, 1)


@cache
def action_values() -> tuple[Table, Table]:
    """Return Q of the behaviour policy and Q*, each (S, U), to 1e-10."""
    drawn = behave(np.zeros(1_000_000), np.random.default_rng(0))
    edges = np.concatenate(([-np.inf], (ACTIONS[1:] + ACTIONS[:-1]) / 2, [np.inf]))
    shares = np.histogram(drawn, edges)[0] / len(drawn)
    state, action = np.meshgrid(STATES, ACTIONS, indexing="ij")
    now, after = reward(state, action), move(state, action)

    def solve(value_of: Callable[[Table], np.ndarray]) -> Table:
        q = np.zeros_like(now)
        while True:
            new = now + DISCOUNT * np.interp(after, STATES, value_of(q))
            if np.abs(new - q).max() < 1e-10:
                return new
            q = new

    return solve(lambda q: q @ shares), solve(lambda q: q.max(axis=1))


def advantages(states: np.ndarray, actions: np.ndarray, whose: str) -> np.ndarray:
    """Return the true advantages (R,) of `behaviour` or of `optimal`, interpolated on the grid."""
    q = action_values()[whose == "optimal"]
    drawn = behave(np.zeros(20_000), np.random.default_rng(1))
    at = np.clip((states + 1) / (STATES[1] - STATES[0]), 0, len(STATES) - 1 - 1e-9)
    low = at.astype(int)
    share = at - low

    def look(table: Table, where: np.ndarray) -> np.ndarray:
        rows = [
            np.array([np.interp(a, ACTIONS, table[i]) for i, a in zip(low + k, where, strict=True)]) for k in (0, 1)
        ]
        return (1 - share) * rows[0] + share * rows[1]

    if whose == "optimal":
        v = np.interp(states, STATES, q.max(axis=1))
    else:
        v = np.interp(states, STATES, np.array([np.interp(drawn, ACTIONS, row).mean() for row in q]))
    return look(q, actions) - v


def discounted_return(policy: Policy) -> float:
    """Return the mean discounted return from evenly spread starts."""
    states, total = np.linspace(-1, 1, STARTS), np.zeros(STARTS)
    for step in range(HORIZON):
        actions = policy(states)
        total += DISCOUNT**step * reward(states, actions)
        states = move(states, actions)
    return float(total.mean())


def dataset(seed: int) -> dict[str, np.ndarray]:
    """Return R rows of episodes of 50 steps, with the true advantages of each."""
    rng = np.random.default_rng([7, seed])
    states = rng.uniform(-1, 1, ROWS // 50)
    parts = []
    for _ in range(50):
        actions = behave(states, rng)
        after = move(states, actions)
        parts.append((states, actions, reward(states, actions), after))
        states = after
    observations, actions, rewards, after = (np.concatenate(column) for column in zip(*parts, strict=True))
    truths = {whose: advantages(observations, actions, whose) for whose in ("behaviour", "optimal")}
    return {
        "observations": observations[:, None].astype(np.float32),
        "actions": actions[:, None].astype(np.float32),
        "rewards": rewards.astype(np.float32),
        "next_observations": after[:, None].astype(np.float32),
        "masks": np.ones(ROWS, np.float32),
        **{whose: truth.astype(np.float32) for whose, truth in truths.items()},
    }


class ToldAgent(DipoleAgent):
    """A DIPOLE whose fields are weighted by advantages that come with the batch."""

    told: Tensor

    def _advantage(self, q: Tensor, v: Tensor) -> Tensor:
        return self.told


VARIANTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "learned, policy bootstrap, expectile 0.9 (paper)": ({}, None),
    "learned, value bootstrap, expectile 0.9": ({"bootstrap": "value"}, None),
    "learned, value bootstrap, expectile 0.7": ({"bootstrap": "value", "expectile": 0.7}, None),
    "learned, value bootstrap, expectile 0.5": ({"bootstrap": "value", "expectile": 0.5}, None),
    "true, of the behaviour policy": ({"bootstrap": "value"}, "behaviour"),
    "true, of the optimal policy": ({"bootstrap": "value"}, "optimal"),
}


def train(
    settings: dict[str, Any], whose: str | None, rows: dict[str, np.ndarray], seed: int, updates: int
) -> DipoleAgent:
    """Return an agent trained on the rows, with its own advantages or with true ones."""
    agent = (DipoleAgent if whose is None else ToldAgent)(AgentConfig(**{**SMALL, **settings}), 1, 1, seed)
    rng = np.random.default_rng([9, seed])
    columns = ("observations", "actions", "rewards", "next_observations", "masks")
    for _ in range(updates):
        index = rng.integers(0, ROWS, agent.config.batch_size)
        if isinstance(agent, ToldAgent) and whose is not None:
            agent.told = torch.from_numpy(rows[whose][index])
        agent.update({name: rows[name][index] for name in columns}, diagnostics=False)
    return agent


def agreement(agent: DipoleAgent, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Return correlation and agreement in sign of the agent's advantage with the true ones, over the data."""
    observations, actions = torch.from_numpy(rows["observations"]), torch.from_numpy(rows["actions"])
    with torch.no_grad():
        q = agent.networks.target_critic(torch.cat((observations, actions), dim=-1)).squeeze(-1).min(dim=0).values
        own = (q - agent.networks.value(observations)[0, :, 0]).numpy()
    found = {}
    for whose in ("behaviour", "optimal"):
        found[f"correlation, {whose}"] = float(np.corrcoef(own, rows[whose])[0, 1])
    found["same sign, behaviour"] = float(np.mean((own > 0) == (rows["behaviour"] > 0)))
    return found


def acting(agent: DipoleAgent, omega: float | None, candidates: int, seed: int) -> Policy:
    """Return the agent's guided policy, or its cloned one where omega is None."""
    generator = torch.Generator().manual_seed(seed)
    policy = "bc" if omega is None else "guided"

    def act(states: np.ndarray) -> np.ndarray:
        actions = agent.sample_actions(states[:, None].astype(np.float32), omega, candidates, generator, policy)
        return actions[:, 0].numpy().astype(np.float64)

    return act


def scores(agent: DipoleAgent, seed: int) -> dict[str, float]:
    """Return the score of every cell, 0 for the behaviour policy and 1 for the optimum."""
    greedy = action_values()[1]
    rng = np.random.default_rng(3)
    floor = float(np.mean([discounted_return(lambda states: behave(states, rng)) for _ in range(20)]))
    best = discounted_return(lambda states: ACTIONS[greedy[np.rint((states + 1) / 0.005).astype(int)].argmax(axis=1)])
    found = {}
    for candidates in CANDIDATES:
        for omega in (None, *OMEGAS):
            name = "BC" if omega is None else f"omega {omega:g}"
            found[f"{name}, N={candidates}"] = (discounted_return(acting(agent, omega, candidates, seed)) - floor) / (
                best - floor
            )
    return found


def markdown(results: dict[str, Any]) -> str:
    """Return the tables a person reads."""
    names = [name for name in next(iter(results.values()))["scores"]]
    lines = ["0 is the behaviour policy, 1 the optimum. Means over seeds with 95 % bootstrap intervals."]
    lines += ["With 16 candidates the best is chosen by a learned critic in all rows, also where the fields were told"]
    lines += ["true advantages: there by the one learned with value bootstrap and expectile 0.9.", ""]
    for candidates in CANDIDATES:
        shown = [name for name in names if name.endswith(f"N={candidates}")]
        lines += [
            f"| advantages, {candidates} candidate{'s' * (candidates > 1)} | "
            + " | ".join(n.split(",")[0] for n in shown)
            + " |"
        ]
        lines += ["|---|" + "--:|" * len(shown)]
        for variant, result in results.items():
            lines.append(f"| {variant} | " + " | ".join(brief(result["scores"][name]) for name in shown) + " |")
        lines.append("")
    keys = list(next(iter(results.values()))["agreement"])
    lines += ["| learned advantage against the true one | " + " | ".join(keys) + " |", "|---|" + "--:|" * len(keys)]
    for variant, result in results.items():
        if variant.startswith("learned"):
            lines.append(f"| {variant} | " + " | ".join(brief(result["agreement"][key]) for key in keys) + " |")
    return "\n".join(lines) + "\n"


def picture(results: dict[str, Any], path: Path) -> None:
    """Draw the scores of every variant over omega."""
    panels = []
    for candidates in CANDIDATES:
        lines = []
        for (variant, result), colour in zip(results.items(), style.CYCLE, strict=True):
            rows = [result["scores"][f"omega {omega:g}, N={candidates}"] for omega in OMEGAS]
            middle, low, high = ([row[end] for row in rows] for end in ("mean", "low", "high"))
            dashed = variant.startswith("true")
            label = variant.removesuffix(" (paper)").replace(" bootstrap, expectile", "").replace(" policy", "", dashed)
            lines.append(Line(label=label, colour=colour, x=OMEGAS, y=middle, low=low, high=high, dashed=dashed))
        title = f"{candidates} candidate{'s' * (candidates > 1)}"
        panels.append(Panel(title=title, xlabel="greediness \u03c9", ylabel="0 data's policy, 1 optimum", lines=lines))
    draw_panels(panels, path, columns=2, title="Learned against true advantages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of data and training")
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, dict[str, list[float]]]] = {name: {"scores": {}, "agreement": {}} for name in VARIANTS}
    for seed in args.seeds:
        rows = dataset(seed)
        for name, (settings, whose) in VARIANTS.items():
            agent = train(settings, whose, rows, seed, args.updates)
            for kind, numbers in (("scores", scores(agent, seed)), ("agreement", agreement(agent, rows))):
                for key, value in numbers.items():
                    found[name][kind].setdefault(key, []).append(value)
            print(f"seed {seed}: {name}: omega 1, N=1: {found[name]['scores']['omega 1, N=1'][-1]:.2f}", flush=True)
    results = {
        name: {kind: {key: summary(values) for key, values in numbers.items()} for kind, numbers in kinds.items()}
        for name, kinds in found.items()
    }
    command = f"python -m benchmarks.known_optimum --seeds {' '.join(map(str, args.seeds))} --updates {args.updates}"
    numbers = {"seeds": args.seeds, "settings": SMALL, "results": results}
    picture(results, args.out / "known_optimum.png")
    tables = markdown(results) + "\n![](known_optimum.png)"
    write_record(args.out, "known_optimum", command, numbers, "Learned against true advantages", tables)
    print(markdown(results))


if __name__ == "__main__":
    main()
