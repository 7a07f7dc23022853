"""What a user finds of a sweep on MLflow's page: the sweep, its trials, their curves, pictures and files."""

from __future__ import annotations

import re

import pytest

from tests.browser.conftest import RUNGS
from tests.browser.mlflow_page import MlflowPage

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
TRIALS = ["smoke/trial-000", "smoke/trial-001"]


def test_the_printed_link_opens_the_sweeps_own_page(visit: MlflowPage) -> None:
    visit.page.get_by_role("heading", name=re.compile("^smoke-[0-9a-f]{8}$")).wait_for()
    metrics, parameters, text = visit.table("Metrics"), visit.table("Parameters"), visit.page.inner_text("body")
    assert float(metrics["sweep/trials_done"]) == 2 and float(metrics["sweep/rungs_done"]) == 2 * RUNGS
    assert -2000 < float(metrics["sweep/best_score"]) < 0
    assert parameters["space.agent.beta.grid"] == "[1.0, 5.0]" and parameters["run.env.id"] == "Pendulum-v1"
    assert re.search(r"Status\s+Finished", text) and re.search(r"Source\s+dipole sweep\s", text)
    assert re.search(r"dipole\.sweep\s*: smoke\s", text) and "version.torch" in text, "tags"
    for trial in TRIALS:
        assert visit.page.get_by_role("link", name=trial, exact=True).is_visible(), "the children can be opened"


def test_the_list_shows_the_sweep_with_its_trials_below_it(visit: MlflowPage) -> None:
    visit.open_runs()
    (sweep,) = visit.runs()
    assert sweep.startswith("smoke-"), "trials do not crowd the list"
    visit.expand(sweep)
    visit.page.get_by_role("link", name=TRIALS[0], exact=True).wait_for()
    indents = visit.runs()
    assert sorted(indents) == sorted([sweep, *TRIALS]) and indents.pop(sweep) == 0
    assert all(indent > 10 for indent in indents.values())


@pytest.mark.parametrize("name", ["surface-beta", "parallel"])
def test_pictures_are_shown(visit: MlflowPage, name: str) -> None:
    visit.open_tab("Artifacts")
    visit.show_artifact(f"pictures/{name}.png")
    width, height = visit.picture(f"pictures/{name}.png")
    assert width > 400 and height > 200


def test_files_can_be_read_on_the_page(visit: MlflowPage) -> None:
    visit.open_tab("Artifacts")
    visit.show_artifact("leaderboard.csv")
    for trial in TRIALS:
        visit.page.get_by_role("cell", name=trial.removeprefix("smoke/"), exact=True).wait_for()
    titles = visit.page.get_by_role("columnheader").or_(visit.page.locator("th")).all_inner_texts()
    assert {"rank", "trial", "agent.beta", "omega", "candidates", "selected_value", "reported_value"} <= set(titles)
    visit.show_artifact("best.yaml")
    visit.page.locator("code", has_text="name: smoke-best").wait_for()
    assert "over 3 episodes that nothing was chosen by" in visit.page.locator("code").first.inner_text()
    visit.show_artifact("leaderboard.json")
    visit.page.locator("code", has_text='"selected"').wait_for()


def test_a_trials_page_has_its_curves_in_few_sections(visit: MlflowPage) -> None:
    visit.page.get_by_role("link", name=TRIALS[1], exact=True).click()
    visit.page.get_by_role("heading", name=TRIALS[1]).wait_for()
    assert visit.table("Parameters")["agent.beta"] == "5.0"
    visit.open_tab("Model metrics")
    sections = visit.sections()
    assert sections["eval/return"] == 4, "the whole grid of omega and candidates in one place"
    assert {"actor", "critic", "eval", "report", "sweep", "value"} <= set(sections) and len(sections) <= 12
    assert visit.curves("critic/loss") == {TRIALS[1]: 8}, "one point an iteration"
    for metric in ("sweep/score", "eval/return/omega_1_candidates_2"):
        assert visit.curves(metric) == {TRIALS[1]: RUNGS}, metric


def test_trials_are_compared_in_one_chart_and_side_by_side(visit: MlflowPage) -> None:
    visit.open_runs()
    visit.expand(next(iter(visit.runs())))
    visit.show_charts()
    assert visit.curves("sweep/score") == dict.fromkeys(TRIALS, RUNGS)
    visit.compare(*TRIALS)
    visit.page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    row = visit.page.locator("tr").filter(has=visit.page.get_by_text("agent.beta", exact=True))
    assert row.inner_text().split() == ["agent.beta", "1.0", "5.0"]
