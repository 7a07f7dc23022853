"""Plan files: one plan for each scene, the official table, and one sentence for whatever is wrong with a file."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("shapely")

from tests.cli.commands import dipole_here
from tests.driving.scenes import add_object, road, straight, write_scene

OFFICIAL = [
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "comfort",
    "driving_direction_compliance",
    "score",
]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    (tmp_path / "scenes").mkdir()
    blocked = road(10)
    add_object(blocked, "car", lambda time_s: (30.0, 0.0, 0.0))
    for token, content in (("aa", road(10)), ("bb", blocked), ("cc", road(10))):
        write_scene(tmp_path / "scenes" / f"{token}.json.gz", content)
    return tmp_path


def test_every_scene_is_scored_with_its_plan_and_the_official_table_is_written(scenes: Path) -> None:
    plans = {"bb": straight(10), "aa": straight(10), "zz": straight(1)}
    (scenes / "plans.json").write_text(json.dumps(plans))
    np.savez(scenes / "plans.npz", tokens=np.array(list(plans)), plans=np.array(list(plans.values())))
    printed = set()
    for name in ("plans.json", "plans.npz"):
        done = dipole_here("drive", "score", name, "scenes", "--csv", "scores.csv", cwd=scenes)
        assert done.returncode == 0, done.stderr
        assert "1 scene without a plan, left out of the mean" in done.stderr
        assert f"1 plan of {name} without a scene: zz" in done.stderr
        printed.add(done.stdout)
        with (scenes / "scores.csv").open() as stream:
            head, *rows = list(csv.reader(stream))
        assert head == ["", "token", "valid", *OFFICIAL]
        assert [row[:3] for row in rows] == [
            ["0", "aa", "True"],
            ["1", "bb", "True"],
            ["2", "cc", "False"],
            ["3", "average", "False"],
        ]
        assert np.allclose([float(one) for one in rows[0][3:]], 1.0, atol=1e-6)
        assert [float(rows[1][3]), float(rows[1][9])] == [0.0, 0.0]
        assert rows[2][3:] == [""] * 7
        assert float(rows[3][3]) == 0.5 and float(rows[3][9]) == pytest.approx(0.5, abs=1e-6)
    assert len(printed) == 1 and "mean of 2 scenes" in printed.pop()
    done = dipole_here("drive", "score", "plans.npz", "scenes/bb.json.gz", "scenes/aa.json.gz", "--json", cwd=scenes)
    assert [(row["scene"], row["nc"]) for row in json.loads(done.stdout)] == [("bb", 0.0), ("aa", 1.0)]


def refused(folder: Path, said: str, *words: str) -> None:
    done = dipole_here("drive", "score", *words, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr, done.stderr


JSONS: dict[str, tuple[Any, str]] = {
    "list": ([straight(1)], "an object with a plan for each token is needed"),
    "ragged": ({"aa": [[1, 2, 3], [1]]}, "plans.json: aa: a plan is a list of poses"),
    "texts": ({"aa": [["1", "2", "3"]]}, "plans.json: aa: a plan is a list of poses"),
    "flat": ({"aa": [[1, 2]]}, "plans.json: aa: plans have shape (1, 1, 2)"),
    "far": ({"aa": [[1e7, 2, 3]]}, "plans.json: aa: plan 0 has a pose beyond"),
    "nan": ({"aa": [[float("nan"), 2, 3]]}, "plans.json: not readable as JSON (NaN is not JSON)"),
}


@pytest.mark.parametrize("name", JSONS)
def test_a_damaged_json_of_plans_is_one_sentence(scenes: Path, name: str) -> None:
    content, said = JSONS[name]
    (scenes / "plans.json").write_text(json.dumps(content))
    refused(scenes, said, "plans.json", "scenes")


ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"plans": np.zeros((1, 8, 3))}, "has no array tokens"),
    "numbers for tokens": ({"tokens": np.zeros(1), "plans": np.zeros((1, 8, 3))}, "tokens must be texts"),
    "too few tokens": ({"tokens": np.array(["aa"]), "plans": np.zeros((2, 8, 3))}, "1 tokens, each once"),
    "a token twice": ({"tokens": np.array(["aa"] * 2), "plans": np.zeros((2, 8, 3))}, "2 tokens, each once"),
    "a plan is NaN": (
        {"tokens": np.array(["aa"]), "plans": np.full((1, 8, 3), np.nan)},
        "plans.npz: aa: plan 0 holds nan",
    ),
    "objects": ({"tokens": np.array(["aa", None]), "plans": np.zeros((2, 8, 3))}, "plans.npz"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_damaged_npz_of_plans_is_one_sentence(scenes: Path, name: str) -> None:
    arrays, said = ARRAYS[name]
    np.savez(scenes / "plans.npz", **arrays)
    refused(scenes, said, "plans.npz", "scenes")


def test_what_is_missing_is_said(scenes: Path) -> None:
    refused(scenes, "no such file", "plans.npz", "scenes")
    (scenes / "plans.npz").write_bytes(pickle.dumps([1, 2, 3]))
    refused(scenes, "plans.npz", "plans.npz", "scenes")
    (scenes / "plans.json").write_text("{}")
    refused(scenes, "no scenes to score the plans in", "plans.json")
    refused(scenes, "no scene files, *.json.gz, in this folder", "plans.json", ".")
    refused(scenes, "the folder does not exist", "plans.json", "scenes", "--csv", "nowhere/scores.csv")
    refused(scenes, "--csv is the table of a plan file", "scenes", "--csv", "scores.csv")
    refused(scenes, "plans.json: has no plan for any of 3 scenes; its tokens: none at all", "plans.json", "scenes")
    refused(scenes, "two scenes have the same token", "plans.json", "scenes", "scenes/aa.json.gz")
