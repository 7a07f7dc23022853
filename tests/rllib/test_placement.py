"""An actor that no node could ever hold is an error with the arithmetic, not a silent wait."""

from __future__ import annotations

import pytest

from dipole_ray.errors import ResourcesUnavailable
from dipole_ray.rllib.placement import require_room

pytestmark = pytest.mark.usefixtures("cluster")


def test_what_fits_passes_at_once() -> None:
    require_room([("rollout workers", 2, {"CPU": 1.0}), ("learner", 1, {"CPU": 1, "GPU": 0})], wait_s=0.0)
    require_room([], wait_s=0.0)


def test_what_fits_nowhere_is_named_with_needed_and_free_resources() -> None:
    """Four CPUs in all: the workers fit, the learner beside them does not."""
    message = r"no room on the cluster for the learner: needed 2 rollout workers of 1.5 CPU \+ 1 learner of 2 CPU; "
    with pytest.raises(ResourcesUnavailable, match=message + r"free 4 CPU on \w{8}; ask for less"):
        require_room([("rollout workers", 2, {"CPU": 1.5}), ("learner", 1, {"CPU": 2})], wait_s=0.6)
    with pytest.raises(ResourcesUnavailable, match="1 learner of 1 CPU and 1 GPU; free 4 CPU on"):
        require_room([("learner", 1, {"CPU": 1, "GPU": 1})], wait_s=0.0)
