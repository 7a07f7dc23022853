"""An online phase that ends early: where evaluations get no better, it goes back to the networks of the best one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

BEST_FILE = "best"
"""The best networks in a checkpoint."""


class EarlyStop:
    """Counts evaluations that were no better than the best, and keeps the networks of that one.

    Attributes:
        has_ended: Whether it ended the phase.
    """

    def __init__(self, patience: int) -> None:
        """Wait for `patience` evaluations; 0 keeps nothing and never ends."""
        self._patience = patience
        self._best, self._since = -np.inf, 0
        self._networks: dict[str, Tensor] = {}
        self.has_ended = False

    @property
    def is_watching(self) -> bool:
        """Whether evaluations are to be noted."""
        return self._patience > 0

    @property
    def is_due(self) -> bool:
        """Whether the phase is to end, or has ended."""
        return self.is_watching and (self.has_ended or self._since >= self._patience)

    def note(self, score: float, networks: Mapping[str, np.ndarray]) -> None:
        """Take the score of networks."""
        if score > self._best:
            self._best, self._since = score, 0
            self._networks = {name: torch.from_numpy(array.copy()) for name, array in networks.items()}
        else:
            self._since += 1

    def end(self) -> dict[str, np.ndarray]:
        """Return the networks to go back to, none where no evaluation was noted, and begin anew."""
        self.has_ended = self.is_due
        found = {name: tensor.numpy() for name, tensor in self._networks.items()}
        self._best, self._since, self._networks = -np.inf, 0, {}
        return found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON of which `load_state` makes the same."""
        best = None if self._best == -np.inf else float(self._best)
        return self._networks, {"best": best, "since": self._since, "has_ended": self.has_ended}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._networks = dict(tensors)
        self._best = -np.inf if state["best"] is None else float(state["best"])
        self._since, self.has_ended = int(state["since"]), bool(state["has_ended"])
