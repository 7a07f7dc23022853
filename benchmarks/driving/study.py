"""Driving over seeds: the clone, DIPOLE at rising omega, exp weights and a policy gradient, in towns and on the test.

    dipole drive record --map berlin --scenes 1200 --seed 0
    dipole drive record --map koenigs_wusterhausen --scenes 1600 --seed 0
    dipole drive record --map ingolstadt --scenes 300 --seed 0
    dipole drive record --map braunschweig --scenes 600 --seed 0
    python -m benchmarks.driving.study --out benchmarks/results

Of each seed one clone is made, and all methods begin as it. They learn in the training towns and are stopped by the
validation town; `dipole on the test scenes` learns from the plans that it draws in the test scenes themselves, as the
paper's highest row does, without the drivers' plans there, and is stopped by them; another row has those, too. All
drive in the test scenes, one plan a scene or the best of 16 by the learned score. What is finished is not done again:
the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.driving.study_table import GUIDED, NAMES, file_of, write_study
from dipole_ray.driving.anchors import score_anchors
from dipole_ray.driving.container import SceneFolder, joined_status
from dipole_ray.driving.ego_status import clone_drivers, plans_of
from dipole_ray.evaluation.cells import EvalConfig
from dipole_ray.evaluation.parallel import evaluate_policy
from dipole_ray.runs.config import load
from dipole_ray.runs.run import Run
from dipole_ray.runs.start import resume_run, start_run
from dipole_ray.serving.policy import load_policy

OMEGAS, CHOSEN = (0.0, 0.5, 1.0, 2.0, 4.0), 1.0  # CHOSEN was named before anything was measured
CANDIDATES = (1, 16)
DIPOLE, EXP, POLICY_GRADIENT, ON_TEST, ON_TEST_AND_DRIVERS = NAMES
LIMITS = {  # five rounds of 300 scenes, with 200 updates each, of the last three rounds and as many driven plans
    "training.online_env_steps": 16500,
    "training.env_steps_per_iteration": 3300,
    "training.updates_per_env_step": 0.0607,
    "training.replay_capacity": 19800,
    "evaluation.every_learner_steps": 200,
    "evaluation.omegas": f"[{CHOSEN}]",
    "evaluation.episodes": 300,
    "evaluation.interval_episodes": 300,
}
DRAWN_ALONE = {  # 300 scenes with 10 drawn plans
    "env.driving.logged_plan": "false",
    "training.online_env_steps": 15000,
    "training.env_steps_per_iteration": 3000,
    "training.updates_per_env_step": 0.0668,
}
WITHOUT_OMEGA = {"agent.omega": 0, "evaluation.omegas": "[0.0]"}
GRADIENT = {
    **{
        "agent.weight_scheme": "dppo",
        "agent.beta": 1.0,
        "training.replay_capacity": 6000,
        "rollout.fragment_steps": 30,
    },
    **DRAWN_ALONE,
    **WITHOUT_OMEGA,
}
METHODS: dict[str, dict[str, Any]] = {
    DIPOLE: {},
    EXP: {"agent.weight_scheme": "exp", **WITHOUT_OMEGA},
    ON_TEST: {**DRAWN_ALONE, "training.offline_fraction": 0.0},
    ON_TEST_AND_DRIVERS: {},
    POLICY_GRADIENT: GRADIENT,
}


@dataclass(frozen=True, slots=True)
class Study:
    """Where scenes are, and where runs go."""

    train: tuple[str, ...]
    validation: str
    test: str
    runs: Path
    extra: tuple[str, ...]

    def run(self, name: str, seed: int, **settings: Any) -> Run:
        """Return a run, which is made, or goes on, or was finished before."""
        found = sorted(self.runs.glob(f"{name}-seed{seed}-2*"))
        if found:
            return resume_run(found[-1], [])
        places = {"folder": self.runs, "data.cache": self.runs / "cache", "tracking.mlflow": "false"}
        scenes = {"env.driving.scenes": _list(self.train), "env.driving.validation": _list([self.validation])}
        own = {"name": f"{name}-seed{seed}", "seed": seed, "rollout.num_workers": 0}
        given = {**places, **scenes, **own, **settings}
        return start_run(load("drive_small", [f"{key}={value}" for key, value in given.items()] + list(self.extra)))

    def clone(self, seed: int) -> Path:
        """Return the file of a seed's cloned network."""
        made = self.run("clone", seed, **{"training.online_env_steps": 0})
        (backbone,) = (made.folder / "checkpoints").glob("backbone-*.safetensors")
        return backbone

    def measure(self, method: str, seed: int) -> None:
        """Train a method from its seed's clone and note what its plans score in every scene, unless that is done."""
        out = file_of(self.runs, method, seed)
        if out.is_file():
            return
        settings = {**LIMITS, **METHODS[method]}
        if method in (ON_TEST, ON_TEST_AND_DRIVERS):
            settings |= {f"env.driving.{name}": _list([self.test]) for name in ("scenes", "validation")}
        settings |= {"agent.backbone.path": self.clone(seed), "training.clone_learner_steps": 0}
        settings["agent.learned_score"] = "true"
        made = self.run(method.replace(" ", "_"), seed, **settings)
        asked = EvalConfig(
            episodes=10**6, omegas=OMEGAS if method in GUIDED else (0.0,), candidates=CANDIDATES, seed=1000
        )
        rows: dict[str, Any] = {}
        for one in evaluate_policy(load_policy(made.folder).driving_in([self.test]), asked):
            cell = one.cell
            scores = np.stack(list(one.measures.values()), axis=1)
            rows |= {f"{cell.policy}|{cell.omega}|{cell.candidates}": scores, "logs": np.array(one.clusters)}
        at_stop = {row["method"]: row["return"] for row in made.evaluation["online"]}
        rows |= {f"validation|{name}": np.array(score) for name, score in at_stop.items()}
        rows["rounds"] = np.array(made.algorithm.env_steps / int(settings["training.env_steps_per_iteration"]))
        np.savez(out.with_suffix(".part.npz"), **rows)
        out.with_suffix(".part.npz").replace(out)

    def anchors(self) -> dict[str, np.ndarray]:
        """Return what others score in the test scenes, (scenes, 7) each."""
        status = joined_status([SceneFolder(Path(one)) for one in self.train])
        test = SceneFolder(Path(self.test))
        learned = plans_of(clone_drivers(status, seed=0), test.status())
        found = score_anchors(test, "clipped", {"ego-status MLP": learned})
        return {"logs": np.array(found[0].logs)} | {one.name: one.scores for one in found}


