"""What somebody else wrote: pickles in every place, tensors that lie, bombs of JSON and YAML, names that lead out.

Every checksum here fits, because whoever writes a file can compute it. Datasets are in data/malformed_tables.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dipole_ray import settings
from dipole_ray.agents.config import AgentConfig
from dipole_ray.cli import main
from dipole_ray.data.download.checks import read_record, record_path
from dipole_ray.data.download.fetch import Partial
from dipole_ray.envs.make import EnvConfig
from dipole_ray.errors import CheckpointError, ConfigError, DatasetError, DipoleError
from dipole_ray.evaluation.report import read_evaluation
from dipole_ray.evaluation.trajectories import read_trajectories
from dipole_ray.files import checkpoint
from dipole_ray.files.checkpoint import read_checkpoint, write_checkpoint
from dipole_ray.plots import read_metrics
from dipole_ray.runs.config import RunConfig, load
from dipole_ray.serving.policy import load_policy
from dipole_ray.tracking.tracker import Tracker, TrackingConfig
from tests.agents.battery import OBSERVATION_DIM, make_agent, tiny_config
from tests.data.malformed_npz import ten_gigabytes
from tests.files.test_checkpoint import Payload

SLACK = 32 << 20
SECONDS = 20.0
"""Far more than any of these takes (2 s) on a machine that does other things as well."""


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """The file that a payload makes when something runs it; it must not be there in the end."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists(), "a payload was executed"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as `dipole train` leaves it: the checkpoint of a small agent, the config and the results."""
    folder = tmp_path / "run"
    agent = make_agent(tiny_config())
    config = RunConfig.from_mapping({"env": {"id": "Pendulum-v1"}, "data": {"path": "nowhere"}})
    plain = {"agent": settings.to_mapping(agent.config), "env": settings.to_mapping(EnvConfig(id="Pendulum-v1"))}
    metadata: dict[str, Any] = {"algorithm": plain, "run": config.to_mapping(), "env_steps": 0, "learner_steps": 1}
    metadata |= {"observation_dim": OBSERVATION_DIM, "action_dim": 2}
    write_checkpoint(folder / "checkpoints", 1, {"agent": agent.state_dict()}, metadata)
    (folder / "run.yaml").write_text(yaml.safe_dump(config.to_mapping()))
    return folder


def in_child(action: Callable[[], object]) -> tuple[str, int, float]:
    """Run `action` in a forked process; return its error, the rise of its resident memory's peak, and the seconds."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before, start, said = peak(), time.monotonic(), "nothing"
        try:
            action()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(send, json.dumps([said[:2000], peak() - before, time.monotonic() - start]).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    assert answer, "the process was ended"
    said, memory, seconds = json.loads(answer)
    return said, memory, seconds


def peak() -> int:
    """Return the peak of this process's resident memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def assert_refused(action: Callable[[], object], error: type[DipoleError], size: int = 0) -> str:
    """Assert our error, in bounded time, in twice the memory of the file; return the sentence."""
    said, memory, seconds = in_child(action)
    assert said.startswith(f"{error.__name__}: "), said
    assert memory <= 2 * size + SLACK, f"{memory >> 20} MiB"
    assert seconds < SECONDS
    return said


# ---- pickles in every place ----


@pytest.mark.parametrize("name", ["state.json", "agent.safetensors"])
def test_a_pickle_in_a_checkpoint(run: Path, target: Path, name: str) -> None:
    """Vouched for by the state, where it is a file of tensors."""
    path = run / "checkpoints" / "000000001"
    data = pickle.dumps(Payload(target))
    (path / name).write_bytes(data)
    if name != "state.json":
        vouch(path, files={"agent": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})
    assert_refused(lambda: read_checkpoint(path), CheckpointError)
    assert_refused(lambda: load_policy(path), CheckpointError)


