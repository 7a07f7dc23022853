"""A policy as an agent of NAVSIM's: it is shown what NAVSIM shows, and plans as an evaluation of ours does."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("shapely")

import yaml
from PIL import Image

import dipole_ray
from dipole_ray.cli import main
from dipole_ray.driving.container import Origin, finish_folder, shard_bytes, start_folder, write_shard
from dipole_ray.driving.contexts import default_folder, encode_scenes
from dipole_ray.driving.log import parsed_frames
from dipole_ray.driving.observations import status_of
from dipole_ray.driving.plan_file import read_plans
from dipole_ray.driving.recorded import scene_on_map
from dipole_ray.driving.scene_set import SceneSet
from dipole_ray.driving.vehicle import seen_from
from dipole_ray.evaluation import planner
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.planner import Planner, PlannerConfig
from dipole_ray.evaluation.plans import planned
from dipole_ray.serving.policy import load_policy
from dipole_ray.settings import from_mapping
from tests.driving import navsim_stub
from tests.driving.drives import drive, quaternion, town
from tests.driving.folders import saved_policy

SPEEDS = (3.0, 6.5, 9.0)


def pictured(frames: list[Any], sensors: Path, name: str) -> list[Any]:
    """Give the frame of now pictures, which are written."""
    random = np.random.default_rng(len(name))
    for camera in ("CAM_L0", "CAM_F0", "CAM_R0"):
        file = f"{name}-{camera}.png"
        Image.fromarray(random.integers(0, 255, (54, 96, 3), np.uint8)).save(sensors / file)
        frames[3]["cams"][camera] = {**frames[3]["cams"][camera], "data_path": file}
    return frames


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Return drives by the token of their scene, with pictures, and make a folder of their scenes."""
    place = tmp_path_factory.mktemp("official")
    logs, files = {}, []
    start_folder(place / "scenes", origin := Origin("made by hand", "nobody", {}))
    for i, speed in enumerate(SPEEDS):
        frames = pictured(drive(speed=speed, start=20.0 + 3 * i), place, f"drive{i}")
        frames[3]["token"] = f"scene{i}"
        logs[f"scene{i}"] = frames
        scene = scene_on_map(parsed_frames(frames, "drive"), town())
        files.append(write_shard(place / "scenes", f"drive{i}", shard_bytes([scene])))  # encoded one at a time
    finish_folder(place / "scenes", origin, files)
    logs["place"] = place  # type: ignore[assignment]
    return logs


