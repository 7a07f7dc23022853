"""Scene files through `dipole drive score`: what is printed, and one sentence for whatever is wrong with a file."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("shapely")

import shapely

from dipole_ray.driving import scene_file
from tests.cli.commands import dipole_here
from tests.driving.scenes import Content, add_object, road, straight, write_scene

NAMES = ["nc", "dac", "ep", "ttc", "c", "ddc", "pdms"]


def content() -> Content:
    made = road(10)
    add_object(made, "car", lambda time_s: (30.0, 0.0, 0.0))
    made["rows"] = [{"poses": straight(10)}, {"poses": straight(3)}, {"poses": straight(3)[:4]}]
    return made


def test_json_is_one_list_with_a_row_for_each_plan(tmp_path: Path) -> None:
    write_scene(tmp_path / "one.json.gz", content())
    write_scene(tmp_path / "two.json.gz", content())
    done = dipole_here("drive", "score", "one.json.gz", "--json", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    rows = json.loads(done.stdout)
    assert [row["plan"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert [name for name in row if name in NAMES] == NAMES
    assert [row["nc"] for row in rows] == [0.0, 1.0, 1.0]
    both = json.loads(dipole_here("drive", "score", "one.json.gz", "two.json.gz", "--json", cwd=tmp_path).stdout)
    assert [row["scene"] for row in both] == ["one"] * 3 + ["two"] * 3
    assert [{**row, "scene": ""} for row in both[3:]] == [{**row, "scene": ""} for row in rows]


def test_the_table_says_whether_the_stored_scores_are_equal(tmp_path: Path) -> None:
    made = content()
    write_scene(tmp_path / "scene.json.gz", made)
    rows = json.loads(dipole_here("drive", "score", "scene.json.gz", "--json", cwd=tmp_path).stdout)
    for plan, row in zip(made["rows"], rows, strict=True):
        plan["res"] = [row[name] for name in NAMES]
    made["rows"][1]["res"][2] += 2e-4
    write_scene(tmp_path / "scene.json.gz", made)
    done = dipole_here("drive", "score", "scene.json.gz", cwd=tmp_path)
    assert done.returncode == 0
    assert "2 of 3 plans have the sub-scores stored with them" in done.stdout
    assert "not scene.json.gz plan 1" in done.stdout and "mean" in done.stdout


def test_without_plans_there_is_an_empty_list(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene.json.gz", road())
    assert json.loads(dipole_here("drive", "score", "scene.json.gz", "--json", cwd=tmp_path).stdout) == []


def changed(*path: Any, value: Any) -> Callable[[Content], None]:
    def change(made: Content) -> None:
        place: Any = made
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


POINT = shapely.to_wkb(shapely.Point(0, 0), hex=True)
FAR = shapely.to_wkb(shapely.box(0, 0, 1e9, 1), hex=True)
EMPTY = shapely.to_wkb(shapely.Polygon(), hex=True)
DAMAGES: dict[str, tuple[Callable[[Content], Any], str]] = {
    "a key is missing": (lambda made: made.pop("objs"), "the file has no 'objs'"),
    "an inner key is missing": (lambda made: made["map"].pop("types"), "map has no 'types'"),
    "a frame is missing": (lambda made: made["occ"].pop(), "occ has 50 entries, 51 are needed"),
    "a plan is flat": (changed("rows", 1, "poses", value=[[1, 2]] * 8), "rows[1].poses is 8 x 2, K x 3 is needed"),
    "a plan is ragged": (changed("rows", 1, "poses", value=[[1, 2, 3], [1]]), "rows[1].poses is not an array"),
    "a plan is empty": (changed("rows", 1, "poses", value=[]), "rows[1].poses is"),
    "a plan is NaN": (changed("rows", 2, "poses", 3, 1, value=float("nan")), "rows[2].poses holds nan"),
    "a plan is infinite": (changed("rows", 2, "poses", 3, 1, value=float("inf")), "rows[2].poses holds inf"),
    "a plan leaves the planet": (changed("rows", 0, "poses", 0, 0, value=2e6), "rows[0].poses holds 2e+06"),
    "a plan is text": (changed("rows", 0, "poses", value=[["1", "2", "3"]] * 8), "rows[0].poses is not an array"),
    "a number is huge": (changed("ego0", 3, value=1e300), "ego0 holds 1e+300"),
    "a whole number is huge": (changed("ego0", 3, value=10**400), "ego0 is not an array of numbers"),
    "a state is short": (changed("ego0", value=[0.0] * 10), "ego0 is 10, 11 is needed"),
    "a clock stands": (changed("t0", value=1.5), "t0 is 1.5, a whole number"),
    "a route is a text": (changed("route", value="own"), "route is a str, a list is needed"),
    "a line is a point": (changed("center", value=[[0, 0], [0, 0]]), "center has 2 points and no length"),
    "a reference is short": (changed("pdm", value=[[0, 0, 0]] * 8), "pdm has 8 poses, 41 are needed"),
    "an object is unknown": (changed("objs", value={}), "occ[0].tokens has 'car', which objs does not know"),
    "an object is there twice": (
        changed("occ", 7, value={"tokens": ["car", "car"], "wkb": [POINT, POINT]}),
        "occ[7].tokens names an object twice",
    ),
    "an agent is a number": (changed("objs", "car", "agent", value=1), "objs['car'].agent is 1"),
    "polygons are short": (changed("occ", 3, "wkb", value=[]), "occ[3].wkb has 0 entries, 1 are needed"),
    "a polygon is a point": (changed("occ", 3, "wkb", 0, value=POINT), "occ[3].wkb[0] is no polygon"),
    "a polygon is cut off": (
        lambda made: changed("map", "wkb", 0, value=made["map"]["wkb"][0][:60])(made),
        "map.wkb[0]",
    ),
    "a polygon is words": (changed("map", "wkb", 1, value="hello"), "map.wkb[1] is no polygon"),
    "a polygon is empty": (changed("map", "wkb", 1, value=EMPTY), "map.wkb[1] is empty"),
    "a polygon is far": (changed("map", "wkb", 1, value=FAR), "beyond 1e+07 m"),
    "a polygon is nested": (changed("map", "wkb", 1, value="010700000001000000" * 50_000), "map.wkb[1] is no polygon"),
    "a ring is endless": (changed("map", "wkb", 1, value="0103000000ffffffffffffffff"), "map.wkb[1] is no polygon"),
    "a map has an ocean": (changed("map", "types", 0, value="OCEAN"), "map.types has 'OCEAN'; known are"),
    "the file is a list": (lambda made: None, "the file is a list, an object is needed"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_scene_is_one_sentence(name: str, tmp_path: Path) -> None:
    damage, said = DAMAGES[name]
    made: Any = content()
    damage(made)
    write_scene(tmp_path / "scene.json.gz", [made] if name == "the file is a list" else made)
    refused(tmp_path, said)


def refused(folder: Path, said: str) -> None:
    done = dipole_here("drive", "score", "scene.json.gz", "--json", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: scene.json.gz: ") and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr


def test_a_damaged_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scene.json.gz"
    refused(tmp_path, "there is no such file")
    path.mkdir()
    refused(tmp_path, "not a regular file")
    path.rmdir()
    whole = write_scene(path, content()).read_bytes()
    for cut in (5, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:cut])
        refused(tmp_path, "gzip")
    path.write_bytes(b"")
    refused(tmp_path, "not JSON")
    path.write_bytes(whole[:200] + bytes(50) + whole[250:])
    refused(tmp_path, "")
    path.write_bytes(gzip.decompress(whole))
    refused(tmp_path, "not gzip")
    for text in (b"\xff\xfe", b"{", b"[" * 100_000):
        path.write_bytes(gzip.compress(text))
        refused(tmp_path, "nested without end" if text[:1] == b"[" else "not JSON")
    path.write_bytes(gzip.compress(b"[" + b"[]," * 1_500_000 + b"1]"))
    refused(tmp_path, "more than 2000000 values")
    monkeypatch.setattr(scene_file, "MAX_BYTES", 1 << 20)
    path.write_bytes(gzip.compress(b" " * (2 << 20)))
    refused(tmp_path, "unpacks to more than 1 MiB")


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    code = """
import sys
from importlib import util
from dipole_ray.cli import main
real = util.find_spec
util.find_spec = lambda name, *more: None if name == "shapely" else real(name, *more)
sys.exit(main(["drive", "score", "scene.json.gz"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: driving needs shapely, not installed here: pip install 'dipole-ray[driving]', "
        "in a checkout pip install -e '.[driving]'\n"
    )


def test_the_program_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "driving.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    made = content()
    made["rows"].pop()
    write_scene(tmp_path / "scene.json.gz", made)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(program, found)
    assert found["scores"].nc.tolist() == [0.0, 1.0]
