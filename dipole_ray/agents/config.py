"""The agent's settings, their checks and the named presets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from dipole_ray.errors import ConfigError

ALGORITHMS = ("dipole", "fql", "iql")
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
    "ifql": {"weight_scheme": "bc", "bootstrap": "value", "num_candidates": 32, "hidden_dims": (512,) * 4},
    "exp": {"weight_scheme": "exp"},
    "cfgrl": {"weight_scheme": "cfgrl", "bootstrap": "value", "num_candidates": 1},
    "fql": {"algorithm": "fql", "num_candidates": 1, "hidden_dims": (512,) * 4},
    "iql": {"algorithm": "iql", "bootstrap": "value", "beta": 10.0, "num_candidates": 1, "hidden_dims": (512,) * 4},
}
"""What each preset changes in the defaults, which are `paper`."""

ONE_WAY: dict[str, dict[str, Any]] = {
    "fql": {"weight_scheme": "dipole", "bootstrap": "policy", "advantage_normalization": "none"},
    "iql": {"weight_scheme": "dipole", "bootstrap": "value", "train_bc": False},
}
"""The only value that a setting of the family can have with an algorithm that leaves no choice there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentConfig:
    """Settings of one agent of the family: a weight scheme, a value learner and a way of acting.

    The defaults are the authors' agent (Liang et al., ICLR 2026), the preset `paper`:

        V      expectile regression of V(s) on min_i Qbar_i(s, a)
        Q      r + discount mask mean_i Qbar_i(s', a'), a' from the policy at s'
        pi+/-  flow matching weighted by sigma(beta A + k) and sigma(-(beta A + k)), A = min_i Qbar_i - V
        act    best of 32 guided samples by min_i Q_i
    """

    algorithm: str = "dipole"
    """`dipole` (the flow policies of `weight_scheme`), `fql` (flow Q-learning: a one-step policy that climbs Q, held to
    a flow that clones the data) or `iql` (implicit Q-learning: a Gaussian regressed with weights exp(beta A))."""
    weight_scheme: str = "dipole"
    """The flow policies: `dipole` (Eq. 9), `bc` (weight 1), `exp` (Eq. 4) or `cfgrl` (1[A >= 0] beside an unweighted
    field)."""
    beta: float = 1.0
    """Steepness of the weights of `dipole`, `exp` and `iql`, > 0, per unit of (normalised) advantage. Paper: 1; FQL's
    IQL: 10 on humanoidmaze, else tuned."""
    shift: float = 0.0
    """k in sigma(beta A + k), only for `dipole`. Paper: 0."""
    omega: float = 0.0
    """Greediness when acting with the two fields of `dipole` or `cfgrl`, >= -1; 0 is pi+ alone, -1 pi- alone."""
    num_candidates: int = 32
    """Actions drawn for each observation when acting, the best by the online critics kept, >= 1. Paper: 32 and 1."""
    exp_weight_max: float = 100.0
    """Ceiling of the weight of `exp` and `iql`, > 0, may be infinite. FQL's AWR baselines: 100."""
    alpha: float = 10.0
    """How strongly `fql` holds its one-step policy to the cloned flow, > 0, against Q in units of the return.
    Published: 10 antmaze and antsoccer, 30 humanoidmaze, 300 cube and scene, 1000 puzzle; offline to online 30 on
    antsoccer and 100 on humanoidmaze-medium."""
    normalize_q_loss: bool = False
    """Of `fql`: divide Q in the policy's loss by its mean absolute value, so that alpha does not depend on the rewards'
    scale. Published: false."""
    train_bc: bool = False
    """Evaluate an unweighted field for comparison: adds one unless there is one already (`bc`, `cfgrl`, `fql`). The
    added field clones offline rows alone, so that it stays the dataset's baseline in the online phase."""

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
            name: `paper` (the authors' agent), `small` (2 x 128 for tests and quick runs), or a method: `dipole`, `bc`,
                `exp`, `cfgrl` in the networks of `paper`; `ifql`, `fql`, `iql` in the 4 x 512 of FQL's code base.
                CFGRL's two public agents are larger: on OGBench 4 x 512, batches of 1024, 16 flow steps, discount
                0.99; on ExORL 3 x 512, 32 flow steps.
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
        if self.algorithm != "dipole":
            return {"fql": ("bc",), "iql": ()}[self.algorithm]
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
        return self.algorithm == "dipole" and self.weight_scheme in ("dipole", "cfgrl")

    @property
    def unguided(self) -> tuple[str, str]:
        """What leaves a policy without two fields to combine, and the setting that would give it them."""
        if self.algorithm != "dipole":
            return f"algorithm '{self.algorithm}'", "agent.algorithm=dipole"
        return f"weight_scheme '{self.weight_scheme}'", "agent.weight_scheme=dipole"


def _check_choices(config: AgentConfig) -> None:
    for name, choices in {
        "algorithm": ALGORITHMS,
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
        (("beta", "alpha", "learning_rate", "reward_scale"), lambda x: 0 < x < math.inf, "a finite number above 0"),
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


def _check_algorithm(config: AgentConfig) -> None:
    algorithm, scheme = config.algorithm, config.weight_scheme
    for name, only in ONE_WAY.get(algorithm, {}).items():
        if getattr(config, name) != only:
            raise ConfigError(
                f"agent.{name}: found {_yaml(getattr(config, name))}, but algorithm '{algorithm}' leaves no choice "
                f"there; set agent.{name}={_yaml(only)} or agent.algorithm=dipole"
            )
    if config.shift != 0 and (algorithm, scheme) != ("dipole", "dipole"):
        found, remedy = config.unguided
        raise ConfigError(
            f"agent.shift: found {config.shift}, but {found} has no knee to move; set agent.shift=0 or {remedy}"
        )
    has_weights = algorithm == "iql" or (algorithm, scheme) == ("dipole", "exp")
    of_weights = "agent.weight_scheme=exp" if algorithm == "dipole" else "agent.algorithm=iql"
    of_fql = (algorithm == "fql", f"algorithm '{algorithm}'", "agent.algorithm=fql")
    defaults = {field.name: field.default for field in fields(AgentConfig)}
    for name, (is_read, found, remedy) in {
        "alpha": of_fql,
        "normalize_q_loss": of_fql,
        "exp_weight_max": (has_weights, config.unguided[0], of_weights),
    }.items():
        value, default = getattr(config, name), defaults[name]
        if value != default and not is_read:
            raise ConfigError(
                f"agent.{name}: found {_yaml(value)}, but {found} does not read it; set "
                f"agent.{name}={_yaml(default)} or {remedy}"
            )


def _yaml(value: Any) -> str:
    """Return a setting as it is written in YAML or on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_contradictions(config: AgentConfig) -> None:
    _check_algorithm(config)
    for name in ("omega", "target_omega"):
        if getattr(config, name) != 0 and not config.is_guided:
            found, remedy = config.unguided
            raise ConfigError(
                f"agent.{name}: found {getattr(config, name)}, but {found} has nothing to guide; "
                f"set agent.{name}=0 or {remedy}"
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
