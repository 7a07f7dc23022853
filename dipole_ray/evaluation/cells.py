"""The cells of an evaluation: the ways to act with one trained policy, by omega and number of candidates."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from dipole_ray.agents.config import AgentConfig
from dipole_ray.errors import ConfigError

PolicyName = Literal["guided", "bc"]
IFQL = "IFQL"
"""Method name where critics learned by IQL choose among candidates of the behaviour-cloned policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """What an evaluation measures."""

    episodes: int = 50
    """Episodes per cell, at least 1."""
    omegas: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    """Greediness of the guided policy, each >= -1; 0 is the positive policy alone, -1 the negative one."""
    candidates: tuple[int, ...] = (1, 16)
    """Actions sampled per step, of which the one with the highest Q is taken; each >= 1. The paper uses 1 and 32."""
    bc: bool = True
    """Also evaluate the behaviour-cloned policy, where the agent trained one."""
    num_envs: int = 50
    """Environments stepped together by each worker, at most one an episode. Results do not depend on it."""
    seed: int = 0
    """Seed of the start states and of the policy's noise; independent of the training seed."""
    confidence: float = 0.95
    """Coverage of the intervals, in (0, 1)."""
    trajectories: int = 20
    """Episodes per cell whose path is kept for the maze picture; only mazes have one."""
    every_learner_steps: int = 0
    """Updates between two evaluations of the chosen cell during training, for the learning curves; 0 = none."""
    interval_episodes: int = 10
    """Episodes of each evaluation during training, at least 1."""
    patience: int = 0
    """Evaluations in a row that may be no better than the best of the online phase, which then ends early. At its end
    the run goes back to the networks of the best. 0 = neither."""
    interval_grid: bool = False
    """Evaluations during training play the whole grid, each on episodes of its own (`seed` plus its number), instead
    of the chosen cell alone on the same episodes again and again; benchmarks average over them."""
    videos: int = 0
    """Episodes of the preset's cell rendered to video after the counted ones; they enter no statistic."""

    def __post_init__(self) -> None:
        """Reject what cannot be evaluated."""
        for name in ("episodes", "num_envs", "interval_episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"evaluation.{name} must be at least 1; found {getattr(self, name)}")
        if self.patience and not self.every_learner_steps:
            raise ConfigError(
                f"evaluation.patience is {self.patience}, and nothing is evaluated meanwhile; set "
                "evaluation.every_learner_steps, or evaluation.patience=0"
            )
        for name in ("trajectories", "videos", "seed", "every_learner_steps", "patience"):
            if getattr(self, name) < 0:
                raise ConfigError(f"evaluation.{name} must not be negative; found {getattr(self, name)}")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"evaluation.confidence must lie strictly between 0 and 1; found {self.confidence}")
        if min(self.candidates, default=0) < 1:
            found = f"found {self.candidates}"
            raise ConfigError(f"evaluation.candidates needs counts of at least 1, such as [1, 16]; {found}")
        if any(not math.isfinite(omega) or omega < -1 for omega in self.omegas):
            raise ConfigError(f"evaluation.omegas must be finite and at least -1; found {self.omegas}")
        if not self.omegas and not self.bc:
            found = "evaluation.omegas is empty and evaluation.bc is false"
            raise ConfigError(f"{found}: nothing is left to evaluate; name an omega")


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to act with a trained agent."""

    policy: PolicyName = "guided"
    """`guided` by omega, or the behaviour-cloned policy `bc`."""
    omega: float | None = 1.0
    """Greediness of the guided policy, >= -1; None for `bc`."""
    candidates: int = 1
    """Actions sampled per step, of which the best by Q is taken."""

    def __post_init__(self) -> None:
        """Reject an omega where none applies, and its absence where one does."""
        if (self.policy == "bc") != (self.omega is None):
            raise ConfigError(f"policy '{self.policy}' cannot have omega {self.omega}; only 'bc' has None")

    def __str__(self) -> str:
        name = "BC" if self.omega is None else f"omega {self.omega:g}"
        return f"{name}, {self.candidates} candidate{'s' * (self.candidates != 1)}"


def grid(config: EvalConfig, has_bc: bool) -> list[Cell]:
    """Return the cells to evaluate: per number of candidates, BC first (where the agent has it), then omega rising."""
    ways: list[tuple[PolicyName, float | None]] = [("guided", omega) for omega in sorted(set(config.omegas))]
    if config.bc and has_bc:
        ways.insert(0, ("bc", None))
    if not ways:
        raise ConfigError("evaluation.omegas is empty and this agent trained no BC policy; name an omega, such as 1")
    return [Cell(*way, candidates) for candidates in sorted(set(config.candidates)) for way in ways]


def method_name(agent: AgentConfig) -> str:
    """Return what tables call the method that a config describes, such as `DIPOLE`, `IFQL` or `FQL`."""
    if agent.algorithm != "dipole":
        return agent.algorithm.upper()
    if agent.weight_scheme == "bc" and agent.bootstrap == "value":
        return IFQL
    return agent.weight_scheme.upper()


def chosen_cell(agent: AgentConfig) -> Cell:
    """Return the cell the agent's own config acts with."""
    if agent.weight_scheme == "bc":
        return Cell("bc", None, agent.num_candidates)
    return Cell("guided", agent.omega, agent.num_candidates)


def cells_of(config: EvalConfig, agent: AgentConfig) -> list[Cell]:
    """Return the cells of the grid that this agent can act in: a single field knows no omega, no critic no choice."""
    if not agent.has_critic:
        config = replace(config, candidates=(1,))
    if agent.is_guided:
        return grid(config, agent.has_bc)
    own = [replace(chosen_cell(agent), candidates=count) for count in sorted(set(config.candidates))]
    added = agent.weight_scheme != "bc" and agent.train_bc and config.bc
    return [Cell("bc", None, cell.candidates) for cell in own if added] + own


def cells_with_chosen(config: EvalConfig, agent: AgentConfig) -> list[Cell]:
    """Return the cells of the grid, and the chosen one if it is none of them."""
    cells, chosen = cells_of(config, agent), chosen_cell(agent)
    return cells if chosen in cells else [*cells, chosen]


def cell_key(cell: Cell) -> str:
    """Return a short metric name of a cell, such as `omega_1_candidates_16`."""
    policy = "bc" if cell.omega is None else f"omega_{cell.omega:g}"
    return f"{policy}_candidates_{cell.candidates}"
