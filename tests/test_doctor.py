"""The doctor tells lacks from failures, and names a remedy for each."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from dipole_ray import doctor
from dipole_ray.cli.doctor import add_doctor_parser


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


def test_an_unreachable_server_is_a_warning_that_hides_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    finding = doctor.check_mlflow(tmp_path)
    assert finding.status == "warn"
    assert "MLFLOW_TRACKING_URI" in finding.remedy
    assert "secret" not in finding.message + finding.remedy


def test_looking_at_mlflow_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert doctor.check_mlflow(tmp_path).status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_hangs_is_ended() -> None:
    answer, trouble = doctor._probe("import threading; threading.Event().wait()", timeout_s=0.5)
    assert answer is None
    assert "no answer" in trouble


@pytest.mark.slow
def test_the_command_reports_everything_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_doctor_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", "--json", "--runs", str(tmp_path), "--cache", str(tmp_path)])
    status = args.run(args)
    findings = json.loads(capsys.readouterr().out)
    by_name = {finding["name"]: finding for finding in findings}
    assert {"Python", "torch", "GPU", "Rendering (GL)", "Ray", "MLflow", "Run folder", "CPU cores"} <= by_name.keys()
    assert all(finding["status"] == "ok" or finding["remedy"] for finding in findings)
    assert by_name["Ray"]["status"] == "ok", by_name["Ray"]
    assert status == (1 if any(finding["status"] == "fail" for finding in findings) else 0)
