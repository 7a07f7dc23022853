"""How long a policy takes for an action: by steps of its flow, candidates, states at a time and device."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.agents.policy import Policy
from dipole_ray.agents.precision import require_device
from dipole_ray.columns import nested
from dipole_ray.errors import ConfigError
from dipole_ray.progress import Progress
from dipole_ray.serving.policy import load_policy

_WARM_UP_CALLS = 10
_TURNS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """What calls of one setting took, from observations in the host's memory to actions there."""

    device: str
    batch: int
    """States of a call."""
    candidates: int
    steps: int | None
    """Steps of the flow's solver; None where there is no flow."""
    p50_ms: float
    p95_ms: float
    p99_ms: float
    calls: int

    @property
    def effort(self) -> tuple[int, float]:
        """What is compared between settings that are fast enough: candidates x steps, then the time left."""
        return self.candidates * (self.steps or 1), -self.p99_ms

    def __str__(self) -> str:
        flow = "" if self.steps is None else f" x {self.steps} steps"
        return f"{self.candidates} candidate{'s' * (self.candidates > 1)}{flow} (p99 {self.p99_ms:.2f} ms)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The settings to measure, each with each."""

    steps: tuple[int, ...] = (3, 5, 10)
    candidates: tuple[int, ...] = (1, 4, 16, 32)
    batches: tuple[int, ...] = (1,)
    devices: tuple[str, ...] = ("cpu",)
    calls: int = 200

    def __post_init__(self) -> None:
        """Reject what cannot be measured."""
        for name in ("steps", "candidates", "batches"):
            if min(getattr(self, name), default=0) < 1:
                raise ConfigError(f"{name}: found {getattr(self, name)}; give whole numbers of at least 1")
        if self.calls < 20:
            raise ConfigError(f"calls: found {self.calls}; give at least 20, of which p95 is one")
        for device in self.devices:
            require_device(device)


def measure(run: Path, grid: Grid, progress: Progress, **acting: object) -> list[Latency]:
    """Return what the grid's settings take with a run's policy; `acting` are `load_policy`'s.

    `progress` is entered here, once there is something to measure.
    """
    found: list[Latency] = []
    policies = {device: load_policy(run, device, **acting).policy for device in grid.devices}
    with progress:
        for device, policy in policies.items():
            found += _measured(policy, device, grid, progress)
    return found


def _measured(policy: Policy, device: str, grid: Grid, progress: Progress) -> Iterator[Latency]:
    """Yield what each setting takes on one device.

    Settings take turns, so that a change of the machine's load does not meet one of them alone.
    """
    steps: Sequence[int | None] = grid.steps if policy.is_flow else (None,)
    settings = list(product(grid.batches, grid.candidates, steps))
    taken: dict[tuple[int, int, int | None], list[float]] = {setting: [] for setting in settings}
    progress.begin(f"measuring on {device}", total=len(settings) * grid.calls)
    for turn in range(_TURNS):
        for setting in settings:
            calls = grid.calls * (turn + 1) // _TURNS - grid.calls * turn // _TURNS
            taken[setting] += _milliseconds(policy, *setting, calls)
            progress.advance(calls)
    for (batch, candidates, count), values in taken.items():
        p50, p95, p99 = np.percentile(values, (50, 95, 99), method="higher").tolist()
        measured = {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "calls": len(values)}
        yield Latency(device=device, batch=batch, candidates=candidates, steps=count, **measured)


def _drawn(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return standard normal numbers, or the numbers of images from 0 to 255."""
    drawn: np.ndarray = random.normal(size=shape) if dtype.startswith("float") else random.integers(0, 256, shape)
    return drawn.astype(dtype)


def best_for(found: Sequence[Latency], hz: float) -> Latency | None:
    """Return the setting with the most candidates x steps whose p99 fits into a period; None if none does."""
    fitting = [one for one in found if one.p99_ms <= 1e3 / hz]
    return max(fitting, key=lambda one: one.effort, default=None)


def _milliseconds(policy: Policy, batch: int, candidates: int, steps: int | None, calls: int) -> list[float]:
    """Return what each of some calls takes, once others have warmed up what a call needs."""
    if steps is not None:
        policy.config = replace(policy.config, denoise_steps=steps)
    random, observed = np.random.default_rng(0), policy.networks.observed
    arrays = {name: _drawn(random, (batch, *column.shape), column.dtype) for name, column in observed.items()}
    observations: Any = nested(arrays)["observations"]
    taken = []
    for _ in range(_WARM_UP_CALLS + calls):
        start = time.perf_counter()
        policy.sample_actions(observations, num_candidates=candidates).cpu().numpy()
        taken.append(1e3 * (time.perf_counter() - start))
    return taken[_WARM_UP_CALLS:]
