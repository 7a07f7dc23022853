"""`dipole evaluate`: one checkpoint over a grid of omega and candidates; neither costs any training."""

import argparse
from pathlib import Path
from typing import Any

from dipole_ray.cli.command import add_command, require_place, write_file

_EPILOG = """\
examples:
  dipole evaluate runs/quickstart-20260101-120000
  dipole evaluate RUN --omega 0 0.5 1 2 --candidates 1 16 --episodes 50 --json table.json
  dipole evaluate RUN/checkpoints/000004000 --omega 1 --candidates 16 --videos 3
  dipole evaluate RUN --scenes braunschweig-0 --episodes 500

omega is the greediness of the guided policy (0 is pi+ alone), candidates the actions sampled per step, of which the
one with the highest Q, or learned score, is taken; 1 candidate is the result without rejection sampling. Every cell
starts its episodes from the same states. BC rows are included where the run trained a behaviour-cloned field.
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the parsers of `dipole`."""
    text = "Evaluate a trained policy."
    summary = "evaluate one checkpoint over a grid of omega and candidates"
    parser = add_command(subparsers, "evaluate", run_evaluate, text, help=summary, epilog=_EPILOG)
    parser.add_argument("policy", metavar="RUN", type=Path, help="a run's folder, or one checkpoint's")
    parser.add_argument("--omega", nargs="+", type=float, metavar="X", help="each >= -1 (default: 0 0.5 1 2)")
    parser.add_argument("--candidates", nargs="+", type=int, metavar="N", help="actions per step (default: 1 16)")
    parser.add_argument("--steps", type=int, metavar="K", help="steps of the flow's solver (default: the run's)")
    parser.add_argument("--solver", choices=["euler", "midpoint"], help="how the flow is followed (default: the run's)")
    parser.add_argument("--episodes", type=int, default=50, help="episodes per cell (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of start states and policy noise (default: 0)")
    text = "scenes to drive in, of a policy that drives (default: the run's validation scenes)"
    parser.add_argument("--scenes", nargs="+", metavar="FOLDER", help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--videos", type=int, default=0, metavar="N", help="record N episodes of each cell as MP4")


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate, print the table, and write rows and videos where asked."""
    from dipole_ray.envs.make import env_dims
    from dipole_ray.errors import ConfigError
    from dipole_ray.evaluation import report
    from dipole_ray.evaluation.cells import EvalConfig
    from dipole_ray.evaluation.parallel import evaluate_policy
    from dipole_ray.evaluation.table import rows_of
    from dipole_ray.files.durable import json_text
    from dipole_ray.serving.policy import load_policy
    from dipole_ray.settings import from_mapping

    given = {"episodes": arguments.episodes, "seed": arguments.seed}
    given |= {"omegas": arguments.omega, "candidates": arguments.candidates}
    config = from_mapping(EvalConfig, {key: value for key, value in given.items() if value is not None}, "evaluation")
    require_place("--json", arguments.json)
    changes = {"denoise_steps": arguments.steps, "solver": arguments.solver}
    acting = {key: value for key, value in changes.items() if value is not None}
    trained = load_policy(arguments.policy, **acting)
    if max(arguments.candidates or [1]) > 1 and not trained.policy.config.has_critic:
        remedy = "leave it out, give 1, or train with agent.learned_score=true"
        raise ConfigError(f"--candidates: this policy has no critics that could choose; {remedy}")
    if arguments.scenes:
        trained = trained.driving_in(arguments.scenes)
    results = evaluate_policy(trained, config)
    rows = rows_of(results, trained.policy.config, config.confidence, env_dims(trained.env).has_success)
    phase = "online" if trained.env_steps else "offline"
    how = "".join(f", {key} {value}" for key, value in acting.items())
    report.print_table({phase: rows}, title=f"{trained.env.id} after {trained.learner_steps} updates{how}")
    if arguments.json is not None:
        text = json_text([{**row, **acting} for row in report.sort_rows(rows)])
        write_file("--json", arguments.json, text)
        print(f"rows      {arguments.json}")
    if arguments.videos:
        from dipole_ray.evaluation.video import record_run

        for cell in [result.cell for result in results]:
            name = f"{'bc' if cell.omega is None else f'omega-{cell.omega:g}'}-candidates-{cell.candidates}.mp4"
            path = trained.path.parent.parent / "videos" / name
            record_run(trained.path, cell, path, episodes=arguments.videos, seed=arguments.seed, **acting)
            print(f"video     {path}")
    return 0
