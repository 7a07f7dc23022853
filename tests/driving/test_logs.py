"""NAVSIM's logs and metric caches: what is read of them, and that nothing in them is run."""

from __future__ import annotations

import lzma
import os
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("shapely")

import shapely

from dipole_ray.driving.log import parsed_frames, read_log, write_log
from dipole_ray.driving.metric_cache import read_cache
from dipole_ray.driving.pickles import Stub, dumps, loads
from dipole_ray.driving.recorded import RecordedScene, scene_on_map, windows
from dipole_ray.driving.score import PDMScorer
from dipole_ray.errors import DatasetError
from tests.driving.drives import Frame, drive, town
from tests.driving.official import cache_bytes


def recorded(**changes: Any) -> RecordedScene:
    return scene_on_map(parsed_frames(drive(**changes), "drive"), town())


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_log_is_read_as_it_was_written(tmp_path: Path, protocol: int) -> None:
    frames = drive(3)
    frames[1]["anns"]["gt_names"] = np.array(frames[1]["anns"]["gt_names"], dtype=object)
    (tmp_path / "drive.pkl").write_bytes(pickle.dumps(frames, protocol=protocol))
    found = read_log(tmp_path / "drive.pkl")
    assert [frame.token for frame in found] == [f"{index:016x}" for index in range(3)]
    first = found[0]
    assert (first.map, first.route, first.command, first.red) == ("town", ("1", "4", "2"), "straight", ("53",))
    assert first.pose.tolist() == [20.0, -1.75, 0.0] and first.motion.tolist() == [8.0, 0.0, 0.0, 0.0]
    assert first.tracks == ("lead", "parked", "cone") and first.kinds == ("vehicle", "vehicle", "traffic_cone")
    np.testing.assert_array_equal(first.boxes, frames[0]["anns"]["gt_boxes"])
    write_log(tmp_path / "again.pkl", frames)
    again = read_log(tmp_path / "again.pkl")
    assert all(np.array_equal(a.boxes, b.boxes) and a.tracks == b.tracks for a, b in zip(found, again, strict=True))


def test_plain_arrays_of_every_kind_survive() -> None:
    values = [np.arange(6).astype(kind).reshape(2, 3) for kind in ("<f4", ">f8", "i2", "u8", "?")]
    values += [
        np.array(["a", "bcd"]),
        np.array([1, "x", None], dtype=object),
        np.asfortranarray(np.eye(3)),
        np.zeros(()),
    ]
    values += [np.float32(1.5), np.int64(3), {"a": [1, 2.5, None, True, "ü", b"b"]}, (1, 2), 10**30]
    for protocol in range(2, 6):
        found = loads(pickle.dumps(values, protocol=protocol))
        assert all(np.array_equal(a, b) and type(a) is type(b) for a, b in zip(found, values, strict=True))
        wanted = pickle.loads(pickle.dumps(values, protocol=protocol))  # noqa: S301 - our own; numbers come native
        assert [one.dtype for one in found[:9]] == [one.dtype for one in wanted[:9]]


