"""`dipole drive`: plans of a car, scored as NAVSIM scores them."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipole_ray.cli.command import add_command

if TYPE_CHECKING:
    from dipole_ray.driving.scene_file import SceneFile

_SCORE = """\
Score the plans of scene files by the PDM score of NAVSIM v1.1.

examples:
  dipole drive score scene.json.gz
  dipole drive score scenes/*.json.gz --json > scores.json

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
  objs    by token: agent (true: vehicle, pedestrian, bicycle) and speed at first sight
  center  points (n, 2) of the centreline; route: ids of the lanes on the route
  map     tokens, types and wkb of ROADBLOCK, LANE, LANE_CONNECTOR, INTERSECTION, CARPARK_AREA and DRIVABLE_AREA
  pdm     the reference plan, 41 poses 0.1 s apart
  rows    a plan each: poses (K, 3), x, y, heading 0.5 s apart in the frame of the rear axle at the start; optionally
          res, the seven numbers that are known, which are then compared
"""
_NAMES = ("nc", "dac", "ep", "ttc", "c", "ddc", "pdms")
TOLERANCE = 1e-4  # of ep and pdms against stored ones; the others must be equal


def add_parser(subparsers: Any) -> None:
    """Add the subcommand to the parsers of `dipole`."""
    parser = subparsers.add_parser("drive", help="score plans of a car as NAVSIM does", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    score = add_command(commands, "score", run_score, _SCORE, epilog=_FORMAT)
    score.add_argument("scenes", metavar="SCENE", type=Path, nargs="+", help="a scene file, .json.gz")
    score.add_argument("--json", action="store_true", help="print one JSON list, a row a plan, and nothing else")
    bearing = (
        "angle to an object exactly ahead: as NAVSIM has it, sometimes not a number and then not ahead (default), or 0"
    )
    score.add_argument("--bearing", choices=("official", "clipped"), default="official", help=bearing)


def run_score(arguments: argparse.Namespace) -> int:
    """Score every plan of every file, and print the rows."""
    from contextlib import nullcontext

    from dipole_ray.driving.scene_file import SUFFIX, read_scene_file
    from dipole_ray.errors import DipoleError
    from dipole_ray.progress import Progress

    rows: list[dict[str, Any]] = []
    differences: list[str] = []
    compared = 0
    paths: list[Path] = arguments.scenes
    with Progress("score", len(paths), "scenes") if len(paths) > 1 else nullcontext() as progress:
        for path in paths:
            try:
                file = read_scene_file(path)
                found = _scored(file, arguments.bearing)
            except DipoleError as error:
                raise type(error)(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
            for plan, (row, known) in enumerate(zip(found, file.stored, strict=True)):
                rows.append({"scene": path.name.removesuffix(SUFFIX), "plan": plan, **row})
                compared += known is not None
                if known is not None and not _equal(row, known.tolist()):
                    differences.append(f"{path.name} plan {plan}")
            if progress is not None:
                progress.advance(plans=len(rows))
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        _print_rows(rows, compared, differences)
    return 0


def _scored(file: "SceneFile", bearing: Any) -> list[dict[str, float]]:
    """Return a row for each plan; plans of one length are one batch."""
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


def _print_rows(rows: list[dict[str, Any]], compared: int, differences: list[str]) -> None:
    """Print the rows as a table with their mean."""
    from dipole_ray.errors import counted
    from dipole_ray.tables import print_table, terminal_table

    lines = [[row["scene"], str(row["plan"]), *(f"{row[name]:.4g}" for name in _NAMES)] for row in rows]
    if rows:
        means = (sum(row[name] for row in rows) / len(rows) for name in _NAMES)
        lines.append(["mean", counted(len(rows), "plan"), *(f"{mean:.4f}" for mean in means)])
    caption = ""
    if compared:
        equal = compared - len(differences)
        caption = f"{equal} of {compared} plans have the sub-scores stored with them (ep and pdms to {TOLERANCE:g})"
        caption += f"; not {', '.join(differences[:5])}{' ...' if len(differences) > 5 else ''}" if differences else ""
    ruled = {len(rows) - 1} if rows else ()
    table = terminal_table(["scene", "plan", *_NAMES], lines, numbers=range(2, 9), ruled=ruled, caption=caption)
    print_table(table, 120)
