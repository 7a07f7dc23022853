"""What a score is: which evaluations, which omega, and what a run counts that diverged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dipole_ray.bench.board import Way
from dipole_ray.bench.config import MethodConfig, TaskConfig
from dipole_ray.bench.tables import comparison_tables, paper_table, score_table, switch_of, training_table
from tests.bench.results import OFFLINE, board, key_of, result

ONE, MANY = Way("named", 1), Way("named", 16)
ONLINE = (*OFFLINE[:2], ("online", 300, 100), ("online", 400, 200))


def run(seed: int, values: dict[tuple[float | None, int], list[float]], **changes: Any) -> dict[str, Any]:
    chosen = (1.0, 16) if (1.0, 16) in values else next(iter(values))
    return result("maze", "dipole", seed, values, chosen=chosen, **changes)


def test_a_score_is_the_mean_of_the_last_evaluations_in_per_cent() -> None:
    one = run(0, {(1.0, 1): [0, 0, 0.3, 0.6, 0.9], (1.0, 16): [0, 0, 0, 0, 1]})
    found = board([one], evaluations=3)
    assert found.scores("maze", "dipole", ONE, "offline") == pytest.approx([60.0])
    assert found.scores("maze", "dipole", MANY, "offline") == pytest.approx([100 / 3])
    assert board([one], evaluations=1).scores("maze", "dipole", ONE, "offline") == pytest.approx([90.0])


def test_phases_are_scored_apart() -> None:
    found = board([run(0, {(1.0, 1): [0.2, 0.4, 0.0, 1.0]}, points=ONLINE)], evaluations=2)
    assert found.phases() == ["offline", "online"]
    assert found.scores("maze", "dipole", ONE, "offline") == pytest.approx([30.0])
    assert found.scores("maze", "dipole", ONE, "online") == pytest.approx([50.0])


def test_named_omega_is_the_configs_own_with_any_number_of_candidates() -> None:
    values = {(0.0, 1): [0.1] * 5, (1.0, 1): [0.2] * 5, (0.0, 16): [0.3] * 5, (1.0, 16): [0.4] * 5}
    found = board([run(0, values)])
    assert found.candidates() == [1, 16]
    assert found.scores("maze", "dipole", ONE, "offline") == pytest.approx([20.0])
    assert found.scores("maze", "dipole", MANY, "offline") == pytest.approx([40.0])
    assert len(found.scores("maze", "dipole", Way("tuned", 1), "offline")) == 0, (
        "one seed has no others to be chosen by"
    )


def test_tuned_omega_is_chosen_without_the_seed_it_is_reported_on() -> None:
    # Omega 2 is best on average, only because of seed 0, and 1 by the two others.
    scores = {0: (0.2, 1.0), 1: (0.6, 0.3), 2: (0.6, 0.3)}
    runs = [run(seed, {(1.0, 1): [a] * 5, (2.0, 1): [b] * 5}) for seed, (a, b) in scores.items()]
    found = board(runs)
    # For seed 0 the others choose 1; for seeds 1 and 2 seed 0 tips the scale to 2.
    assert found.tuned("maze", "dipole", 1, "offline") == [
        (1.0, pytest.approx(20.0)),
        (2.0, pytest.approx(30.0)),
        (2.0, pytest.approx(30.0)),
    ]
    selected_and_reported_on_the_same = np.mean([1.0, 0.3, 0.3]) * 100
    assert found.scores("maze", "dipole", Way("tuned", 1), "offline").mean() < selected_and_reported_on_the_same


def test_tuning_on_noise_gives_no_gain() -> None:
    """Many omegas that do not matter: the best in sight looks good, the tuned one is what it is."""
    generator = np.random.default_rng(0)
    omegas = np.linspace(0, 4, 20)
    runs = [run(s, {(float(o), 1): [float(generator.normal(0.5, 0.1))] * 5 for o in omegas}) for s in range(40)]
    for one in runs:
        one["chosen"] = key_of(0.0, 1)
    found = board(runs)
    tuned = found.scores("maze", "dipole", Way("tuned", 1), "offline")
    assert abs(tuned.mean() - 50) < 3 * 10 / np.sqrt(40)
    in_sight = [max(100 * c["success"] for c in one["evaluations"][-1]["scores"].values()) for one in runs]
    assert np.mean(in_sight) > 60


def test_a_diverged_run_counts_with_the_worst_of_the_phase_it_diverged_in() -> None:
    lost = run(1, {(1.0, 1): [0.9]}, status="diverged")
    found = board([run(0, {(1.0, 1): [0.8] * 5}), lost])
    assert found.scores("maze", "dipole", ONE, "offline") == pytest.approx([80.0, 0.0])
    returns = {"measure": "return", "points": OFFLINE}
    runs = [run(0, {(1.0, 1): [-50.0] * 5}, **returns), run(1, {(1.0, 1): [7.0]}, status="diverged", **returns)]
    other = result("maze", "bc", 0, {(None, 1): [-300.0] * 5}, chosen=(None, 1), **returns)
    found = board([*runs, other], metric="return")
    assert found.scores("maze", "dipole", ONE, "offline") == pytest.approx([-50.0, -300.0])
    lost = run(1, {(1.0, 1): [0.2, 0.4, 0.9]}, points=ONLINE, status="diverged")
    found = board([lost], evaluations=1)
    assert found.scores("maze", "dipole", ONE, "offline") == pytest.approx([40.0]), "what it had before is its own"
    assert found.scores("maze", "dipole", ONE, "online") == pytest.approx([0.0])
    lost = run(1, {(1.0, 1): []}, status="diverged")
    assert board([lost]).scores("maze", "dipole", ONE, "offline") == pytest.approx([0.0])
    assert any("1, 1 diverged" in line for line in score_table(board([lost]), "offline"))


def test_a_method_may_show_runs_of_another_in_its_own_way() -> None:
    ifql = result("maze", "ifql", 0, {(None, 1): [0.1] * 5, (None, 16): [0.7] * 5}, chosen=(None, 16))
    methods = {"ifql": MethodConfig(), "bc": MethodConfig(runs_of="ifql", candidates=(1,))}
    found = board([ifql], methods=methods)
    assert found.scores("maze", "bc", ONE, "offline") == pytest.approx([10.0])
    assert len(found.scores("maze", "bc", MANY, "offline")) == 0
    assert sum("| bc |" in line for line in score_table(found, "offline")) == 1
    assert not any("| bc |" in line for line in training_table(found)), "its training is the other's"


def test_a_method_may_show_one_omega_of_anothers_runs() -> None:
    cells = {(0.0, 1): [0.1] * 5, (1.0, 1): [0.9] * 5}
    runs = [result("maze", "dipole", seed, cells, chosen=(1.0, 1)) for seed in (0, 1)]
    methods = {"dipole": MethodConfig(), "positive": MethodConfig(runs_of="dipole", omega=0.0)}
    found = board(runs, methods=methods)
    assert found.scores("maze", "dipole", ONE, "offline") == pytest.approx([90.0, 90.0])
    assert found.scores("maze", "positive", ONE, "offline") == pytest.approx([10.0, 10.0])
    assert any("| positive | 0 | 10.0" in line for line in score_table(found, "offline")), "the omega that it shows"
    assert list(found.omegas("maze", "positive", 1)) == [0.0] and found.tuned("maze", "positive", 1, "offline") == []


def test_tasks_are_made_comparable_by_their_full_scores_or_not_at_all() -> None:
    returns = {"measure": "return", "chosen": (1.0, 1)}
    runs = [
        result("a", "m", 0, {(1.0, 1): [500.0] * 5}, **returns),
        result("b", "m", 0, {(1.0, 1): [25.0] * 5}, **returns),
    ]
    found = board(runs, metric="return", tasks={"a": TaskConfig(full_score=1000), "b": TaskConfig(full_score=250)})
    both = found.compared("m", ONE, "offline", ["a", "b"])
    assert both is not None and [list(scores) for scores in both] == [[50.0], [10.0]]
    assert found.compared("m", ONE, "offline", ["a"]) is not None
    assert board(runs, metric="return").compared("m", ONE, "offline", ["a", "b"]) is None


def test_published_numbers_stand_beside_ours_of_the_same_name() -> None:
    tasks = {f"scene-task{k}": TaskConfig(group="scene") for k in (1, 2)}
    runs = [
        result(name, "dipole", 0, {(1.0, 1): [0.2] * 5, (1.0, 32): [share] * 5}, chosen=(1.0, 32))
        for name, share in zip(tasks, (0.4, 0.8), strict=True)
    ]
    lines = paper_table(board(runs, tasks=tasks), {"scene": {"iql": 28, "dipole_1": 50, "dipole": 60}}, "offline")
    assert lines[0] == "|  | iql | dipole, 1 candidate | dipole |"
    assert lines[2] == "| scene | 28 | 50 (20.0) | 60 (60.0) |"


def test_comparisons_name_the_baseline_and_skip_it() -> None:
    runs = [
        result("maze", method, seed, {(None, 1): [base + 0.1 * seed] * 5}, chosen=(None, 1))
        for method, base in (("weak", 0.1), ("strong", 0.6))
        for seed in range(3)
    ]
    lines = comparison_tables(board(runs, baseline="weak"), "offline")
    weak = next(line for line in lines if line.startswith("| weak"))
    strong = next(line for line in lines if line.startswith("| strong"))
    assert weak.endswith("| - | - |") and "+50.0" in strong and strong.endswith("1.00 [1.00, 1.00] |")


def test_the_switch_is_read_off_a_curve() -> None:
    curve = [("offline", 1, 0, 0.3), ("offline", 2, 0, 0.6), ("online", 3, 5, 0.4), ("online", 4, 9, 0.1)]
    assert switch_of([*curve, ("online", 5, 12, 0.9)]) == (0.6, 0.4, 0.1, 9.0, 0.9)
    assert switch_of(curve[:2]) is None
