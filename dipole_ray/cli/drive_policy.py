"""`dipole drive plan` and `agent`: a policy's plans in a file, and the policy as an agent of NAVSIM's evaluation."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from dipole_ray.cli.command import add_command, refusal, require_place
from dipole_ray.errors import ConfigError, DipoleError, counted

_PLAN = """\
Write a policy's plan for each scene of a folder, as a file that dipole drive score and show read.

examples:
  dipole drive plan runs/RUN braunschweig-0 --omega 1 --out omega1.npz
  dipole drive score omega1.npz braunschweig-0 --bearing clipped --csv scores.csv

The plans are those of dipole evaluate with the same seed, omega and candidates.
"""
_AGENT = """\
Write a policy as an agent of NAVSIM v1.1: a Python file and its Hydra config, for your own checkout of NAVSIM, which
then evaluates it and writes the submission.

examples:
  dipole drive agent runs/RUN --out dipole-agent
  dipole drive agent runs/RUN --out dipole-agent --weights Florence-2-large --device cuda

An agent is shown the car's motion, the command and its sensors: so the policy has to observe status, or large (tiny, in
tests). NAVSIM's environment needs nothing of ours: the policy plans in a process of this Python, which the agent
starts, from the run where it lies now. Plans are those of dipole evaluate with the same seed, omega and candidates.
"""


def add_policy_commands(commands: Any) -> None:
    """Add the two commands to those of `dipole drive`."""
    plan = add_command(commands, "plan", run_plan, _PLAN)
    _add_acting(plan)
    plan.add_argument("scenes", metavar="FOLDER", type=Path, help="folder of scenes")
    plan.add_argument("--out", metavar="FILE", type=Path, required=True, help="file to write, .npz")
    agent = add_command(commands, "agent", run_agent, _AGENT, help="write a policy as an agent of NAVSIM v1.1")
    _add_acting(agent)
    agent.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="folder for the agent's two files")
    agent.add_argument("--weights", metavar="FOLDER", type=Path, help="of the encoder, for a policy that sees by large")
    agent.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it computes (default: cpu)")


def _add_acting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="RUN", help="run or checkpoint folder")
    parser.add_argument("--omega", type=float, metavar="W", help="greediness (default: the run's)")
    parser.add_argument("--candidates", type=int, metavar="N", help="plans a scene to choose from (default: the run's)")
    parser.add_argument("--steps", type=int, metavar="K", help="steps of the flow's solver (default: the run's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the policy's noise (default: 0)")


def run_plan(arguments: argparse.Namespace) -> int:
    """Write a policy's plans for the scenes of a folder."""
    import numpy as np

    from dipole_ray.driving.scene_set import SceneSet
    from dipole_ray.evaluation.planner import cell_of
    from dipole_ray.evaluation.plans import planned
    from dipole_ray.files.durable import replacing
    from dipole_ray.progress import Progress
    from dipole_ray.serving.policy import load_policy

    require_place("--out", arguments.out)
    if arguments.out.suffix != ".npz":
        raise ConfigError(f"--out {arguments.out}: a file of plans ends in .npz")
    acting: dict[str, Any] = {} if arguments.steps is None else {"denoise_steps": arguments.steps}
    trained = load_policy(arguments.policy, **acting).driving_in([str(arguments.scenes)])
    cell = cell_of(trained.policy.config, arguments.omega, arguments.candidates, arguments.seed)
    scenes = SceneSet([arguments.scenes], trained.env.driving.observation)
    plans = {}
    with Progress("plan", len(scenes), "scenes") as progress:
        how: Any = {"seed": arguments.seed, "actions": trained.env.driving.actions}
        for one, _, drawn in planned(trained.policy, scenes, range(len(scenes)), [cell], **how):
            plans[one.token] = drawn[0, 0]
            progress.advance()
    try:
        with replacing(arguments.out) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, tokens=np.array([*plans]), plans=np.stack([*plans.values()]))
    except OSError as error:
        raise refusal("--out", arguments.out, error) from error
    print(f"{arguments.out}: {counted(len(plans), 'plan')} at {cell}")
    how = f"--bearing {trained.env.driving.bearing} --csv scores.csv"
    print(f"next: dipole drive score {arguments.out} {arguments.scenes} {how}")
    return 0


def run_agent(arguments: argparse.Namespace) -> int:
    """Write a policy as an agent of NAVSIM's."""
    import numpy as np

    import dipole_ray
    from dipole_ray.driving.cameras import VIEWS
    from dipole_ray.driving.contexts import default_folder, encoder_of
    from dipole_ray.driving.scene_set import place_of
    from dipole_ray.evaluation import planner
    from dipole_ray.files.durable import write_text
    from dipole_ray.files.place import absolute
    from dipole_ray.serving.policy import load_policy
    from dipole_ray.settings import from_mapping

    settings = {name: getattr(arguments, name) for name in ("omega", "candidates", "steps", "seed", "device")}
    settings |= {"run": str(absolute(arguments.policy))}
    if arguments.weights is not None:
        settings["weights"] = str(absolute(arguments.weights))
    driving = load_policy(arguments.policy).env.driving
    if driving.observation in planner.PICTURED:
        try:
            settings["encoder"] = encoder_of(default_folder(place_of(driving.scenes[0]), driving.observation))
        except DipoleError as error:
            print(
                f"whether these weights are those that the policy learned with is not known: {error}", file=sys.stderr
            )
    tried = planner.Planner(from_mapping(planner.PlannerConfig, settings, "agent"))
    sees_pictures = tried.kind in planner.PICTURED
    dark = [np.zeros((8, 8, 3), np.uint8)] * len(VIEWS) if sees_pictures else []
    tried(np.zeros((4, 4)), np.zeros((4, 3)), "straight", dark)
    import yaml

    config = {
        "_target_": "dipole_agent.DipoleAgent",
        "_convert_": "all",
        "python": sys.executable,
        "packages": str(Path(dipole_ray.__file__).parent.parent),
        "sees_pictures": sees_pictures,
        "settings": settings,
    }
    out = absolute(arguments.out)
    try:
        (out / "agent").mkdir(parents=True, exist_ok=True)
        write_text(out / "agent" / "dipole.yaml", yaml.safe_dump(config, sort_keys=False))
        shutil.copyfile(Path(planner.__file__).with_name("navsim_agent.py"), out / "dipole_agent.py")
    except OSError as error:
        raise refusal("--out", arguments.out, error) from error
    print(_NEXT.format(out=out, worker=" worker=sequential" if sees_pictures else ""))
    return 0


_NEXT = """\
file      {out}/dipole_agent.py
file      {out}/agent/dipole.yaml

in NAVSIM's environment (v1.1), with its variables set:
  export PYTHONPATH={out}:$PYTHONPATH SCRIPTS=$NAVSIM_DEVKIT_ROOT/navsim/planning/script
  python $SCRIPTS/run_pdm_score.py --config-dir={out} agent=dipole train_test_split=navtest \\
      experiment_name=dipole{worker}
  python $SCRIPTS/run_create_submission_pickle.py --config-dir={out} agent=dipole train_test_split=navtest \\
      experiment_name=submission team_name=NAME authors=NAMES email=ADDRESS institution=NAME country=NAME"""
