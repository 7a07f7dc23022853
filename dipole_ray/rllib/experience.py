"""Where experience comes from: the one face behind which environments are stepped.

The loop, the replay and the learner see fragments of rows with a report, and results of evaluation cells. Whether
the rows are steps of environments (`Rollouts`) or plans that a scorer judged, each an episode of one step whose
reward is the given advantage, is known to the source alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import CellResult
from dipole_ray.rllib.fragment import FragmentReport
from dipole_ray.rllib.learner_client import PublishedPolicy

SourceState = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors, and JSON."""


class Experience(Protocol):
    """What the training loop asks of a source of experience."""

    @property
    def num_workers(self) -> int:
        """Workers that can be asked now, against which their waiting is measured."""
        ...

    def gather(self, policy: Callable[[], PublishedPolicy]) -> Iterator[FragmentReport]:
        """Yield fragments without end; an idle worker acts with `policy()` next, also while one is being used."""
        ...

    def evaluate(self, cells: Sequence[Cell], policy: PublishedPolicy, **how: Any) -> Iterator[CellResult]:
        """Yield the result of each cell as it is finished, not in order; `how` is `evaluate_cell`'s."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return the state of the workers as `rollout/name`s."""
        ...

    def state(self) -> SourceState | None:
        """Return what `restore` continues from exactly; None where it can only begin anew."""
        ...

    def restore(self, state: SourceState | None, life: int) -> None:
        """Continue from `state`, or begin anew with random numbers that no earlier `life` of the run had."""
        ...

    def stop(self) -> None:
        """End the workers; one that does not answer is not waited for."""
        ...
