"""What the replay promises the learner: exact shares, no row counted twice, a state that continues bitwise."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole_ray.columns import Schema
from dipole_ray.data.dataset import write_dataset
from dipole_ray.data.schema import Rows, close_trajectory
from dipole_ray.errors import CheckpointError, ConfigError, CorruptSegment, DatasetError
from dipole_ray.replay.replay import Replay
from tests.synthetic import random_trajectory

SCHEMA = Schema(3, 2)


def constant_trajectory(reward: float, length: int) -> Rows:
    return close_trajectory(np.zeros((length + 1, 3)), np.zeros((length, 2)), np.full(length, reward), np.ones(length))


def open_replay(folder: Path, **settings: Any) -> Replay:
    if not (folder / "data").exists():
        write_dataset(folder / "data", [constant_trajectory(1.0, 50)], SCHEMA, {})
    return Replay(
        **{  # type: ignore[arg-type]
            "schema": SCHEMA,
            "offline": [folder / "data"],
            "online": folder / "ring.arrow",
            "capacity": 400,
            "n_step": 3,
            **settings,
        }
    )


@pytest.mark.parametrize(("fraction", "offline_rows"), [(0.0, 0), (0.25, 4), (0.3, 5), (0.5, 8), (1.0, 16)])
def test_every_batch_holds_exactly_the_share_of_offline_rows(
    tmp_path: Path, fraction: float, offline_rows: int
) -> None:
    with open_replay(tmp_path, n_step=1, offline_fraction=fraction) as replay:
        replay.insert(constant_trajectory(2.0, 20), worker=0, incarnation=0, sequence=0)
        for batch in (replay.sample(16, 40), replay.sample(16, 40, offline_fraction=fraction)):
            found = (batch["rewards"].reshape(40, 16) == 1.0).sum(axis=1)
            assert (found == offline_rows).all()


def test_without_a_share_the_union_is_uniform(tmp_path: Path) -> None:
    with open_replay(tmp_path, n_step=1) as replay:
        replay.insert(constant_trajectory(2.0, 150), worker=0, incarnation=0, sequence=0)
        online = (replay.sample(256, 100)["rewards"] == 2.0).mean()
    assert online == pytest.approx(0.75, abs=0.01)


def test_the_memory_of_an_open_dataset_does_not_grow_with_its_transitions(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [constant_trajectory(1.0, 200_000)], SCHEMA, {})
    tracemalloc.start()
    try:
        replay = Replay(schema=SCHEMA, offline=[tmp_path / "data"])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert replay.num_offline == 200_000 and held < 200_000, "not a byte a transition"


def test_a_configured_share_begins_with_the_first_online_row(tmp_path: Path) -> None:
    with open_replay(tmp_path, n_step=1, offline_fraction=0.5) as replay:
        assert (replay.sample(10)["rewards"] == 1.0).all()
        with pytest.raises(DatasetError, match=r"5 online transitions .* sample with offline_fraction=1\.0"):
            replay.sample(10, offline_fraction=0.5)
        replay.insert(constant_trajectory(2.0, 1), worker=0, incarnation=0, sequence=0)
        assert (replay.sample(10)["rewards"] == 2.0).sum() == 5


def test_a_repeated_insert_is_never_counted_twice(tmp_path: Path) -> None:
    """And it is answered with the same total, because the first answer may have been lost."""
    random = np.random.default_rng(0)
    with open_replay(tmp_path) as replay:
        rows = random_trajectory(random, 10)
        assert replay.insert(rows, worker=0, incarnation=0, sequence=0) == 10
        assert replay.insert(rows, worker=0, incarnation=0, sequence=0) == 10 == replay.num_online
        assert replay.insert(rows, worker=1, incarnation=0, sequence=0) == 20
        assert replay.insert(rows, worker=0, incarnation=1, sequence=0) == 30
        assert replay.insert(rows, worker=0, incarnation=0, sequence=1) == 40
        state = json.loads(json.dumps(replay.state()))
    with open_replay(tmp_path) as replay:
        replay.load_state(state)
        assert replay.insert(rows, worker=1, incarnation=0, sequence=0) == 40
        assert replay.insert(rows, worker=1, incarnation=0, sequence=1) == 50
        assert (replay.num_online, replay.env_steps_inserted) == (50, 50)


SCRIPT = """
import json, sys, hashlib
from pathlib import Path
from tests.replay.test_replay import open_replay
with open_replay(Path(sys.argv[1]), seed=99, offline_fraction=0.5) as replay:
    replay.load_state(json.loads(Path(sys.argv[2]).read_text()))
    batch = replay.sample(33, 5)
    print(hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest())
