"""What acts: the networks that make actions of noise, and the online critics that choose among them.

A policy has no target, no V and no optimizer: it is all that a rollout worker, an evaluation or a server needs.

Shapes: B rows, N candidates, O observation dim, A action dim, E critics.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dipole_ray.agents import losses, packed, state
from dipole_ray.agents.config import AgentConfig
from dipole_ray.agents.encoders import Seen, seen_by
from dipole_ray.agents.fields import MakeFields
from dipole_ray.agents.networks import Sizes
from dipole_ray.agents.observations import Observations, read_observations, rows_of
from dipole_ray.agents.roles import Networks, Roles
from dipole_ray.errors import ConfigError

Noise = torch.Generator | Callable[[tuple[int, ...]], Tensor]
"""Where noise comes from: a generator, or what returns a standard normal tensor of a shape (B, N, A)."""


class Policy(ABC):
    """Acts on observations. A subclass says what its actor is (`draw_actor`) and how noise becomes an action.

    Attributes:
        roles: The networks that act, by name; critics only where the config has some.
        is_flow: Whether the guided policy takes `denoise_steps` of a `solver`.
        has_mode: Whether noise of zero gives the one action that the policy thinks best.
        bc_remedy: What to set so that there is a behaviour-cloning field.
        networks: Those of `roles`; an agent's policy shares them with the agent.
        generator: Where noise comes from, unless the caller brings another source.
        is_fitted: Whether observations have been given the statistics to normalize with.
        updates: Counts the steps of what learns with the same networks; 0 where nothing does.
    """

    roles: ClassVar[tuple[str, ...]]
    is_flow: ClassVar[bool] = False
    has_mode: ClassVar[bool] = False
    bc_remedy: ClassVar[str] = "set agent.algorithm=dipole"

    def __init__(self, config: AgentConfig, networks: Networks, noise_seed: int) -> None:
        self.config = config
        self.sizes = networks.sizes
        self.device = networks.observation_mean.device
        self.networks = networks.only(role for role in self.roles if role != "critic" or config.has_critic)
        self.generator = torch.Generator(self.device).manual_seed(noise_seed)
        self.is_fitted = False
        self.updates: Callable[[], int] = lambda: 0
        self._packed: tuple[tuple[object, ...], Policy] | None = None

    @staticmethod
    @abstractmethod
    def draw_actor(config: Any, make_fields: MakeFields, sizes: Sizes, generator: torch.Generator) -> Roles:
        """Return what acts beside the critics, by role, drawn from `generator`."""

    @abstractmethod
    def from_noise(
        self, observations: Seen, noise: Tensor, omega: float | Tensor, policy: str, explore: bool = False
    ) -> Tensor:
        """Return the actions (B, N, A) in [-1, 1] that `policy` makes of noise (B, N, A), observations `normalized`.

        Omega is one number, or one for each row, (B, 1, 1). A flow may take other steps where it is to `explore`.
        """

    @property
    def has_bc(self) -> bool:
        """Whether a behaviour-cloning field is trained, so that `sample_actions(policy="bc")` works."""
        return self.config.has_bc

    @torch.no_grad()
    def sample_actions(
        self,
        observations: np.ndarray | Tensor | Mapping[str, np.ndarray | Tensor],
        omega: float | Tensor | None = None,
        num_candidates: int | None = None,
        generator: Noise | None = None,
        policy: str = "guided",
        explore: bool = False,
    ) -> Tensor:
        """Return one action for each observation: the best of N samples by the online critics.

        Args:
            observations: (B, O), float32, or what else the schema says, as arrays or tensors, see `observations`.
            omega: Greediness; None for the config's. At 0 only pi+ is evaluated, at -1 only pi-. Or one for each
                observation, (B,), and then both are evaluated.
            num_candidates: N; None for the config's. With 1 the critics are not asked.
            generator: Where the noise comes from; None for the policy's own generator.
            policy: `guided`, the policy that is trained, or `bc` for the behaviour-cloning field.
            explore: Act for training: draw also where the policy has a mode, which otherwise is its action with 1
                candidate (only the Gaussian of IQL has one), and follow a flow in `rollout_denoise_steps`.

        Returns:
            (B, A) in [-1, 1], on the policy's device. ConfigError if there is no such policy, or omega does not apply.
        """
        omega = self._check_policy(policy, omega)
        candidates = self.config.num_candidates if num_candidates is None else num_candidates
        if candidates < 1:
            raise ConfigError(f"num_candidates: found {candidates}; give a whole number of at least 1")
        if candidates > 1:
            self._require_choice(f"num_candidates: found {candidates}")
        given = read_observations(observations, self.networks.observed, self.device)
        seen = self.normalized(given)
        noise = self.normal((rows_of(given), candidates, self.sizes.action_dim), generator)
        if self.has_mode and candidates == 1 and not explore:
            noise = torch.zeros_like(noise)
        acting = self.packed()
        actions = acting.from_noise(seen, noise, omega, policy, explore)
        return acting.best(seen, actions)

    def packed(self) -> "Policy":
        """Return what samples in this policy's place: a copy with adapters merged, and on a CPU packed for the kernels.

        Networks are merged and packed anew once the weights, or the settings, have changed.
        """
        if not packed.is_worth_it(self.networks):
            return self
        tensors = (*self.networks.parameters(), *self.networks.buffers())  # of which one says which backbone
        version = self.config, self.updates(), *(tensor._version for tensor in tensors)
        if self._packed is None or self._packed[0] != version:
            acting = copy.copy(self)
            acting.networks = packed.pack(self.networks, self.config.diffusion)
            self._packed = version, acting
        return self._packed[1]

    def best(self, observations: Seen, actions: Tensor) -> Tensor:
        """Return the best of N actions (B, N, A) by the online critics, (B, A), observations `normalized`."""
        if actions.shape[1] == 1:
            return actions[:, 0]
        best = self._estimates(observations, actions).argmax(dim=1)
        return actions[torch.arange(len(actions), device=self.device), best]

    @torch.no_grad()
    def estimates(
        self, observations: np.ndarray | Tensor | Mapping[str, np.ndarray | Tensor], actions: np.ndarray | Tensor
    ) -> Tensor:
        """Return by what candidates are chosen, (B, N): the online critics' one estimate of actions (B, N, A).

        Observations are those of `sample_actions`. ConfigError if there are no critics.
        """
        self._require_choice("estimates")
        seen = self.normalized(read_observations(observations, self.networks.observed, self.device))
        return self.packed()._estimates(seen, torch.as_tensor(actions).to(self.device))

    def _estimates(self, observations: Seen, actions: Tensor) -> Tensor:
        q = self.networks.critic.at(seen_by("critic", observations), actions).squeeze(-1)
        return losses.aggregate(q, self.config.choice_aggregation, self.config.rho)

    def _require_choice(self, what: str) -> None:
        """Raise ConfigError, which says what was asked for, where nothing can choose among candidates."""
        if not self.config.has_critic:
            why = f"advantage '{self.config.advantage}' trains no critics that could choose"
            remedy = "give 1 candidate, or train with agent.learned_score=true"
            raise ConfigError(f"{what}, but {why}; {remedy}")

    def _check_policy(self, policy: str, omega: float | Tensor | None) -> float | Tensor:
        """Return the omega to sample with, or raise ConfigError if it cannot be sampled so."""
        if isinstance(omega, Tensor):
            self._check_policy(policy, float(omega.abs().max()))
            return omega.to(self.device).view(-1, 1, 1)
        if policy not in ("guided", "bc"):
            raise ConfigError(f"policy: found '{policy}'; choose guided or bc")
        if policy == "bc" and not self.has_bc:
            raise ConfigError(f"policy 'bc': this agent trained no behaviour-cloning field; {self.bc_remedy}")
        if policy == "bc" and omega:
            raise ConfigError(f"omega: found {omega}, but policy 'bc' has nothing to guide; leave omega out")
        if omega and not self.config.is_guided:
            found, remedy = self.config.unguided
            why = f"{found} has nothing to guide; use omega 0 or train with {remedy}"
            raise ConfigError(f"omega: found {omega}, but {why}")
        default = 0.0 if policy == "bc" else self.config.omega
        return default if omega is None else omega

    def normal(self, shape: tuple[int, ...], generator: Noise | None = None) -> Tensor:
        """Draw standard normal noise on the policy's device, from its own generator unless another source is given."""
        source = self.generator if generator is None else generator
        if not isinstance(source, torch.Generator):
            return source(shape).to(self.device)
        return torch.randn(shape, generator=source, device=source.device).to(self.device)

    def normalized(self, observations: Observations, *, networks: Networks | None = None, learns: bool = False) -> Seen:
        """Return observations as the networks take them: this policy's, or an agent's.

        With `learns` what the networks make of them may give the encoders a gradient.
        """
        normalizes = self.config.observation_normalization != "none"
        if normalizes and not self.is_fitted:
            raise ConfigError(
                "observation_normalization is 'dataset', but the agent was never told the dataset's statistics: call "
                "agent.fit_observations(*replay.observation_statistics()) first"
            )
        return (networks or self.networks).seen(observations, normalizes=normalizes, learns=learns)

    def policy_state(self) -> dict[str, Tensor]:
        """Return copies on the CPU of what acts: all tensors of `networks`."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.networks.state_dict().items()}

    def lacks_backbone(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a `policy_state` names another backbone than this policy has, and does not hold it."""
        adapted, named = self.networks.adapted, tensors.get(f"fields.{state.BACKBONE_CHECKSUM}")
        if adapted is None or named is None or not bool(named.any()):
            return False
        return not torch.equal(adapted.backbone_checksum.cpu(), named.cpu())

    def load_policy_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Act from now on with the networks of a `policy_state`; CheckpointError, and no change, if they do not fit."""
        tensors = self.networks.follow(tensors)
        own = self.networks.state_dict()
        state.check_matches(own, tensors, "policy state")
        state.copy_into(own, tensors)
        self.is_fitted = True

    def load_agent_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Act as the agent of this `Agent.state_dict` would, its noise included; what only learns is left there.

        CheckpointError, and no change, if it does not fit.
        """
        tensors = self.networks.follow(tensors, "networks.")
        own = {f"networks.{name}": tensor for name, tensor in self.networks.state_dict().items()}
        expected = {**own, "generator": tensors.get("generator", self.generator.get_state())}
        state.check_matches(expected, {name: tensors[name] for name in expected if name in tensors}, "agent state")
        state.restore_generator(self.generator, tensors["generator"])
        state.copy_into(own, tensors)
        self.is_fitted = True