@pytest.mark.parametrize("name", ["state.json", "agent.safetensors", "run.yaml"])
def test_a_pickle_in_a_run_folder_through_the_command_line(
    run: Path, target: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / name if name == "run.yaml" else run / "checkpoints" / "000000001" / name
    path.write_bytes(pickle.dumps(Payload(target)))
    assert main(["train", "--resume", str(run)]) == 2
    assert capsys.readouterr().err.count("error: ") == 1
    if name != "run.yaml":  # which evaluation does not read
        assert main(["evaluate", str(run)]) == 2


READERS: dict[str, Callable[[Path], object]] = {
    "evaluation.json": read_evaluation,
    "evaluation-paths.npz": read_trajectories,
    "metrics.jsonl": read_metrics,
    "run.yaml": load,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pickle_in_a_file_of_results(tmp_path: Path, target: Path, name: str) -> None:
    path = tmp_path / name
    for data in (pickle.dumps(Payload(target)), pickle.dumps(Payload(target)) + b"\n"):
        path.write_bytes(data)
        assert_refused(lambda: READERS[name](path), ConfigError if name == "run.yaml" else DatasetError)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.PosixPath [{target}]]",
        "name: !!python/object/apply:os.system ['touch {target}']",
        "name: !!python/name:os.system",
        "name: !!python/object/new:os.system ['touch {target}']",
        "!!python/module:os",
    ],
)
def test_yaml_makes_no_objects(tmp_path: Path, target: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text.format(target=target))
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load(path)
    with pytest.raises(ConfigError, match="is not YAML"):
        load(None, [f"name={text.format(target=target)}"])


