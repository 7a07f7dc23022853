"""Where MLflow is, what its answers mean, and that its credentials stay with it."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dipole_ray.errors import ConfigError
from dipole_ray.tracking.mlflow_server import connect, reason_of, redacted, remedy_of
from dipole_ray.tracking.tracker import TrackingConfig
from tests.tracking.small import DEAD_URI


@pytest.fixture(autouse=True)
def no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests away from a server that the environment names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "MLFLOW_TRACKING_PASSWORD"), (404, "correct the address"), (503, ""), (405, "a proxy"), (429, "")],
)
def test_a_refusal_has_a_remedy_and_an_outage_none(status: int, said: str) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Exception, match=str(status)) as caught:
            connect(f"http://127.0.0.1:{server.server_port}").get_experiment_by_name("any")
        server.shutdown()
    error = caught.value
    assert isinstance(error, Exception) and str(status) in reason_of(error)
    assert said in remedy_of(error) and bool(said) == bool(remedy_of(error))


def test_the_address_is_the_config_then_the_environment_then_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TrackingConfig().resolve_uri(tmp_path / "runs") == f"sqlite:///{tmp_path}/mlflow.db"
    assert TrackingConfig().resolve_uri(Path("/tmp/runs")) == "sqlite:////tmp/runs/mlflow.db", "/tmp is everybody's"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").touch()
    assert TrackingConfig().resolve_uri(tmp_path / "runs") == f"sqlite:///{tmp_path}/runs/mlflow.db", "as it was made"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a")
    assert TrackingConfig().resolve_uri(tmp_path) == "http://a"
    assert TrackingConfig(tracking_uri="http://b").resolve_uri(tmp_path) == "http://b"


@pytest.mark.parametrize("uri", ["http://:5000", "http://127.0.0.1:99999", "databricks-uc", "uc:http://a"])
def test_what_can_be_no_address_is_refused_and_no_outage(uri: str) -> None:
    with pytest.raises(Exception, match=r"Invalid url|not supported") as caught:
        connect(uri).get_experiment_by_name("any")
    assert isinstance(caught.value, Exception) and "address" in remedy_of(caught.value)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"lose it: write sqlite:///FILE\.db"):
        TrackingConfig(tracking_uri=uri).resolve_uri(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=f"'{uri}'"):
        TrackingConfig().resolve_uri(tmp_path)


def test_credentials_stay_out_of_files_and_messages() -> None:
    assert redacted("https://me:pw@host:5000/x?y=a@b") == "https://host:5000/x?y=a@b"
    assert redacted("no http://me:p@w@a/b, no ftp://me@c") == "no http://a/b, no ftp://c"
    assert redacted("sqlite:////a/b.db") == "sqlite:////a/b.db"
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI") as caught:
        TrackingConfig(tracking_uri=DEAD_URI)
    assert "secret" not in str(caught.value)
