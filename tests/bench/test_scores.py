"""What a score is: which evaluations, which omega, and what a run counts that diverged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dipole_ray.bench.config import MethodConfig, TaskConfig
from dipole_ray.bench.scores import Point, Scores, Way
from dipole_ray.bench.tables import comparison_tables, paper_table, score_table, switch_of, switch_table, training_table
from dipole_ray.errors import ConfigError
from tests.bench.results import OFFLINE, key_of, result, scores_of

ONE, MANY = Way("named", 1), Way("named", 16)
ONLINE = (*OFFLINE[:2], ("online", 300, 100), ("online", 400, 200))


def run(seed: int, values: dict[tuple[float | None, int], list[float]], **changes: Any) -> dict[str, Any]:
    chosen = (1.0, 16) if (1.0, 16) in values else next(iter(values))
    return result("maze", "dipole", seed, values, chosen=chosen, **changes)


def test_a_score_is_the_mean_of_the_last_evaluations_in_per_cent() -> None:
    one = run(0, {(1.0, 1): [0, 0, 0.3, 0.6, 0.9], (1.0, 16): [0, 0, 0, 0, 1]})
    found = scores_of([one], evaluations=3)
    assert found.of("maze", "dipole", ONE, "offline") == pytest.approx([60.0])
    assert found.of("maze", "dipole", MANY, "offline") == pytest.approx([100 / 3])
    assert scores_of([one], evaluations=1).of("maze", "dipole", ONE, "offline") == pytest.approx([90.0])


def test_phases_are_scored_apart() -> None:
    found = scores_of([run(0, {(1.0, 1): [0.2, 0.4, 0.0, 1.0]}, points=ONLINE)], evaluations=2)
    assert found.phases() == ["offline", "online"]
    assert found.of("maze", "dipole", ONE, "offline") == pytest.approx([30.0])
    assert found.of("maze", "dipole", ONE, "online") == pytest.approx([50.0])


def test_named_omega_is_the_configs_own_with_any_number_of_candidates() -> None:
    values = {(0.0, 1): [0.1] * 5, (1.0, 1): [0.2] * 5, (0.0, 16): [0.3] * 5, (1.0, 16): [0.4] * 5}
    found = scores_of([run(0, values)])
    assert found.candidates() == [1, 16]
    assert found.of("maze", "dipole", ONE, "offline") == pytest.approx([20.0])
    assert found.of("maze", "dipole", MANY, "offline") == pytest.approx([40.0])
    assert len(found.of("maze", "dipole", Way("tuned", 1), "offline")) == 0, "one seed has no others to be chosen by"


def test_tuned_omega_is_chosen_without_the_seed_it_is_reported_on() -> None:
    # Omega 2 is best on average, only because of seed 0, and 1 by the two others.
    scores = {0: (0.2, 1.0), 1: (0.6, 0.3), 2: (0.6, 0.3)}
    runs = [run(seed, {(1.0, 1): [a] * 5, (2.0, 1): [b] * 5}) for seed, (a, b) in scores.items()]
    found = scores_of(runs)
    # For seed 0 the others choose 1; for seeds 1 and 2 seed 0 tips the scale to 2.
    assert found.tuned("maze", "dipole", 1, "offline") == {
        0: (1.0, pytest.approx(20.0)),
        1: (2.0, pytest.approx(30.0)),
        2: (2.0, pytest.approx(30.0)),
    }
    selected_and_reported_on_the_same = np.mean([1.0, 0.3, 0.3]) * 100
    assert found.of("maze", "dipole", Way("tuned", 1), "offline").mean() < selected_and_reported_on_the_same


def test_tuning_on_noise_gives_no_gain() -> None:
    """Many omegas that do not matter: the best in sight looks good, the tuned one is what it is."""
    generator = np.random.default_rng(0)
    omegas = np.linspace(0, 4, 20)
    runs = [run(s, {(float(o), 1): [float(generator.normal(0.5, 0.1))] * 5 for o in omegas}) for s in range(40)]
    for one in runs:
        one["chosen"] = key_of(0.0, 1)
    found = scores_of(runs)
    tuned = found.of("maze", "dipole", Way("tuned", 1), "offline")
    assert abs(tuned.mean() - 50) < 3 * 10 / np.sqrt(40)
    in_sight = [max(100 * c["success"] for c in one["evaluations"][-1]["scores"].values()) for one in runs]
    assert np.mean(in_sight) > 60


def test_a_diverged_run_counts_with_the_worst_of_the_phase_it_diverged_in() -> None:
    lost = run(1, {(1.0, 1): [0.9]}, status="diverged")
    found = scores_of([run(0, {(1.0, 1): [0.8] * 5}), lost])
    assert found.of("maze", "dipole", ONE, "offline") == pytest.approx([80.0, 0.0])
    returns = {"measure": "return", "points": OFFLINE}
    runs = [run(0, {(1.0, 1): [-50.0] * 5}, **returns), run(1, {(1.0, 1): [7.0]}, status="diverged", **returns)]
    other = result("maze", "bc", 0, {(None, 1): [-300.0] * 5}, chosen=(None, 1), **returns)
    found = scores_of([*runs, other], metric="return")
    assert found.of("maze", "dipole", ONE, "offline") == pytest.approx([-50.0, -300.0])
    lost = run(1, {(1.0, 1): [0.2, 0.4, 0.9]}, points=ONLINE, status="diverged")
    found = scores_of([lost], evaluations=1)
    assert found.of("maze", "dipole", ONE, "offline") == pytest.approx([40.0]), "what it had before is its own"
    assert found.of("maze", "dipole", ONE, "online") == pytest.approx([0.0])
    lost = run(1, {(1.0, 1): []}, status="diverged")
    assert scores_of([lost]).of("maze", "dipole", ONE, "offline") == pytest.approx([0.0])
    assert any("1, 1 diverged" in line for line in score_table(scores_of([lost]), "offline"))


def test_a_method_may_show_runs_of_another_in_its_own_way() -> None:
    ifql = result("maze", "ifql", 0, {(None, 1): [0.1] * 5, (None, 16): [0.7] * 5}, chosen=(None, 16))
    methods = {"ifql": MethodConfig(), "bc": MethodConfig(runs_of="ifql", candidates=(1,))}
    found = scores_of([ifql], methods=methods)
    assert found.of("maze", "bc", ONE, "offline") == pytest.approx([10.0])
    assert len(found.of("maze", "bc", MANY, "offline")) == 0
    assert sum("| bc |" in line for line in score_table(found, "offline")) == 1
    assert not any("| bc |" in line for line in training_table(found)), "its training is the other's"


def test_a_method_may_show_one_omega_of_anothers_runs() -> None:
    cells = {(0.0, 1): [0.1] * 5, (1.0, 1): [0.9] * 5}
    runs = [result("maze", "dipole", seed, cells, chosen=(1.0, 1)) for seed in (0, 1)]
    methods = {"dipole": MethodConfig(), "positive": MethodConfig(runs_of="dipole", omega=0.0)}
    found = scores_of(runs, methods=methods)
    assert found.of("maze", "dipole", ONE, "offline") == pytest.approx([90.0, 90.0])
    assert found.of("maze", "positive", ONE, "offline") == pytest.approx([10.0, 10.0])
    assert any("| positive | 0 | 10.0" in line for line in score_table(found, "offline")), "the omega that it shows"
    assert list(found.omegas("maze", "positive", 1)) == [0.0] and found.tuned("maze", "positive", 1, "offline") == {}


def test_tasks_are_made_comparable_by_their_full_scores_or_not_at_all() -> None:
    returns = {"measure": "return", "chosen": (1.0, 1)}
    runs = [
        result("a", "m", 0, {(1.0, 1): [500.0] * 5}, **returns),
        result("b", "m", 0, {(1.0, 1): [25.0] * 5}, **returns),
    ]

    def plain(scores: Scores, tasks: list[str]) -> list[float]:
        compared = scores.compared(["m"], ONE, "offline", tasks)
        assert compared is not None
        return [float(task[0]) for task in compared[0]]

    found = scores_of(runs, metric="return", tasks={"a": TaskConfig(full_score=1000), "b": TaskConfig(full_score=250)})
    assert plain(found, ["a", "b"]) == [50.0, 10.0]
    assert plain(found, ["a"]) == [500.0], "alone a task keeps its own unit"
    assert scores_of(runs, metric="return").compared(["m"], ONE, "offline", ["a", "b"]) is None
    spans = {"a": TaskConfig(full_score=1000), "b": TaskConfig(full_score=25, zero_score=-75)}
    assert scores_of(runs, metric="return").config.span(TaskConfig(full_score=0, zero_score=-1500)) == (-1500, 0)
    found = scores_of(runs, metric="return", zero_score=400.0, full_score=2000.0, tasks=spans)
    assert plain(found, ["a", "b"]) == pytest.approx([100 / 6, 100.0])
    with pytest.raises(ConfigError, match=r"suite.full_score is 5.0: a number above zero_score, 10.0"):
        scores_of(runs, metric="return", zero_score=10.0, full_score=5.0)


def test_published_numbers_stand_beside_ours_of_the_same_name() -> None:
    tasks = {f"scene-task{k}": TaskConfig(group="scene") for k in (1, 2)}
    runs = [
        result(name, "dipole", 0, {(1.0, 1): [0.2] * 5, (1.0, 32): [share] * 5}, chosen=(1.0, 32))
        for name, share in zip(tasks, (0.4, 0.8), strict=True)
    ]
    lines = paper_table(scores_of(runs, tasks=tasks), {"scene": {"iql": 28, "dipole_1": 50, "dipole": 60}}, "offline")
    assert lines[0] == "|  | iql | dipole, 1 candidate | dipole |"
    assert lines[2] == "| scene | 28 | 50 (20.0) | 60 (60.0) |"


def test_comparisons_name_the_baseline_and_skip_it() -> None:
    runs = [
        result("maze", method, seed, {(None, 1): [base + 0.1 * seed] * 5}, chosen=(None, 1))
        for method, base in (("weak", 0.1), ("strong", 0.6))
        for seed in range(3)
    ]
    lines = comparison_tables(scores_of(runs, baseline="weak"), "offline")
    weak = next(line for line in lines if line.startswith("| weak | 1 |"))
    strong = next(line for line in lines if line.startswith("| strong"))
    assert weak.endswith("| - | - |") and "+50.0" in strong and strong.endswith("1.00 [1.00, 1.00] |")


def test_a_difference_is_taken_within_a_seed() -> None:
    """Seeds differ by much more than the methods do: what both owe to the seed is no doubt about the difference."""
    runs = [
        result("maze", method, seed, {(None, 1): [0.2 * seed + gain] * 5}, chosen=(None, 1))
        for method, gain in (("weak", 0.0), ("strong", 0.05))
        for seed in (3, 1, 0, 2)
    ]
    lost = [run for run in runs if (run["method"], run["seed"]) != ("weak", 2)]  # compared over common seeds alone
    for found in (scores_of(runs, baseline="weak"), scores_of(lost, baseline="weak")):
        strong = next(line for line in comparison_tables(found, "offline") if line.startswith("| strong"))
        assert "| +5.00 [+5.00, +5.00] |" in strong


def test_methods_are_compared_as_each_acts_by_itself_too() -> None:
    """One candidate for a method published with one, sixteen for another: none is judged by the other's way alone."""
    cells: dict[tuple[float | None, int], list[float]] = {(1.0, 1): [0.5] * 5, (1.0, 16): [0.9] * 5}
    runs = [result("maze", "many", seed, cells, chosen=(1.0, 16)) for seed in (0, 1)]
    runs += [result("maze", "one", seed, cells, chosen=(1.0, 1)) for seed in (0, 1)]
    found = scores_of(runs, baseline="one")
    assert list(map(str, found.compared_ways())) == ["own candidates", "1 candidate", "16 candidates"]
    lines = comparison_tables(found, "offline")
    assert lines[5].startswith("| many | 16 | 90.0 [90.0, 90.0] | 90.0 [90.0, 90.0] | +40.0 [+40.0, +40.0] |")
    assert paper_table(found, {"maze": {"one": 1.0, "many": 2.0, "many_1": 3.0}}, "offline")[-1] == (
        "| maze | 1 (50.0) | 2 (90.0) | 3 (50.0) |"
    )
    methods = {"many": MethodConfig(), "alone": MethodConfig(runs_of="many", candidates=(1,))}
    shown = scores_of(runs[:2], methods=methods, baseline="alone")
    assert [shown.own_candidates("maze", name) for name in methods] == [16, 1]
    assert "+40.0" in comparison_tables(shown, "offline")[5], "another way of acting with the same runs is compared"


