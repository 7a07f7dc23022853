"""A real MLflow server, a small sweep that a user ran into it, and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.mlflow_page import MlflowPage, NoBrowser, chromium, printed_link, sweep
from tests.chaos.tracking_server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

RUNGS = 4
SMALL = [
    "smoke",
    f"sweep.rungs={RUNGS}",
    "sweep.evaluation={omegas: [0, 1], candidates: [1, 2], select_episodes: 2, report_episodes: 3}",
    "sweep.resources.trial_cpus=0.5",
    "data.collect_transitions=1000",
    "agent.hidden_dims=[16, 16]",
    "training.offline_learner_steps=80",
    "training.learner_steps_per_iteration=10",
]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium; without it these tests fail, for whoever asks for them wants to know what the page shows."""
    try:
        with chromium() as started:
            yield started
    except NoBrowser as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="package")
def link(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that `dipole sweep smoke`, made smaller, printed for its user."""
    folder: Path = tmp_path_factory.mktemp("browser")
    server = Server(folder / "server")
    server.start()
    try:
        server.wait()
        ended = sweep(server, folder / "user", *SMALL)
        assert ended.returncode == 0, ended.stderr
        yield printed_link(ended.stdout)
    finally:
        server.kill()


@pytest.fixture
def visit(browser: Browser, link: str) -> Iterator[MlflowPage]:
    """A visit that begins at the sweep's link; a script of the page that fails, fails the test."""
    page = MlflowPage(browser, link)
    yield page
    page.close()
    assert page.errors == []
