"""What the settings of every algorithm share, their checks, and the named presets.

An algorithm's own settings stand beside its agent: `DipoleConfig`, `FqlConfig` and `IqlConfig`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple, get_type_hints

from dipole_ray.agents.encoders import EncoderConfig
from dipole_ray.agents.fields import MakeFields, StackedFields
from dipole_ray.columns import Column
from dipole_ray.errors import ConfigError
from dipole_ray.settings import Tagged, unread

_NO_ENCODER = EncoderConfig()
_OF_FQL = {"hidden_dims": (512,) * 4, "target_update": "before"}
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
    "ifql": {"weight_scheme": "bc", "bootstrap": "value", "num_candidates": 32, **_OF_FQL},
    "exp": {"weight_scheme": "exp"},
    "cfgrl": {"weight_scheme": "cfgrl", "bootstrap": "value", "num_candidates": 1, "target_update": "before"},
    "fql": {"algorithm": "fql", "num_candidates": 1, **_OF_FQL},
    "iql": {"algorithm": "iql", "bootstrap": "value", "beta": 10.0, "num_candidates": 1, **_OF_FQL},
}
"""What each preset changes in the defaults, which are `paper`."""


class Rule(NamedTuple):
    """Which values a setting may have, and what to do about others; stands in its type, as `Annotated[float, RATE]`."""

    holds: Callable[[Any], bool]
    wanted: str


def one_of(*choices: str) -> Rule:
    """Return the rule of a setting that has few values."""
    return Rule(lambda x: x in choices, f"choose one of {', '.join(choices)}")


def require_rules(config: Any, section: str) -> None:
    """Raise ConfigError, by its name in `section`, where a setting breaks a rule that stands in its type."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        for rule in getattr(hint, "__metadata__", ()):
            if not rule.holds(found := getattr(config, name)):
                raise ConfigError(f"{section}.{name}: found {found!r}; {rule.wanted}")


ABOVE_ZERO = Rule(lambda x: 0 < x < math.inf, "give a finite number above 0")
NOT_NEGATIVE = Rule(lambda x: 0 <= x < math.inf, "give a finite number of at least 0")
FINITE = Rule(math.isfinite, "give a finite number")
OMEGA = Rule(lambda x: -1 <= x < math.inf, "give a finite number of at least -1 (pi- alone)")
CEILING = Rule(lambda x: x > 0, "give a number above 0, or .inf for none")
RATE = Rule(lambda x: 0 < x <= 1, "give a number in (0, 1]")
INSIDE_UNIT = Rule(lambda x: 0 < x < 1, "give a number strictly between 0 and 1")
COUNT = Rule(lambda x: x >= 1, "give a whole number of at least 1")
COUNT_OR_NONE = Rule(lambda x: x is None or x >= 1, f"{COUNT.wanted}, or null")
WIDTHS = Rule(lambda x: len(x) > 0 and min(x) >= 1, "give at least one positive width")
AGGREGATION = one_of("min", "mean", "mean_minus_std")
AS_VALUE = Rule(lambda x: x is None or AGGREGATION.holds(x), f"{AGGREGATION.wanted}, or null")
BOOTSTRAP = one_of("policy", "value")
SOLVER = one_of("euler", "midpoint")
DIFFUSION = one_of("flow", "vp")
DIVISOR = one_of("none", "batch_std", "running_std")