def test_a_mean_over_tasks_has_no_interval_before_every_task_has_a_second_seed() -> None:
    """A task with one seed says nothing about its spread; taken as none, the interval would be far too narrow."""
    runs = [run(seed, {(1.0, 1): [0.1 * seed] * 5}) for seed in (0, 1)]
    runs.append(result("other", "dipole", 0, {(1.0, 1): [0.5] * 5}, chosen=(1.0, 1)))
    lines = comparison_tables(scores_of(runs), "offline")
    assert lines[-1].startswith("| dipole | 1 | 27.5 | ")


def test_a_group_of_tasks_has_its_mean_with_a_single_method_too() -> None:
    tasks = {f"scene-task{k}": TaskConfig(group="scene") for k in (1, 2)}
    runs = [result(name, "dipole", s, {(1.0, 1): [0.2] * 5}, chosen=(1.0, 1)) for name in tasks for s in (0, 1)]
    lines = comparison_tables(scores_of(runs, tasks=tasks), "offline")
    assert "**scene**, 1 candidate:" in lines and lines[-1].startswith("| dipole | 1 | 20.0 [20.0, 20.0] |")


def test_a_diverged_seed_stays_in_the_learning_curve() -> None:
    """Else the curve of the survivors would pass for the method's."""
    lost = run(1, {(1.0, 1): [0.5, 0.9]}, status="diverged")
    found = scores_of([run(0, {(1.0, 1): [0.1, 0.2, 0.3, 0.4, 0.5]}), lost])
    curve = found.curve("maze", "dipole", 1)[1]
    assert [(point.learner_steps, point.score) for point in curve] == [
        *((100, 50.0), (200, 90.0)),
        *((300, 0.0), (400, 0.0), (500, 0.0)),
    ]