def test_a_pickle_in_what_downloads_and_tracking_remember(tmp_path: Path, target: Path) -> None:
    """Both go on without their memory: it only saves work."""
    final = tmp_path / "data.npz"
    for path in (record_path(final), final.with_name("data.npz.part.json")):
        path.write_bytes(pickle.dumps(Payload(target)))
    assert read_record(final) is None
    assert Partial(final).origin is None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mlflow.json").write_bytes(pickle.dumps(Payload(target)))
    config = TrackingConfig(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    tracker = Tracker(tmp_path / "run", config, run_name="run", parameters={}, tags={}, resume=False)
    tracker.close()


# ---- tensors that lie ----


def vouch(path: Path, **changes: Any) -> None:
    """Rewrite a checkpoint's state with other entries and the right checksum."""
    original = path.parent / "original"  # the state is read once, also after it was spoilt
    state = json.loads((path / "state.json").read_text()) if not original.exists() else json.loads(original.read_text())
    original.write_text(json.dumps(state))
    state.pop("checksum", None)
    state |= changes
    (path / "state.json").write_text(json.dumps({**state, "checksum": checkpoint._checksum(state)}))


def tensors(header: dict[str, Any] | bytes, body: bytes, length: int | None = None) -> bytes:
    """Return a hand-made safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


PAIR = {"dtype": "F32", "shape": [2]}
LIES: dict[str, bytes] = {
    "a header of 2^60 bytes": tensors(b"{}", b"", length=2**60),
    "a header of 2^64 - 1 bytes": tensors(b"{}", b"", length=2**64 - 1),
    "a header of 90 MB that is not there": tensors(b"{}", b"", length=90_000_000),
    "a header that nests": tensors(b"[" * 10**6, b""),
    "overlapping offsets": tensors(
        {"a": {**PAIR, "data_offsets": [0, 8]}, "b": {**PAIR, "data_offsets": [4, 12]}}, bytes(12)
    ),
    "a hole between offsets": tensors(
        {"a": {**PAIR, "data_offsets": [0, 8]}, "b": {**PAIR, "data_offsets": [16, 24]}}, bytes(24)
    ),
    "offsets that run backwards": tensors({"a": {**PAIR, "data_offsets": [8, 0]}}, bytes(8)),
    "offsets beyond the file": tensors({"a": {**PAIR, "data_offsets": [0, 2**40]}}, bytes(8)),
    "a shape beyond the data": tensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}, bytes(8)),
    "a shape that overflows": tensors(
        {"a": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 0]}}, b""
    ),
    "a negative shape": tensors({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
    "a wider type": tensors({"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "a type of objects": tensors({"a": {"dtype": "OBJ", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "bytes after the last tensor": tensors({"a": {**PAIR, "data_offsets": [0, 8]}}, bytes(99)),
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_tensor_file_that_lies_under_a_checksum_that_fits(run: Path, name: str) -> None:
    path, data = run / "checkpoints" / "000000001", LIES[name]
    (path / "agent.safetensors").write_bytes(data)
    vouch(path, files={"agent": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})
    said = assert_refused(lambda: read_checkpoint(path), CheckpointError, size=len(data))
    assert "agent.safetensors: not a safetensors file" in said and "remove this checkpoint" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: {name: tensor.double() for name, tensor in state.items()}, "torch.float64, expected"),
        (lambda state: {**state, "generator": state["generator"].float()}, "generator holds torch.float32"),
        (lambda state: {**state, "generator": state["generator"] * 0}, "not a state of torch's"),
        (lambda state: {**state, "generator": state["generator"] | 255}, "not a state of torch's"),
        (lambda state: {name: tensor * float("nan") for name, tensor in state.items()}, "holds"),
        (lambda state: {name: tensor.reshape(-1) for name, tensor in state.items()}, "has shape"),
        (lambda state: {}, "which it does not hold"),
    ],
)
def test_tensors_of_another_type_shape_or_value_are_refused(
    run: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], said: str
) -> None:
    stored = read_checkpoint(run / "checkpoints")
    write_checkpoint(run / "checkpoints", 2, {"agent": change(stored.tensors["agent"])}, stored.metadata)
    assert said in assert_refused(lambda: load_policy(run), CheckpointError)


@pytest.mark.parametrize(
    "entry",
    [
        {"observation_dim": 10**9},
        {"action_dim": -2},
        {"observation_dim": "many"},
        {"observation_dim": None},
        {"env_steps": []},
        {"algorithm": 7},
        {"algorithm": {}},
        {"algorithm": {"agent": {"hidden_dims": [10**6, 10**6]}, "env": {"id": "Pendulum-v1"}}},
        {"algorithm": {"agent": {"hidden_dims": [24, 24], "num_critics": 10**9}, "env": {"id": "Pendulum-v1"}}},
    ],
    ids=str,
)
def test_settings_that_no_file_of_this_size_can_have_take_no_memory(run: Path, entry: dict[str, Any]) -> None:
    path = run / "checkpoints" / "000000001"
    metadata = json.loads((path / "state.json").read_text())["metadata"]
    vouch(path, metadata={**metadata, **entry})
    assert_refused(lambda: load_policy(path), CheckpointError)


# ---- names that lead out ----


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "a/../b", "a/b/c/d", "", "a\0b", "con.x"])
def test_a_state_that_names_a_file_elsewhere(run: Path, name: str) -> None:
    path = run / "checkpoints" / "000000001"
    vouch(path, files={name: {"bytes": 1, "sha256": "0"}})
    assert "'files' is missing or of the wrong form" in assert_refused(lambda: read_checkpoint(path), CheckpointError)


def test_links_and_pipes_in_a_checkpoint_are_not_followed(run: Path, tmp_path: Path) -> None:
    path = run / "checkpoints" / "000000001"
    for name in ("agent.safetensors", "state.json"):
        whole = (path / name).rename(tmp_path / name)
        (path / name).symlink_to(whole)
        assert "not a regular file" in assert_refused(lambda: read_checkpoint(path), CheckpointError)
        (path / name).unlink()
        os.mkfifo(path / name)
        assert "not a regular file" in assert_refused(lambda: read_checkpoint(path), CheckpointError)
        (path / name).unlink()
        whole.rename(path / name)
    read_checkpoint(path)


# ---- bombs ----

JSON_BOMBS: dict[str, bytes] = {
    "nested lists": b"[" * 10**6,
    "nested objects": b'{"a":' * 10**6,
    "a number of a million digits": b'{"format": 1' + b"0" * 10**6 + b"}",
    "an exponent": b'{"format": 1e999999}',
    "half a text": b'{"format": "' + b"x" * 10**6,
    "another encoding": '{"format": 1}'.encode("utf-16"),
    "no object": b"[]",
}


@pytest.mark.parametrize("name", JSON_BOMBS)
def test_bombs_of_json(run: Path, tmp_path: Path, name: str) -> None:
    path, data = run / "checkpoints" / "000000001", JSON_BOMBS[name]
    (path / "state.json").write_bytes(data)
    assert_refused(lambda: read_checkpoint(path), CheckpointError, size=10 * len(data))
    for place in ("evaluation.json", "metrics.jsonl"):
        if (place, name) != ("metrics.jsonl", "an exponent"):  # infinity, which is a number there
            assert_refused(reading_of(tmp_path / place, data), DatasetError, size=10 * len(data))


def reading_of(path: Path, data: bytes) -> Callable[[], object]:
    """Write a file and return what reads it."""
    path.write_bytes(data + b"\n")
    return lambda: READERS[path.name](path)


@pytest.mark.parametrize("depth", [*range(900, 1010, 7), 5000])
def test_json_nested_to_just_below_the_limit_is_an_error_of_ours_too(run: Path, depth: int) -> None:
    """What the parser still takes, the checksum's writer may not."""
    path = run / "checkpoints" / "000000001"
    metadata = '{"a":' * depth + "1" + "}" * depth
    (path / "state.json").write_text(f'{{"format": 1, "checksum": "0", "metadata": {metadata}}}')
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_files_of_eight_gigabytes_are_not_read(run: Path, tmp_path: Path) -> None:
    path = run / "checkpoints" / "000000001"
    (tmp_path / "evaluation.json").touch()
    for place in (path / "state.json", path / "agent.safetensors", run / "run.yaml", tmp_path / "evaluation.json"):
        original = place.read_bytes()
        os.truncate(place, 2**33)
        if place.suffix in (".json", ".safetensors") and place.parent == path:
            assert "at most" in assert_refused(lambda: read_checkpoint(path), CheckpointError)
        elif place.suffix == ".yaml":
            assert_refused(lambda: load(run / "run.yaml"), ConfigError)
        else:
            assert_refused(lambda: read_evaluation(tmp_path / "evaluation.json"), DatasetError)
        place.write_bytes(original)


LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
YAML_BOMBS: dict[str, str] = {
    "a billion laughs": LAUGHS,
    "a list that holds itself": "name: &a [*a]",
    "a mapping that holds itself": "agent: &a {b: *a}",
    "mappings of mappings": "a0: &a0 {k: 1}\n"
    + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 60)),
    "nested lists": "[" * 200_000,
    "nested mappings": "{a: " * 50_000,
    "a number of 200 000 digits": "seed: " + "1" * 200_000,
    "too long": "name: " + "x" * 300_000,
    "a date that is none": "name: 2001-13-45",
    "a number that is none": "seed: !!int ''",
    "a truth that is none": "name: !!bool x",
    "a time that is none": "name: !!timestamp x",
}  # fmt: skip


@pytest.mark.parametrize("name", YAML_BOMBS)
def test_bombs_of_yaml(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(YAML_BOMBS[name])
    assert "not readable as YAML" in assert_refused(lambda: load(path), ConfigError, size=len(YAML_BOMBS[name]))
    said = assert_refused(lambda: load(None, [f"name={YAML_BOMBS[name]}"]), ConfigError)
    assert len(said) < 1000, "the whole bomb in the message"


def test_anchors_in_a_config_still_work() -> None:
    assert settings.parse_yaml("a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}}") == {"a": [1, 2], "b": [1, 2], "c": {"d": 1}}
    assert settings.parse_yaml("") is None


def test_a_bomb_in_the_paths_of_episodes(tmp_path: Path) -> None:
    path = ten_gigabytes(tmp_path).rename(tmp_path / "evaluation-paths.npz")
    assert "decompression bomb" in assert_refused(lambda: read_trajectories(path), DatasetError)


def test_the_agent_of_a_good_folder_loads(run: Path) -> None:
    """Or all of the above would prove nothing."""
    policy = load_policy(run)
    assert isinstance(policy.policy.config, AgentConfig) and policy.learner_steps == 1
