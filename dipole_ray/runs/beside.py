"""An evaluation that rollout workers play with published weights while the learner goes on."""

import time
from collections.abc import Sequence

from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import CellResult
from dipole_ray.rllib.algorithm import DIPOLE
from dipole_ray.rllib.evaluate import playing


class EvaluationBeside:
    """Asks for its results by `results`, which also hands out what is left to play."""

    def __init__(self, algorithm: DIPOLE, cells: Sequence[Cell], episodes: int, seed: int, began: int) -> None:
        """Begin to play `cells` with the present weights; `began` is when the iteration began, in updates."""
        self.steps, self.began = (algorithm.learner_steps, algorithm.env_steps), began
        self._cells, self._found = cells, dict[Cell, CellResult]()
        self._waits, self._start = False, time.perf_counter()
        self.seconds = 0.0
        """How long it took, once it is over."""
        how = {"episodes": episodes, "seed": seed}
        self._playing = playing(algorithm, None, cells, on_wait=lambda: self._waits, **how)
        self.results()

    def results(self, *, wait: bool = False) -> list[CellResult] | None:
        """Return the results in the order of the cells, None as long as not all are there; or wait for them."""
        self._waits = wait
        for result in self._playing:
            if result is not None:
                self._found[result.cell] = result
            elif not wait:
                return None
        self.seconds = self.seconds or time.perf_counter() - self._start
        return [self._found[cell] for cell in self._cells]
