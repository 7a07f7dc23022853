"""A local Ray for the tests of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray


@contextmanager
def local_ray(results: Path) -> Iterator[None]:
    """Run the block with four CPU slots, whatever the machine has; RLlib's folders are in `results`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.train.constants.DEFAULT_STORAGE_PATH", str(results))
        patch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", str(results), raising=False)
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()
