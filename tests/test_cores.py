"""One count of cores: affinity and the quotas of control groups, version 1 and 2, as deep as they are nested."""

import os
from pathlib import Path

import pytest

from dipole_ray.cli import doctor
from dipole_ray.cores import usable_cores, usable_memory
from dipole_ray.rllib.config import DIPOLEConfig

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
MEMORY = "36 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


def machine(folder: Path, groups: str, mounts: str, **quotas: str) -> Path:
    """Make `/proc` and control groups below `folder`; `quotas` are the lines of `cpu.max` or both files' by group."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups + "\n")
    (folder / "proc/self/mountinfo").write_text(mounts + "\n")
    for group, words in quotas.items():
        there = folder / "sys/fs/cgroup" / group.replace("__", "/").replace("cpuacct", "cpu,cpuacct").strip("/")
        there.mkdir(parents=True, exist_ok=True)
        quota, period = words.split()
        if "cpu,cpuacct" in str(there):
            (there / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (there / "cpu.cfs_period_us").write_text(f"{period}\n")
        else:
            (there / "cpu.max").write_text(f"{words}\n")
    return folder


@pytest.mark.parametrize(
    ("groups", "mounts", "quotas", "cores"),
    [
        ("0::/", V2, {}, 16),
        ("0::/", V2, {"__": "max 100000"}, 16),
        ("0::/", V2, {"__": "270000 100000"}, 2),
        ("0::/", V2, {"__": "50000 100000"}, 1),
        ("0::/a/b", V2, {"a": "300000 100000", "a__b": "max 100000"}, 3),
        ("0::/a/b", V2, {"a": "300000 100000", "a__b": "200000 100000", "a__b__c": "100000 100000"}, 2),
        ("0::/../../outside", V2, {"__": "400000 100000"}, 4),
        ("4:memory:/x\n3:cpu,cpuacct:/", f"{MEMORY}\n{V1.format(root='/')}", {"cpuacct": "-1 100000"}, 16),
        ("3:cpu,cpuacct:/a/b", V1.format(root="/"), {"cpuacct__a": "500000 100000", "cpuacct__a__b": "-1 100000"}, 5),
        ("3:cpu,cpuacct:/docker/12", V1.format(root="/docker/12"), {"cpuacct": "150000 50000"}, 3),
        ("3:cpu,cpuacct:/a\n0::/b", f"{V1.format(root='/')}\n{V2}", {"cpuacct__a": "600000 100000"}, 6),
    ],
)
def test_the_smallest_of_affinity_and_all_quotas_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, mounts: str, quotas: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert usable_cores(machine(tmp_path, groups, mounts, **quotas)) == cores


def test_affinity_alone_limits_where_there_are_no_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert usable_cores(tmp_path) == 2


def test_learner_threads_and_doctor_tell_the_same_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container of three of sixteen cores: three threads for a learner alone, and the doctor says three."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr("dipole_ray.cores._quotas", lambda *_: [3.0])
    config = DIPOLEConfig().environment("Pendulum-v1").env_runners(num_env_runners=0)
    config.validate()
    assert config.learner_num_threads == 3
    assert doctor.check_cores().message.startswith("3 of 16 usable")


def test_memory_is_the_machines_or_what_the_tightest_group_leaves(tmp_path: Path) -> None:
    folder = machine(tmp_path, "0::/a/b", V2, a="max 100000", a__b="max 100000")
    (folder / "proc/meminfo").write_text("MemTotal:       16384 kB\nMemFree:  1 kB\n")
    assert usable_memory(folder) == 16384 * 1024
    (folder / "sys/fs/cgroup/a/b/memory.max").write_text("max\n")
    (folder / "sys/fs/cgroup/a/memory.max").write_text("1000000\n")
    assert usable_memory(folder) == 1e6
    assert usable_memory(tmp_path / "nowhere") == float("inf")
