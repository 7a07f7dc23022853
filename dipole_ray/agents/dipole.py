"""The agent: dichotomous flow policies on a shared value learner, and the methods beside them.

Shapes: B batch rows, N candidates, O observation dim, A action dim, E critics, F vector fields.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from dipole_ray.agents import backbones, flow, losses, policy_gradient
from dipole_ray.agents.adapters import AdapterConfig
from dipole_ray.agents.agent import Losses
from dipole_ray.agents.backbones import BackboneConfig
from dipole_ray.agents.config import (
    ABOVE_ZERO,
    AGGREGATION,
    BOOTSTRAP,
    CEILING,
    COUNT,
    COUNT_OR_NONE,
    DIFFUSION,
    DIVISOR,
    FINITE,
    OMEGA,
    SOLVER,
    AgentConfig,
    one_of,
)
from dipole_ray.agents.encoders import Seen, seen_by
from dipole_ray.agents.fields import MakeFields
from dipole_ray.agents.networks import Sizes
from dipole_ray.agents.observations import Observations, read_observations, rows_of
from dipole_ray.agents.policy import Noise, Policy
from dipole_ray.agents.policy_gradient import CHAINS, LIKELIHOODS, Denoising, PolicyGradientConfig
from dipole_ray.agents.roles import Roles
from dipole_ray.agents.scores import SCORES
from dipole_ray.agents.value import ValueAgent
from dipole_ray.columns import Column
from dipole_ray.errors import ConfigError
from dipole_ray.settings import unread

__all__ = ["AgentConfig", "DipoleAgent", "DipoleConfig"]

SCHEME_FIELDS = {
    "dipole": ("positive", "negative"),
    "bc": ("bc",),
    "exp": ("positive",),
    "cfgrl": ("positive", "bc"),
    "dppo": ("positive",),
}
"""The vector fields that each weight scheme trains."""
_OWN_NETWORKS, _NO_ADAPTERS, _CLIPPED = BackboneConfig(), AdapterConfig(), PolicyGradientConfig()

OF_CRITICS = (
    *("expectile", "discount", "tau", "target_update", "value_aggregation", "advantage_aggregation", "rho"),
    *("num_critics", "n_step", "reward_scale", "reward_shift", "bootstrap", "target_candidates", "target_choice"),
    *("target_omega", "target_aggregation", "advantage_normalization"),
)
"""Settings of what critics learn, or of what is made of their estimates."""
OF_SCORE = ("num_candidates", "num_critics", "advantage_aggregation", "rho")
"""Those that a learned score reads, too."""

MAX_SHIFT = 12.0
"""Shift beyond which one of the two fields hardly has weights: sigma(-12) is 6e-6."""


@dataclass(frozen=True, kw_only=True)
class DipoleConfig(AgentConfig):
    """The flow policies: a weight scheme, a value learner and a way of acting.

    The defaults are the authors' agent (Liang et al., ICLR 2026):

    V      expectile regression of V(s) on min_i Qbar_i(s, a)
    Q      r + discount mask mean_i Qbar_i(s', a'), a' from the policy at s'
    pi+/-  flow matching weighted by sigma(beta A + k) and sigma(-(beta A + k)), A = min_i Qbar_i - V
    act    best of 32 guided samples by min_i Q_i
    """

    algorithm: str = "dipole"
    """`dipole`."""
    weight_scheme: Annotated[str, one_of(*SCHEME_FIELDS)] = "dipole"
    """The flow policies: `dipole` (Eq. 9), `bc` (weight 1), `exp` (Eq. 4) or `cfgrl` (1[A >= 0] beside an unweighted
    field). Or `dppo`, which weighs nothing: a clipped policy gradient through the denoise steps of its own plans, for
    advantages of a group; offline rows it clones."""
    shift: Annotated[float, FINITE] = 0.0
    """k in sigma(beta A + k), only for `dipole`. Paper: 0."""
    omega: Annotated[float, OMEGA] = 0.0
    """Greediness when acting with the two fields of `dipole` or `cfgrl`, >= -1; 0 is pi+ alone, -1 pi- alone."""
    solver: Annotated[str, SOLVER] = "euler"
    """How the flow is followed from noise to action: `euler` (paper), one evaluation of the fields a step, or
    `midpoint`, two: how exact and how good that is says `benchmarks/results/solvers.md`."""
    diffusion: Annotated[str, DIFFUSION] = "flow"
    """What lies between noise and action: a `flow` (paper), or `vp`, the variance-preserving diffusion of the paper's
    driving policy, whose fields predict noise and are followed by DPM-Solver++ of order 2, one evaluation a step."""
    rollout_denoise_steps: Annotated[int | None, COUNT_OR_NONE] = None
    """Steps of the solver when acting for training, >= 1; null: `denoise_steps`, which evaluations take in any case.
    Driving policy: 5 beside 10."""
    noise_scale: Annotated[float, ABOVE_ZERO] = 1.0
    """The standard normal noise that becomes an action is first multiplied by this, > 0. Driving policy: 0.5."""
    exp_weight_max: Annotated[float, CEILING] = 100.0
    """Ceiling of the weight of `exp` and `iql`, > 0, may be infinite. FQL's AWR baselines: 100."""
    train_bc: bool = False
    """Evaluate an unweighted field for comparison: adds one unless there is one already (`bc`, `cfgrl`, `fql`, a
    backbone). The added field clones offline rows alone: it stays the dataset's baseline in the online phase."""
    advantage: Annotated[str, one_of("critic", "group")] = "critic"
    """Where A comes from: `critic`, Q - V (paper), or `group`: a row's reward is its advantage already. Who judges all
    actions of one state together makes it, as soon as all scores are there: (score - mean) / (deviation + 1e-6) within
    the group, 0 where all scores are the same. No critic, no V and no target is then built or trained."""
    learned_score: bool = False
    """With advantage `group`, train critics all the same, to choose among candidates: each regresses on the score of
    an action, which judged rows then keep. Rows of a dataset were not judged and are left out. The fields neither read
    the learned score nor are changed by it."""
    bootstrap: Annotated[str, BOOTSTRAP] = "policy"
    """What Q bootstraps from: `policy`, Qbar(s', a') with a' from the policy (paper), or `value`, V(s') (IQL)."""
    target_candidates: Annotated[int, COUNT] = 1
    """Actions drawn at s' for the bootstrap from the policy, of which the best is kept, >= 1. Paper: 1."""
    target_choice: Annotated[str, one_of("online", "target")] = "online"
    """Which critics say what is best among `target_candidates`: the `online` ones, as when acting, or the `target`s."""
    target_omega: Annotated[float, OMEGA] = 0.0
    """Greediness of the policy in the bootstrap, >= -1; at 0 the negative field is not evaluated. Paper: 0."""
    target_aggregation: Annotated[str, AGGREGATION] = "mean"
    """How the target critics make one TD target: `min`, `mean` or `mean_minus_std`. Paper: mean."""
    advantage_normalization: Annotated[str, DIVISOR] = "none"
    """Divisor of the advantage in the weights: `none` (paper), `batch_std` or `running_std`."""
    policy_gradient: PolicyGradientConfig = _CLIPPED
    """How `dppo` draws plans and learns from them."""
    backbone: BackboneConfig = _OWN_NETWORKS
    """The network behind the fields."""
    adapters: AdapterConfig = _NO_ADAPTERS
    """Low-rank adapters on one frozen network instead of a network for each field."""

    def __post_init__(self) -> None:
        """Reject values out of range, and what the weight scheme or the bootstrap would not read."""
        super().__post_init__()
        if abs(self.shift) > MAX_SHIFT:
            field, weight = "pi+" if self.shift < 0 else "pi-", math.exp(-abs(self.shift))
            what = f"weighs the rows of {field} by about {weight:.0e}, so gradients fall below Adam's eps"
            remedy = f"{field} learns slowly or not at all; stay within -{MAX_SHIFT:g} and {MAX_SHIFT:g}"
            warnings.warn(f"agent.shift: {self.shift} {what}: {remedy}", RuntimeWarning, stacklevel=1)
        scheme, remedy = self.unguided
        if self.weight_scheme != "dipole":
            self.require("shift", 0, f"{scheme} has no knee to move", remedy)
        if self.weight_scheme != "exp":
            self.require("exp_weight_max", 100.0, f"{scheme} does not read it", "agent.weight_scheme=exp")
        if self.diffusion == "vp":
            self.require("solver", "euler", "diffusion 'vp' is followed by DPM-Solver++", "agent.diffusion=flow")
        if not self.is_guided:
            for name in ("omega", "target_omega"):
                self.require(name, 0, f"{scheme} has nothing to guide", remedy)
        self._check_advantage()
        if self.bootstrap == "value":
            for name, neutral in {"target_omega": 0, "target_candidates": 1, "target_aggregation": "mean"}.items():
                self.require(name, neutral, "bootstrap 'value' asks no target critic at s'", "agent.bootstrap=policy")
        self._check_adapters(scheme)
        policy_gradient.require_settings(self)

    def _check_advantage(self) -> None:
        """Reject settings of critics that are not there, and a score where critics are."""
        if self.advantage == "critic":
            why = "advantage 'critic' has critics, which choose among candidates"
            self.require("learned_score", False, why, "agent.advantage=group")
            return
        defaults = {field.name: field.default for field in fields(self)}
        for name in (*OF_CRITICS, "num_candidates"):
            if not (self.learned_score and name in OF_SCORE):
                default = 1 if name == "num_candidates" else defaults[name]
                remedy = "agent.learned_score=true" if name in OF_SCORE else "agent.advantage=critic"
                self.require(name, default, "advantage 'group' trains no critics", remedy)

    def _check_adapters(self, scheme: str) -> None:
        """Reject adapters that nothing weighs, and a backbone without adapters."""
        if not self.adapters.rank:
            if self.backbone.path is not None:
                why, remedy = "without adapters no field lies on a backbone", "agent.adapters.rank above 0"
                raise unread("agent.backbone.path", self.backbone.path, "null", why, remedy)
            if self.backbone.dtype != "float32":
                why, remedy = "without adapters no network is frozen", "agent.adapters.rank above 0"
                raise unread("agent.backbone.dtype", self.backbone.dtype, "float32", why, remedy)
            return
        if self.encoder.network != "none" and not self.reads_observations:
            found = f"agent.adapters.rank: found {self.adapters.rank}, but agent.encoder would move before the backbone"
            remedy = "let agent.backbone.network be a module:factory that reads observations, and encoder.sharing own"
            raise ConfigError(f"{found}, which is frozen; {remedy}, or set agent.adapters.rank=0")
        if self.weight_scheme not in ("dipole", "exp", "dppo"):
            remedy = "set agent.weight_scheme=dipole, exp or dppo, or agent.adapters.rank=0"
            raise ConfigError(f"agent.adapters.rank: {scheme} trains a field of its own beside the backbone; {remedy}")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the vector fields, in their stacked order."""
        names = SCHEME_FIELDS[self.weight_scheme]
        return (*names, "bc") if self.train_bc and "bc" not in names and not self.adapters.rank else names

    @property
    def has_bc(self) -> bool:
        """Whether there is a behaviour-cloning field to act with: a trained one, or the backbone."""
        return "bc" in self.fields or self.adapters.rank > 0

    @property
    def steps_in_rollouts(self) -> int:
        """Denoise steps when acting for training."""
        return self.rollout_denoise_steps or self.denoise_steps

    def kept_columns(self, action_dim: int) -> dict[str, Column]:
        """Return what a row keeps of its action: how a policy gradient drew it, and for a learned score its own."""
        by_chain = self.weight_scheme == "dppo"
        chains = policy_gradient.kept_columns(self.steps_in_rollouts, action_dim) if by_chain else {}
        return {**chains, **({SCORES: Column()} if self.learned_score else {})}

    @property
    def make_fields(self) -> MakeFields:
        """What makes the vector fields."""
        return partial(backbones.make_fields, self.backbone, self.adapters)

    @property
    def reads_observations(self) -> bool:
        """Whether the fields are networks of the user's own, and share no encoder."""
        return self.backbone.network not in backbones.NETWORKS and self.encoder.sharing == "own"

    @property
    def make_acting_fields(self) -> MakeFields:
        """What makes vector fields of the same weights, for acting alone."""
        return partial(backbones.make_fields, self.backbone, self.adapters, learns=False)

    @property
    def is_guided(self) -> bool:
        """Whether there are two fields to combine."""
        return self.weight_scheme in ("dipole", "cfgrl")

    @property
    def unguided(self) -> tuple[str, str]:
        """What leaves a policy without two fields to combine, and the setting that would give it them."""
        return f"weight_scheme '{self.weight_scheme}'", "agent.weight_scheme=dipole"