@dataclass(frozen=True, kw_only=True)
class AgentConfig(metaclass=Tagged):
    """Settings of one agent, whose class `algorithm` chooses; these are what a suite may set for all its methods.

    The defaults are the preset `paper`.
    """

    tag: ClassVar[str] = "agent.algorithm"
    """The setting that chooses the class."""

    # What shared code, such as the TD target or the grid of an evaluation, finds where these are no settings.
    weight_scheme = "dipole"
    omega = 0.0
    train_bc = False
    bootstrap = "policy"
    target_candidates = 1
    target_choice = "online"
    target_omega = 0.0
    target_aggregation = "mean"
    advantage_normalization = "none"
    advantage = "critic"
    learned_score = False
    diffusion = "flow"
    noise_scale = 1.0
    solver = "euler"

    algorithm: str = "dipole"
    """`dipole` (the flow policies of `weight_scheme`), `fql` (flow Q-learning: a one-step policy that climbs Q, held to
    a flow that clones the data) or `iql` (implicit Q-learning: a Gaussian regressed with weights exp(beta A))."""
    beta: Annotated[float, ABOVE_ZERO] = 1.0
    """Steepness of the weights of `dipole`, `exp` and `iql`, > 0, per unit of (normalised) advantage. Paper: 1; FQL's
    IQL: 10 on humanoidmaze, else tuned."""
    num_candidates: Annotated[int, COUNT] = 32
    """Actions drawn for each observation when acting, the best by the online critics kept, >= 1. Paper: 32 and 1."""

    expectile: Annotated[float, INSIDE_UNIT] = 0.9
    """Expectile of the regression of V, in (0, 1). Paper: 0.9."""
    discount: Annotated[float, RATE] = 0.995
    """Discount of one environment step, in (0, 1]. Paper: 0.995."""
    tau: Annotated[float, RATE] = 0.005
    """Polyak rate of the target critics, in (0, 1]. Paper: 0.005."""
    target_update: Annotated[str, one_of("after", "before")] = "after"
    """Whether the target critics move towards the critics as they are `after` a gradient step (paper), or as they were
    `before` it, as in the code of FQL, IFQL, IQL and CFGRL (presets `fql`, `ifql`, `iql`, `cfgrl`)."""
    value_aggregation: Annotated[str, AGGREGATION] = "min"
    """How critics make one estimate for V: `min`, `mean` or `mean_minus_std`. Paper: min."""
    advantage_aggregation: Annotated[str | None, AS_VALUE] = None
    """The same for the advantage and the choice of candidates; None = as `value_aggregation`, `mean` of a learned
    score. The authors' q_agg=mean is `value_aggregation` mean beside `min` here."""
    rho: Annotated[float, NOT_NEGATIVE] = 0.5
    """Pessimism in `mean_minus_std`, mean - rho std, >= 0."""
    num_critics: Annotated[int, COUNT] = 2
    """Critics in the ensemble, >= 1. Paper: 2."""
    n_step: Annotated[int, COUNT] = 1
    """Horizon of the TD targets that the replay builds, in environment steps, >= 1. Paper: 1."""
    reward_scale: Annotated[float, ABOVE_ZERO] = 1.0
    """Factor on every reward, > 0. Paper: 1."""
    reward_shift: Annotated[float, FINITE] = 0.0
    """Added to every scaled reward; 1 turns OGBench's -1/0 into 0/1. Needs discount < 1. Paper: 0."""
    observation_normalization: Annotated[str, one_of("none", "dataset")] = "none"
    """`none` (paper), or `dataset`: observations enter every network less the dataset's mean, over its deviation.
    Without it a coordinate in metres drowns an action in [-1, 1], and small critics learn the advantage badly."""

    encoder: EncoderConfig = _NO_ENCODER
    """What makes flat states of observations that are images or several arrays."""
    hidden_dims: Annotated[tuple[int, ...], WIDTHS] = (512, 512, 512)
    """Hidden layers of every network, in units. Paper: 3 x 512."""
    denoise_steps: Annotated[int, COUNT] = 10
    """Steps of the flow's solver, >= 1. Paper: 10."""
    learning_rate: Annotated[float, ABOVE_ZERO] = 3e-4
    """Adam's, > 0, for all networks. Paper: 3e-4."""
    batch_size: Annotated[int, COUNT] = 256
    """Rows of one update, >= 1. Paper: 256."""

    def __post_init__(self) -> None:
        """Reject values out of range and settings that contradict each other."""
        require_rules(self, "agent")
        aggregations = (self.value_aggregation, self.choice_aggregation, self.target_aggregation)
        if self.num_critics == 1 and "mean_minus_std" in aggregations:
            raise ConfigError("agent.num_critics: 1 critic has no spread for 'mean_minus_std'; set agent.num_critics=2")
        if self.target_candidates == 1:
            self.require("target_choice", "online", "there is one candidate", "agent.target_candidates above 1")
        if self.reward_shift != 0 and self.discount == 1:
            raise ConfigError(
                f"agent.reward_shift: {self.reward_shift} on every step has no finite sum at agent.discount=1; "
                "set agent.discount below 1 or agent.reward_shift=0"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Any:
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
    def choice_aggregation(self) -> str:
        """How critics make one estimate for the advantage and the choice of candidates."""
        return self.advantage_aggregation or ("mean" if self.learned_score else self.value_aggregation)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the vector fields this agent trains, in their stacked order."""
        return ()

    @property
    def has_bc(self) -> bool:
        """Whether there is a behaviour-cloning field to act with."""
        return "bc" in self.fields

    @property
    def has_targets(self) -> bool:
        """Whether critics learn by temporal differences, with targets and perhaps V; or rows bring advantages."""
        return self.advantage == "critic"

    @property
    def has_critic(self) -> bool:
        """Whether critics are trained, which may choose among candidates."""
        return self.has_targets or self.learned_score

    def kept_columns(self, action_dim: int) -> dict[str, Column]:
        """Return what a row keeps of its action, beside what every row has."""
        return {}

    @property
    def make_fields(self) -> MakeFields:
        """What makes the vector fields."""
        return StackedFields

    @property
    def reads_observations(self) -> bool:
        """Whether the vector fields read observations as they are, without an encoder before them."""
        return False

    @property
    def make_acting_fields(self) -> MakeFields:
        """What makes vector fields of the same weights, for acting alone."""
        return self.make_fields

    @property
    def is_guided(self) -> bool:
        """Whether the policy combines two fields, so that omega means something."""
        return False

    @property
    def unguided(self) -> tuple[str, str]:
        """What leaves a policy without two fields to combine, and the setting that would give it them."""
        return f"algorithm '{self.algorithm}'", "agent.algorithm=dipole"

    def require(self, name: str, only: Any, why: str, remedy: str) -> None:
        """Raise ConfigError, with the reason and the remedy, unless a setting has the only value it can have."""
        if getattr(self, name) != only:
            raise unread(f"agent.{name}", getattr(self, name), only, why, remedy)


def of_older(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return an agent's saved settings; one that is missing, as it came later, gets the value that it had until then.

    That is a default's unless the default is another way than the old one.
    """
    return {"target_choice": "target", **saved} if saved.get("target_candidates", 1) > 1 else dict(saved)