def official_agent(folder: Path) -> Any:
    """Return the agent as Hydra makes it of the config in a folder, where NAVSIM is there."""
    config = yaml.safe_load((folder / "agent" / "dipole.yaml").read_text())
    assert config.pop("_convert_") == "all"
    module, _, name = config.pop("_target_").rpartition(".")
    spec = importlib.util.spec_from_file_location(module, folder / f"{module}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    with navsim_stub.installed():
        spec.loader.exec_module(loaded)
    return getattr(loaded, name)(**config)


def test_the_agent_plans_in_navsims_own_evaluation_what_ours_plans(
    logs: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit, in another process, as NAVSIM's scripts ask; it is what dipole drive plan writes as well."""
    place = logs["place"]
    run = saved_policy(tmp_path / "run", place / "scenes", "status")
    words = ["--omega", "2", "--seed", "5"]
    assert main(["drive", "agent", str(run), "--out", str(tmp_path / "agent"), *words]) == 0
    assert "run_create_submission_pickle.py --config-dir=" in capfd.readouterr().out
    assert main(["drive", "plan", str(run), str(place / "scenes"), "--out", str(tmp_path / "p.npz"), *words]) == 0
    agent, own = official_agent(tmp_path / "agent"), read_plans(tmp_path / "p.npz")
    sensors = agent.get_sensor_config()
    assert not agent.requires_scene and sensors == navsim_stub.SensorConfig.build_no_sensors()
    agent.initialize()
    shown = {token: navsim_stub.agent_input(logs[token], sensors, place) for token in reversed(own)}  # in another order
    found = {token: agent.compute_trajectory(one) for token, one in shown.items()}
    policy, scenes = load_policy(run).policy, SceneSet([place / "scenes"])
    for one, _, plans in planned(policy, scenes, range(3), [Cell("guided", 2.0, 1)], seed=5):
        np.testing.assert_array_equal(found[one.token].poses, plans[0, 0])
        np.testing.assert_array_equal(found[one.token].poses, own[one.token])
    assert len({one.poses.tobytes() for one in found.values()}) == 3
    # What is wrong with one scene is that scene's fault, and the next one is planned for.
    bad = navsim_stub.agent_input(logs["scene0"], sensors, place)
    bad.ego_statuses[1].ego_velocity = np.array([np.nan, 0.0], np.float32)
    with pytest.raises(RuntimeError, match="dipole: "):
        agent.compute_trajectory(bad)
    np.testing.assert_array_equal(agent.compute_trajectory(shown["scene0"]).poses, own["scene0"])
    with pytest.raises(RuntimeError, match=r"3 frames of history; the policy looks back 4"):
        agent.compute_trajectory(navsim_stub.agent_input(logs["scene0"], sensors, place, history=3))
    # Were it an Exception, NAVSIM would leave out all scenes that follow and average the rest.
    agent._process.kill()
    with pytest.raises(SystemExit, match="the process that plans has ended with status -9"):
        agent.compute_trajectory(shown["scene0"])


def test_an_agent_is_shown_the_bits_that_our_scenes_have() -> None:
    """On curved drives far from the origin of the map, in float32 as NAVSIM has them."""
    random = np.random.default_rng(3)
    for _ in range(200):
        frames = drive(count=4)
        turn = random.normal(0, 0.3, 4).cumsum() + random.uniform(-np.pi, np.pi)
        way = random.normal(0, 6.0, (4, 2)).cumsum(axis=0) + random.uniform(3e5, 6e6, 2)
        for one, at, angle in zip(frames, way, turn, strict=True):
            one |= {"ego2global_translation": np.array([*at, 0.0]), "ego2global_rotation": quaternion(angle)}
            one["ego_dynamic_state"] = random.normal(0, 3.0, 4).tolist()
        read = parsed_frames(frames, "drive")
        history = seen_from(np.array([one.pose for one in read]), read[-1].pose)
        own = status_of(np.array([one.motion for one in read]), history, read[-1].command)
        seen = navsim_stub.agent_input(frames, navsim_stub.SensorConfig.build_no_sensors(), Path()).ego_statuses
        motion = np.array([[*one.ego_velocity, *one.ego_acceleration] for one in seen], dtype=np.float64)
        official = status_of(motion, np.array([one.ego_pose for one in seen]), read[-1].command)
        assert own.tobytes() == official.tobytes()


def test_a_policy_that_sees_pictures_sees_those_that_navsim_gives(logs: dict[str, Any], tmp_path: Path) -> None:
    """Three cameras, the last frame alone, in the size in which they were taken."""
    place = logs["place"]
    scenes = SceneSet([place / "scenes"]).folders[0]
    encode_scenes(scenes, default_folder(scenes.folder, "tiny"), "tiny", sensors=place)
    backbone = {"backbone": {"network": "dipole_ray.agents.plan_heads:tiny"}}
    backbone |= {"adapters": {"rank": 2, "targets": ["attention", "mlp"]}}
    run = saved_policy(tmp_path / "run", scenes.folder, "tiny", **backbone)
    assert main(["drive", "agent", str(run), "--out", str(tmp_path / "agent")]) == 0
    agent = official_agent(tmp_path / "agent")
    config = agent.get_sensor_config()
    assert (config.cam_l0, config.cam_f0, config.cam_r0) == ([3], [3], [3])
    assert not any((config.cam_l1, config.cam_l2, config.cam_r1, config.cam_r2, config.cam_b0, config.lidar_pc))
    settings = yaml.safe_load((tmp_path / "agent" / "agent" / "dipole.yaml").read_text())["settings"]
    assert len(settings["encoder"]) == 64
    # The agent's side of the pipe is recorded, and the other side answers it here: the process was seen above.
    pipe = Recorded(Planner(from_mapping(PlannerConfig, settings, "agent")))
    agent._process = pipe
    found = {
        token: agent.compute_trajectory(navsim_stub.agent_input(logs[token], config, place)).poses
        for token in scenes.tokens
    }
    again: Any = load_policy(run).policy, SceneSet([scenes.folder], "tiny"), range(3), [Cell("guided", 1.0, 1)]
    for one, _, plans in planned(*again, seed=0, at_once=1):  # a network's library rounds by the rows of a call
        np.testing.assert_array_equal(found[one.token], plans[0, 0])
    dark = navsim_stub.agent_input(logs[scenes.tokens[0]], config, place)
    dark.cameras[-1].cam_f0.image = np.zeros_like(dark.cameras[-1].cam_f0.image)
    assert np.abs(agent.compute_trajectory(dark).poses - found[scenes.tokens[0]]).max() > 1e-4
    settings["encoder"] = "0" * 64
    with pytest.raises(dipole_ray.errors.ConfigError, match="the policy learned with encoder 000000000000"):
        Planner(from_mapping(PlannerConfig, settings, "agent"))


class Recorded:
    """The process that plans, in this one."""

    def __init__(self, planner: Planner) -> None:
        self.stdin = self.stdout = self
        self._planner, self._asked, self._answer = planner, b"", b""

    def write(self, some: bytes) -> None:
        self._asked += some

    def flush(self) -> None:
        stream, self._asked = io.BytesIO(self._asked), b""
        head = json.loads(stream.readline())
        poses = planner.answered(self._planner, head, stream)
        assert stream.read() == b""
        self._answer = json.dumps({"poses": poses.tolist()}).encode() + b"\n"

    def readline(self) -> bytes:
        return self._answer


def test_what_no_agent_of_navsims_can_be_is_refused_with_what_to_train_instead(
    logs: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = logs["place"] / "scenes"

    def refusal(run: Path, *words: str) -> str:
        assert main(["drive", "agent", str(run), "--out", str(tmp_path / "agent"), *words]) == 2
        shown = capsys.readouterr().err
        assert not (tmp_path / "agent").exists()
        return shown.splitlines()[-1]

    for kind in ("bev", "vector", "tokens", "small"):
        head = {} if kind in ("bev", "vector") else {"backbone": {"network": "dipole_ray.agents.plan_heads:tiny"}}
        head |= {"adapters": {"rank": 2, "targets": ["attention", "mlp"]}} if head else {}
        run = saved_policy(tmp_path / kind, scenes, kind, **head)
        said = refusal(run)
        assert f"observes '{kind}', made of the map and of who is around" in said and "observation=large" in said
    along = saved_policy(tmp_path / "along", scenes, "status", actions="way")
    assert "actions are 'way', said along the route's centreline" in refusal(along)
    status = saved_policy(tmp_path / "status", scenes, "status")
    assert "has no encoder; leave it out" in refusal(status, "--weights", str(tmp_path))
    assert "nothing that could choose" in refusal(status, "--candidates", "4")
    assert "no checkpoint there" in refusal(tmp_path / "nothing")


def test_the_agents_file_is_for_the_python_of_navsims_environment_and_the_planner_needs_no_ray() -> None:
    source = Path(planner.__file__).with_name("navsim_agent.py").read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    imported = {node.module.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}  # type: ignore[union-attr]
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= {"__future__", "json", "os", "subprocess", "typing", "numpy", "navsim"}
    code = "import sys, dipole_ray.evaluation.planner; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