class Ran:
    """Whatever is pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def named(module: str, name: str, argument: bytes = b"(V1\n") -> bytes:
    return b"c" + f"{module}\n{name}\n".encode() + argument + b"tR."


HOSTILE: dict[str, bytes] = {
    "os.system": pickle.dumps(Ran(os.system, "touch executed")),
    "eval": pickle.dumps(Ran(eval, "open('executed', 'w')")),
    "getattr of a module": named("builtins", "getattr", b"(cos\nsystem\nV1\n"),
    "a stub that is a module": named("nuplan", "os"),
    "a stub's attribute's attribute": named("nuplan.x", "y.z"),
    "numpy's own loader": named("numpy", "load", b"(Vexecuted\nI00\nI01\n"),
    "numpy's f2py": named("numpy.f2py.capi_maps", "getinit", b"(Vx\n"),
    "numpy's runstring": named("numpy.testing", "runstring", b"(Vopen('executed','w')\n(d"),
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"Pexecuted\n.",
    "an instance": b"(Vtouch executed\nios\nsystem\n.",
    "an object": b"(cos\nsystem\nVtouch executed\no.",
    "a call of a text": b"Vx\n(tR.",
    "a call of nested tuples": b"\x80\x04)" + b"2\x86" * 100 + b")R.",
    "a dict whose keys are nested tuples": b"\x80\x04})" + b"2\x86" * 100 + b"K\x01s.",
    "a set of nested tuples": b"\x80\x04\x8f()" + b"2\x86" * 100 + b"\x90.",
    "an array of another size": pickle.dumps(Ran(np.ndarray, (1 << 40,))),
    "a dtype with the flags of pointers": b"\x80\x02cnumpy\ndtype\nU\x02f8I00\nI01\n\x87R"
    + b"(K\x03U\x01<NNN"
    + b"J\xff\xff\xff\xff" * 2
    + b"K\x3ftb.",
    "a dtype with fields": pickle.dumps(np.dtype([("a", "f8")])),
    "a text longer than the file": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"a.",
    "bytes longer than the file": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"a.",
    "a number of endless digits": b"I" + b"9" * 100_000 + b"\n.",
    "a memo at the end of the world": b"Nr\xff\xff\xff\x7f",
    "a polygon that is another geometry": named(
        "shapely.io", "from_wkb", b"(C" + b"\x15" + shapely.to_wkb(shapely.Point(0, 0))
    ),
    "the state of a function": b"cshapely.io\nfrom_wkb\n}b.",
    "cut off": pickle.dumps(drive(1))[:-20],
    "empty": b"",
    "text": b"not a pickle",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_log_is_one_sentence_and_nothing_of_it_runs(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.pkl").write_bytes(HOSTILE[name])
    (tmp_path / "cache.pkl").write_bytes(lzma.compress(HOSTILE[name]))
    before = set(sys.modules)
    for read, path in ((read_log, tmp_path / "log.pkl"), (read_cache, tmp_path / "cache.pkl")):
        with pytest.raises(DatasetError) as caught:
            read(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
    assert not {one for one in set(sys.modules) - before if one.startswith(("nuplan", "navsim", "numpy.f2py"))}


def test_objects_of_the_official_code_become_stubs() -> None:
    found = loads(b"\x80\x04\x8c\x08nuplan.a\x8c\x01B\x93K\x01\x85R.")
    assert isinstance(found, Stub) and (found.kind, found.arguments) == ("nuplan.a.B", (1,))


def without(*path: str) -> Any:
    def change(frame: Frame) -> None:
        for key in path[:-1]:
            frame = frame[key]
        del frame[path[-1]]

    return change


def changed(*path: str, value: Any) -> Any:
    def change(frame: Frame) -> None:
        for key in path[:-1]:
            frame = frame[key]
        frame[path[-1]] = value

    return change


ENDLESS: list[Any] = [[0.0] * 100]
for _ in range(20):
    ENDLESS = [ENDLESS] * 100
DAMAGED: dict[str, tuple[Any, str]] = {
    "no route": (without("roadblock_ids"), "frame 1 has no 'roadblock_ids'"),
    "no boxes": (without("anns", "gt_boxes"), "frame 1 has no 'gt_boxes'"),
    "NaN": (changed("ego_dynamic_state", value=[1.0, float("nan"), 0.0, 0.0]), "not finite"),
    "other boxes than names": (changed("anns", "gt_names", value=["vehicle"]), "gt_names has 1 entries, 3 are needed"),
    "a strange name": (changed("anns", "gt_names", value=["ufo"] * 3), "gt_names has 'ufo'; known are"),
    "lists without end": (changed("ego2global_translation", value=ENDLESS), "an array of numbers is needed"),
    "no rotation": (changed("ego2global_rotation", value=np.zeros(4)), "is no rotation"),
    "a time of texts": (changed("timestamp", value="now"), "no whole number of microseconds"),
    "a picture elsewhere": (changed("cams", value={"CAM_F0": {"data_path": "../../etc/passwd"}}), "leads out of"),
    "a list": (lambda frame: frame.clear(), "frame 1 has no"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_frame_is_one_sentence(tmp_path: Path, name: str) -> None:
    change, said = DAMAGED[name]
    frames = drive(2)
    change(frames[1])
    with pytest.raises(DatasetError, match="drive: frame 1") as caught:
        parsed_frames(loads(dumps(frames)) if name != "lists without end" else frames, "drive")
    assert said in str(caught.value)


def test_scenes_have_fourteen_frames_and_a_route() -> None:
    frames = drive(20)
    frames[3]["roadblock_ids"] = []
    found = windows(parsed_frames(frames, "drive"))
    assert [window[3].token for window in found] == [f"{index:016x}" for index in range(4, 10)]
    assert [window[3].token for window in windows(parsed_frames(frames, "drive"), 4)] == [f"{7:016x}"]


def test_tracks_are_interpolated_as_the_metric_cache_has_them() -> None:
    scene = recorded().scene
    there = {token: [token in frame.tokens for frame in scene.frames] for token in scene.objects}
    assert all(all(there[token]) for token in ("lead", "parked", "cone", "walker"))
    assert there["rider"] == [10 <= step <= 30 for step in range(51)]
    middle = scene.frames[20].polygons[list(scene.frames[20].tokens).index("rider")].centroid
    assert (middle.x, middle.y) == pytest.approx((30 + 4 * 3.5, 2.0), abs=1e-5)
    lead = [frame.polygons[list(frame.tokens).index("lead")].centroid.x for frame in scene.frames]
    np.testing.assert_allclose(lead, 20 + 8 * 1.5 + 35 + 0.8 * np.arange(51), atol=1e-4)
    known = scene.objects["lead"], scene.objects["cone"], scene.objects["walker"]
    assert [(one.is_agent, round(one.speed, 6)) for one in known] == [(True, 8.0), (False, 0.0), (True, 1.0)]
    assert known[2].heading == pytest.approx(1.0)


def test_a_scene_on_a_map_has_route_history_and_a_driver_who_scores() -> None:
    one = recorded(roadblock_ids=["1", "2"])
    assert one.scene.route == {"11", "12", "51", "52", "21", "22"}
    assert shapely.get_coordinates(one.scene.centerline)[[0, -1]].tolist() == [[0.0, -1.75], [400.0, -1.75]]
    np.testing.assert_allclose(one.history, [[-12, 0, 0], [-8, 0, 0], [-4, 0, 0], [0, 0, 0]], atol=1e-9)
    np.testing.assert_allclose(one.human[:, 0], 4.0 * np.arange(1, 9), atol=1e-9)
    assert [token for token in one.scene.frames[0].tokens if "red" in token] == []
    assert one.past.tokens == ("lead", "parked", "cone")
    green, red = (recorded(start=50.0, traffic_lights=[(51, is_red), (53, True)]).scene for is_red in (False, True))
    assert [token for token in red.frames[0].tokens if "red" in token] == ["red_light_51"]
    assert red.reference[-1, 0] + 4.049 < 100 < green.reference[-1, 0] + 4.049  # PDM-Closed waits before it
    scores = PDMScorer(one.scene).score(one.human[None])
    assert scores.pdms[0] > 0.9 and scores.nc[0] == scores.dac[0] == scores.c[0] == 1


def test_a_metric_cache_is_the_scene_it_was_made_of(tmp_path: Path) -> None:
    one = recorded()
    (tmp_path / "metric_cache.pkl").write_bytes(cache_bytes(one))
    scene, kinds = read_cache(tmp_path / "metric_cache.pkl")
    assert kinds == one.kinds and scene.route == one.scene.route and scene.start_us == one.scene.start_us
    assert list(scene.map_types) == list(one.scene.map_types) and list(scene.map_tokens) == list(one.scene.map_tokens)
    np.testing.assert_allclose(scene.ego, one.scene.ego, atol=1e-9)
    np.testing.assert_allclose(scene.reference, one.scene.reference, atol=1e-6)
    plans = np.stack([one.human, one.human * 1.3, one.human * [1, 1, 0] + [0, 1.0, 0.1]])
    found, wanted = (PDMScorer(given).score(plans) for given in (scene, one.scene))
    for name in ("nc", "dac", "ttc", "c", "ddc"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    np.testing.assert_allclose(found.pdms, wanted.pdms, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"observation": None}, "a NoneType where a PDMObservation is needed"),
        ({"route_lane_ids": 3}, "a int where a list is needed"),
        ({"ego_state": [1, 2]}, "a list where a EgoState is needed"),
    ],
)
def test_a_metric_cache_of_another_form_is_one_sentence(tmp_path: Path, change: Any, said: str) -> None:
    (tmp_path / "metric_cache.pkl").write_bytes(cache_bytes(recorded(), **change))
    with pytest.raises(DatasetError, match=said):
        read_cache(tmp_path / "metric_cache.pkl")
