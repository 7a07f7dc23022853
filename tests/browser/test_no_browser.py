"""A machine without a browser is told what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.mlflow_page import NoBrowser, chromium


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIPOLE_CHROMIUM", str(tmp_path / "chromium"))
    with pytest.raises(NoBrowser, match=r"chromium.*apt-get install chromium.*DIPOLE_CHROMIUM"), chromium():
        pass
    monkeypatch.delenv("DIPOLE_CHROMIUM")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoBrowser, match=r"no browser \(chromium, chromium-browser, google-chrome\)"), chromium():
        pass