def test_a_diverged_seed_is_carried_on_as_far_as_its_own_method_goes() -> None:
    """Another method that trains on for longer, or online, has no part in it."""
    other = result("maze", "longer", 0, {(1.0, 1): [0.5] * 4}, chosen=(1.0, 1), points=ONLINE)
    lost = run(1, {(1.0, 1): [0.5]}, status="diverged", phase="offline")
    short = run(0, {(1.0, 1): [0.5] * 2}, points=OFFLINE[:2])
    found = scores_of([short, lost, other])
    assert [point.learner_steps for point in found.curve("maze", "dipole", 1)[1]] == [100, 200]


def test_the_baseline_is_not_compared_with_itself_where_its_omega_differs_by_task() -> None:
    runs = [
        result(task, "dipole", seed, {(1.0, 1): [0.5] * 5, (2.0, 1): [0.5] * 5}, chosen=(omega, 1))
        for task, omega in (("lift", 1.0), ("push", 2.0))
        for seed in (0, 1)
    ]
    lines = comparison_tables(scores_of(runs, baseline="dipole"), "offline")
    assert [line for line in lines if line.startswith("| dipole")] == [
        "| dipole | 1 | 50.0 [50.0, 50.0] | 50.0 [50.0, 50.0] | - | - |"
    ]


