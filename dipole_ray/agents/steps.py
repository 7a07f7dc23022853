"""How an agent's gradients are taken and applied. This is the readable way, and what a faster one must equal."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dipole_ray.agents.config import AgentConfig

Loss = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]
"""The sum of the losses, metrics, and new running statistics."""


class Steps:
    """Autograd, then Adam and the Polyak step of the target critics, parameter by parameter.

    Attributes:
        is_compiled: Whether networks and parameters are gone through by compiled loops, see `compiled`.
        gradients: Of the last loss, over this learner's rows; may be averaged over learners in place.
    """

    is_compiled = False

    def __init__(
        self, config: AgentConfig, optimizer: torch.optim.Adam, critics: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> None:
        self.optimizer = optimizer
        self.gradients: list[Tensor] = []
        self.config = config
        self.parameters: list[nn.Parameter] = optimizer.param_groups[0]["params"]
        self.critics, self.targets = list(critics), list(targets)

    def differentiate(self, loss: Callable[[], Loss]) -> Loss:
        """Return what `loss` returns, the gradients of its first result taken and that result detached."""
        self.optimizer.zero_grad(set_to_none=True)
        total, metrics, statistics = loss()
        total.backward()
        self.gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return total.detach(), metrics, statistics

    def gradient_norm(self) -> Tensor:
        """Return the norm of all gradients together."""
        return torch.nn.utils.get_total_norm(self.gradients)

    def apply(self) -> None:
        """Take a step of Adam, and one of the target critics `before` or `after` it."""
        if self.config.target_update == "before":
            self._move_targets()
        self.optimizer.step()
        if self.config.target_update == "after":
            self._move_targets()

    @torch.no_grad()
    def _move_targets(self) -> None:
        """Move the target critics a Polyak step towards the critics as they are now."""
        if self.targets:
            torch._foreach_lerp_(self.targets, self.critics, self.config.tau)
