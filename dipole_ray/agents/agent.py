"""What learns: one step of all networks, what makes it repeatable, and what it saves. What acts is in `policy`.

Shapes: B batch rows, N candidates, O observation dim, A action dim, E critics.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, Required, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from dipole_ray.agents import flow, losses, scores, state, vp
from dipole_ray.agents.augmentation import random_shift
from dipole_ray.agents.branches import Branches
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.data_parallel import DataParallel
from dipole_ray.agents.encoders import SHIFT, Seen, draw_encoders, seen_by
from dipole_ray.agents.fields import MakeFields
from dipole_ray.agents.networks import Sizes, StackedMLP
from dipole_ray.agents.observations import columns_of_batch, read_column
from dipole_ray.agents.policy import Policy
from dipole_ray.agents.precision import SETTING, require_precision
from dipole_ray.agents.roles import Networks, Roles
from dipole_ray.agents.steps import Steps
from dipole_ray.columns import Schema, flattened, nested
from dipole_ray.errors import ConfigError, NonFiniteError

_LOG = logging.getLogger(__name__)
Batch = Mapping[str, Any]
"""Arrays or tensors by column; several arrays of an observation flat, or in a dict."""
Losses = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]
"""The loss of each group of networks, the metrics, and the running statistics that the batch would leave."""
MAX_CONSECUTIVE_SKIPS = 10
MIN_STD = 1e-6
"""Deviation below which an observation's dimension counts as constant."""
COUNTERS = ("learner_steps", "skipped_updates", "consecutive_skips")
COLUMNS = ("observations", "actions", "rewards", "masks", "next_observations", "discounts", "is_offline")


class Options(TypedDict, total=False):
    """What an agent or a policy is drawn with beside config and schema; see `Agent.draw` for the defaults."""

    seed: Required[int]  # of the networks and of all noise
    device: str | torch.device
    make_fields: MakeFields | None  # None: as the config says


