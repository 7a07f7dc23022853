"""Make rows of judged plans: a clone's plans for scenes, with noise, beside the driven one, each with its PDM score.

    python -m benchmarks.driving.judged_plans berlin-0 --held-out ingolstadt-0 --out build/gradients/plans.npz

What the first round of `dipole train drive_small` learns from, as a file that can be read without simulators: an MLP on
the car's status is cloned from the drivers, draws ten plans a scene, and these are bent and stretched a little. Scenes
to hold out are of another city, and nothing is learned from them, by the clone neither.

Shapes: S scenes, G plans a scene with the driven one last, 29 numbers of status, 64 tokens of 82, actions of 32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from dipole_ray.agents.agent import Agent, make_agent
from dipole_ray.agents.config import AgentConfig
from dipole_ray.columns import Schema
from dipole_ray.driving.actions import ACTION_DIM, actions_of, explored, plans_of
from dipole_ray.driving.group import group_advantages
from dipole_ray.driving.observations import STATUS_DIM, observe
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.scene_set import SceneSet
from dipole_ray.driving.score import PDMScorer

PLANS, NOISE, CLONE_UPDATES, BATCH = 10, 0.05, 1500, 256
Rows = dict[str, np.ndarray]


def some_scenes(folders: list[Path], count: int) -> list[RecordedScene]:
    """Return as many scenes of each folder, one and the same draw each time."""
    found = []
    for folder in folders:
        scenes = SceneSet([folder])
        share = min(count // len(folders), len(scenes))
        numbers = np.random.default_rng(0).permutation(len(scenes))[:share]
        found += [scenes.read(number) for number in sorted(numbers)]
    return found


def observed(scenes: list[RecordedScene]) -> Rows:
    """Return what is seen of scenes, and the driven plans as actions (S, 32)."""
    seen = [observe(one, "tokens") for one in scenes]
    columns = {name: np.stack([each[name] for each in seen]) for name in ("ego", "context")}
    return {**columns, "driven": actions_of(np.stack([one.human for one in scenes]))}


def cloned(rows: Rows, updates: int) -> Agent:
    """Return an MLP on the status that was cloned from the drivers."""
    config = AgentConfig(weight_scheme="bc", advantage="group", num_candidates=1, batch_size=BATCH, learning_rate=5e-4)
    agent = make_agent(config, Schema(STATUS_DIM, ACTION_DIM), seed=0)
    agent.compile(torch.get_num_threads())
    random, zeros = np.random.default_rng(1), np.zeros(BATCH, np.float32)
    for _ in range(updates):
        picks = random.integers(len(rows["ego"]), size=BATCH)
        seen = rows["ego"][picks]
        both = {"observations": seen, "next_observations": seen, "actions": rows["driven"][picks]}
        agent.update({**both, "rewards": zeros, "masks": zeros}, diagnostics=False)
    return agent


def judged(scenes: list[RecordedScene], rows: Rows, clone: Agent) -> Rows:
    """Return the actions (S, G, 32) of drawn and driven plans, their scores (S, G) and advantages."""
    ego, random = rows["ego"].repeat(PLANS, axis=0), np.random.default_rng(2)
    drawn = explored(plans_of(clone.sample_actions(ego, num_candidates=1).numpy()), NOISE, random)
    actions = np.concatenate([actions_of(drawn).reshape(len(scenes), PLANS, -1), rows["driven"][:, None]], axis=1)
    scored = [PDMScorer(one.scene, "clipped").score(plans_of(own)) for one, own in zip(scenes, actions, strict=True)]
    scores = np.stack([each.pdms for each in scored])
    seen = {name: rows[name] for name in ("ego", "context")}
    return {**seen, "actions": actions, "scores": scores, "advantages": group_advantages(scores)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="SCENES", help="folders of scenes to learn from")
    parser.add_argument("--held-out", nargs="+", type=Path, required=True, help="folders of scenes to measure on")
    parser.add_argument("--scenes", type=int, default=1000, help="to learn from; a fifth as many are held out")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz")
    parser.add_argument("--clone-updates", type=int, default=CLONE_UPDATES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "": some_scenes(options.folders, options.scenes),
        "held_out_": some_scenes(options.held_out, options.scenes // 5),
    }
    rows = {part: observed(scenes) for part, scenes in parts.items()}
    clone = cloned(rows[""], options.clone_updates)
    found: Rows = {"folders": np.array([folder.name for folder in (*options.folders, *options.held_out)])}
    for part, scenes in parts.items():
        table = judged(scenes, rows[part], clone)
        found |= {f"{part}{name}": column for name, column in table.items()}
        drawn, spread = table["scores"][:, :PLANS], (table["advantages"] != 0).any(axis=1)
        words = f"PDMS of drawn plans {drawn.mean():.3f}, best of ten {drawn.max(axis=1).mean():.3f}"
        words += f", driven {table['scores'][:, -1].mean():.3f}, scenes with spread {spread.mean():.3f}"
        print(f"{part or 'to learn from, '}{len(scenes)} scenes: {words}, A up to {table['advantages'].max():.2f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, **found)
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
