"""A report can be made again from its own file, and says where its numbers come from."""

from __future__ import annotations

import math
from pathlib import Path

from dipole_ray.bench.report import as_json, collect, markdown, read_report, scores_of
from dipole_ray.bench.suite import from_mapping
from tests.bench.results import result
from tests.bench.small import suite_mapping


def test_a_suite_with_infinity_in_its_file_has_a_report_that_can_be_read_again(tmp_path: Path) -> None:
    uncut = {"agent": {"weight_scheme": "exp", "omega": 0.0, "exp_weight_max": math.inf}}
    data = collect(from_mapping(suite_mapping(methods={"uncut": uncut})), "mine")
    (tmp_path / "mine.json").write_text(as_json(data))
    assert read_report(tmp_path / "mine.json") == data
    assert data["file"]["methods"]["uncut"]["agent"]["exp_weight_max"] == ".inf"


def test_a_report_names_the_machines_and_versions_of_the_runs_and_not_its_own() -> None:
    data = collect(from_mapping(suite_mapping()), "mine") | {"machine": "a laptop", "versions": {"torch": "0"}}
    cells = {(1.0, 1): [0.5] * 5}
    origins = (
        {"machine": "a big one", "versions": {"torch": "2"}},
        {"machine": "a big one", "versions": {"torch": "3"}},
    )
    runs = [
        result("pendulum", "dipole", seed, cells, chosen=(1.0, 1), measure="return", **origin)
        for seed, origin in enumerate(origins)
    ]
    text = markdown(data | {"runs": runs}, scores_of(data | {"runs": runs}), [])
    assert "a big one;" in text and "a laptop" not in text and "Versions: torch 2 and 3." in text
