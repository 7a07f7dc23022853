"""One Ray for all tests of a process: starting one takes seconds."""

from __future__ import annotations

import ray

CPUS = 4
"""CPU slots of the tests' Ray, whatever the machine has."""


def keep_ray() -> None:
    """Have the tests' Ray run: the one that a module before has left, or a new one."""
    if ray.is_initialized() and ray.cluster_resources()["CPU"] != CPUS:
        ray.shutdown()
    if not ray.is_initialized():
        ray.init(num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