class Agent(ABC):
    """A policy and what it learns with: target critics, V, the optimizer, counters and running statistics.

    Every random draw comes from one generator, the policy's, so two agents with equal state and equal batches stay
    bitwise equal on CPU. A subclass names its policy and says what the networks learn (`_losses`).

    Attributes:
        algorithm: The value of `config.algorithm` that means this class.
        statistics: Names of the running statistics that its losses keep, scalars that start at 0.
        steepeners: Settings that, lowered, keep a loss finite.
        networks: All learned functions, those of the policy among them.
        sample_actions: See `Policy.sample_actions`.
        learner_steps: Calls of `update`, the skipped ones included: each has used up its batch and its noise.
        skipped_updates: How many of them changed nothing because the loss or the gradient was not finite.
        steps: How gradients are together and applied, see `compile`.
        branches: Runs the independent parts of a step side by side where a captured step asks for it.
        data_parallel: Its place among learners that step together, alone by default. All see the same averages
            before the finite check, so they skip together.
        failure_directory: Where the batch goes before the error that ends a row of skipped updates.
    """

    algorithm: ClassVar[str]
    policy_class: ClassVar[type[Policy]]
    has_value: ClassVar[bool] = False
    statistics: ClassVar[tuple[str, ...]] = ()
    steepeners: ClassVar[tuple[str, ...]] = ("learning_rate",)

    def __init_subclass__(cls) -> None:
        if "algorithm" in vars(cls):
            AGENTS[cls.algorithm] = cls

    def __init__(
        self, config: AgentConfig, schema: Schema, failure_directory: Path | None = None, **options: Unpack[Options]
    ) -> None:
        if config.algorithm != self.algorithm:
            raise ConfigError(
                f"agent.algorithm: found '{config.algorithm}', but {type(self).__name__} is '{self.algorithm}'; "
                "build it with dipole_ray.agents.agent.make_agent"
            )
        self.config = config
        self.failure_directory = failure_directory
        self.data_parallel = DataParallel()
        self.branches = Branches()
        self.learner_steps = self.skipped_updates = self.consecutive_skips = 0
        self.networks, self.policy = self.draw(config, schema, **options)
        self.device, self.sizes = self.policy.device, self.policy.sizes
        self.generator, self.sample_actions = self.policy.generator, self.policy.sample_actions
        self.policy.updates = lambda: self.learner_steps
        self._statistics = {name: torch.zeros((), device=self.device) for name in self.statistics}
        of, has = self.networks.critic_parameters, config.has_targets
        self._critic_parameters: list[Tensor] = [*of("critic")] if has else []
        self._target_parameters: list[Tensor] = [*of("target_critic")] if has else []
        self._kept = config.kept_columns(self.sizes.action_dim)
        self._columns = columns_of_batch(schema, COLUMNS) | self._kept
        self._begin_steps()

    def _begin_steps(self) -> None:
        """Train what requires a gradient now, with fresh moments and by the readable steps."""
        self._parameters = list(self.networks.trained_parameters().values())
        self.optimizer = state.make_adam(self._parameters, self.config.learning_rate)
        self.steps = Steps(self.config, self.optimizer, self._critic_parameters, self._target_parameters)

    @property
    def is_cloning(self) -> bool:
        """Whether the backbone of adapters is trained, by behaviour cloning, and nothing else; see `clone`."""
        return self.networks.adapted is not None and not self.networks.adapted.is_frozen

    def clone(self, is_cloning: bool) -> None:
        """Train from now on the backbone alone, or no longer; either begins with fresh moments, uncompiled."""
        assert self.networks.adapted is not None, "there is no backbone"
        (self.networks.adapted.thaw if is_cloning else self.networks.adapted.freeze)()
        self._begin_steps()

    @classmethod
    def draw(
        cls,
        config: AgentConfig,
        schema: Schema,
        *,
        seed: int,
        device: str | torch.device = "cpu",
        make_fields: MakeFields | None = None,
        learns: bool = True,
    ) -> tuple[Networks, Policy]:
        """Return untrained networks and the policy that acts with them; drawn on the CPU, so the same on every device.

        A policy is drawn with what only a learner needs and drops it: so one seed means the same policy to both. Its
        fields need not learn, if nothing `learns`.
        ConfigError if actions are no flat vectors, or observations none and nothing reads them.
        """
        observed = schema.as_seen.observed
        dim = sum(math.prod(column.shape) for column in observed.values())
        given = Sizes(dim, schema.action_dim, config.hidden_dims, config.num_critics, observed)
        generator = torch.Generator().manual_seed(seed)
        reads_observations = config.encoder.sharing == "own" and (make_fields is not None or config.reads_observations)
        encoders = draw_encoders(config.encoder, given, cls._readers(config, given, reads_observations), generator)
        sizes = given if not encoders else replace(given, observation_dim=encoders.embedding_dim, observed={})

        def mlp(members: int, input_dim: int) -> StackedMLP:
            return StackedMLP(members, (input_dim, *sizes.hidden_dims, 1), layer_norm=True, generator=generator)

        # The order of these draws is what a seed means: checkpoints and published results rest on it.
        roles: Roles = {}
        if config.has_targets:
            critic, target_critic = (mlp(sizes.num_critics, sizes.pair_dim) for _ in range(2))
            target_critic.requires_grad_(False).load_state_dict(critic.state_dict())
            roles |= {"critic": critic, "target_critic": target_critic}
            if cls.has_value:
                roles["value"] = mlp(1, sizes.observation_dim)
        if encoders is not None:
            roles["encoders"] = encoders
        make_fields = make_fields or (config.make_fields if learns else config.make_acting_fields)
        if reads_observations:
            make_fields = _of_sizes(make_fields, given)
        roles |= cls.policy_class.draw_actor(config, make_fields, sizes, generator)
        noise_seed = int(torch.randint(2**62, (1,), generator=generator).item())
        if config.learned_score:  # after all else, which is then drawn as without it
            roles["critic"] = scores.draw_score(config, given, sizes, generator)
        networks = Networks(sizes, roles, observed).to(device)
        return networks, cls.policy_class(config, networks, noise_seed)

    @classmethod
    def _readers(cls, config: AgentConfig, given: Sizes, reads_observations: bool) -> list[str]:
        """Return the roles of the networks that read states, but for fields where they read observations."""
        learning = ["critic", *(["value"] if cls.has_value else []), "target_critic"] if config.has_targets else []
        of_policy = ["policy"] if reads_observations else ["fields", "policy"]
        of_score = ["critic"] if config.learned_score and not scores.reads_context(config, given) else []
        return [*learning, *(role for role in of_policy if role in cls.policy_class.roles), *of_score]

    def compile(self, threads: int = 1, matmul_precision: str = "float32") -> bool:
        """Update by compiled loops on so many threads from now on, where numba and a CPU can; return whether they do.

        Parameters and the state dict stay the same, and results differ by rounding: of sums, and with `bf16` of the
        factors of all matrix products. Else a warning says why not, or a ConfigError where that leaves no bf16.
        Where encoders read observations updates stay as they are: it is convolutions that take the time there.
        """
        require_precision(matmul_precision, self.device)
        if self.device.type != "cpu":
            return False
        if self.networks.is_encoded:
            if matmul_precision == "bf16":
                raise ConfigError(f"{SETTING}: bf16 is of compiled updates, which read flat vectors; set float32")
            return False
        try:
            from dipole_ray.agents.compiled import CompiledSteps

            self.steps = CompiledSteps(self.steps, self.networks, threads, in_halves=matmul_precision == "bf16")
        except Exception as error:  # numba and LLVM have many ways to say that they cannot
            if matmul_precision == "bf16":
                raise ConfigError(f"{SETTING}: bf16 cannot be compiled here ({error}); set float32") from error
            _LOG.warning("updates run uncompiled, at about half the speed: %s: %s", type(error).__name__, error)
        return self.steps.is_compiled

    @abstractmethod
    def _losses(self, batch: Mapping[str, Any], diagnostics: bool) -> Losses:
        """Return losses (each reaching its own group of networks alone), metrics and new running statistics.

        The batch's observations and next observations are `Seen`, see `encoders`; all else of it are tensors.
        """

    def fit_observations(self, mean: np.ndarray | Tensor, std: np.ndarray | Tensor) -> None:
        """Set the dataset's mean and std, each (O,), for `observation_normalization: dataset`; before the first update.

        Of several arrays the vectors count, one after another in the schema's order, and images do not. A dimension
        that never moves is left as it is. ConfigError if the config does not normalize.
        """
        if self.config.observation_normalization != "dataset" or self.learner_steps:
            raise ConfigError(
                f"fit_observations: observation_normalization is '{self.config.observation_normalization}' after "
                f"{self.learner_steps} updates; set it to 'dataset' and call this before the first update"
            )
        spread = torch.as_tensor(std, dtype=torch.float32)
        self.networks.observation_mean.copy_(torch.as_tensor(mean))  # in place: the policy's networks share these two
        self.networks.observation_std.copy_(torch.where(spread > MIN_STD, spread, 1.0))
        self.policy.is_fitted = True

    def update(self, batch: Batch, diagnostics: bool = True) -> dict[str, Tensor]:
        """Take one gradient step of all networks together.

        If the loss or the gradient is not finite, nothing changes but the counters and the noise generator:
        parameters, targets, optimizer state and running statistics stay as they were, bit for bit.

        Args:
            batch: This learner's rows. observations (B, O), or what else the schema says, actions (B, A), rewards (B,)
                as discounted n-step sums of raw rewards, masks (B,) with 0 where the bootstrap stops, next_observations
                as observations, and discounts (B,), the discount to the power of each row's horizon (`config.discount`
                where absent), is_offline (B,) with 0 for rows of the online phase (1 where absent). float32.
            diagnostics: Whether to add the metrics that cost something: means, quantiles of the weights,
                the effective sample fraction.

        Returns:
            Metrics by name, detached scalars.

        Raises:
            ConfigError: If the batch lacks a column or does not fit the networks.
            NonFiniteError: After 10 skipped updates in a row, once the batch is saved.
        """
        tensors = self._read_batch(batch)
        total, metrics, statistics = self.steps.differentiate(lambda: self._loss(tensors, diagnostics))
        self.data_parallel.all_reduce_mean([*self.steps.gradients, total, *metrics.values()])
        grad_norm = self.steps.gradient_norm()
        self.learner_steps += 1
        # The one wait for the device in an update.
        if bool(torch.isfinite(reduce(torch.add, statistics.values(), total + grad_norm))):
            self.steps.apply()
            for name, value in statistics.items():
                self._statistics[name].copy_(value)
            self.consecutive_skips = 0
        else:
            self._skip(tensors)
        metrics["system/grad_norm"] = grad_norm
        metrics["system/skipped_updates"] = torch.tensor(float(self.skipped_updates))
        return metrics

    def _loss(self, batch: dict[str, Tensor], diagnostics: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the sum of the losses on a batch as it was read, metrics and new running statistics."""
        seen: dict[str, Seen] = {}
        batch = self._augmented(batch)
        whole = nested(batch)
        for name, learns in {"observations": True, "next_observations": False}.items():
            seen[name] = self.policy.normalized(whole[name], networks=self.networks, learns=learns)
        terms, metrics, statistics = self._losses({**batch, **seen}, diagnostics)
        return reduce(torch.add, terms.values()), metrics, statistics

    def _augmented(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch with each image of each row shifted by a draw of its own, where the config says so."""
        encoder = self.config.encoder
        if encoder.augmentation != SHIFT:
            return batch
        shifted = dict(batch)
        for name in [name for name, column in self._columns.items() if column.is_image]:
            joint = (len(batch[name]) * self.data_parallel.size, 2)
            uniform = self.data_parallel.shard(self._draw("uniform", joint))
            shifted[name] = random_shift(batch[name], uniform, encoder.pad)
        return shifted

    def _path(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw noise and times, and return x_t (B, A), t (B, 1) and what a field is to say there, (B, A)."""
        noise = self._noise(len(actions))
        t = self.data_parallel.shard(self._draw("uniform", (len(actions) * self.data_parallel.size, 1)))
        if self.config.diffusion == "vp":
            t = vp.times(t)
            return vp.path_point(noise, actions, t), t, noise
        return flow.path_point(noise, actions, t), t, flow.path_velocity(noise, actions)

    def _noise(self, rows: int, *candidates: int) -> Tensor:
        """Draw noise (B, A), or (B, N, A), for this learner's rows: its shard of the whole batch's."""
        joint = (rows * self.data_parallel.size, *candidates, self.sizes.action_dim)
        return self.data_parallel.shard(self._draw("normal", joint))

    def _draw(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        """Draw numbers that are standard `normal`, or `uniform` in [0, 1); all draws of a step come through here."""
        if kind == "normal":
            return self.policy.normal(shape)
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def _estimates(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return the critics' Q(s, a), (E, B), of what they read of s."""
        return self.networks.critic.forward(torch.cat((states, actions), dim=-1)).squeeze(-1)

    def _policy_bootstrap(self, next_observations: Seen, pairs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return Qbar(s', a') with a' from the policy, (B,), and in the same pass the target critics at other pairs.

        The other pairs of observations and actions are (X, O + A), where X may be 0; their estimates (E, X). The
        actions come from the noise (B, N, A), one for each candidate.
        """
        config, rows = self.config, len(noise)
        next_actions = self.policy.from_noise(next_observations, noise, config.target_omega, "guided")
        if config.target_choice == "online":
            next_actions = self.policy.best(next_observations, next_actions).unsqueeze(1)
        candidates = next_actions.shape[1]
        states = seen_by("target_critic", next_observations)
        repeated = states.repeat_interleave(candidates, dim=0) if candidates > 1 else states
        next_pairs = torch.cat((repeated, next_actions.flatten(0, 1)), dim=-1)
        q = self.networks.target_critic(torch.cat((pairs, next_pairs))).squeeze(-1)
        q_pairs, q_next = q[:, : len(pairs)], q[:, len(pairs) :].unflatten(1, (rows, candidates))
        best = losses.aggregate(q_next, config.choice_aggregation, config.rho).argmax(dim=1)
        q_best = q_next.gather(2, best.expand(len(q), rows).unsqueeze(2)).squeeze(2)
        return losses.aggregate(q_best, config.target_aggregation, config.rho), q_pairs

    def _temporal_difference_target(self, batch: Mapping[str, Any], bootstrap: Tensor) -> Tensor:
        """Return what the critics regress on, (B,), from the value of the next states (B,)."""
        config, rewards, discounts = self.config, batch["rewards"], batch["discounts"]
        rewards = losses.shaped_rewards(rewards, discounts, config.discount, config.reward_scale, config.reward_shift)
        target: Tensor = rewards + discounts * batch["masks"] * bootstrap
        return target

    def _critic_metrics(self, q: Tensor, q_target: Tensor) -> dict[str, Tensor]:
        """Return means and spread of the critics' estimates (E, B) and of their target (B,), all learners' rows."""
        q, q_target = map(self.data_parallel.all_gather, (q.detach(), q_target))
        spread = q.std(dim=0, correction=0).mean()
        return {"critic/q_mean": q.mean(), "critic/q_spread": spread, "critic/target_mean": q_target.mean()}

    def _skip(self, batch: dict[str, Tensor]) -> None:
        """Count an update that was not applied; after 10 in a row save the batch and raise."""
        self.skipped_updates += 1
        self.consecutive_skips += 1
        if self.consecutive_skips < MAX_CONSECUTIVE_SKIPS:
            return
        saved = "the batch was not saved (no failure_directory)"
        lower = " or ".join(f"agent.{name} (now {getattr(self.config, name)})" for name in self.steepeners)
        # Every learner takes part in the gathering, also one that saves nothing.
        batch = {name: self.data_parallel.all_gather(column, dim=0) for name, column in batch.items()}
        if self.failure_directory is not None:
            name = f"nonfinite-batch-{self.learner_steps}.safetensors"
            saved = state.save_batch(self.failure_directory / name, batch)
        raise NonFiniteError(
            f"learner step {self.learner_steps}: loss or gradient was not finite in {self.consecutive_skips} updates "
            f"in a row, none of them applied; {saved}. Look for extreme rewards there, or lower {lower}"
        )

    def _read_batch(self, batch: Batch) -> dict[str, Tensor]:
        """Return the batch on the agent's device, with discounts; names a column that is missing or misfits."""
        rows = len(batch["rewards"]) if "rewards" in batch else 0
        defaults = {"is_offline": 1.0}
        if self._kept and float(torch.as_tensor(batch.get("is_offline", 1.0)).min()) > 0:  # a dataset keeps nothing
            defaults |= dict.fromkeys(self._kept, 0.0)
        if self.config.n_step == 1:  # longer horizons end early at an episode's end, so each row must bring its own
            defaults["discounts"] = self.config.discount
        for name in ("n_step", "discount"):  # a replay's batch says what its windows were made with
            made, own = getattr(batch, name, None), getattr(self.config, name)
            if made not in (None, own):
                found = f"the replay has {name}={made}, but agent.{name} is {own}"
                raise ConfigError(f"batch: {found}; open it with Replay({name}={own}), or set agent.{name}={made}")
        if "rewards" in batch and not rows:
            raise ConfigError("batch: it has no rows; give at least one")
        tensors, batch = {}, flattened(batch)
        for name, column in self._columns.items():
            shape = (rows, *column.shape)
            if name in batch:
                tensors[name] = read_column(batch[name], column, self.device, f"batch: column '{name}'")
            elif name in defaults:
                tensors[name] = torch.full(shape, defaults[name], device=self.device)
            else:
                raise ConfigError(f"batch: column '{name}' is missing; found {', '.join(sorted(batch))}")
            if tensors[name].shape != shape:
                raise ConfigError(f"batch: column '{name}' has shape {tuple(tensors[name].shape)}, expected {shape}")
        return tensors

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of everything a bitwise continuation needs, as one flat dict of tensors.

        Keys: `networks.*` with the targets, `optimizer.*`, `statistics.*`, `generator`, and the `COUNTERS`.
        """
        tensors = {name: tensor.detach().clone() for name, tensor in self._live_tensors().items()}
        tensors |= {name: torch.tensor(getattr(self, name)) for name in COUNTERS}
        return tensors | {"generator": self.generator.get_state()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the `state_dict` of an agent of the same config and schema; else CheckpointError.

        Bitwise on the same type of device; on another one the noise differs, see `state.restore_generator`.
        """
        was_cloning = self.is_cloning
        tensors = self.networks.follow(tensors, "networks.")
        if self.is_cloning != was_cloning:
            self._begin_steps()
        live = self._live_tensors()
        expected = live | {name: torch.tensor(0) for name in COUNTERS}
        expected["generator"] = tensors.get("generator", self.generator.get_state())
        state.check_matches(expected, tensors, "agent state")
        state.restore_generator(torch.Generator(self.device), tensors["generator"])  # or raise, before any change
        state.copy_into(live, tensors)
        self.policy.is_fitted = True
        for name in COUNTERS:
            setattr(self, name, int(tensors[name].item()))
        state.restore_generator(self.generator, tensors["generator"])

    def _live_tensors(self) -> dict[str, Tensor]:
        """Return the agent's own tensors by their names in `state_dict`."""
        adam = state.adam_tensors(self.optimizer, self.networks.trained_parameters())
        parts = {"networks": self.networks.state_dict(), "optimizer": adam, "statistics": self._statistics}
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _of_sizes(make_fields: MakeFields, sizes: Sizes) -> MakeFields:
    """Return what makes fields of these sizes, whatever it is called with."""
    return lambda names, _, generator: make_fields(names, sizes, generator)


AGENTS: dict[str, type[Agent]] = {}
"""The agents by the value of `config.algorithm`; a class enters itself."""


def make_agent(config: AgentConfig, schema: Schema, **options: Unpack[Options]) -> Agent:
    """Return the untrained agent of `config.algorithm`."""
    return AGENTS[config.algorithm](config, schema, **options)


def make_policy(config: AgentConfig, schema: Schema, **options: Unpack[Options]) -> Policy:
    """Return the policy that `make_agent` would train, with the same networks and noise but nothing that learns.

    Of adapters it has no initial draw: they add nothing either way.
    """
    return AGENTS[config.algorithm].draw(config, schema, learns=False, **options)[1]
