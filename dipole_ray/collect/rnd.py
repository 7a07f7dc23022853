"""An explorer without a task: it is rewarded for states that a network predicts badly (random network distillation).

A deterministic actor with Gaussian noise and a pair of critics (DDPG with n-step targets) maximise a bonus: the error
of a network that learns to predict another, random one at the states visited. Seen often, a state loses its bonus.

Shapes: `B` batch, `O` observation, `A` action.
"""

import copy
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipole_ray.agents.state import adam_tensors, check_matches, copy_into, make_adam


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplorerConfig:
    """Sizes and rates; those of the published data are in brackets where they differ."""

    hidden_dim: int = 256
    """Units of every layer [1024]."""
    embedding_dim: int = 128
    """Outputs of the random network [512]."""
    batch_size: int = 256
    """Transitions in one update [1024]."""
    n_step: int = 3
    """Steps from a state to the one whose bonus and value its target holds."""
    discount: float = 0.99
    """Discount of one step."""
    learning_rate: float = 1e-4
    """Of all three optimisers."""
    target_rate: float = 0.01
    """Share of the critics that goes into their target copy at each update."""
    noise: float = 0.2
    """Standard deviation of the noise on every action."""
    noise_clip: float = 0.3
    """Largest noise on an action inside an update."""
    update_every: int = 2
    """Environment steps per update."""
    seed_steps: int = 4000
    """Steps of uniformly random actions before the first update, in whole episodes."""


class RunningMoments(nn.Module):
    """Mean and variance of everything seen so far, a vector (D,)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean, self.variance = nn.Buffer(torch.zeros(size)), nn.Buffer(torch.ones(size))
        self.count = nn.Buffer(torch.tensor(1e-4))

    def add(self, values: Tensor) -> None:
        """Take `values` (B, D) into account."""
        variance, mean = torch.var_mean(values, dim=0, correction=0)
        total = self.count + len(values)
        difference = mean - self.mean
        weight = len(values) / total
        self.variance.mul_(1.0 - weight).add_(weight * variance + difference.square() * weight * (1.0 - weight))
        self.mean.add_(difference * weight)
        self.count.copy_(total)


def _trunk(inputs: int, hidden_dim: int) -> list[nn.Module]:
    return [nn.Linear(inputs, hidden_dim), nn.LayerNorm(hidden_dim), nn.Tanh()]


class Critics(nn.Module):
    """Observation (B, O) and action (B, A) to two values (B, 2), which share their first layer."""

    def __init__(self, observation_dim: int, action_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*_trunk(observation_dim + action_dim, hidden_dim))
        # Both heads' hidden layers are one matrix product.
        self.hidden = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.weight = nn.Parameter(torch.empty(2, hidden_dim))
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Return both values."""
        hidden = self.hidden(self.trunk(torch.cat([observations, actions], dim=1))).relu()
        values: Tensor = (hidden.unflatten(1, (2, -1)) * self.weight).sum(dim=2) + self.bias
        return values


