"""Pictures and videos of a policy's plans at rising omega."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("shapely")

import imageio.v2 as imageio

from dipole_ray.cli import main
from dipole_ray.driving.scene_set import SceneSet
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.plans import planned
from dipole_ray.evaluation.video import video_file
from dipole_ray.serving.policy import load_policy
from tests.driving.folders import made_folder, saved_policy


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_folder(tmp_path_factory.mktemp("shown") / "scenes", 2)


def test_plans_at_rising_omega_are_pictures_and_a_video(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The picture has a panel an omega, the video shows each for a second."""
    run = saved_policy(tmp_path / "run", scenes, "status")
    words = ["drive", "show", str(scenes), "--policy", str(run), "--omega", "4", "0", "--draws", "5"]
    out, video = tmp_path / "pictures", tmp_path / "rising.mp4"
    assert main([*words, "--out", str(out), "--video", str(video)]) == 0
    assert str(video) in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["scenes-0.png", "scenes-1.png"]
    frames = [np.asarray(frame, int) for frame in imageio.mimread(video, memtest=False)]
    assert len(frames) == 2 * 2 * 10  # two scenes, two omegas, ten pictures a second
    assert all(np.abs(one - other).max() > 100 for one, other in pairwise(frames[5::10]))
    with video_file(tmp_path / "rising.gif", 1) as write:
        write(np.zeros((8, 8, 3)))
        write(np.full((8, 8, 3), 255))
    assert [int(frame.max()) for frame in imageio.mimread(tmp_path / "rising.gif")] == [0, 255]


def test_between_panels_omega_alone_differs_and_the_first_plan_is_an_evaluations(scenes: Path, tmp_path: Path) -> None:
    policy = load_policy(saved_policy(tmp_path / "run", scenes, "status")).policy
    cells = [Cell("guided", omega, 1) for omega in (1.0, 1.0001, 2.0)]

    def plans(**how: Any) -> np.ndarray:
        return np.stack([found for _, _, found in planned(policy, SceneSet([scenes]), range(2), cells, seed=0, **how)])

    paired, alone = plans(is_paired=True, draws=4), plans()
    assert paired.shape == (2, 3, 4, 8, 3)
    np.testing.assert_array_equal(paired[:, 0, 0], alone[:, 0, 0])
    assert np.abs(paired[:, 0] - paired[:, 1]).max() < 0.05 < np.abs(alone[:, 0] - alone[:, 1]).max()
    assert np.abs(np.diff(paired[:, 0], axis=1)).max() > 0.05, "draws differ"


def test_what_cannot_be_shown_is_refused_before_the_policy_is_loaded(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*words: str) -> str:
        assert main(["drive", "show", str(scenes), *words]) == 2
        return capsys.readouterr().err

    policy = ["--policy", str(tmp_path / "nothing")]
    assert "--video is of a policy's plans; give --policy RUN as well" in refusal("--video", "a.mp4")
    assert "--omega is of a policy's plans" in refusal("--omega", "1")
    assert "ends in .mp4 or .gif" in refusal(*policy, "--video", str(tmp_path / "a.avi"))
    assert "--draws is 0; at least 1 is needed" in refusal(*policy, "--draws", "0")
    assert "no scene 'x'" in refusal(*policy, "--tokens", "x")
    assert "no checkpoint there" in refusal(*policy)
