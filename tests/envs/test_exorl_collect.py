"""Episodes in ExORL's own files: the layout, the same values whatever happened on the way, an explorer that learns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dipole_ray.collect import exploration
from dipole_ray.collect import request as collect_module
from dipole_ray.collect.exorl import collect_exorl
from dipole_ray.collect.rnd import Explorer, ExplorerConfig, RunningMoments
from dipole_ray.data.sources.exorl import find_episodes
from dipole_ray.envs.exorl import rewards
from dipole_ray.envs.exorl.rewards import label_episodes, reward_of, rewards_of
from dipole_ray.envs.exorl.tasks import DOMAINS
from dipole_ray.envs.make import make_env
from dipole_ray.envs.standard import StandardEnv
from dipole_ray.errors import ConfigError, DatasetError

SMALL = ExplorerConfig(hidden_dim=32, embedding_dim=16, batch_size=32, seed_steps=250)


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def contents(folder: Path) -> dict[str, bytes]:
    """Return the arrays of every episode as bytes; the archives themselves carry the time of day."""
    return {
        f"{path.name}/{name}": values.tobytes()
        for path in sorted((folder / "buffer").glob("*.npz"))
        for name, values in load(path).items()
    }


def test_random_episodes_hold_what_happened_and_do_not_depend_on_the_blocks(tmp_path: Path) -> None:
    folder = collect_exorl("jaco", "random", 700, 3, tmp_path / "a", num_workers=1, progress=False)
    files = sorted((folder / "buffer").iterdir())
    assert folder == tmp_path / "a/jaco/random"
    assert [path.name for path in files] == [f"episode_{index:06d}_250.npz" for index in range(3)]
    episode = load(files[1])
    shapes = {name: (values.shape, values.dtype.name) for name, values in episode.items()}
    assert shapes == {
        "observation": ((251, 42), "float32"),
        "action": ((251, 9), "float32"),
        "reward": ((251, 1), "float32"),
        "discount": ((251, 1), "float32"),
        "physics": ((251, 18), "float64"),
    }
    assert not episode["action"][0].any() and episode["reward"][0] == 0 and (episode["discount"] == 1).all()
    assert -1 <= episode["action"].min() < -0.99 and 0.99 < episode["action"].max() <= 1
    env = make_env("exorl/jaco-reach_top_left")
    env.reset(seed=0)
    reward_of(env.unwrapped.simulation, episode["physics"][7])
    assert np.float32(reward_of(env.unwrapped.simulation, episode["physics"][7])) == episode["reward"][7]
    (tmp_path / "b/jaco/random/buffer").mkdir(parents=True)
    again = collect_exorl("jaco", "random", 250, 3, tmp_path / "b", progress=False)
    again = collect_exorl("jaco", "random", 750, 3, tmp_path / "b", progress=False)
    assert contents(again) == contents(folder)
    other = collect_exorl("jaco", "random", 250, 4, tmp_path / "c", progress=False)
    assert contents(other) != {
        key: value for key, value in contents(folder).items() if key.startswith("episode_000000")
    }


@pytest.mark.slow
def test_ray_collects_and_labels_what_one_process_does(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards, "BLOCK_STEPS", 4000)
    far = collect_exorl("cheetah", "random", 11_000, 0, tmp_path / "far", num_workers=2, progress=False)
    files = find_episodes(far)
    shared = label_episodes("exorl/cheetah-run", files, tmp_path / "two", num_workers=2, progress=False)
    near = collect_exorl("cheetah", "random", 11_000, 0, tmp_path / "near", num_workers=1, progress=False)
    assert contents(far) == contents(near) and len(files) == 11
    alone = label_episodes("exorl/cheetah-run", files, tmp_path / "one", num_workers=1, progress=False)
    pairs = list(zip(rewards_of(shared), rewards_of(alone), strict=True))
    assert len(pairs) == 11 and all(np.array_equal(left, right) for left, right in pairs)


def explore(folder: Path, count: int) -> None:
    (folder / "buffer").mkdir(parents=True, exist_ok=True)
    exploration.explore(DOMAINS["jaco"], count, 5, folder, config=SMALL, progress=False)


def test_a_continued_exploration_equals_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two episodes, in the middle of one, and between an episode's file and the explorer's state."""
    explore(tmp_path / "whole", 3)
    parts = tmp_path / "parts"
    explore(parts, 1)
    step, steps = StandardEnv.step, iter(range(100))

    def interrupted(env: StandardEnv, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(env, action)

    with monkeypatch.context() as patch:
        patch.setattr(StandardEnv, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            explore(parts, 3)
    assert len(list((parts / "buffer").iterdir())) == 1

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exploration, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            explore(parts, 2)
    assert len(list((parts / "buffer").iterdir())) == 2
    explore(parts, 3)
    assert contents(parts) == contents(tmp_path / "whole")
    state = exploration.STATE
    assert (parts / state).read_bytes() == (tmp_path / "whole" / state).read_bytes()
    learned = load(parts / "buffer/episode_000002_250.npz")["action"]
    assert np.abs(learned[1:]).max() <= 1 and np.abs(np.diff(learned[1:], axis=0)).mean() < 0.5, "still uniform noise"
    (parts / state).write_bytes((parts / state).read_bytes()[:1000])
    with pytest.raises(DatasetError, match="cannot be continued from"):
        explore(parts, 4)


def test_the_bonus_falls_where_states_were_seen_and_stays_where_not() -> None:
    torch.manual_seed(0)
    explorer = Explorer(4, 2, 0, ExplorerConfig(hidden_dim=64, embedding_dim=16, learning_rate=1e-3))
    seen, unseen = torch.randn(256, 4), torch.randn(256, 4) + torch.tensor([4.0, 0.0, 0.0, 0.0])
    first = explorer.update(seen, torch.zeros(256, 2), seen)
    for _ in range(300):
        last = explorer.update(seen, torch.zeros(256, 2), seen)
    with torch.no_grad():
        elsewhere = float(explorer.novelty(unseen).mean())
    assert last < 0.1 * first and elsewhere > 5 * last


def test_the_actor_goes_where_the_bonus_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a line where the action decides where one lands, the bonus grows to the right."""
    explorer = Explorer(1, 1, 0, ExplorerConfig(hidden_dim=32, embedding_dim=8, learning_rate=1e-2))
    monkeypatch.setattr(explorer, "_learn_to_predict", lambda later: (later.squeeze(1), 0.0))
    generator, start = torch.Generator().manual_seed(0), torch.ones(64, 1)
    for _ in range(150):
        actions = torch.rand(64, 1, generator=generator) * 2 - 1
        explorer.update(start, actions, actions)
    assert float(torch.stack([explorer.act(start[0]) for _ in range(50)]).mean()) > 0.6


def test_running_moments_equal_those_of_everything_seen() -> None:
    values = torch.randn(1000, 3, dtype=torch.float32) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 9.0, -2.0])
    moments = RunningMoments(3)
    for part in values.split([1, 99, 400, 500]):
        moments.add(part)
    torch.testing.assert_close(moments.mean, values.mean(dim=0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(moments.variance, values.var(dim=0, correction=0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("walkr", "rnd", 10, 0), "did you mean 'walker'"),
        (("walker", "icm", 10, 0), "random, rnd"),
        (("walker", "rnd", 0, 0), "at least 1"),
        (("walker", "rnd", 10, 0, 2), "several seeds"),
    ],
)
def test_impossible_requests_are_refused(arguments: tuple[str, str, int, int], hint: str, tmp_path: Path) -> None:
    domain, algorithm, steps, seed, *workers = arguments
    with pytest.raises(ConfigError, match=hint):
        collect_exorl(domain, algorithm, steps, seed, tmp_path, *workers)
    assert not list(tmp_path.iterdir())


def test_episodes_of_another_seed_are_not_mixed_in(tmp_path: Path) -> None:
    folder = collect_exorl("jaco", "random", 1, 0, tmp_path, progress=False)
    before = contents(folder)
    with pytest.raises(DatasetError, match=r"other episodes \(.*seed 0\)"):
        collect_exorl("jaco", "random", 1, 1, tmp_path, progress=False)
    assert contents(folder) == before
    collect_exorl("jaco", "random", 1, 1, tmp_path, progress=False, overwrite=True)
    assert contents(folder) != before


def test_episodes_that_are_there_are_returned_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as on a disk that cannot be written, or while another process goes on to more."""
    folder = collect_exorl("jaco", "random", 500, 3, tmp_path, num_workers=1, progress=False)

    def taken(*_: object) -> None:
        raise OSError("somebody else's")

    monkeypatch.setattr(collect_module, "FolderLock", taken)
    assert collect_exorl("jaco", "random", 250, 3, tmp_path, num_workers=1, progress=False) == folder
    with pytest.raises(DatasetError, match="somebody else's"):
        collect_exorl("jaco", "random", 750, 3, tmp_path, num_workers=1, progress=False)


def test_the_remedies_for_a_damaged_explorer_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exploration, "ExplorerConfig", lambda: SMALL)
    folder = collect_exorl("jaco", "rnd", 250, 0, tmp_path, progress=False)
    whole, state = contents(folder), folder / exploration.STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=rf"remove {folder} or collect with --overwrite"):
        collect_exorl("jaco", "rnd", 500, 0, tmp_path, progress=False)
    collect_exorl("jaco", "rnd", 500, 0, tmp_path, progress=False, overwrite=True)
    assert contents(folder).items() > whole.items() and len(find_episodes(folder)) == 2


@pytest.mark.parametrize("package", ["mujoco", "torch"])
def test_another_version_does_not_go_on_with_the_episodes(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exploration, "ExplorerConfig", lambda: SMALL)
    folder = collect_exorl("jaco", "rnd", 250, 0, tmp_path, progress=False)
    record = folder / "collect.json"
    value = json.loads(record.read_text())
    here = value["versions"][package]
    value["versions"][package] = "0.0.1"
    record.write_text(json.dumps(value))
    collect_exorl("jaco", "rnd", 250, 0, tmp_path, progress=False)  # nothing is left to do
    with pytest.raises(DatasetError, match=rf"{package} 0\.0\.1, installed is {re.escape(here)}; .* overwrite"):
        collect_exorl("jaco", "rnd", 500, 0, tmp_path, progress=False)
    assert len(find_episodes(folder)) == 1
    collect_exorl("jaco", "rnd", 500, 0, tmp_path, progress=False, overwrite=True)
    assert len(find_episodes(folder)) == 2 and json.loads(record.read_text())["versions"][package] == here