class Novelty(nn.Module):
    """The error of a learned network in predicting a random one, both of observations (B, O)."""

    def __init__(self, observation_dim: int, config: ExplorerConfig) -> None:
        super().__init__()
        self.seen = RunningMoments(observation_dim)
        self.errors = RunningMoments(1)
        width = config.hidden_dim
        hidden = (nn.Linear(observation_dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.predictor = nn.Sequential(*hidden, nn.Linear(width, config.embedding_dim))
        self.target = copy.deepcopy(self.predictor).requires_grad_(False)  # drawn anew like all others

    def forward(self, observations: Tensor) -> Tensor:
        """Return the mean squared error (B,) of each prediction."""
        scaled = ((observations - self.seen.mean) / (self.seen.variance.sqrt() + 1e-5)).clamp(-5.0, 5.0)
        error: Tensor = (self.predictor(scaled) - self.target(scaled)).square().mean(dim=1)
        return error


class Explorer(nn.Module):
    """The networks, their optimisers and the stream of random numbers: everything that a continued run needs."""

    def __init__(self, observation_dim: int, action_dim: int, seed: int, config: ExplorerConfig) -> None:
        """Start an explorer that depends on its arguments alone."""
        super().__init__()
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self._action_dim, width = action_dim, config.hidden_dim
        # From observation (B, O) to action (B, A) in [-1, 1].
        head = (nn.Linear(width, width), nn.ReLU(), nn.Linear(width, action_dim), nn.Tanh())
        layers = nn.Sequential(*_trunk(observation_dim, width), *head)
        self.actor = nn.Sequential(OrderedDict(layers=layers))  # `layers` is in the names of a saved explorer
        self.critics = Critics(observation_dim, action_dim, width)
        self.novelty = Novelty(observation_dim, config)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.orthogonal_(parameter.data, generator=self.generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter.data)
        self.target = copy.deepcopy(self.critics).requires_grad_(False)
        self._trained = {"actor": self.actor, "critics": self.critics, "predictor": self.novelty.predictor}
        self._optimizers = {
            name: make_adam(list(network.parameters()), config.learning_rate) for name, network in self._trained.items()
        }

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """Return a noisy action (A,) for an observation (O,)."""
        noise = torch.randn(self._action_dim, generator=self.generator) * self.config.noise
        action: Tensor = (self.actor(observation[None])[0] + noise).clamp(-1.0, 1.0)
        return action

    def update(self, observations: Tensor, actions: Tensor, later: Tensor) -> float:
        """Take one step of all optimisers, and return the mean error of the predictions at `later`.

        The actions (B, A) were taken at the observations (B, O); those and the actions after them led to `later`
        (B, O) in `n_step` steps.
        """
        bonus, error = self._learn_to_predict(later)
        config = self.config
        with torch.no_grad():
            values = self.target(later, self._noisy(self.actor(later))).amin(dim=1)
            target = bonus + config.discount**config.n_step * values
        loss = (self.critics(observations, actions) - target[:, None]).square().mean(dim=0).sum()
        self._step("critics", loss)
        chosen = self._noisy(self.actor(observations))
        self._step("actor", -self.critics(observations, chosen).amin(dim=1).mean())
        with torch.no_grad():
            copies, learned = (list[Tensor](critics.parameters()) for critics in (self.target, self.critics))
            torch._foreach_lerp_(copies, learned, weight=config.target_rate)
        return error

    def _learn_to_predict(self, observations: Tensor) -> tuple[Tensor, float]:
        """Return the bonus (B,) of each observation, in standard deviations of all errors, and the mean error."""
        novelty = self.novelty
        novelty.seen.add(observations)
        errors = novelty(observations)
        self._step("predictor", errors.mean())
        errors = errors.detach()
        novelty.errors.add(errors[:, None])
        return errors / (novelty.errors.variance.sqrt() + 1e-8), float(errors.mean())

    def _noisy(self, actions: Tensor) -> Tensor:
        noise = torch.randn(actions.shape, generator=self.generator) * self.config.noise
        return (actions + noise.clamp(-self.config.noise_clip, self.config.noise_clip)).clamp(-1.0, 1.0)

    def _step(self, name: str, loss: Tensor) -> None:
        """Descend `loss` in the parameters of one network only."""
        parameters = list(self._trained[name].parameters())  # the actor's loss reaches the critics too
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        self._optimizers[name].step()

    def tensors(self) -> dict[str, Tensor]:
        """Return every live tensor by name."""
        found = dict(self.state_dict())
        for name, optimizer in self._optimizers.items():
            moments = adam_tensors(optimizer, dict(self._trained[name].named_parameters()))
            found |= {f"adam.{name}.{key}": tensor for key, tensor in moments.items()}
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` of an explorer of the same sizes returned.

        Raises:
            CheckpointError: If they are not of this shape, or not finite.
        """
        own = self.tensors()
        check_matches(own, tensors, "explorer")
        copy_into(own, tensors)
