"""A checkpoint is there whole or not at all, and nothing damaged, foreign or hostile is ever loaded."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.files import checkpoint
from dipole_ray.files.checkpoint import newest_valid, prune, read_checkpoint, write_checkpoint


def contents(seed: int) -> dict[str, dict[str, Tensor]]:
    """Return tensors of every kind an agent saves."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(16, 8, generator=generator)
    return {
        "agent": {
            "actor.weight": weight,
            "actor.view": weight.t(),
            "tied": weight,
            "steps": torch.tensor(seed),
            "empty": torch.zeros(0, 3),
            "mask": torch.tensor([True, False]),
            "half": torch.randn(5, generator=generator).bfloat16(),
        },
        "rollout": {"generator": generator.get_state()},
    }


def save(directory: Path, steps: int, seed: int | None = None) -> Path:
    """Write a checkpoint whose content follows from its seed, by default its steps."""
    seed = steps if seed is None else seed
    return write_checkpoint(directory, steps, contents(seed), {"seed": seed, "rng": 2**127 + 1, "loss": 0.1})


def assert_whole(path: Path | None) -> int:
    """Assert that a checkpoint holds exactly what was saved, and return its seed."""
    assert path is not None
    read = read_checkpoint(path)
    seed = read.metadata["seed"]
    for file, tensors in contents(seed).items():
        assert read.tensors[file].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(read.tensors[file][name], tensor), name
            assert read.tensors[file][name].dtype == tensor.dtype
    assert read.metadata == {"seed": seed, "rng": 2**127 + 1, "loss": 0.1}
    return int(seed)


def in_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked process and return how it ended: 0, an exit status, or minus a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_what_is_written_is_read_back_bitwise(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 4000)
    assert path == tmp_path / "checkpoints" / "000004000"
    assert assert_whole(path) == 4000
    read = read_checkpoint(path)
    assert read.learner_steps == 4000
    assert read.versions["torch"] == torch.__version__
    read.tensors["agent"]["actor.weight"].add_(1)  # writable, and nobody else's
    assert assert_whole(path) == 4000


def test_a_folder_of_checkpoints_stands_for_its_newest(tmp_path: Path) -> None:
    for steps in (5, 1_000_000_000, 70):
        save(tmp_path, steps)
    assert read_checkpoint(tmp_path).learner_steps == 1_000_000_000
    with pytest.raises(CheckpointError, match="holds no valid checkpoint"):
        read_checkpoint(tmp_path / "elsewhere")


def test_killed_at_any_file_operation_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    """SIGKILL before the n-th file operation, for every n, once for a new step and once for a replaced one."""

    def killed_writer(directory: Path, steps: int, operation: int) -> int:
        def action() -> None:
            count = 0

            def hook(event: str, _: Any) -> None:
                nonlocal count
                if event == "open" or (event.startswith(("os.", "shutil.")) and event != "os.kill"):
                    count += 1
                    if count > operation:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            save(directory, steps, seed=99)

        return in_child(action)

    for steps, before in ((2, {1, 99}), (1, {1, 99})):
        directory = tmp_path / f"to-{steps}"
        save(directory, 1)
        seen, operation, status = set(), 0, -signal.SIGKILL
        while status != 0:
            status = killed_writer(directory, steps, operation)
            assert status in (0, -signal.SIGKILL)
            seen.add(assert_whole(newest_valid(directory)))
            save(directory, 1)  # the next write clears what the killed one left
            prune(directory / f"{1:09d}", keep=2)
            assert [path.name for path in directory.iterdir()] == ["000000001"]
            operation += 1
        assert operation > 10
        assert seen == before


def test_killed_at_any_byte_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    """SIGKILL-like end inside the write itself, at 50 byte offsets over every file."""
    first = save(tmp_path, 1)
    longest = max(file.stat().st_size for file in first.iterdir())
    for offset in np.linspace(0, longest - 1, 50).astype(int).tolist():

        def action(limit: int = offset) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            save(tmp_path, 2)

        assert in_child(action) == -signal.SIGXFSZ
        assert newest_valid(tmp_path) == first
    assert assert_whole(newest_valid(tmp_path)) == 1
    assert assert_whole(save(tmp_path, 2)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000001", "000000002"]


def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    files = sorted(path.iterdir())
    random = np.random.default_rng(0)
    for case in range(200):
        file = files[case % len(files)]
        whole = file.read_bytes()
        position = int(random.integers(len(whole)))
        if case % 4 == 3:
            damaged = whole[:position]
        else:
            flipped = whole[position] ^ 1 << int(random.integers(8))
            damaged = whole[:position] + bytes([flipped]) + whole[position + 1 :]
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"resume from another|reads format"):
            read_checkpoint(path)
        file.write_bytes(whole)
    assert assert_whole(path) == 1


def test_damaged_checkpoints_are_passed_over_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1)
    middle, last = save(tmp_path, 2), save(tmp_path, 3)
    (last / "agent.safetensors").unlink()
    (middle / "state.json").write_text("{")
    assert newest_valid(tmp_path) == tmp_path / "000000001"
    assert str(last) in caplog.messages[0] and "missing" in caplog.messages[0]
    assert str(middle) in caplog.messages[1] and "not JSON" in caplog.messages[1]


