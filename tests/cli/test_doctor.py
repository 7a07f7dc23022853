"""The doctor tells lacks from failures, and names a remedy for each."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from dipole_ray.cli import doctor


def test_a_folder_that_cannot_be_written_fails_with_a_remedy(tmp_path: Path) -> None:
    assert doctor.check_folder("Run folder", tmp_path / "a" / "b", "choose").status == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    finding = doctor.check_folder("Run folder", tmp_path / "file" / "runs", "choose another with folder=PATH")
    assert finding.status == "fail"
    assert "folder=PATH" in finding.remedy


def test_little_space_is_a_warning_and_none_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK_GIB", 1e9)
    assert doctor.check_folder("Run folder", tmp_path, "choose").status == "warn"
    monkeypatch.setattr(doctor, "MIN_DISK_GIB", 1e9)
    assert doctor.check_folder("Run folder", tmp_path, "choose").status == "fail"


def test_a_package_outside_its_bounds_is_named_with_reason_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["mujoco<3.5,>=3.1.6", "no-such-package>=1", "ruff>=99; extra == 'dev'", "numpy>=1"]
    monkeypatch.setattr(doctor, "requires", lambda _: declared)
    monkeypatch.setattr(doctor, "_installed", lambda name: {"mujoco": "4.0.0", "numpy": "2.0"}.get(name))
    mujoco, missing, rest = doctor.check_packages()
    assert (mujoco.status, missing.status, rest.status) == ("fail", "fail", "ok")
    assert "4.0.0" in mujoco.message and "physics" in mujoco.message and "pip install 'mujoco" in mujoco.remedy
    assert "not installed" in missing.message
    assert rest.message == "numpy 2.0"


def test_more_threads_than_cores_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    finding = doctor.check_cores()
    assert finding.status == "warn"
    assert "OMP_NUM_THREADS" in finding.remedy


def test_a_gl_backend_that_does_not_render_is_a_warning_with_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    finding = doctor.check_rendering()
    assert finding.status == "warn"
    assert "libegl1" in finding.remedy


def test_every_backend_without_a_screen_is_tried_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    tried: list[str] = []

    def probe(code: str, **how: Any) -> tuple[Any, str]:
        tried.append(how["MUJOCO_GL"])
        return (200, "") if tried[-1] == "osmesa" else (None, "no libEGL")

    monkeypatch.setattr(doctor, "_probe", probe)
    finding = doctor.check_rendering()
    assert tried == ["egl", "osmesa"] and finding.status == "ok"
    assert finding.message == "MUJOCO_GL=osmesa renders off screen; MUJOCO_GL=egl does not render (no libEGL)"


def test_an_unreachable_server_is_a_warning_that_hides_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    finding = doctor.check_mlflow(tmp_path)
    assert finding.status == "warn"
    assert "MLFLOW_TRACKING_URI" in finding.remedy
    assert "secret" not in finding.message + finding.remedy


def test_a_store_that_mlflow_refuses_is_a_warning_with_its_own_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    finding = doctor.check_mlflow(tmp_path)
    assert finding.status == "warn"
    assert "MLFLOW_ALLOW_FILE_STORE=true" in finding.remedy and "start the server" not in finding.remedy


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_a_failure_with_its_own_remedy() -> None:
    finding = doctor.check_ray("127.0.0.1:9")
    assert (finding.status, finding.message) == (
        "fail",
        "the Ray cluster at 127.0.0.1:9 does not answer (Connection refused)",
    )
    assert "unset RAY_ADDRESS" in finding.remedy


@pytest.mark.slow
def test_a_note_of_a_dead_cluster_is_a_warning_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's own `ray.init()` waits for it for minutes before anything of ours could speak."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text("127.0.0.1:9")
    finding = doctor.check_ray(None)
    assert finding.status == "warn" and "127.0.0.1:9, which does not answer" in finding.message
    assert str(note) in finding.remedy and "dipole_ray.start_ray()" in finding.remedy


def test_looking_at_mlflow_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert doctor.check_mlflow(tmp_path).status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_hangs_is_ended() -> None:
    answer, trouble = doctor._probe("import threading; threading.Event().wait()", timeout_s=0.5)
    assert answer is None
    assert "no answer" in trouble


@contextmanager
def ray_control_service(mode: str, folder: Path) -> Iterator[str]:
    """Run the service of Ray that clusters are joined by, alone, and yield its address."""
    folder.mkdir()
    program = Path(ray.__file__).parent / "core" / "src" / "ray" / "gcs" / "gcs_server"
    here = ray.util.get_node_ip_address()  # which Ray puts in the place of 127.0.0.1
    options = {"gcs_server_port": 0, "config_list": "e30=", "node_ip_address": here, "session_name": "test"}
    options |= {"session_dir": folder, "log_dir": folder / "logs", "node_id": "ab" * 28}
    (folder / "logs").mkdir()
    service = subprocess.Popen(
        [str(program), *(f"--{name}={value}" for name, value in options.items())],
        env={**os.environ, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "a token that only the cluster has"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (ports := [file.read_text() for file in folder.glob("gcs_server_port*")]) or not ports[0].strip():
            assert service.poll() is None and time.monotonic() < deadline, "Ray's control service did not start"
            time.sleep(0.05)
        yield f"{here}:{ports[0].strip()}"
    finally:
        service.kill()
        service.wait()


def test_an_open_cluster_is_a_warning(tmp_path: Path) -> None:
    """Row S2: a stranger without the token gets in, and the doctor, who was one, says so."""
    with ray_control_service("disabled", tmp_path / "ray") as address:
        finding = doctor._check_protection("cluster answers", address, "127.0.0.1:8265")
    assert finding.status == "warn"
    assert "nobody for a token" in finding.message
    assert "RAY_AUTH_MODE=token" in finding.remedy


def test_a_cluster_that_asks_for_a_token_is_fine_unless_its_dashboard_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a token that only the cluster has")  # the doctor's own must not be shown
    with ray_control_service("token", tmp_path / "ray") as address:
        closed = doctor._check_protection("cluster answers", address, "127.0.0.1:8265")
        exposed = doctor._check_protection("cluster answers", address, "10.0.0.7:8265")
    assert closed.status == "ok", closed
    assert exposed.status == "warn"
    assert "10.0.0.7" in exposed.message and "--dashboard-host=127.0.0.1" in exposed.remedy


def test_a_cluster_that_does_not_answer_a_stranger_is_not_called_safe() -> None:
    finding = doctor._check_protection("cluster answers", "nonsense", "")
    assert finding.status == "warn"
    assert "could not be seen" in finding.message


@pytest.mark.slow
def test_the_command_reports_everything_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", "--json", "--runs", str(tmp_path), "--cache", str(tmp_path)])
    status = args.run(args)
    findings = json.loads(capsys.readouterr().out)
    by_name = {finding["name"]: finding for finding in findings}
    assert {"Python", "torch", "GPU", "Rendering (GL)", "Ray", "MLflow", "Run folder", "CPU cores"} <= by_name.keys()
    assert all(finding["status"] == "ok" or finding["remedy"] for finding in findings)
    assert by_name["Ray"]["status"] == "ok", by_name["Ray"]
    assert status == (1 if any(finding["status"] == "fail" for finding in findings) else 0)


def test_driving_is_looked_at_where_it_is_wanted_and_else_nothing_is_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_installed", {}.get)
    (only,) = doctor.check_driving(tmp_path)
    assert only.status == "ok" and "pip install 'dipole-ray[driving]'" in only.message
    monkeypatch.undo()
    pytest.importorskip("shapely")
    extra, sumo, scenes = doctor.check_driving(tmp_path)
    assert {extra.status, sumo.status, scenes.status} == {"ok"} and "transformers" in extra.message
    assert "0 recorded" in scenes.message and ("maps berlin" in sumo.message or "none recorded" in sumo.message)
    # A folder that was begun goes on; one that is damaged is named, and the remedy is to remove it.
    for name, text in {"begun": '{"complete": false}', "bad": "{}"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "scenes.json").write_text(text)
    monkeypatch.setattr(doctor, "_installed", {"shapely": "2.1", "scipy": "1.15", "transformers": "4.0"}.get)
    answers = iter(
        [
            ({"version": "1.20.0", "maps": ["berlin"], "wanted": 5}, ""),
            doctor._probe(doctor.SCENES_PROBE, str(tmp_path), timeout_s=60),
        ]
    )
    monkeypatch.setattr(doctor, "_probe", lambda *_, **__: next(answers))
    extra, sumo, scenes = doctor.check_driving(tmp_path)
    assert {extra.status, sumo.status, scenes.status} == {"warn"}
    assert "transformers 4.0, needed is" in extra.message and "4 missing" in sumo.message
    assert str(tmp_path / "bad") in scenes.message and "remove that folder" in scenes.remedy