class FlowPolicy(Policy):
    """The velocity fields of `config.fields`, of which omega combines the first two."""

    roles: ClassVar[tuple[str, ...]] = ("critic", "fields")
    is_flow: ClassVar[bool] = True
    bc_remedy: ClassVar[str] = "set agent.train_bc=true"
    config: DipoleConfig

    @staticmethod
    def draw_actor(config: DipoleConfig, make_fields: MakeFields, sizes: Sizes, generator: torch.Generator) -> Roles:
        """Return one field for each name in `config.fields`."""
        return {"fields": make_fields(config.fields, sizes, generator)}

    def from_noise(
        self, observations: Seen, noise: Tensor, omega: float | Tensor, policy: str, explore: bool = False
    ) -> Tensor:
        """Return the actions (B, N, A) that `noise` flows to; evaluates only the fields that matter."""
        towards, *away = self.config.fields[:2]  # pi+, and what omega pushes away from, where there is one
        # At 0 and -1 the other field has no weight.
        alone: dict[Any, list[str]] = {} if isinstance(omega, Tensor) else {0.0: [towards], -1.0: away}
        along = alone.get(omega, [towards, *away])
        along = ["bc"] if policy == "bc" else along
        config, states = self.config, seen_by("fields", observations)
        noise = noise if config.noise_scale == 1.0 else config.noise_scale * noise
        learned_clipped = config.weight_scheme == "dppo" and policy != "bc"
        of_vp = "dpm-clipped" if learned_clipped else "dpm"
        solver = of_vp if config.diffusion == "vp" else config.solver
        steps = config.steps_in_rollouts if explore else config.denoise_steps
        return flow.generate(self.networks.fields, states, noise, along, steps, omega, solver)

    @cached_property
    def denoising(self) -> Denoising:
        """The random steps by which a policy gradient draws its plans."""
        config = self.config
        how = config.steps_in_rollouts, config.noise_scale, config.policy_gradient, self.device
        return policy_gradient.make_denoising(config.diffusion, *how)

    @torch.no_grad()
    def draw_chains(self, observations: Any, generator: Noise | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return an action (B, A) for each observation, drawn by random steps, and `kept_columns` of how, (B, ...)."""
        given: Observations = read_observations(observations, self.networks.observed, self.device)
        noise = self.normal((rows_of(given), len(self.denoising.times) + 1, self.sizes.action_dim), generator)
        noise[:, 0] *= self.config.noise_scale
        fields, along = self.networks.fields, [self.config.fields[0]]
        context = fields.encode(seen_by("fields", self.normalized(given)), along)

        def field(x: Tensor, t: float) -> Tensor:
            found: Tensor = fields.velocity(context, x.unsqueeze(1), t, along)
            return found[0, :, 0]

        chains, likelihoods = policy_gradient.draw_chain(field, noise, self.denoising)
        return chains[:, -1].clamp(-1.0, 1.0), {CHAINS: chains, LIKELIHOODS: likelihoods}


class DipoleAgent(ValueAgent):
    """Weighted flow matching of one or two fields, combined by omega: the family of `config.weight_scheme`."""

    algorithm: ClassVar[str] = "dipole"
    config: DipoleConfig
    policy_class: ClassVar[type[Policy]] = FlowPolicy
    policy: FlowPolicy

    def _losses(self, batch: Mapping[str, Any], diagnostics: bool) -> Losses:
        if self.is_cloning:
            return self._cloning_losses(batch)
        if self.config.advantage == "group":
            return self._group_losses(batch, diagnostics)
        observations, actions = batch["observations"], batch["actions"]
        bootstrap_noise, beside = self._bootstrap_noise(len(actions)), self.branches.beside
        q = beside("critic", self._estimates, seen_by("critic", observations), actions)
        v = beside("value", self._values, seen_by("value", observations))
        velocities, target = beside("fields", self._velocities, observations, actions)

        q_target, q_data = self._critic_targets(batch, bootstrap_noise)
        value_loss = beside("value", self._value_loss, v, q_data)
        critic_loss = beside("critic", losses.temporal_difference_loss, q, q_target)

        # Policy fields, all on the same noise and time.
        advantage = self._advantage(q_data, v)
        scaled, statistics = self._normalized_advantage(advantage)
        weights = self._field_weights(scaled, batch["is_offline"])
        field_losses = beside("fields", losses.flow_matching_losses, velocities, target, weights)
        self.branches.join()

        terms = {"critic": critic_loss, "value": value_loss, "actor": field_losses.sum()}
        metrics = {"critic/loss": critic_loss.detach(), "value/loss": value_loss.detach()}
        metrics |= self._field_metrics(field_losses)
        if diagnostics:
            metrics |= self._critic_metrics(q, q_target) | self._value_metrics(v)
            metrics |= self._advantage_metrics(advantage, weights[0])
        return terms, metrics, statistics

    def _velocities(self, observations: Any, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fields' velocities (F, B, A) on drawn paths to the actions, and those of the paths, (B, A)."""
        x, t, target = self._path(actions)
        return self.networks.fields(seen_by("fields", observations), x, t), target

    def _group_losses(self, batch: Mapping[str, Any], diagnostics: bool) -> Losses:
        """Return the losses of the fields alone, of rows that bring their advantage as their reward."""
        by_chain = self.config.weight_scheme == "dppo"
        loss, metrics = (self._chain_loss if by_chain else self._weighted_loss)(batch, diagnostics)
        terms = {"actor": loss}
        if self.config.learned_score:
            terms["critic"], own = self._score_loss(batch, diagnostics)
            metrics |= own
        return terms, metrics, self._statistics

    def _weighted_loss(self, batch: Mapping[str, Any], diagnostics: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the metrics of fields whose rows are weighed by the advantage that they bring."""
        velocities, target = self._velocities(batch["observations"], batch["actions"])
        weights = self._field_weights(batch["rewards"], batch["is_offline"])
        field_losses = losses.flow_matching_losses(velocities, target, weights)
        metrics = self._field_metrics(field_losses)
        if diagnostics:
            metrics |= self._advantage_metrics(batch["rewards"], weights[0])
        return field_losses.sum(), metrics

    def _score_loss(self, batch: Mapping[str, Any], diagnostics: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the metrics of the critics as a score: they regress on what judged rows were worth."""
        states, actions = seen_by("critic", batch["observations"]), batch["actions"].unsqueeze(1)
        q, told = self.networks.critic.at(states, actions)[..., 0, 0], (batch[SCORES], 1.0 - batch["is_offline"])
        loss = losses.score_regression_loss(q, *told)
        metrics = {"critic/loss": loss.detach()}
        if diagnostics:
            found = losses.aggregate(q.detach(), self.config.choice_aggregation, self.config.rho)
            rows = map(self.data_parallel.all_gather, (found, *told))
            metrics["critic/correlation"] = losses.weighted_correlation(*rows)
        return loss, metrics

    def _chain_loss(self, batch: Mapping[str, Any], diagnostics: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the policy gradient of one denoise step of each drawn row, and the cloning loss of offline ones."""
        fields, rows = partial(self.networks.fields, seen_by("fields", batch["observations"])), len(batch["rewards"])
        path = self._path(batch["actions"])
        uniform = self.data_parallel.shard(self._draw("uniform", (rows * self.data_parallel.size,)))
        how = self.policy.denoising, self.config.policy_gradient.cloning_weight
        loss, measured = policy_gradient.chain_loss(fields, batch, path, uniform, *how)
        return loss, self._field_metrics(loss.unsqueeze(0)) | (measured if diagnostics else {})

    def _cloning_losses(self, batch: Mapping[str, Any]) -> Losses:
        """Return the loss of the backbone in the clone phase, in which all rows weigh alike."""
        velocities, target = self._velocities(batch["observations"], batch["actions"])
        ones = torch.ones_like(velocities[:, :, 0])
        loss = losses.flow_matching_losses(velocities, target, ones)[0]
        return {"actor": loss}, {"actor/loss_bc": loss.detach()}, {}

    def _field_metrics(self, field_losses: Tensor) -> dict[str, Tensor]:
        """Return the losses of the fields (F,) by name."""
        pairs = zip(self.networks.fields.names, field_losses.detach(), strict=True)
        return {f"actor/loss_{name}": loss for name, loss in pairs}

    def _field_weights(self, advantage: Tensor, is_offline: Tensor) -> Tensor:
        """Return the weights (F, B) of the rows, field by field."""
        config, weights = self.config, {"bc": is_offline}  # an added field stays the dataset's baseline
        if config.weight_scheme == "dipole":
            both = losses.dichotomous_weights(advantage, config.beta, config.shift, check_finite=False)
            weights["positive"], weights["negative"] = both
        elif config.weight_scheme == "exp":
            weights["positive"] = losses.exponential_weight(advantage, config.beta, config.exp_weight_max)
        elif config.weight_scheme == "cfgrl":
            weights["positive"], weights["bc"] = losses.optimality_weights(advantage)
        else:
            weights["bc"] = torch.ones_like(advantage)
        return torch.stack([weights[name] for name in self.networks.fields.names])
