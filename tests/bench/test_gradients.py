"""What benchmarks.gradients says of a training is what autograd says, for whole fields and for adapters alike."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gradients.cases import cases_of
from benchmarks.gradients.judged import Case, JudgedPlans, Learners
from benchmarks.gradients.measure import EQUAL_BETA, Scheme, trained
from benchmarks.gradients.report import text
from dipole_ray.agents import flow
from dipole_ray.driving.group import group_advantages

SCENES, PLANS = 12, 4
CLONING, SIGMOID, EXP = Scheme("exp", EQUAL_BETA), Scheme("dipole", 3.0), Scheme("exp", 3.0, math.inf)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> JudgedPlans:
    random = np.random.default_rng(0)
    columns = {"folders": np.array(["made"])}
    for part in ("", "held_out_"):
        columns |= {
            f"{part}ego": random.normal(size=(SCENES, 5)).astype(np.float32),
            f"{part}context": random.normal(size=(SCENES, 3, 6)).astype(np.float16),
            f"{part}actions": random.uniform(-1, 1, (SCENES, PLANS, 8)).astype(np.float32),
            f"{part}advantages": group_advantages(random.random((SCENES, PLANS))),
        }
    file: Path = tmp_path_factory.mktemp("plans") / "plans.npz"
    np.savez(file, **columns)
    return JudgedPlans(file, "cpu")


@pytest.mark.parametrize(
    ("network", "is_adapted"), [pytest.param("mlp", False, marks=pytest.mark.slow), ("tiny", True)]
)
def test_the_gradient_of_the_positive_field_is_autograds(plans: JudgedPlans, network: str, is_adapted: bool) -> None:
    case = Case(plans, network, "cpu", clone_updates=2)
    learners, found = Learners(case, is_adapted), {}
    for scheme in (CLONING, SIGMOID, EXP, CLONING):  # again: nothing of a training is left in the next
        found[scheme] = trained(learners.fresh(scheme, 7), scheme, case.batches(7), case.probe, 1, math.inf)
        agent, batch = learners.fresh(scheme, 7), next(case.batches(7))
        noise = torch.randn(batch["actions"].shape, generator=agent.generator)
        t = torch.rand(len(noise), 1, generator=agent.generator)
        x, target = flow.path_point(noise, batch["actions"], t), flow.path_velocity(noise, batch["actions"])
        velocity = agent.networks.fields(batch["observations"], x, t)[0]
        a = scheme.beta * batch["rewards"]
        weights = torch.sigmoid(a) if scheme == SIGMOID else torch.exp(a)
        loss = (weights * (velocity - target).square().mean(-1)).mean()
        own = [each for name, each in agent.networks.trained_parameters().items() if "negative" not in name]
        own = own[: len(own) // 2] if scheme == SIGMOID and not is_adapted else own  # pi+ is the first of two networks
        squares = sum(float(each.square().sum()) for each in torch.autograd.grad(loss, own))
        expected = math.sqrt(squares / sum(each.numel() for each in own))
        assert found[scheme]["gradient"]["median"] == pytest.approx(expected, rel=2e-3)
        assert found[scheme]["loss"]["median"] == pytest.approx(float(loss.detach()), rel=2e-3)
        parts = found[scheme]["kinds"].values()
        assert sum(part["parameters"] for part in parts) == found[scheme]["parameters"]
        assert sum(part["parameters"] * part["median"] ** 2 for part in parts) == pytest.approx(squares, rel=5e-3)
    assert found[EXP]["gradient"]["median"] > 3 * found[SIGMOID]["gradient"]["median"]
    starts = {run["held_out"]["error"][0] for run in found.values()}
    assert len(starts) == 1, "every scheme begins with the same clone"


def test_a_training_cut_short_is_named_and_left_out() -> None:
    def run(scheme: Scheme, updates: int) -> dict[str, Any]:
        spread = {"median": 2.0, "max": 2.0}
        held_out = {"update": [0, updates], "error": [1.0, 0.5], "error_of_better": [1.0, 0.5]}
        found = {"scheme": scheme.name, "updates": updates, "parameters": 10, "diverged": False, "skipped": 0}
        found |= {"gradient": spread, "effective": spread, "loss": spread, "kinds": {}, "held_out": held_out}
        return {"task": "driving", "network": "base", "adapted": False, "seed": 0, **found}

    runs = [run(CLONING, 80), run(SIGMOID, 21), run(EXP, 80)]
    cases = cases_of(runs)
    assert list(cases["driving", "base", False]) == [CLONING.name, EXP.name]
    made = {"date": "2026-11-27", "command": "x", "gpu": "none", "versions": {"torch": "2"}, "commit": None}
    report = text([{**made, "clone_updates": 1, "runs": runs}], cases)
    assert "3 trainings" in report
    assert "left out: base, sigmoid, beta 3" in report
    assert "| sigmoid, beta 3 | - |" in report
