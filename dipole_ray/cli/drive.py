"""`dipole drive`: scenes for a car, and its plans scored as NAVSIM scores them."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dipole_ray.cli.command import add_command, print_files, require_place, write_file
from dipole_ray.cli.drive_encode import add_encoder_commands
from dipole_ray.cli.drive_policy import add_policy_commands
from dipole_ray.cli.drive_show import add_show_command
from dipole_ray.errors import ConfigError, counted
from dipole_ray.progress import Progress
from dipole_ray.tables import DASH, print_table, terminal_table

if TYPE_CHECKING:
    from dipole_ray.driving.container import SceneFolder
    from dipole_ray.driving.scene import Scene
    from dipole_ray.driving.scene_file import SceneFile
    from dipole_ray.driving.score import Scores

_SCORE = """\
Score plans by the PDM score of NAVSIM v1.1: those in scene files, or one for each scene from a file of plans.

examples:
  dipole drive score scene.json.gz
  dipole drive score scenes/*.json.gz --json > scores.json
  dipole drive score plans.npz scenes --csv scores.csv
  dipole drive score plans.npz navtest --csv scores.csv    # a folder that dipole drive import or record made

Each plan is driven by a simulated car for 4 s and judged:
  nc    no collision by its own fault: 1, 1/2 with what stands, 0 with a vehicle, pedestrian or bicycle
  dac   it stays on what may be driven on: 1 or 0
  ep    its progress along the centreline against the reference plan's: 0 to 1
  ttc   going straight on, it would touch nothing ahead within 0.9 s: 1 or 0
  c     comfort, six bounds on accelerations, jerks and yaw: 1 or 0
  ddc   metres against the traffic within 1 s: 1 below 2, 1/2 below 6, else 0 (reported only)
  pdms  nc * dac * (5 ep + 5 ttc + 2 c) / 12
"""
_FORMAT = """\
a scene file is gzipped JSON; metres, radians and seconds, everything but poses in one world frame:
  ego0    11 numbers: x, y, heading, vx, vy, ax, ay, steering angle and rate, yaw rate and acceleration (rear axle)
  t0      time of the start, microseconds
  occ     51 frames 0.1 s apart: tokens, and wkb, a polygon in hexadecimal for each
  objs    by token: agent (true: vehicle, pedestrian, bicycle), heading and speed at first sight
  center  points (n, 2) of the centreline; route: ids of the lanes on the route
  map     tokens, types and wkb of ROADBLOCK, LANE, LANE_CONNECTOR, INTERSECTION, CARPARK_AREA and DRIVABLE_AREA
  pdm     the reference plan, 41 poses 0.1 s apart
  rows    a plan each: poses (K, 3), x, y, heading 0.5 s apart in the frame of the rear axle at the start; optionally
          res, the seven numbers that are known, which are then compared

a file of plans is .npz with tokens (N,) and plans (N, K, 3), or .json with lists of poses by token. A scene's token is
its own in a folder of scenes, and else its file's name without .json.gz; a file's own rows are left aside, and a scene
without a plan is left out of the mean.
"""
_IMPORT = """\
Make a folder of scenes from NAVSIM's logs, a file a log, on all cores (or a Ray cluster); what was interrupted goes on.

examples:
  dipole drive import navsim_logs/test navtest --maps nuplan-maps-v1.0 --navsim ~/navsim --split navtest
  dipole drive import navsim_logs/test navtest --caches metric_cache --navsim ~/navsim --split navtest

With --caches the scenes are those of NAVSIM's own metric caching. With --maps the route, the centreline and the plan of
PDM-Closed, with which progress is compared, are made here from nuPlan's maps. Logs and caches are pickles: they are
read without running anything that they name.
"""
_RECORD = """\
Record scenes from the traffic of SUMO on road networks of OpenStreetMap, on all cores; what was interrupted goes on.

examples:
  dipole drive record --map berlin --scenes 2000 --seed 0
  dipole drive record --map braunschweig --scenes 500 traffic.lane_drift=0.4 traffic.pedestrians_per_km=3

Maps are in the wheel of eclipse-sumo: berlin and koenigs_wusterhausen are for training, ingolstadt for validation,
braunschweig and braunschweig_junction for the test. By NAVSIM's rule a scene is kept if its driver scores at least 0.8
and going straight on at most 0.8. These are no scenes of NAVSIM's, and their scores are not to be mixed with NAVSIM's.
"""
_ANCHORS = """\
Print what those score in a folder of scenes who need no learning, or next to none.

examples:
  dipole drive anchors braunschweig-0 --train berlin-0 koenigs_wusterhausen-0

human is the driver of the log, brake goes straight on and brakes with 3 m/s^2, PDM-Closed is the plan of the reference,
and the ego-status MLP knows the car's speed, acceleration and command alone. A standard error takes scenes of one log
as one draw.
"""
Item = TypeVar("Item")
_NAMES = ("nc", "dac", "ep", "ttc", "c", "ddc", "pdms")
TOLERANCE = 1e-4  # of ep and pdms against stored ones; the others must be equal


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the parsers of `dipole`."""
    text = "make scenes for a car, score its plans as NAVSIM does"
    parser = subparsers.add_parser("drive", help=text, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_import(commands)
    _add_record(commands)
    _add_anchors(commands)
    add_show_command(commands)
    add_encoder_commands(commands)
    add_policy_commands(commands)
    score = add_command(commands, "score", run_score, _SCORE, epilog=_FORMAT)
    files = "scenes: files, .json.gz, or folders; before them a file of plans, if they are not the scene files' own"
    score.add_argument("files", metavar="FILE", type=Path, nargs="+", help=files)
    score.add_argument("--json", action="store_true", help="print one JSON list, a row a plan, and nothing else")
    score.add_argument("--csv", metavar="FILE", type=Path, help="write the table of NAVSIM's evaluation of a plan file")
    bearing = (
        "angle to an object exactly ahead: as NAVSIM has it, sometimes not a number and then not ahead (default), or 0"
    )
    score.add_argument("--bearing", choices=("official", "clipped"), default="official", help=bearing)


def _add_import(commands: Any) -> None:
    parser = add_command(commands, "import", run_import, _IMPORT)
    parser.add_argument("logs", metavar="LOGS", type=Path, help="folder of NAVSIM's logs, .pkl")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; a new one, or one to go on with")
    parser.add_argument("--maps", metavar="FOLDER", type=Path, help="nuPlan's maps")
    parser.add_argument("--caches", metavar="FOLDER", type=Path, help="NAVSIM's metric caches, instead of the maps")
    parser.add_argument("--split", metavar="NAME", help="a split of NAVSIM's, such as navtest (default: every scene)")
    parser.add_argument("--navsim", metavar="FOLDER", type=Path, help="your checkout of NAVSIM, which says the splits")


def run_import(arguments: argparse.Namespace) -> int:
    """Make a folder of scenes from NAVSIM's logs."""
    from dipole_ray.driving.importing import import_logs
    from dipole_ray.driving.split import ALL_SCENES, read_split

    if (arguments.split is None) != (arguments.navsim is None):
        raise ConfigError("--split and --navsim belong together: a split's name, and the checkout that says what it is")
    split = ALL_SCENES if arguments.split is None else read_split(arguments.navsim, arguments.split)
    shards = import_logs(arguments.logs, arguments.out, maps=arguments.maps, caches=arguments.caches, split=split)
    print(
        f"{arguments.out}: {counted(sum(len(one.tokens) for one in shards), 'scene')} of {counted(len(shards), 'log')}"
    )
    return _say_lost([sentence for one in shards for sentence in one.lost])


def _say_lost(lost: Sequence[str]) -> int:
    """Say how many scenes could not be made, and why the first one."""
    if lost:
        print(f"{counted(len(lost), 'scene')} could not be made and left out; the first: {lost[0]}", file=sys.stderr)
    return 0


def run_score(arguments: argparse.Namespace) -> int:
    """Score the plans in scene files, or those of a plan file in its scenes."""
    from dipole_ray.driving.plan_file import PLAN_SUFFIXES

    first, *others = arguments.files
    if first.suffix in PLAN_SUFFIXES:
        return _score_plan_file(first, _sources(others), arguments)
    if arguments.csv is not None:
        raise ConfigError("--csv is the table of a plan file; give one, .npz or .json, before the scenes")
    return _score_scene_files(_scene_files(arguments.files), arguments)


def _score_scene_files(paths: Sequence[Path], arguments: argparse.Namespace) -> int:
    """Score every plan of every file, and print the rows."""
    from dipole_ray.driving.scene_file import read_scene_file

    rows: list[dict[str, Any]] = []
    differences: list[str] = []
    compared = 0
    for path in _shown(paths):
        file = read_scene_file(path)
        for plan, (row, known) in enumerate(zip(_rows(file, arguments.bearing), file.stored, strict=True)):
            rows.append({"scene": _token(path), "plan": plan, **row})
            compared += known is not None
            if known is not None and not _equal(row, known.tolist()):
                differences.append(f"{path.name} plan {plan}")
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    caption = ""
    if compared:
        equal = compared - len(differences)
        caption = f"{equal} of {compared} plans have the sub-scores stored with them (ep and pdms to {TOLERANCE:g})"
        caption += f"; not {', '.join(differences[:5])}{' ...' if len(differences) > 5 else ''}" if differences else ""
    _print_rows(rows, ("scene", "plan"), counted(len(rows), "plan"), caption)
    return 0


def _add_record(commands: Any) -> None:
    parser = add_command(commands, "record", run_record, _RECORD)
    parser.add_argument("--map", metavar="NAME", default="berlin", help="the city (default: berlin)")
    parser.add_argument("--scenes", metavar="N", type=int, default=2000, help="scenes in all (default: 2000)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="decides who drives where (default: 0)")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="folder to write (default: MAP-SEED)")
    text = "keep the drives besides, as logs in NAVSIM's form with the map as a GeoPackage"
    parser.add_argument("--logs", metavar="FOLDER", type=Path, help=text)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, such as traffic.parked_per_km=0")
    parser.add_argument("--help-config", action="store_true", help="explain every setting and stop")


def run_record(arguments: argparse.Namespace) -> int:
    """Record scenes from SUMO's traffic."""
    from dipole_ray.driving.sumo.record import RecordConfig, record_scenes
    from dipole_ray.settings import apply_overrides, describe, from_mapping

    if arguments.help_config:
        print(*describe(RecordConfig), sep="\n")
        return 0
    given = {name: getattr(arguments, name) for name in ("map", "scenes", "seed")}
    config = from_mapping(RecordConfig, apply_overrides(given, arguments.overrides))
    out = arguments.out or Path(f"{config.map}-{config.seed}")
    shards = record_scenes(config, out, logs=arguments.logs)
    folder = f"{out}: {counted(sum(len(one.tokens) for one in shards), 'scene')}"
    from dipole_ray.driving.sumo.cities import ATTRIBUTION, SOURCE, city

    print(f"{folder} of {config.map}, for {city(config.map).split}; {SOURCE}\n{ATTRIBUTION}")
    return 0


def _add_anchors(commands: Any) -> None:
    parser = add_command(commands, "anchors", run_anchors, _ANCHORS)
    parser.add_argument("scenes", metavar="FOLDER", type=Path, help="folder of scenes")
    text = "folder, or folders, of scenes that the ego-status MLP learns from; without it the table has none"
    parser.add_argument("--train", metavar="FOLDER", type=Path, nargs="+", default=[], help=text)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the MLP (default: 0)")
    text = "angle to an object exactly ahead (default: clipped, official for NAVSIM's scenes)"
    parser.add_argument("--bearing", choices=("official", "clipped"), help=text)


def run_anchors(arguments: argparse.Namespace) -> int:
    """Print what the driver, constant velocity, braking, PDM-Closed and an ego-status MLP score."""
    from dipole_ray.driving.anchors import NAMES, score_anchors
    from dipole_ray.driving.container import SceneFolder, joined_status
    from dipole_ray.driving.sumo.cities import SOURCE

    folder = SceneFolder(arguments.scenes)
    plans = {}
    if arguments.train:
        from dipole_ray.driving.ego_status import clone_drivers, plans_of

        trained = clone_drivers(joined_status([SceneFolder(one) for one in arguments.train]), arguments.seed)
        plans["ego-status MLP"] = plans_of(trained, folder.status())
    bearing: Any = arguments.bearing or ("clipped" if folder.origin.source == SOURCE else "official")
    rows = []
    for anchor in score_anchors(folder, bearing, plans):
        means, errors = 100 * anchor.means(), 100 * anchor.errors()
        cells = [f"{mean:.1f}" for mean in means[:-1]]
        rows.append([anchor.name, *cells, f"{means[-1]:.1f} +- {errors[-1]:.1f}"])
    caption = f"{folder.origin.source}: {counted(len(folder), 'scene')}, percent, with standard errors over logs"
    caption += f"; bearing {bearing}\n{folder.origin.attribution}"
    print_table(terminal_table(["driver", *NAMES], rows, numbers=range(1, 8), caption=caption), 120)
    return 0


@dataclass(frozen=True, slots=True)
class _Source:
    """A scene that is read when it is needed."""

    token: str
    read: "Callable[[], Scene]"


def _sources(given: Sequence[Path]) -> list[_Source]:
    """Return the scenes of files and folders."""
    from dipole_ray.driving.container import SceneFolder, is_scene_folder

    sources: list[_Source] = []
    for path in given:
        if is_scene_folder(path):
            folder = SceneFolder(path)
            sources += [_Source(token, partial(_of_folder, folder, token)) for token in folder.tokens]
        else:
            sources += [_Source(_token(file), partial(_of_file, file)) for file in _scene_files([path])]
    if not sources:
        raise ConfigError("no scenes to score the plans in; give their files or folders after the file of plans")
    return sources


def _of_folder(folder: "SceneFolder", token: str) -> "Scene":
    return folder.read(token).scene


def _of_file(path: Path) -> "Scene":
    from dipole_ray.driving.scene_file import read_scene_file

    return read_scene_file(path).scene


def _score_plan_file(source: Path, sources: Sequence[_Source], arguments: argparse.Namespace) -> int:
    """Score the plan of every scene, print the rows, and write the official table where asked."""
    from dipole_ray.driving.plan_file import official_csv, read_plans
    from dipole_ray.driving.score import PDMScorer

    require_place("--csv", arguments.csv)
    plans = read_plans(source)
    scores: dict[str, Scores | None] = dict.fromkeys(one.token for one in sources)
    if len(scores) < len(sources):
        raise ConfigError("two scenes have the same token, a file's being its name; give each scene once")
    if not plans.keys() & scores.keys():
        some = f"{next(iter(plans))} and so on" if plans else "none at all"
        raise ConfigError(f"{source}: has no plan for any of {counted(len(scores), 'scene')}; its tokens: {some}")
    for one in _shown([one for one in sources if one.token in plans]):
        scores[one.token] = PDMScorer(one.read(), arguments.bearing).score(plans[one.token][None])
    rows = [{"scene": token, **found.rows()[0]} for token, found in scores.items() if found is not None]
    if arguments.csv is not None:
        write_file("--csv", arguments.csv, official_csv(list(scores), list(scores.values())))
    if strangers := [token for token in plans if token not in scores]:
        some = f"{strangers[0]}{' ...' if len(strangers) > 1 else ''}"
        print(f"{counted(len(strangers), 'plan')} of {source} without a scene: {some}", file=sys.stderr)
    missing = len(scores) - len(rows)
    if missing:
        print(f"{counted(missing, 'scene')} without a plan, left out of the mean", file=sys.stderr)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        _print_rows(rows, ("scene",), counted(len(rows), "scene"))
        print_files(filter(None, [arguments.csv]))
    return 0


def _scene_files(given: Sequence[Path]) -> list[Path]:
    """Return the scene files among files and folders."""
    from dipole_ray.driving.container import is_scene_folder
    from dipole_ray.driving.scene_file import SUFFIX

    found = []
    for path in given:
        if is_scene_folder(path):
            raise ConfigError(f"{path}: its scenes have no plans of their own; give a file of plans before it")
        inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() and not path.name.endswith(SUFFIX) else [path]
        if not inside:
            raise ConfigError(f"{path}: no scene files, *{SUFFIX}, in this folder")
        found += inside
    return found


def _shown(items: Sequence[Item]) -> Iterator[Item]:
    """Yield each of the scenes; with progress where there are several."""
    with Progress("score", len(items), "scenes") if len(items) > 1 else nullcontext() as progress:
        for item in items:
            yield item
            if progress is not None:
                progress.advance()


def _token(path: Path) -> str:
    return path.name.removesuffix(".json.gz")


def _rows(file: "SceneFile", bearing: Any) -> list[dict[str, float]]:
    """Return a row for each of the file's own plans; plans of one length are one batch."""
    import numpy as np

    from dipole_ray.driving.score import PDMScorer

    scorer = PDMScorer(file.scene, bearing)
    rows: list[dict[str, float]] = [{} for _ in file.plans]
    for length in sorted({len(plan) for plan in file.plans}):
        chosen = [i for i, plan in enumerate(file.plans) if len(plan) == length]
        for i, row in zip(chosen, scorer.score(np.stack([file.plans[i] for i in chosen])).rows(), strict=True):
            rows[i] = row
    return rows


def _equal(row: dict[str, float], known: list[float]) -> bool:
    allowed = {"ep": TOLERANCE, "pdms": TOLERANCE}
    return all(abs(row[name] - one) <= allowed.get(name, 0.0) for name, one in zip(_NAMES, known, strict=True))


def _print_rows(rows: list[dict[str, Any]], words: Sequence[str], count: str, caption: str = "") -> None:
    """Print the rows as a table with their mean; the first columns are `words`."""
    lines = [[*(str(row[word]) for word in words), *(f"{row[name]:.4g}" for name in _NAMES)] for row in rows]
    means = [f"{sum(row[name] for row in rows) / len(rows):.4f}" if rows else DASH for name in _NAMES]
    lines.append([f"mean of {count}", *[""] * (len(words) - 1), *means])
    numbers = range(len(words), len(words) + len(_NAMES))
    ruled = {len(rows) - 1} if rows else ()
    print_table(terminal_table([*words, *_NAMES], lines, numbers=numbers, ruled=ruled, caption=caption), 120)
