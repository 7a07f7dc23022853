"""MLflow's web page in a headless Chromium, read and clicked as a user does; and a sweep to look at."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.tracking_server import Server
from tests.cli.commands import dipole

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Chromium would look for updates and its makers' hosts, and wait for them where there is no way out.
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PATIENCE_MS = 60_000  # the server has one worker and may share two cores with others
CARD = "experiment-view-compare-runs-card"


class NoBrowser(Exception):
    """There is nothing to look with; says what to install."""


def sweep(server: Server, folder: Path, *words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run `dipole sweep WORDS` in a folder, tracked by a server."""
    folder.mkdir(parents=True, exist_ok=True)
    return dipole("sweep", *words, f"tracking.tracking_uri={server.url}", cwd=folder, timeout=timeout)


def printed_link(output: str) -> str:
    """Return the address that the command told its user to look at."""
    found = re.search(r"^mlflow +(\S+)$", output, re.MULTILINE)
    assert found, output
    return found[1]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium.

    Raises:
        NoBrowser: There is none, or nothing to drive it.
    """
    given = os.environ.get("DIPOLE_CHROMIUM")
    path = given or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None or not Path(path).exists():
        raise NoBrowser(
            f"no browser ({given or ', '.join(BROWSERS)}): install Chromium (Debian: apt-get install chromium), or "
            "set DIPOLE_CHROMIUM to where it is"
        )
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise NoBrowser(f"{error}: pip install --constraint constraints.txt --editable '.[dev,browser]'") from None
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, chromium_sandbox=False, args=FLAGS)
        yield started
        started.close()


class MlflowPage:
    """One visit to MLflow, beginning at the link of a run."""

    def __init__(self, browser: Browser, link: str, *, width: int = 1400, height: int = 900) -> None:
        """Open the link as somebody who never used MLflow, and leave its GenAI side for that of model training."""
        self.errors: list[str] = []
        """What the page's own scripts failed with."""
        self.server, _, self._start = link.partition("/#/")
        self._context = browser.new_context(viewport={"width": width, "height": height})
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(link)
        self.page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
        self.page.wait_for_url(re.compile(r"/experiments/\d+/runs/\w+$"))
        self.page.get_by_role("button", name="Model training").click()
        self.page.wait_for_url(re.compile(r"/experiments/\d+/runs\?"))  # the page leaves the run for the list of runs
        self.open_start()

    def close(self) -> None:
        self._context.close()

    def open_start(self) -> None:
        """Go to the link again."""
        self.page.goto(f"{self.server}/#/{self._start}")

    def open_tab(self, name: str) -> None:
        """Open a tab of a run."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def table(self, title: str) -> dict[str, str]:
        """Return the rows of the run's table of metrics or parameters, whose title has their number."""
        heading = self.page.get_by_text(re.compile(rf"^{title} \((\d+)\)$"))
        count = int(re.sub(r"\D", "", heading.inner_text()))
        rows = heading.locator("xpath=following::*[@role='table'][1]").get_by_role("row")
        rows.nth(count).wait_for()  # the first is the header
        lines = [row.get_by_role("cell").all_inner_texts() for row in rows.all()]
        return {cells[0].strip(): cells[1].strip() for cells in lines if len(cells) >= 2}

    def show_artifact(self, path: str) -> None:
        """Click a file of the run, in its folder."""
        *folders, name = path.split("/")
        node = self._artifact(name)
        if folders and not node.is_visible():
            self._artifact(folders[-1]).click()
        node.click()

    def artifacts(self, folder: str) -> list[str]:
        """Open a folder and return the files in it."""
        self._artifact(folder).click()
        nodes = self.page.locator("li").filter(has=self._artifact(folder)).last.locator("li [artifact-name]")
        nodes.first.wait_for()
        return [f"{folder}/{node.get_attribute('artifact-name')}" for node in nodes.all()]

    def picture(self, path: str) -> tuple[int, int]:
        """Return the pixels of the picture that is on the screen."""
        image = self.page.locator(f"img[alt='{path}']:visible, img[src^='blob:']:visible").first
        image.wait_for()
        size = image.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
        return int(size[0]), int(size[1])

    def sections(self) -> dict[str, int]:
        """Return the sections of charts with the number of charts in each."""
        headers = self.page.get_by_test_id("experiment-view-compare-runs-section-header")
        headers.first.wait_for()
        found = [re.search(r"(.+?)\s*\((\d+)\)", text) for text in headers.all_inner_texts()]
        return {match[1].strip(): int(match[2]) for match in found if match}

    def search_charts(self, text: str) -> None:
        """Leave only the charts whose metric has this text in its name."""
        self.page.get_by_placeholder("Search metric charts").fill(text)

    def curves(self, metric: str) -> dict[str, int]:
        """Return how many points the line of each run has that is drawn in a metric's chart."""
        self.search_charts(metric)
        plot = self._card(metric).locator(".js-plotly-plot")
        plot.locator("path.js-line").first.wait_for(state="attached")
        lines = plot.evaluate(
            """plot => [...plot.querySelectorAll('.scatterlayer .trace')].map(trace => [
                trace.__data__[0].trace.name, trace.querySelector('path.js-line')?.getAttribute('d') ?? ''])"""
        )
        found: dict[str, int] = {}
        for name, path in lines:
            found[name] = max(found.get(name, 0), len(re.findall("[MLHV]", path)))
        return {name: points for name, points in found.items() if points}

    def open_runs(self) -> None:
        """Go from a run to the list of the experiment's runs."""
        self.page.get_by_role("link", name="Runs", exact=True).first.click()

    def expand(self, run: str) -> None:
        """Show the runs below one."""
        self._row(run).get_by_role("button").first.click()

    def runs(self) -> dict[str, float]:
        """Return the runs in the list, from top to bottom, with the indent of their names in pixels."""
        links = self.page.locator(".ag-row a[href*='/runs/']")
        links.first.wait_for()
        places = [(link.bounding_box(), link.inner_text().strip()) for link in links.all()]
        boxes = sorted((box["y"], box["x"], name) for box, name in places if box is not None)
        left = min(x for _, x, _ in boxes)
        return {name: x - left for _, x, name in boxes}

    def show_charts(self) -> None:
        """Put the charts of all runs in the list beside it."""
        self.page.locator("label:has(input[name=runs-view-mode][value=CHART])").click()

    def compare(self, *runs: str) -> None:
        """Choose runs in the list and compare them."""
        for run in runs:
            self._row(run).get_by_role("checkbox", name=re.compile("toggle row selection")).check()
        self.page.get_by_test_id("runs-compare-button").click()

    def hide_sidebar(self) -> None:
        """Leave the whole width to the page's contents."""
        self.page.get_by_label("Toggle sidebar").click()

    def photograph(self) -> bytes:
        """Return the page as PNG once nothing moves any more: it is the same for two seconds."""
        before = b""
        while (now := self.page.screenshot()) != before:
            before = now
            self.page.wait_for_timeout(2000)
        return now

    def _row(self, run: str) -> Locator:
        return self.page.locator(".ag-row").filter(has=self.page.get_by_role("link", name=run, exact=True))

    def _artifact(self, name: str) -> Locator:
        return self.page.locator(f"[artifact-name='{name}']")

    def _card(self, metric: str) -> Locator:
        title = re.compile(rf"^({re.escape(metric)}|{re.escape(metric.rpartition('/')[2])})$")
        return self.page.get_by_test_id(CARD).filter(has=self.page.get_by_text(title)).first
