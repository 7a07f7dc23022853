"""A private copy of numpy's global random stream, for code that draws from it without asking.

OGBench places mazes' starts, goals and teleports, and plans its oracles, with `numpy.random.*`. Left alone,
two environments in one process would disturb each other's episodes, and a restarted run could not replay one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


class PrivateGlobalRandom:
    """A stream that stands in for numpy's global one while a block runs, and is put away afterwards.

    The process's own global stream is left exactly as it was found. Swapping costs about 0.1 ms, so it is done
    only around calls that are known to draw. Blocks of different instances nest; threads do not mix.
    """

    def __init__(self, seed: int | np.random.SeedSequence | None = None) -> None:
        self.seed(seed)

    def seed(self, seed: int | np.random.SeedSequence | None) -> None:
        """Start the stream anew from `seed` (any non-negative integer); None takes entropy from the system."""
        self._state = np.random.RandomState(np.random.MT19937(seed)).get_state(legacy=False)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Run the block with this stream as numpy's global one; keep where it got to, also when the block fails."""
        outer = np.random.get_state(legacy=False)
        np.random.set_state(self._state)
        try:
            yield
        finally:
            self._state = np.random.get_state(legacy=False)
            np.random.set_state(outer)