"""


def test_a_restored_replay_samples_bitwise_as_the_original_would_have(tmp_path: Path) -> None:
    """In the same process, in a new replay and in a new process, although rows were inserted afterwards."""
    random = np.random.default_rng(1)
    with open_replay(tmp_path, offline_fraction=0.5) as replay:
        for sequence in range(60):  # wraps around
            replay.insert(random_trajectory(random, 10), worker=0, incarnation=0, sequence=sequence)
        replay.sample(7, 3)
        state = json.loads(json.dumps(replay.state()))
        expected = replay.sample(33, 5)
        replay.insert(random_trajectory(random, 10), worker=0, incarnation=0, sequence=60)
        replay.load_state(state)
        assert replay.num_online <= 400 and replay.env_steps_inserted == 600
        again = replay.sample(33, 5)
    with open_replay(tmp_path, seed=5, offline_fraction=0.5) as replay:
        assert replay.load_state(state) == 0
        fresh = replay.sample(33, 5)
    for name, values in expected.items():
        np.testing.assert_array_equal(values, again[name])
        np.testing.assert_array_equal(values, fresh[name])
    (tmp_path / "state.json").write_text(json.dumps(state))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(tmp_path / "state.json")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    import hashlib

    whole = b"".join(expected[name].tobytes() for name in sorted(expected))
    assert printed == hashlib.sha256(whole).hexdigest()


def test_state_is_a_few_kilobytes(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    with open_replay(tmp_path, capacity=100_000) as replay:
        for sequence in range(60):
            replay.insert(random_trajectory(random, 1999), worker=0, incarnation=0, sequence=sequence)
        assert len(json.dumps(replay.state())) < 4096


def test_a_state_of_other_data_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with open_replay(tmp_path / "a") as replay:
        state = replay.state()
    write_dataset(tmp_path / "b" / "data", [constant_trajectory(3.0, 50)], SCHEMA, {})
    with open_replay(tmp_path / "b") as replay, pytest.raises(CheckpointError, match="same datasets"):
        replay.load_state(state)
    with open_replay(tmp_path / "a", online=None, capacity=0) as replay:
        with pytest.raises(CheckpointError, match="online ring"):
            replay.load_state(state)
        with pytest.raises(ConfigError, match="offline only"):
            replay.insert(constant_trajectory(1.0, 3), worker=0, incarnation=0, sequence=0)
    with open_replay(tmp_path / "a") as replay, pytest.raises(CheckpointError, match="incomplete"):
        replay.load_state({name: value for name, value in state.items() if name != "sampler"})


def test_a_failed_restore_changes_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    with open_replay(tmp_path) as replay:
        replay.insert(random_trajectory(random, 10), worker=0, incarnation=0, sequence=0)
        before = replay.state()
        broken = json.loads(json.dumps(before))
        broken["online"]["tail_crc32"] ^= 1
        with pytest.raises(CorruptSegment):
            replay.load_state(broken)
        assert replay.state() == before


def test_a_file_damaged_between_checkpoint_and_resume_is_named_and_the_rest_is_sampled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And one that is whole again; the same files on both sides need no word."""
    pieces = [constant_trajectory(reward, 50) for reward in (1.0, 2.0, 3.0)]
    manifest = write_dataset(tmp_path / "data", pieces, SCHEMA, {}, segment_rows=50)
    with open_replay(tmp_path) as replay:
        whole = json.loads(json.dumps(replay.state()))
    path = tmp_path / "data" / manifest.files[1].name
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with open_replay(tmp_path, n_step=1) as replay:
        caplog.clear()
        replay.load_state(whole)
        assert f"damaged since then {path.name}, whole again none" in caplog.messages[0]
        assert set(replay.sample(64)["rewards"].tolist()) == {1.0, 3.0}
        partial = json.loads(json.dumps(replay.state()))
        caplog.clear()
        replay.load_state(partial)
        assert caplog.messages == []
    path.write_bytes(content)
    with open_replay(tmp_path, n_step=1) as replay:
        replay.load_state(partial)
        assert f"damaged since then none, whole again {path.name}" in caplog.messages[0]
        assert set(replay.sample(64)["rewards"].tolist()) == {1.0, 2.0, 3.0}


def test_contradicting_settings_are_refused(tmp_path: Path) -> None:
    for settings in ({"capacity": 0}, {"online": None}, {"n_step": 0}, {"discount": 1.5}, {"offline_fraction": 2.0}):
        with pytest.raises(ConfigError):
            open_replay(tmp_path, **settings)
    with pytest.raises(DatasetError, match="observations have 3 and actions 2 dimensions, this replay has 4 and 2"):
        open_replay(tmp_path, schema=Schema(4, 2))
    with pytest.raises(DatasetError, match="holds no transitions"), open_replay(tmp_path, offline=[]) as replay:
        replay.sample(4)


def test_observation_statistics_are_those_of_all_offline_rows(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    pieces = [
        close_trajectory(
            generator.normal(1000.0, [1.0, 5.0, 0.0], (length + 1, 3)),
            np.zeros((length, 2)),
            np.zeros(length),
            np.ones(length),
        )
        for length in (40, 7)
    ]
    write_dataset(tmp_path / "data", pieces, SCHEMA, {})
    stored = np.concatenate([piece["observations"] for piece in pieces]).astype(np.float64)
    mean, std = Replay(schema=SCHEMA, offline=[tmp_path / "data"]).observation_statistics()
    np.testing.assert_allclose(mean, stored.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, stored.std(axis=0), rtol=1e-6, atol=1e-6)
