"""The update-to-data ratio, kept exactly over a run and across restarts."""

import math
from fractions import Fraction
from typing import Any

from dipole_ray.errors import CheckpointError, ConfigError

_MAX_DENOMINATOR = 1_000_000


class UpdateRatio:
    """Says how many gradient updates the environment steps taken so far have paid for.

    After `env_steps` steps and all due updates, exactly `floor(ratio * env_steps)` updates were done: the ratio is a
    fraction, so no rounding accumulates. There is no burst of updates after a resume: with another ratio it counts
    from there on, and what is owed is forgiven but for what the caller says an interrupted iteration left.
    """

    def __init__(self, updates_per_env_step: float | Fraction) -> None:
        """Count from nothing on; a float is taken as the nearest fraction with a denominator up to 10^6."""
        given = f"updates_per_env_step={updates_per_env_step}"
        if not math.isfinite(updates_per_env_step) or updates_per_env_step < 0:
            raise ConfigError(f"{given} must be finite and >= 0; 1.0 is a good start")
        is_exact, ratio = isinstance(updates_per_env_step, Fraction), Fraction(updates_per_env_step)
        self.ratio = ratio if is_exact else ratio.limit_denominator(_MAX_DENOMINATOR)
        if updates_per_env_step > 0 and self.ratio == 0:
            raise ConfigError(f"{given} is below 1/{_MAX_DENOMINATOR}; use 0 for no updates")
        self.updates_done = self.env_steps = 0
        self._base_env_steps = self._base_updates = 0  # where the present ratio began to count

    def due(self, env_steps: int) -> int:
        """Return the updates still owed once `env_steps` environment steps were taken in total; never negative."""
        self.env_steps = max(self.env_steps, env_steps)
        earned = self.ratio * (env_steps - self._base_env_steps)
        return max(0, math.floor(earned) - (self.updates_done - self._base_updates))

    def record(self, updates: int) -> None:
        """Count updates that were done."""
        if updates < 0:
            raise ConfigError(f"record({updates}): updates cannot be undone; pass the number just performed")
        self.updates_done += updates

    def state(self) -> dict[str, Any]:
        """Return what `load_state` needs, as JSON."""
        counts = {"updates_done": self.updates_done, "env_steps": self.env_steps}
        base = [self._base_env_steps, self._base_updates]
        return {"ratio": list(self.ratio.as_integer_ratio()), **counts, "base": base}

    def load_state(self, state: dict[str, Any], owed: int = 0) -> None:
        """Continue from `state` with `owed` updates due, and with this object's own ratio from there on."""
        try:
            stored = Fraction(*state["ratio"])
            self.updates_done, self.env_steps = int(state["updates_done"]), int(state["env_steps"])
            self._base_env_steps, self._base_updates = (int(value) for value in state["base"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"update ratio: incomplete state ({error!r}); resume from another checkpoint"
            ) from error
        if stored != self.ratio:
            self._base_env_steps, self._base_updates = self.env_steps, self.updates_done
        self._base_updates += owed - self.due(self.env_steps)
