"""The agent's settings, their checks and the named presets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dipole_ray.errors import ConfigError

WEIGHT_SCHEMES = ("dipole", "bc", "exp", "cfgrl")
AGGREGATIONS = ("min", "mean", "mean_minus_std")
BOOTSTRAPS = ("policy", "value")
NORMALIZATIONS = ("none", "batch_std", "running_std")
OBSERVATION_NORMALIZATIONS = ("none", "dataset")

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "hidden_dims": (128, 128),
        "learning_rate": 1e-3,
        "discount": 0.99,
        "bootstrap": "value",
        "advantage_normalization": "running_std",
        "beta": 3.0,
    },
    "dipole": {},
    "bc": {"weight_scheme": "bc", "num_candidates": 1},
    "ifql": {"weight_scheme": "bc", "bootstrap": "value", "num_candidates": 32},
    "exp": {"weight_scheme": "exp"},
    "cfgrl": {"weight_scheme": "cfgrl", "num_candidates": 1},
}
"""What each preset changes in the defaults, which are `paper`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentConfig:
    """Settings of one agent of the family: a weight scheme, a value learner and a way of acting.

    The defaults are the authors' agent (Liang et al., ICLR 2026), the preset `paper`:

        V      expectile regression of V(s) on min_i Qbar_i(s, a)
        Q      r + discount mask mean_i Qbar_i(s', a'), a' from the policy at s'
        pi+/-  flow matching weighted by sigma(beta A + k) and sigma(-(beta A + k)), A = min_i Qbar_i - V
        act    best of 32 guided samples by min_i Q_i
    """

    weight_scheme: str = "dipole"
    """`dipole` (Eq. 9), `bc` (weight 1), `exp` (Eq. 4) or `cfgrl` (1[A >= 0] beside an unweighted field)."""
    beta: float = 1.0
    """Steepness of the weights of `dipole` and `exp`, > 0, per unit of (normalised) advantage. Paper: 1."""
    shift: float = 0.0
    """k in sigma(beta A + k), only for `dipole`. Paper: 0."""
    omega: float = 0.0
    """Greediness when acting with the two fields of `dipole` or `cfgrl`, >= -1; 0 is pi+ alone, -1 pi- alone."""
    num_candidates: int = 32
    """Actions drawn for each observation when acting, the best by the online critics kept, >= 1. Paper: 32 and 1."""
    exp_weight_max: float = 100.0
    """Ceiling of the weight of `exp`, > 0, may be infinite. FQL's AWR baselines: 100."""
    train_bc: bool = False
    """Keep an unweighted field for comparison: adds one unless the scheme has it already (`bc`, `cfgrl`). The added
    field clones offline rows alone, so that it stays the dataset's baseline in the online phase."""

    expectile: float = 0.9
    """Expectile of the regression of V, in (0, 1). Paper: 0.9."""
    discount: float = 0.995
    """Discount of one environment step, in (0, 1]. Paper: 0.995."""
    tau: float = 0.005
    """Polyak rate of the target critics, in (0, 1]. Paper: 0.005."""
    bootstrap: str = "policy"
    """What Q bootstraps from: `policy`, Qbar(s', a') with a' from the policy (paper), or `value`, V(s') (IQL)."""
    target_candidates: int = 1
    """Actions drawn at s' for the bootstrap from the policy, the best by the target critics kept, >= 1. Paper: 1."""
    target_omega: float = 0.0
    """Greediness of the policy in the bootstrap, >= -1; at 0 the negative field is not evaluated. Paper: 0."""
    target_aggregation: str = "mean"
    """How the target critics make one TD target: `min`, `mean` or `mean_minus_std`. Paper: mean."""
    value_aggregation: str = "min"
    """How critics make one estimate for V, the advantage and the choice of candidates. Paper: min."""
    rho: float = 0.5
    """Pessimism in `mean_minus_std`, mean - rho std, >= 0."""
    num_critics: int = 2
    """Critics in the ensemble, >= 1. Paper: 2."""
    n_step: int = 1
    """Horizon of the TD targets that the replay builds, in environment steps, >= 1. Paper: 1."""
    reward_scale: float = 1.0
    """Factor on every reward, > 0. Paper: 1."""
    reward_shift: float = 0.0
    """Added to every scaled reward; 1 turns OGBench's -1/0 into 0/1. Needs discount < 1. Paper: 0."""
    advantage_normalization: str = "none"
    """Divisor of the advantage in the weights: `none` (paper), `batch_std` or `running_std`."""
    observation_normalization: str = "none"
    """`none` (paper), or `dataset`: observations enter every network less the dataset's mean, over its deviation.
    Without it a coordinate in metres drowns an action in [-1, 1], and small critics learn the advantage badly."""

    hidden_dims: tuple[int, ...] = (512, 512, 512)
    """Hidden layers of every network, in units. Paper: 3 x 512."""
    denoise_steps: int = 10
    """Euler steps of the flow, >= 1. Paper: 10."""
    learning_rate: float = 3e-4
    """Adam's, > 0, for all networks. Paper: 3e-4."""
    batch_size: int = 256
    """Rows of one update, >= 1. Paper: 256."""

    def __post_init__(self) -> None:
        """Reject values out of range and settings that contradict each other."""
        _check_choices(self)
        _check_ranges(self)
        _check_contradictions(self)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> AgentConfig:
        """Return the preset `name` with `changes` on top.

        Args:
            name: `paper` (the authors' agent), `small` (2 x 128 for tests and quick runs), or a method at the
                paper's size: `dipole`, `bc`, `ifql`, `exp`, `cfgrl`.
            changes: Field values.

        Raises:
            ConfigError: If there is no such preset, or the values contradict each other.
        """
        if name not in PRESETS:
            raise ConfigError(f"agent preset '{name}': unknown; choose one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the vector fields this agent trains, in their stacked order."""
        names = {
            "dipole": ("positive", "negative"),
            "bc": ("bc",),
            "exp": ("positive",),
            "cfgrl": ("positive", "bc"),
        }[self.weight_scheme]
        return (*names, "bc") if self.train_bc and "bc" not in names else names

    @property
    def is_guided(self) -> bool:
        """Whether the policy combines two fields, so that omega means something."""
        return self.weight_scheme in ("dipole", "cfgrl")


def _check_choices(config: AgentConfig) -> None:
    for name, choices in {
        "weight_scheme": WEIGHT_SCHEMES,
        "bootstrap": BOOTSTRAPS,
        "target_aggregation": AGGREGATIONS,
        "value_aggregation": AGGREGATIONS,
        "advantage_normalization": NORMALIZATIONS,
        "observation_normalization": OBSERVATION_NORMALIZATIONS,
    }.items():
        if getattr(config, name) not in choices:
            raise ConfigError(f"agent.{name}: found '{getattr(config, name)}'; choose one of {', '.join(choices)}")


def _check_ranges(config: AgentConfig) -> None:
    at_least_one = ("num_candidates", "target_candidates", "num_critics", "n_step", "denoise_steps", "batch_size")
    ranges: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
        (("beta", "learning_rate", "reward_scale"), lambda x: 0 < x < math.inf, "a finite number above 0"),
        (("exp_weight_max",), lambda x: x > 0, "a number above 0, or .inf for none"),
        (("shift", "reward_shift"), math.isfinite, "a finite number"),
        (("omega", "target_omega"), lambda x: -1 <= x < math.inf, "a finite number of at least -1 (pi- alone)"),
        (("rho",), lambda x: 0 <= x < math.inf, "a finite number of at least 0"),
        (("discount", "tau"), lambda x: 0 < x <= 1, "a number in (0, 1]"),
        (("expectile",), lambda x: 0 < x < 1, "a number strictly between 0 and 1"),
        (at_least_one, lambda x: x >= 1, "a whole number of at least 1"),
    )
    for names, holds, wanted in ranges:
        for name in names:
            if not holds(getattr(config, name)):
                raise ConfigError(f"agent.{name}: found {getattr(config, name)}; give {wanted}")
    if not config.hidden_dims or min(config.hidden_dims) < 1:
        raise ConfigError(f"agent.hidden_dims: found {config.hidden_dims}; give at least one positive width")


