"""A real small distributed run that is watched from the outside: `python -m tests.chaos.soak MINUTES FOLDER`.

`dipole train`'s own code trains on a slow point environment: two rollout workers, a learner actor and a replay actor,
a checkpoint every ten seconds or so, an evaluation twice a minute, MLflow on SQLite. Every five seconds a thread notes
memory, file descriptors and threads of every process, Ray's object store and the disk in `FOLDER/samples.csv`. After
MINUTES the run is ended as by Ctrl-C. It takes a third of a core, so that it can run beside other tests.
"""

from __future__ import annotations

import csv
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import ray
import yaml

from dipole_ray.runs.config import load
from dipole_ray.runs.start import start_run
from tests.chaos.point_env import Point

INTERVAL_S = 5.0
STEP_S = 0.02
OBJECT_STORE_BYTES = 100_000_000
ACTORS = {"_WrappedExecutable": "learner", "Replay": "replay", "DIPOLEEnvRunner": "rollout worker"}
SETTINGS: dict[str, Any] = {
    "name": "soak",
    "env": {"id": "tests.chaos.soak:SlowPoint-v0"},
    "agent": {
        "preset": "small", "hidden_dims": [16, 16], "batch_size": 16, "denoise_steps": 2,
        "omega": 1.0, "num_candidates": 2,
    },
    "training": {
        "offline_learner_steps": 0, "online_env_steps": 10_000_000, "updates_per_env_step": 0.3,
        "learner_steps_per_call": 8, "env_steps_per_iteration": 60, "replay_capacity": 4000,
    },
    "rollout": {"num_workers": 2, "envs_per_worker": 2, "fragment_steps": 15, "cpus_per_worker": 0.5},
    "learner": {"remote": True, "num_threads": 1},
    "evaluation": {"every_learner_steps": 900, "interval_episodes": 1, "episodes": 1, "num_envs": 1},
    "checkpoint": {"every_learner_steps": 300, "keep": 2},
}  # fmt: skip


class SlowPoint(Point):
    """The point, asleep most of the time."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(STEP_S)
        return super().step(action)


if "SlowPoint-v0" not in gymnasium.registry:  # once as this program and once as the module the environment is in
    gymnasium.register("SlowPoint-v0", "tests.chaos.soak:SlowPoint", max_episode_steps=50)


def soak(minutes: float, folder: Path) -> None:
    """Train for `minutes` with a sampler beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.yaml").write_text(yaml.safe_dump({**SETTINGS, "folder": str(folder)}))
    config = load(folder / "soak.yaml")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=OBJECT_STORE_BYTES)
    over = threading.Event()
    sampler = threading.Thread(target=sample_until, args=(over, minutes * 60.0, folder), name="sampler")
    sampler.start()
    try:
        outcome = start_run(config)
        assert not outcome.finished, "the run ended before its time"
    finally:
        over.set()
        sampler.join()
        ray.shutdown()


def sample_until(over: threading.Event, seconds: float, folder: Path) -> None:
    """Write samples until `over`, or press Ctrl-C after `seconds` of training."""
    object_store = object_store_reader()
    start = None
    with (folder / "samples.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["minutes", "series", "value"])
        while not over.wait(INTERVAL_S):
            if start is None:  # the clock starts with the first checkpoint, when every actor works
                start = time.monotonic() if any(folder.glob("soak-*/checkpoints/*")) else None
                continue
            elapsed_s = time.monotonic() - start
            for series, value in (*processes(), *object_store(), *disk(folder)):
                writer.writerow([f"{elapsed_s / 60.0:.3f}", series, value])
            stream.flush()
            if elapsed_s > seconds:
                os.kill(os.getpid(), signal.SIGINT)
                over.wait()


def processes() -> Iterator[tuple[str, float]]:
    """Yield memory (MB), file descriptors, threads and CPU seconds of this process and all below it."""
    for pid in descendants(os.getpid()):
        try:
            status = dict(re.findall(r"^(\w+):\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
            name = f"{process_name(pid)}[{pid}]"
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "VmRSS" not in status:
            continue  # a zombie
        yield f"{name}/rss_mb", int(status["VmRSS"]) / 1024
        yield f"{name}/anonymous_mb", int(status["RssAnon"]) / 1024
        yield f"{name}/descriptors", descriptors
        yield f"{name}/threads", int(status["Threads"])
        yield f"{name}/cpu_s", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants(root: int) -> list[int]:
    """Return a process and everything it started, directly or not."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, frontier = [root], [root]
    while frontier:
        frontier = [pid for pid, parent in parents.items() if parent in frontier]
        found += frontier
    return found


def process_name(pid: int) -> str:
    """Return `driver`, the class of the actor, or the name of Ray's program."""
    if pid == os.getpid():
        return "driver"
    words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").split()
    if not words:
        return "zombie"
    if words[0].startswith("ray::"):
        actor = words[0].removeprefix("ray::").split(".")[0].split("(")[0]
        return ACTORS.get(actor, actor)
    script = next((word for word in words[:4] if word.endswith(".py")), words[0])
    return Path(script).stem


def object_store_reader() -> Callable[[], list[tuple[str, float]]]:
    """Return a function that asks the raylet what the object store holds, over one connection."""
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc

    node = ray.nodes()[0]
    channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
    raylet = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
    request = node_manager_pb2.FormatGlobalMemoryInfoRequest(include_memory_info=False)

    def ask() -> list[tuple[str, float]]:
        stats = raylet.FormatGlobalMemoryInfo(request, timeout=60.0).store_stats
        return [
            ("object store/used_mb", stats.object_store_bytes_used / 1e6),
            ("object store/objects", stats.num_local_objects),
            ("object store/spilled_mb", stats.spilled_bytes_total / 1e6),
        ]

    return ask


def disk(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield megabytes on the disk, of the run by part and of Ray's own session."""
    run = next(folder.glob("soak-*"))
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    lines = (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").exists() else 0
    yield "run/iterations", lines
    for name, place in {
        "run/checkpoints": run / "checkpoints",
        "run/replay": run / "replay",
        "run/metrics": run / "metrics.jsonl",
        "run/mlflow": folder.parent / "mlflow.db",
        "ray/session": session,
    }.items():
        yield f"{name}_disk_mb", size_on_disk(place) / 1e6


def size_on_disk(place: Path) -> int:
    """Return the bytes that a file, or everything in a folder, takes."""
    total = 0
    for path in [place, *place.rglob("*")] if place.is_dir() else [place]:
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


if __name__ == "__main__":
    os.nice(19)
    soak(float(sys.argv[1]), Path(sys.argv[2]))