def _list(names: Sequence[str]) -> str:
    return f"[{','.join(str(Path(name).resolve()) for name in names)}]"


def main() -> None:
    """Run what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train", nargs="+", default=["koenigs_wusterhausen-0", "berlin-0"], help="folders to learn from"
    )
    parser.add_argument("--validation", default="ingolstadt-0")
    parser.add_argument("--test", default="braunschweig-0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path("runs/drive_study"), help="where runs go, and their scores")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where the results go")
    parser.add_argument("--table", action="store_true", help="run nothing, write the tables of what is there")
    parser.add_argument("settings", nargs="*", help="further settings of the runs")
    given = parser.parse_args()
    study = Study(tuple(given.train), given.validation, given.test, given.runs.resolve(), tuple(given.settings))
    study.runs.mkdir(parents=True, exist_ok=True)
    for seed in () if given.table else given.seeds:
        for method in given.methods:
            print(f"study: {method}, seed {seed}", file=sys.stderr, flush=True)
            study.measure(method, seed)
    anchors = study.runs / "anchors.npz"
    if not anchors.is_file():
        np.savez(anchors, **study.anchors())
    sizes = [len(SceneFolder(Path(folder))) for folder in (*given.train, given.validation, given.test)]
    write_study(given.out, study.runs, given.seeds, sizes, CHOSEN)


if __name__ == "__main__":
    main()