def _check_contradictions(config: AgentConfig) -> None:
    scheme = config.weight_scheme
    for name in ("omega", "target_omega"):
        if getattr(config, name) != 0 and not config.is_guided:
            raise ConfigError(
                f"agent.{name}: found {getattr(config, name)}, but weight_scheme '{scheme}' has one field and nothing "
                f"to guide; set agent.{name}=0 or agent.weight_scheme=dipole"
            )
    if config.shift != 0 and scheme != "dipole":
        raise ConfigError(
            f"agent.shift: found {config.shift}, but weight_scheme '{scheme}' has no knee to move; "
            "set agent.shift=0 or agent.weight_scheme=dipole"
        )
    if config.bootstrap == "value":
        for name, neutral in {"target_omega": 0, "target_candidates": 1, "target_aggregation": "mean"}.items():
            if getattr(config, name) != neutral:
                raise ConfigError(
                    f"agent.{name}: found {getattr(config, name)}, but bootstrap 'value' asks no target critic at s'; "
                    f"set agent.{name}={neutral} or agent.bootstrap=policy"
                )
    if config.num_critics == 1 and "mean_minus_std" in (config.target_aggregation, config.value_aggregation):
        raise ConfigError("agent.num_critics: 1 critic has no spread for 'mean_minus_std'; set agent.num_critics=2")
    if config.reward_shift != 0 and config.discount == 1:
        raise ConfigError(
            f"agent.reward_shift: {config.reward_shift} on every step has no finite sum at agent.discount=1; "
            "set agent.discount below 1 or agent.reward_shift=0"
        )
