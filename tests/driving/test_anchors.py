"""What is seen of a scene, what the anchors score in a folder of scenes, and how sure that is."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("shapely")

import torch
from PIL import Image

from dipole_ray.driving.anchors import NAMES, Anchor, own_plans, score_anchors
from dipole_ray.driving.cameras import CameraConfig, images
from dipole_ray.driving.container import Origin, SceneFolder, SceneStatus, finish_folder, start_folder, write_shard
from dipole_ray.driving.container import shard_bytes as packed
from dipole_ray.driving.curation import braking, going_on
from dipole_ray.driving.ego_status import clone_drivers, plans_of
from dipole_ray.driving.log import Camera, parsed_frames
from dipole_ray.driving.raster import CHANNELS, RasterConfig, raster
from dipole_ray.driving.recorded import RecordedScene, scene_on_map
from dipole_ray.driving.score import PDMScorer
from dipole_ray.errors import ConfigError, DatasetError
from tests.cli.commands import dipole_here
from tests.driving.drives import drive, town


def scene(token: str = "a", log: str = "drive", **changes: Any) -> RecordedScene:
    frames = drive(**changes)
    frames[3] |= {"token": token, "log_name": log}
    return scene_on_map(parsed_frames(frames, log), town())


def test_plans_without_learning_go_on_and_brake() -> None:
    assert going_on(6.0)[:, 0].tolist() == [3, 6, 9, 12, 15, 18, 21, 24]
    assert braking(6.0)[:, 0].tolist() == pytest.approx([2.625, 4.5, 5.625, 6, 6, 6, 6, 6])
    plans = own_plans(scene())
    assert list(plans) == ["human", "constant velocity", "brake", "PDM-Closed"]
    np.testing.assert_allclose(plans["human"], plans["constant velocity"], atol=1e-6)
    assert plans["PDM-Closed"].shape == (8, 3) and 0 < plans["PDM-Closed"][0, 0] < 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    origin = Origin("made by hand", "nobody", {})
    start_folder(tmp_path / "scenes", origin)
    parts = [[scene("a", "one"), scene("b", "two", speed=5.0)], [scene("c", "two", start=40.0)]]
    shards = [write_shard(tmp_path / "scenes", f"part{i}", packed(part)) for i, part in enumerate(parts)]
    finish_folder(tmp_path / "scenes", origin, shards)
    return tmp_path


def test_anchors_are_the_means_of_their_plans_scores(folder: Path) -> None:
    scenes = SceneFolder(folder / "scenes")
    mine = {token: np.tile([[0.1, 0.0, 0.0]], (8, 1)) for token in scenes.tokens}
    found = score_anchors(scenes, "clipped", {"stays": mine})
    assert [one.name for one in found] == ["human", "constant velocity", "brake", "PDM-Closed", "stays"]
    assert list(found[0].logs) == ["one", "two", "two"]
    for anchor in found:
        for row, one in zip(anchor.scores, scenes, strict=True):
            plan = {**own_plans(one), "stays": mine[one.token]}[anchor.name]
            scores = PDMScorer(one.scene, "clipped").score(plan[None])
            np.testing.assert_allclose(row, [getattr(scores, name)[0] for name in NAMES], atol=1e-12)
    done = dipole_here("drive", "anchors", "scenes", cwd=folder)
    assert done.returncode == 0 and "made by hand: 3 scenes" in done.stdout and "nobody" in done.stdout
    assert "bearing official" in done.stdout.replace("\n", " ")
    refused = dipole_here("drive", "anchors", "scenes", "--train", "scenes", cwd=folder)
    assert refused.returncode == 2 and "3 scenes to learn from; an ego-status MLP needs at least 64" in refused.stderr


def test_a_standard_error_takes_a_log_as_one_draw() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(200, 7))
    alone = Anchor("x", values, [str(i) for i in range(200)])
    np.testing.assert_allclose(alone.errors(), values.std(axis=0, ddof=1) / np.sqrt(200), rtol=1e-9)
    # Every scene ten times over, in logs of ten, says no more than once.
    again = Anchor("x", np.repeat(values, 10, axis=0), [str(i) for i in range(200) for _ in range(10)])
    np.testing.assert_allclose(again.errors(), alone.errors(), rtol=1e-9)
    assert np.isnan(Anchor("x", values, ["one"] * 200).errors()).all()


def test_the_status_of_all_scenes_is_read_without_what_surrounds_them(folder: Path) -> None:
    scenes = SceneFolder(folder / "scenes")
    status = scenes.status()
    assert status.tokens == scenes.tokens
    for index, one in enumerate(scenes):
        np.testing.assert_array_equal(status.human[index], one.human)
        np.testing.assert_array_equal(status.motion[index], one.motion)
        assert status.commands[index] == one.command


def status_of(count: int, seed: int) -> SceneStatus:
    """Return cars that go on at their speed, or turn left if they are told to."""
    random = np.random.default_rng(seed)
    speeds, left = random.uniform(1, 12, count), random.random(count) < 0.5
    motion = np.zeros((count, 4, 4))
    motion[:, :, 0] = speeds[:, None]
    human = np.stack([going_on(speed) for speed in speeds])
    human[:, :, 1] = left[:, None] * human[:, :, 0] ** 2 / 60
    commands = tuple("left" if one else "straight" for one in left)
    tokens = tuple(str(i) for i in range(count))
    return SceneStatus(tokens, commands, motion, np.zeros((count, 4, 3)), human)


def test_the_ego_status_mlp_learns_what_speed_and_command_say() -> None:
    state = torch.get_rng_state()
    network, other = clone_drivers(status_of(128, 0), 0, epochs=60), status_of(50, 1)
    plans = np.stack(list(plans_of(network, other).values()))
    assert np.abs(plans - other.human)[:, :, :2].mean() < 1.0 < np.abs(other.human)[:, :, :2].mean() / 5
    again = plans_of(clone_drivers(status_of(128, 0), 0, epochs=60), other)
    np.testing.assert_array_equal(plans, np.stack(list(again.values())))
    assert torch.equal(state, torch.get_rng_state())


def test_the_raster_shows_who_is_where_as_the_car_sees_it() -> None:
    one = scene(traffic_lights=[(51, True)], start=50.0)
    layers = raster(one)
    assert layers.shape == (5, 128, 128) and layers.dtype == np.uint8 and set(np.unique(layers)) == {0, 255}
    drivable, route, red, agents, before = (layers[CHANNELS.index(name)] > 0 for name in CHANNELS)

    def at(ahead: float, left: float) -> tuple[int, int]:
        return int(128 - (ahead + 16) / 0.5), int(64 - left / 0.5)

    # The car is at x = 62 in the right lane, y = -1.75; the lead 35 m ahead, and the parked car at (70, -5.5).
    assert drivable[at(10, 0)] and drivable[at(10, 3.5)] and not drivable[at(10, 20)]
    assert route[at(10, 0)] and route[at(10, 3.5)] and not route[at(10, 20)]
    assert red[at(45, 0)] and not red[at(30, 0)] and not red[at(45, 8)]
    assert agents[at(35, 0)] and agents[at(8, -3.75)] and not agents[at(20, 0)]
    assert before[at(27, 0)] and not agents[at(29, 0)] and before[at(8, -3.75)]
    wide = raster(one, RasterConfig(pixels=64, metres_per_pixel=1.0))
    assert wide.shape == (5, 64, 64)
    with pytest.raises(ConfigError, match="behind_m is 99"):
        RasterConfig(behind_m=99)


BLUE, SKY = (52, 92, 168), (176, 200, 222)


def test_cameras_see_what_is_before_them() -> None:
    one = scene(start=50.0)
    left, front, right = images(one)
    assert front.shape == (108, 192, 3) and front.dtype == np.uint8
    assert tuple(front[2, 96]) == SKY and tuple(front[104, 96]) == (92, 92, 96)

    def blue(picture: np.ndarray) -> np.ndarray:
        shares = picture.astype(float) / np.maximum(picture.sum(axis=2, keepdims=True), 1)
        return np.abs(shares - np.array(BLUE) / sum(BLUE)).max(axis=2) < 0.02

    # The lead is in the middle; the parked car is to the right, 8 m ahead and 3.75 m aside.
    assert blue(front)[50:60, 90:102].any() and not blue(front)[:, :90].any()
    assert blue(front)[:, 140:].any() or blue(right)[:, :60].any()
    assert not blue(left).any()
    near = images(scene(start=50.0), CameraConfig(width=384, height=216))
    assert near.shape == (3, 216, 384, 3)
    with pytest.raises(ConfigError, match="a view of 3 degrees"):
        CameraConfig(view_degrees=3)


def test_pictures_of_a_log_are_read_and_never_drawn(tmp_path: Path) -> None:
    camera = Camera("log/1.jpg", np.eye(3), np.zeros(3), np.eye(3))
    one = replace(scene(), cameras=dict.fromkeys(("CAM_L0", "CAM_F0", "CAM_R0"), camera))
    with pytest.raises(DatasetError, match="give the folder of the sensors"):
        images(one)
    (tmp_path / "log").mkdir()
    Image.new("RGB", (1920, 1080), (10, 200, 30)).save(tmp_path / "log" / "1.jpg")
    seen = images(one, sensors=tmp_path)
    assert seen.shape == (3, 108, 192, 3) and np.abs(seen - np.array([10.0, 200.0, 30.0])).max() < 8
    (tmp_path / "log" / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="not a picture that can be read"):
        images(one, sensors=tmp_path)
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 20_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    (tmp_path / "log" / "1.jpg").write_bytes(bomb)
    with pytest.raises(DatasetError, match="not a picture that can be read"):
        images(one, sensors=tmp_path)


def test_a_picture_shows_plans_in_the_colours_of_their_scores(folder: Path) -> None:
    done = dipole_here("drive", "show", "scenes", "--tokens", "a", cwd=folder)
    assert done.returncode == 0 and "scenes/pictures/a.png" in done.stdout, done.stderr
    plans = {"good": going_on(8.0), "bad": going_on(8.0) + np.linspace(0, 1, 8)[:, None] * [0, 15, 0]}
    for name, plan in plans.items():
        np.savez(folder / f"{name}.npz", tokens=np.array(["a"]), plans=plan[None])
    words = ("scenes", "--tokens", "a", "--plans", "good.npz", "bad.npz", "--out", "drawn")
    assert dipole_here("drive", "show", *words, cwd=folder).returncode == 0
    picture = np.asarray(Image.open(folder / "drawn" / "a.png").convert("RGB")).astype(int)
    half = int(picture.shape[1] * 0.44)  # the scale of colours is at the right
    excess = picture[..., 1] - picture[..., 0]
    green, red = excess > 60, excess < -100
    assert green[:, :half].sum() > 50 > 5 > red[:, :half].sum()
    assert red[:, half : 2 * half].sum() > 50 > 5 > green[:, half : 2 * half].sum()
    refused = dipole_here("drive", "show", "scenes", "--tokens", "b", "--plans", "good.npz", cwd=folder)
    assert refused.returncode == 2 and "good has no plan for scene b" in refused.stderr
