"""`dipole drive show`: scenes from above, with the plans of files, of anchors, or of a policy at rising omega."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipole_ray.cli.command import add_command, print_files, require_place
from dipole_ray.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from dipole_ray.driving.container import SceneFolder
    from dipole_ray.driving.recorded import RecordedScene

    Panels = dict[str, np.ndarray]

_SHOW = """\
Draw scenes from above with plans coloured by their PDM score: those of files, of a policy, or else of the anchors.

examples:
  dipole drive show braunschweig-0 --first 4
  dipole drive show braunschweig-0 --tokens 25c18fbe9a6e1aa3 --plans omega0.npz omega1.npz omega4.npz
  dipole drive show braunschweig-0 --policy runs/RUN --omega 0 0.5 1 2 4 --first 2
  dipole drive show braunschweig-0 --policy runs/RUN --first 2 --video rising.mp4

With --policy a panel is an omega, with plans that it draws of the same noise, so that what moves a plan from one panel
to the next is omega alone. The video shows one scene after another at these omegas, a second each.
"""


def add_show_command(commands: Any) -> None:
    """Add the command to those of `dipole drive`."""
    parser = add_command(commands, "show", run_show, _SHOW)
    parser.add_argument("scenes", metavar="FOLDER", type=Path, help="folder of scenes")
    parser.add_argument("--tokens", metavar="TOKEN", nargs="+", default=[], help="the scenes (default: the first ones)")
    parser.add_argument("--first", metavar="N", type=int, default=4, help="how many of the first ones (default: 4)")
    plans = parser.add_mutually_exclusive_group()
    text = "files of plans, .npz or .json; a panel each, in this order"
    plans.add_argument("--plans", metavar="FILE", type=Path, nargs="+", default=[], help=text)
    plans.add_argument("--policy", metavar="RUN", help="run or checkpoint folder, whose plans are drawn")
    text = "greediness of the policy's plans; a panel each (default: 0 0.5 1 2 4)"
    parser.add_argument("--omega", metavar="W", type=float, nargs="+", help=text)
    parser.add_argument("--draws", metavar="N", type=int, default=32, help="plans of the policy's (default: 32)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the policy's noise (default: 0)")
    text = "also write a video of the policy's plans at rising omega, .mp4 or .gif"
    parser.add_argument("--video", metavar="FILE", type=Path, help=text)
    text = "folder for the pictures, TOKEN.png (default: FOLDER/pictures)"
    parser.add_argument("--out", metavar="FOLDER", type=Path, help=text)


def run_show(arguments: argparse.Namespace) -> int:
    """Draw scenes with plans from above."""
    from dipole_ray.driving.container import SceneFolder
    from dipole_ray.plots.driving_video import require_video

    for name in ("first", "draws"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}; at least 1 is needed")
    if arguments.policy is None:
        for name in ("omega", "video"):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name} is of a policy's plans; give --policy RUN as well")
    if arguments.video is not None:
        require_video(arguments.video)
        require_place("--video", arguments.video)
    folder = SceneFolder(arguments.scenes)
    tokens = arguments.tokens or folder.tokens[: arguments.first]
    if not tokens:
        raise ConfigError(f"{arguments.scenes}: has no scenes to draw")
    for token in tokens:
        folder.require(token)
    drawn = _given(folder, tokens, arguments) if arguments.policy is None else _planned(folder, tokens, arguments)
    files = [*_pictures(folder, drawn, arguments)]
    print_files(files)
    return 0


def _pictures(
    folder: "SceneFolder", drawn: "Iterator[tuple[RecordedScene, Panels]]", arguments: argparse.Namespace
) -> "Iterator[Path]":
    """Write a picture of each scene, and the video of all, and yield the files."""
    from dipole_ray.plots.driving import draw_scene
    from dipole_ray.plots.driving_video import film

    out, said = arguments.out or arguments.scenes / "pictures", folder.origin.attribution
    filmed = []
    for one, panels in drawn:
        title = f"{one.map}, {one.token}"
        yield draw_scene(one, panels, out / f"{one.token}.png", title=title, attribution=said)
        filmed.append((one, panels))
    if arguments.video is not None:
        yield film(filmed, arguments.video, attribution=said)


def _given(
    folder: "SceneFolder", tokens: "Sequence[str]", arguments: argparse.Namespace
) -> "Iterator[tuple[RecordedScene, Panels]]":
    """Yield the scenes with the plans of files, or those of the anchors."""
    from dipole_ray.driving.anchors import own_plans
    from dipole_ray.driving.plan_file import read_plans

    files = {path.stem: read_plans(path) for path in arguments.plans}
    if len(files) < len(arguments.plans):
        raise ConfigError("two files of plans have one name; panels are called by them, so rename one")
    for token in tokens:
        if lacking := [name for name, plans in files.items() if token not in plans]:
            raise ConfigError(f"{lacking[0]} has no plan for scene {token}; choose scenes that it has by --tokens")
    for token in tokens:
        one = folder.read(token)
        plans = {name: found[token] for name, found in files.items()} or own_plans(one)
        yield one, {name: plan[None] for name, plan in plans.items()}


def _planned(
    folder: "SceneFolder", tokens: "Sequence[str]", arguments: argparse.Namespace
) -> "Iterator[tuple[RecordedScene, Panels]]":
    """Yield the scenes with the plans of a policy, by omega."""
    from dipole_ray.driving.scene_set import SceneSet
    from dipole_ray.evaluation.cells import Cell, EvalConfig
    from dipole_ray.evaluation.plans import planned
    from dipole_ray.serving.policy import load_policy
    from dipole_ray.settings import from_mapping

    omegas = [0.0, 0.5, 1.0, 2.0, 4.0] if arguments.omega is None else arguments.omega
    omegas = from_mapping(EvalConfig, {"omegas": omegas, "seed": arguments.seed}, "evaluation").omegas
    trained = load_policy(arguments.policy).driving_in([str(folder.folder)])
    cells = [Cell("guided", omega, 1) for omega in sorted(set(omegas))]
    driving = trained.env.driving
    scenes = SceneSet([folder.folder], driving.observation)
    numbers = [folder.tokens.index(token) for token in tokens]
    how: Any = {"seed": arguments.seed, "draws": arguments.draws, "at_once": 4, "is_paired": True}
    for one, _, plans in planned(trained.policy, scenes, numbers, cells, actions=driving.actions, **how):
        yield one, {f"omega {cell.omega:g}": own for cell, own in zip(cells, plans, strict=True)}