def test_pruning_keeps_the_newest_and_drops_those_the_run_went_back_behind(tmp_path: Path) -> None:
    for steps in (1, 2, 3, 4, 9):
        newest = save(tmp_path, steps)
    newest = save(tmp_path, 5)
    prune(newest, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000004", "000000005"]


def hostile(tmp_path: Path, payload: bytes, name: str = "agent") -> Path:
    """Return a checkpoint with a valid state.json that vouches for `payload` as its one file."""
    path = save(tmp_path, 1)
    (path / "agent.safetensors").write_bytes(payload)
    (path / "rollout.safetensors").unlink()
    vouch(path, {name: {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}})
    return path


def vouch(path: Path, files: Any, **changes: Any) -> None:
    """Rewrite a checkpoint's state.json with another file table and a right checksum."""
    state = {**json.loads((path / "state.json").read_text()), "files": files, **changes}
    del state["checksum"]
    state["checksum"] = checkpoint._checksum(state)
    (path / "state.json").write_text(json.dumps(state))


class Payload:
    """What a malicious pickle would run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        """Touch a file when unpickled."""
        return (Path.touch, (self.target,))


def safetensors_bytes(header: dict[str, Any], body: bytes) -> bytes:
    """Return a hand-made safetensors file."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def payloads(target: Path) -> Iterator[tuple[str, bytes]]:
    """Yield files that no writer of ours makes."""
    f32 = {"dtype": "F32", "shape": [2]}
    overlap = {"a": {**f32, "data_offsets": [0, 8]}, "b": {**f32, "data_offsets": [4, 12]}}
    beyond = {"a": {**f32, "data_offsets": [0, 2**40]}}
    huge = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}
    yield "pickle", pickle.dumps(Payload(target))
    yield "huge header", struct.pack("<Q", 2**62) + b"{}"
    yield "overlap", safetensors_bytes(overlap, bytes(12))
    yield "offsets beyond the file", safetensors_bytes(beyond, bytes(8))
    yield "shape beyond the data", safetensors_bytes(huge, bytes(8))
    yield "unknown dtype", safetensors_bytes({"a": {"dtype": "OBJ", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))
    yield "nested header", struct.pack("<Q", 200_000) + b"[" * 200_000
    yield "empty", b""


def test_hostile_tensor_files_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    for number, (what, payload) in enumerate(payloads(target)):
        path = hostile(tmp_path / str(number), payload)
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            read_checkpoint(path)
        assert not target.exists(), what


def test_hostile_states_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 1)
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes((path / "agent.safetensors").read_bytes())
    record = json.loads((path / "state.json").read_text())["files"]["agent"]
    tables: list[Any] = [{"../../outside": record}, {str(outside.with_suffix("")): record}, {"": record}]
    tables += [{"agent": None}, {"agent": {"bytes": "9", "sha256": "x"}}, ["agent"], None]
    for table in tables:
        vouch(path, table)
        with pytest.raises(CheckpointError, match="'files' is missing or of the wrong form"):
            read_checkpoint(path)
    vouch(path, {"agent": record}, format=2)
    with pytest.raises(CheckpointError, match="format 2, this version of dipole_ray reads format 1"):
        read_checkpoint(path)
    for bomb in (b"[" * 10**6, b'{"format": 1' + b"0" * 5000 + b"}", b"\xff\xfe", b"[]", b"NaN"):
        (path / "state.json").write_bytes(bomb)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
    with (path / "state.json").open("wb") as file:
        file.truncate(2**33)  # sparse: 8 GiB that must not be read
    with pytest.raises(CheckpointError, match="at most"):
        read_checkpoint(path)


def test_links_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 1)
    file = path / "agent.safetensors"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"score": float("nan")}, "metadata.score is nan"),
        ({"replay": {"counts": [np.int64(3)]}}, "metadata.replay.counts\\[0\\] is a int64"),
        ({"workers": {1: 2}}, "metadata.workers: the key 1"),
    ],
)
def test_metadata_that_json_would_change_is_refused_before_writing(
    tmp_path: Path, metadata: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        write_checkpoint(tmp_path / "checkpoints", 1, {}, metadata)
    assert not (tmp_path / "checkpoints").exists()


def test_a_file_limit_leaves_the_old_checkpoint_and_no_half_one(tmp_path: Path) -> None:
    first = save(tmp_path, 1)

    def action() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        with pytest.raises(CheckpointError, match=r"File too large.*earlier checkpoints are untouched"):
            save(tmp_path, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert list(tmp_path.iterdir()) == [first]
        save(tmp_path, 2)

    assert in_child(action) == 0
    assert assert_whole(newest_valid(tmp_path)) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system of 1 MiB, where the tests may."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_full_and_read_only_disks_leave_the_old_checkpoint(small_disk: Path) -> None:
    directory = small_disk / "checkpoints"
    first = save(directory, 1)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(bytes(2**20))
    with pytest.raises(CheckpointError, match="No space left"):
        save(directory, 2)
    assert list(directory.iterdir()) == [first]
    assert assert_whole(newest_valid(directory)) == 1
    ballast.unlink()
    assert assert_whole(save(directory, 2)) == 2
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CheckpointError, match="Read-only file system"):
        save(directory, 3)
    with pytest.raises(CheckpointError, match="Read-only file system"):
        prune(directory / "000000002", keep=1)
    assert assert_whole(newest_valid(directory)) == 2


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path / "checkpoints", 1)


def test_config_rejects_never_saving_and_keeping_nothing() -> None:
    with pytest.raises(ConfigError, match="every_learner_steps is 0"):
        checkpoint.CheckpointConfig(every_learner_steps=0)
    with pytest.raises(ConfigError, match="keep is 0"):
        checkpoint.CheckpointConfig(keep=0)
