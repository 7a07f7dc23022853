"""`dipole drive` given what it cannot use: one sentence and status 2, before any work that would be lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("shapely")

import torch

from dipole_ray.cli import main
from tests.driving.folders import made_folder, saved_policy

POLICY = "{run} {scenes} --out plans.npz"
REFUSED = {
    # the folder of scenes is empty, of another kind, a file, or not there
    "anchors empty": r"empty/scenes.json: cannot be read",
    "show other": r"other/scenes.json: not a list of scenes",
    "encode file --policy tiny": r"file/scenes.json: cannot be read",
    "plan {run} nowhere --out plans.npz": r"nowhere/scenes.json: cannot be read",
    "train-encoder {scenes} nowhere --out weights": r"nowhere/scenes.json: cannot be read",
    "score empty": r"no scene files",
    "import nowhere out --maps maps": r"nowhere: no such folder; give that of NAVSIM's logs",
    "import empty out --maps maps": r"has 0 logs",
    "import empty out": r"one of the two",
    # a file is in the way of the folder that is to be written
    "show {scenes} --first 1 --out file": r"file: no folder can be made there \(File exists\)",
    "encode {scenes} --policy tiny --out file": r"file: no folder can be made there",
    "train-encoder {scenes} --out file/weights": r"file/weights: no folder can be made there \(Not a directory\)",
    "agent {run} --out file": r"--out file: cannot be written",
    # numbers
    "show {scenes} --first 0": r"--first is 0; at least 1 is needed",
    "show {scenes} --policy {run} --omega -3": r"evaluation.omegas must be finite and at least -1",
    "show {scenes} --policy {run} --seed -1": r"evaluation.seed must not be negative",
    f"plan {POLICY} --omega -5": r"evaluation.omegas must be finite and at least -1",
    f"plan {POLICY} --omega nan": r"evaluation.omegas must be finite",
    f"plan {POLICY} --seed -1": r"evaluation.seed must not be negative",
    f"plan {POLICY} --candidates 0": r"evaluation.candidates needs counts of at least 1",
    f"plan {POLICY} --candidates 3": r"give 1",
    f"plan {POLICY} --steps 0": r"denoise_steps: found 0",
    "agent {run} --out agent --seed -1": r"evaluation.seed must not be negative",
    "record --map berln": r"no map 'berln'; did you mean 'berlin'\?",
    "record --scenes 0": r"scenes is 0; at least 1 is needed",
    "record --seed -1": r"seed is -1",
    # other places and devices
    "plan {run} {scenes} --out nowhere/plans.npz": r"the folder does not exist",
    "plan {run} {scenes} --out plans.txt": r"a file of plans ends in .npz",
    "plan empty {scenes} --out plans.npz": r"holds no valid checkpoint|no checkpoint there",
    "encode {scenes} --policy large": r"give --weights the folder of Florence-2-large",
}
ON_CUDA = {
    "agent {run} --out agent --device cuda": r"device 'cuda': torch has only cpu here",
    "encode {scenes} --policy tiny --device cuda --out tokens": r"device 'cuda': torch has only cpu here",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("drive")
    scenes = made_folder(place / "scenes", 2)
    saved_policy(place / "run", scenes, "status")
    (place / "empty").mkdir()
    (place / "other").mkdir()
    (place / "other" / "scenes.json").write_text("{}")
    (place / "file").write_text("")
    return place


@pytest.mark.parametrize("words", [*REFUSED, *ON_CUDA])
def test_what_a_command_cannot_use_is_one_sentence(
    words: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if words in ON_CUDA and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert main(["drive", *words.format(run="run", scenes="scenes").split()]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: ")

    assert re.search({**REFUSED, **ON_CUDA}[words], last)
    left = [path for path in place.rglob("*") if path not in before and "contexts" not in str(path)]
    assert [path.name for path in left if path.is_file()] == []
