"""Environments that are seen as images: uint8 from the environment through the acting loop into the ring, and back."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from dipole_ray.columns import Column, Schema
from dipole_ray.envs.acting import ActingLoop, Episode
from dipole_ray.envs.make import EnvConfig, env_dims, make_env
from dipole_ray.envs.observations import each, is_same
from dipole_ray.envs.relabel import ogbench_relabel
from dipole_ray.errors import ConfigError, EnvironmentUnavailable
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import evaluate_cell
from dipole_ray.replay.replay import Replay
from dipole_ray.rllib.experience import FragmentRecorder
from tests import pixel_envs

SQUARE, NAMED = "tests.pixel_envs:Square-v0", "tests.pixel_envs:Named-v0"
IMAGE = Column(pixel_envs.SHAPE, "uint8")
VISUAL = "visual-cube-single-play-singletask-v0"


def pixels(observations: Any) -> np.ndarray:
    """Return the images among observations."""
    found: np.ndarray = observations["camera"] if isinstance(observations, dict) else observations
    return found


class Looks:
    """Acts by what it sees, and notes what that is; its actions are a function of the pixels alone."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, observations: Any, episodes: Sequence[Episode] = ()) -> np.ndarray:
        self.seen.append(each(np.copy, observations))
        sums = pixels(observations).reshape(len(pixels(observations)), -1).sum(axis=1)
        return np.stack([np.sin(sums), np.cos(sums)], axis=1).astype(np.float32)

    def sample_actions(self, observations: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        return torch.from_numpy(self(each(lambda tensor: tensor.numpy(), observations)))


def loop_of(env_id: str, counts: list[int], act: Looks) -> ActingLoop:
    """Return a loop over two environments, whose episodes are seeded by environment and number."""

    def following(i: int) -> Episode:
        counts[i] += 1
        return Episode(seed=100 * i + counts[i])

    return ActingLoop([make_env(env_id) for _ in range(2)], act, following, precision=np.float32)


def fragment(loop: ActingLoop, schema: Schema, steps: int) -> dict[str, np.ndarray]:
    record = FragmentRecorder(2, schema)
    for _ in range(steps):
        record.add(loop.step())
    return record.finish(loop.observations)


@pytest.mark.parametrize(
    ("env_id", "schema"),
    [(SQUARE, Schema(IMAGE, 2)), (NAMED, Schema({"camera": IMAGE, "place": Column((2,))}, 2))],
)
def test_images_go_from_the_acting_loop_into_the_ring_and_a_resumed_loop_goes_on_bitwise(
    env_id: str, schema: Schema, tmp_path: Path
) -> None:
    assert env_dims(env_id).schema == schema
    counts, ring = [0, 0], {"online": tmp_path / "ring.arrow", "capacity": 200}
    loop = loop_of(env_id, counts, act := Looks())
    loop.start(range(2))
    with Replay(schema=schema, **ring) as replay:
        first = fragment(loop, schema, 13)  # ends within an episode
        assert pixels(act.seen[0]).dtype == np.uint8
        names = [name for name in first if name.startswith("observations")]
        assert {name: first[name].dtype for name in names} == {name: schema.observed[name].dtype for name in names}
        replay.insert(first, worker=0, incarnation=0, sequence=0)
        arrays, seeds = loop.state()
        state = json.loads(json.dumps(replay.state()))
        saved = {name: values.copy() for name, values in arrays.items()}, list(seeds), list(counts)
        following = fragment(loop, schema, 11)
        replay.insert(following, worker=0, incarnation=0, sequence=1)
        drawn = replay.sample(64)
    again = loop_of(env_id, saved[2], Looks())
    again.load_state(saved[0], saved[1])
    with Replay(schema=schema, **ring) as replay:
        replay.load_state(state)
        repeated = fragment(again, schema, 11)
        assert all(np.array_equal(repeated[name], values) for name, values in following.items())
        replay.insert(repeated, worker=0, incarnation=0, sequence=1)
        batch = replay.sample(64)
    assert is_same(batch["observations"], drawn["observations"]) and pixels(batch["observations"]).dtype == np.uint8
    assert is_same(batch["next_observations"], drawn["next_observations"])
    every = np.concatenate([first[names[0]], following[names[0]]])
    drawn_pixels = pixels(batch["observations"]).reshape(64, -1)
    assert {row.tobytes() for row in drawn_pixels} <= {row.tobytes() for row in every}, "not one pixel was changed"


def test_a_row_of_an_image_takes_a_byte_a_number_and_its_next_observation_none(tmp_path: Path) -> None:
    schema, rows = Schema(Column((64, 64, 3), "uint8"), 2), 10_000
    assert schema.row_bytes == 64 * 64 * 3 + 4 * (2 + 1 + 1 + 1)
    with Replay(schema=schema, online=tmp_path / "ring.arrow", capacity=rows):
        size = (tmp_path / "ring.arrow").stat().st_size
    assert 1.125 * rows * 64 * 64 * 3 < size < 1.15 * rows * 64 * 64 * 3, "an eighth more than its capacity is kept"


def test_evaluation_plays_an_environment_that_is_seen_as_images() -> None:
    result = evaluate_cell(act := Looks(), NAMED, Cell(), episodes=3, seed=0)
    assert (result.lengths == pixel_envs.STEPS).all() and result.successes is not None and result.maze is None
    assert act.seen[0]["camera"].dtype == np.uint8 and act.seen[0]["place"].dtype == np.float32


def test_renderers_that_are_garbage_blacken_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection may come at any allocation; here it comes right before each drawing, where it is let."""
    config = EnvConfig(id="tests.pixel_envs:Rendered-v0", kwargs={"render_only": True})
    try:
        env = make_env(config)
    except EnvironmentUnavailable as error:
        pytest.skip(f"no OpenGL here: {error}")
    from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

    draw, expected = OffScreenViewer.render, env.reset(seed=0)[0]

    def drawn_late(self: Any, *args: Any, **kwargs: Any) -> Any:
        if gc.isenabled():
            gc.collect()
        return draw(self, *args, **kwargs)

    monkeypatch.setattr(OffScreenViewer, "render", drawn_late)
    for call in (lambda: env.reset(seed=0)[0], env.render):
        other: list[Any] = [make_env(config)]
        other[0].reset(seed=1)
        other.append(other)  # only a collection ends it
        del other
        assert np.array_equal(call(), expected)
        gc.collect()
    env.close()


@pytest.mark.parametrize(
    ("kwargs", "schema"),
    [
        ({"render_only": True}, Schema(Column((24, 32, 3), "uint8"), 1)),
        ({"render_only": False}, Schema({"pixels": Column((24, 32, 3), "uint8"), "state": Column((4,))}, 1)),
    ],
)
def test_gymnasiums_own_rendered_observations_are_drawn_without_a_screen(kwargs: Any, schema: Schema) -> None:
    config = EnvConfig(id="tests.pixel_envs:Rendered-v0", kwargs=kwargs)
    try:
        env = make_env(config)
    except EnvironmentUnavailable as error:
        pytest.skip(f"no OpenGL here: {error}")
    assert env.schema == schema == env_dims(config).schema
    seen = env.reset(seed=0)[0]
    picture = seen if kwargs["render_only"] else seen["pixels"]
    other = make_env(config)  # a context of its own, in the same process
    other.reset(seed=1)
    again = env.reset(seed=0)[0]
    assert picture.dtype == np.uint8 and picture.std() > 0 and is_same(seen, again), "neither black nor the other's"
    env.close()
    other.close()


@pytest.mark.slow
def test_a_visual_task_of_ogbench_is_seen_as_images() -> None:
    """In a process of its own, for OpenGL drivers end one where they fail."""
    code = (
        "import numpy as np\nfrom dipole_ray.envs.make import env_dims, make_env\n"
        f"print(env_dims('{VISUAL}').schema)\n"
        f"env = make_env('{VISUAL}')\nfirst = env.reset(seed=3)[0]\nsecond = env.step(np.ones(5, np.float32))[0]\n"
        "again = env.reset(seed=3)[0]\nassert np.array_equal(first, again)\n"
        "assert first.dtype == second.dtype == np.uint8 and not np.array_equal(first, second)\nenv.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    if "EnvironmentUnavailable" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0 and "uint8 (64, 64, 3) and 5" in done.stdout, done.stderr


@pytest.mark.slow
def test_visual_data_is_collected_by_the_oracles_and_labelled_without_a_picture(tmp_path: Path) -> None:
    code = (
        "from dipole_ray.collect import collect\nfrom pathlib import Path\n"
        f"collect('visual-cube-single-play-v0', 12, 0, Path('{tmp_path}'), num_workers=1, progress=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    if "EnvironmentUnavailable" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    arrays = dict(np.load(tmp_path / "visual-cube-single-play-v0.npz"))
    assert arrays["observations"].dtype == np.uint8 and arrays["observations"].shape == (13, 64, 64, 3)
    rewards, masks = ogbench_relabel(VISUAL, arrays)
    assert rewards.shape == masks.shape == (13,) and (rewards <= 0).all()


def test_without_opengl_an_image_task_says_what_to_install() -> None:
    code = f"from dipole_ray.envs.make import make_env\nmake_env('{VISUAL}')\n"
    env = {**os.environ, "MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa", "LD_LIBRARY_PATH": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env)
    if done.returncode == 0:
        pytest.skip("OSMesa works here")
    last = done.stderr.strip().splitlines()[-1]
    assert "MUJOCO_GL=osmesa does not work here" in last and "libosmesa6" in last and "libegl1" in last, done.stderr


def picture(*shape: int, dtype: type = np.uint8, high: float = 255) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(0, high, shape, dtype)


@pytest.mark.parametrize(
    ("space", "found", "seen"),
    [
        (picture(3, 12, 16), "height x width x channels", (12, 16, 3)),
        (picture(1, 84, 84), "height x width x channels", (84, 84, 1)),
        (picture(4, 12, 16, 3), "height x width x channels", (12, 16, 12)),
        (picture(12, 16, 3, dtype=np.float32, high=1.0), "type float32", (12, 16, 3)),
        (picture(3, 12, 16, dtype=np.float32, high=255.0), "type float32", (12, 16, 3)),
    ],
)
def test_the_wrapper_that_is_named_for_pictures_of_another_kind_helps(
    space: gymnasium.spaces.Box, found: str, seen: tuple[int, ...]
) -> None:
    class Shows(pixel_envs.Square):
        observation_space = space

        def observed(self) -> Any:
            return self.observation_space.sample()

    gymnasium.register("Shows-v0", Shows, max_episode_steps=5)
    env_dims.cache_clear()
    with pytest.raises(ConfigError, match=found) as refused:
        env_dims("Shows-v0")
    code = str(refused.value).rpartition("register a version wrapped in ")[2]
    gymnasium.register("Mended-v0", lambda: eval(code, {"gymnasium": gymnasium, "np": np, "env": Shows()}))  # noqa: S307
    mended = env_dims(EnvConfig(id="Mended-v0", max_episode_steps=5))
    assert mended.schema == Schema(Column(seen, "uint8"), 2)


def test_pictures_that_are_not_what_their_space_says_are_refused_at_the_first_step() -> None:
    with pytest.raises(ConfigError, match=r"type float32, and its observation space has type uint8; return images"):
        env_dims("tests.pixel_envs:Float-v0")
