"""Plan files: a plan for each scene, by the scene's token, and the table that NAVSIM's evaluation writes about them."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.data.sources.npz import read_headers
from dipole_ray.driving.score import Scores, checked_plans
from dipole_ray.driving.vehicle import Array
from dipole_ray.errors import DatasetError, DipoleError
from dipole_ray.files.durable import read_json

PLAN_SUFFIXES = (".npz", ".json")
MAX_JSON_BYTES = 32 << 20
COLUMNS = {
    "nc": "no_at_fault_collisions",
    "dac": "drivable_area_compliance",
    "ep": "ego_progress",
    "ttc": "time_to_collision_within_bound",
    "c": "comfort",
    "ddc": "driving_direction_compliance",
    "pdms": "score",
}
"""the official names, in the official order"""


def read_plans(path: Path) -> dict[str, Array]:
    """Return plans (K, 3) by the token of their scene.

    An .npz file holds `tokens` (N,) and `plans` (N, K, 3), a .json file an object of lists by token.

    Raises:
        DatasetError: The file is missing, damaged or of another layout, or a plan cannot be scored; names the plan.
    """
    plans = _from_npz(path) if path.suffix == ".npz" else _from_json(path)
    for token, plan in plans.items():
        try:
            checked_plans(plan[None])
        except DipoleError as error:
            raise DatasetError(f"{path}: {token}: {error}") from None
    return plans


def _from_npz(path: Path) -> dict[str, Array]:
    headers = read_headers(path)
    if missing := {"tokens", "plans"} - headers.keys():
        raise DatasetError(
            f"{path}: has no array {' and '.join(sorted(missing))}; tokens (N,) and plans (N, K, 3) are needed"
        )
    try:
        with np.load(path, allow_pickle=False) as stored:
            tokens, plans = stored["tokens"], stored["plans"]
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from None
    if tokens.dtype.kind != "U" or tokens.ndim != 1 or plans.ndim != 3 or plans.dtype.kind not in "fiu":
        raise DatasetError(f"{path}: tokens must be texts (N,) and plans numbers (N, K, 3)")
    if len(tokens) != len(plans) or len(set(tokens.tolist())) < len(tokens):
        raise DatasetError(f"{path}: {len(tokens)} tokens, each once, are needed for {len(plans)} plans")
    return dict(zip(tokens.tolist(), plans.astype(np.float64), strict=True))


def _from_json(path: Path) -> dict[str, Array]:
    try:
        content = read_json(path, MAX_JSON_BYTES)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: an object with a plan for each token is needed")
    return {token: _plan(path, token, plan) for token, plan in content.items()}


def _plan(path: Path, token: str, plan: Any) -> Array:
    try:
        array = np.asarray(plan)
        if array.dtype.kind in "fiu" and array.ndim == 2:
            return array.astype(np.float64)
    except (ValueError, OverflowError):
        pass
    raise DatasetError(f"{path}: {token}: a plan is a list of poses [x, y, heading]")


def official_csv(tokens: Sequence[str], scores: Sequence[Scores | None]) -> str:
    """Return NAVSIM's table: a row a scene, valid or without numbers, and the average over the valid ones."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["", "token", "valid", *COLUMNS.values()])
    valid = [one for one in scores if one is not None]
    for index, (token, one) in enumerate(zip(tokens, scores, strict=True)):
        numbers = [""] * len(COLUMNS) if one is None else [float(getattr(one, name)[0]) for name in COLUMNS]
        writer.writerow([index, token, one is not None, *numbers])
    means = [math.fsum(getattr(one, name)[0] for one in valid) / len(valid) if valid else "" for name in COLUMNS]
    writer.writerow([len(tokens), "average", len(valid) == len(tokens), *means])
    return stream.getvalue()
