"""The search space of a sweep: which settings vary, over which values, and the trials that follow from it."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dipole_ray.errors import ConfigError

Values = dict[str, Any]  # a trial's settings by dotted key

LISTS, RANGES = ("grid", "choice"), ("uniform", "loguniform")


@dataclass(frozen=True, slots=True)
class Domain:
    """What one setting is drawn from."""

    kind: str  # `grid` and `choice` hold a list, `uniform` and `loguniform` the two ends of a range
    values: tuple[Any, ...]  # the list, or the ends

    @property
    def is_list(self) -> bool:
        """Whether the values are counted, not measured."""
        return self.kind in LISTS

    def sample(self, generator: np.random.Generator) -> Any:
        """Return one value; those of a list are equally likely."""
        if self.is_list:
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "uniform":
            return float(generator.uniform(low, high))
        return float(math.exp(generator.uniform(math.log(low), math.log(high))))

    def clip(self, value: Any) -> Any:
        """Return the value of a range that is nearest to `value`, which mutations may have carried out of it."""
        return value if self.is_list else min(max(float(value), self.values[0]), self.values[1])

    def probes(self) -> tuple[Any, ...]:
        """Return values that tell whether the setting takes what may be drawn; of a range also one inside it."""
        if self.is_list:
            return self.values
        low, high = self.values
        return low, high, low + 0.381 * (high - low)

    def to_plain(self) -> dict[str, Any]:
        """Return what `read_domain` reads."""
        return {self.kind: list(self.values)}


def read_domain(key: str, value: Any) -> Domain:
    """Return the domain that stands in a file under `key`; ConfigError, which says how to write one, for others."""
    how = "{grid: [1, 3]}, {choice: [1, 3]}, {uniform: [0, 1]} or {loguniform: [1e-4, 1e-2]}"
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in LISTS + RANGES:
        raise ConfigError(f"space: {key} is {value!r}: write {key}: {how}")
    kind, listed = next(iter(value.items()))
    if not isinstance(listed, list | tuple) or not listed:
        raise ConfigError(f"space: {key}: {kind} is {listed!r}: a list is needed, as in {how}")
    if kind in LISTS:
        if len({repr(item) for item in listed}) < len(listed):
            raise ConfigError(f"space: {key}: {kind} names a value twice; to repeat trials, add seed: {{grid: [0, 1]}}")
        return Domain(kind, tuple(listed))
    try:
        low, high = (float(end) for end in listed)  # PyYAML leaves 1e-4 as text
    except (TypeError, ValueError):
        raise ConfigError(f"space: {key}: {kind} is {listed!r}: two numbers are needed, as in {how}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (kind == "loguniform" and low <= 0):
        above = " above 0" if kind == "loguniform" else ""
        raise ConfigError(f"space: {key}: {kind} is {listed!r}: give a smaller and a larger finite number{above}")
    return Domain(kind, (low, high))


def draw(space: Mapping[str, Domain], *, num_samples: int, seed: int) -> list[Values]:
    """Return the settings of all trials: every combination of the grids, each with `num_samples` draws of the rest.

    The same space and seed give the same trials.
    """
    generator = np.random.default_rng([0x5EED, seed])
    grids = {key: domain for key, domain in space.items() if domain.kind == "grid"}
    trials = []
    for combination in itertools.product(*(domain.values for domain in grids.values())):
        fixed = dict(zip(grids, combination, strict=True))
        for _ in range(num_samples):
            trials.append({key: fixed[key] if key in fixed else space[key].sample(generator) for key in space})
    return trials