def test_the_switch_is_read_off_a_curve() -> None:
    """As many evaluations before and after: the lowest of many would be low by chance alone."""
    points = [("offline", 0, 0.9), ("offline", 0, 0.3), ("offline", 0, 0.5)]
    points += [("online", 5, 0.1), ("online", 9, 0.3), ("online", 12, 0.8), ("online", 15, 0.6)]
    curve = [Point(phase, steps, env_steps, score) for steps, (phase, env_steps, score) in enumerate(points)]
    assert switch_of(curve, 2) == pytest.approx((0.4, 0.2, 0.7, 9))
    assert switch_of(curve[:4], 2) is None and switch_of(curve[:3], 1) is None
    runs = [run(seed, {(1.0, 1): [0.5 + 0.1 * seed] * 4}, points=ONLINE) for seed in (0, 1)]
    lost = [run(seed, {(1.0, 1): [0.9]}, points=ONLINE, status="diverged", phase="offline") for seed in (2, 3)]
    row = switch_table(scores_of([*runs, *lost], evaluations=2))[-1]  # what diverged before met no switch
    same, none = "55.0 [50.0, 60.0]", "+0.0 [+0.0, +0.0]"
    assert row.endswith(f"| 1 | {same} | {same} | {none} | 200 | {same} | {none} |")


def test_the_tidy_table_has_a_row_a_seed_and_cell_and_its_means_are_those_of_the_tables(tmp_path: Path) -> None:
    cells = {(None, 1): [0.1] * 5, (0.0, 1): [0.2] * 5, (1.0, 1): [0.3] * 5}
    runs = [result("maze", "dipole", seed, cells, chosen=(1.0, 1)) for seed in (0, 1)]
    runs.append(result("maze", "dipole", 2, {(1.0, 1): [0.9]}, chosen=(1.0, 1), status="diverged"))
    found = scores_of(runs, tasks={"maze": TaskConfig(group="mazes")})
    found.frame().to_csv(tmp_path / "mine.csv", index=False)
    read = pd.read_csv(tmp_path / "mine.csv")
    assert len(read) == 3 * 3 and set(read.group) == {"mazes"} and set(read.phase) == {"offline"}
    named = read[read.is_named]
    assert list(named.omega) == [1.0] * 3 and list(named.score) == [30.0, 30.0, 0.0]
    assert named.score.mean() == found.of("maze", "dipole", ONE, "offline").mean()
    assert list(read[read.policy == "bc"].score) == pytest.approx([10.0, 10.0, 0.0])
