"""How many cores and how much memory this process may use: the one count for whoever divides them."""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores that affinity and the quotas of all control groups around this process leave, at least 1.

    A quota of 2.7 cores counts as 2, as Ray counts it: a third thread would wait for the others.

    Args:
        root: Where `/proc` and the mounted control groups are found.
    """
    every = os.cpu_count() or 1
    # A system without affinity, such as macOS, has neither control groups.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    return max(1, int(min([allowed, *_quotas(root, "cpu", _quota)])))


def usable_memory(root: Path = Path("/")) -> float:
    """Return the bytes of memory that the machine and all control groups around this process leave; inf if unknown."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        whole = next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemTotal:")), math.inf)
    except (OSError, ValueError, IndexError):
        whole = math.inf
    return min([whole, *_quotas(root, "memory", _limit)])


def _quotas(root: Path, controller: str, quota: Callable[[Path], float]) -> Iterator[float]:
    """Yield what each group around this process is given; a group inside another never has more than it."""
    for mount_point, folder in _groups(root, controller):
        while True:
            yield quota(folder)
            if folder == mount_point or mount_point not in folder.parents:
                break
            folder = folder.parent


def _groups(root: Path, wanted: str) -> Iterator[tuple[Path, Path]]:
    """Yield where control groups with the `wanted` kind of quota are mounted, each with this process's group there."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    own = {}  # the path of this process's group by controller; version 2 has one group for all, named ""
    for line in groups:
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    for line in mounts:
        head, _, tail = line.partition(" - ")
        (shown, mount_point), (kind, _, options) = head.split()[3:5], tail.split()[:3]
        controller = "" if kind == "cgroup2" else wanted
        if kind not in ("cgroup", "cgroup2") or controller not in ("", *options.split(",")) or controller not in own:
            continue
        there = root / mount_point.lstrip("/")
        # A container sees its own group at the mount point, whatever it is called outside.
        inside = os.path.relpath(own[controller], shown)
        yield there, there if inside.startswith("..") else there / inside


def _quota(folder: Path) -> float:
    """Return the cores of one group; infinite without a quota."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return math.inf
    return cores if cores > 0 else math.inf  # version 1 writes -1 where there is none


def _limit(folder: Path) -> float:
    """Return the bytes of memory of one group; infinite without a limit."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return float(int((folder / name).read_text()))  # version 1 writes a number beyond any memory
        except (OSError, ValueError):  # "max" is no number
            continue
    return math.inf
