"""Measure the PDM score: milliseconds of one core a plan, and what preparing a scene takes.

    python -m benchmarks.driving.score_speed [SCENE.json.gz ...] --json benchmarks/results/score_speed-DATE.json

Without files it measures one made scene of the size of NAVSIM's: a grid of 300 map polygons around the car and 60
boxes, two thirds of them moving. Plans are the scene's own, or straight ones, with noise; seconds are the process's, so
that what else the machine does is left out, and libraries are held to one thread.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from dipole_ray.cores import usable_cores
from dipole_ray.driving.plans import STEPS
from dipole_ray.driving.scene import FRAMES, Frame, Scene, SceneObject
from dipole_ray.driving.scene_file import read_scene_file
from dipole_ray.driving.score import PDMScorer
from dipole_ray.files.provenance import git_commit, package_versions


def made_scene(num_objects: int = 60, num_cells: int = 10) -> Scene:
    """Return a town of square blocks of 20 m: each cell is a roadblock of two lanes, every third an intersection."""
    random = np.random.default_rng(0)
    tokens, types, polygons = [], [], []
    for row in range(num_cells):
        for column in range(num_cells):
            left, bottom = 20.0 * (column - num_cells / 2), 20.0 * (row - num_cells / 2) - 5
            block = "INTERSECTION" if (row + column) % 3 == 0 else "ROADBLOCK"
            areas = ((block, 0, 20), ("LANE", 0, 10), ("LANE", 10, 20))
            for kind, low, high in areas:
                area = shapely.segmentize(shapely.box(left, bottom + low, left + 20, bottom + high), 1.0)
                tokens.append(f"{kind}{row}.{column}.{low}")
                types.append(kind)
                polygons.append(area)
    starts = random.uniform(-60, 60, (num_objects, 2))
    ways = random.normal(0, 5, (num_objects, 2)) * (random.random((num_objects, 1)) < 2 / 3)
    names = [f"box{i}" for i in range(num_objects)]
    frames = []
    for step in range(FRAMES):
        x, y = (starts + 0.1 * step * ways).T
        frames.append(Frame(names, shapely.box(x - 2, y - 1, x + 2, y + 1)))
    ego = np.zeros(11)
    ego[3] = 8.0
    return Scene(
        ego=ego,
        start_us=0,
        frames=frames,
        objects={
            name: SceneObject(True, float(np.hypot(*way)), float(np.arctan2(*way[::-1])))
            for name, way in zip(names, ways, strict=True)
        },
        centerline=shapely.LineString([(-100, 0), (100, 0)]),
        route=frozenset(tokens),
        map_tokens=tokens,
        map_types=types,
        map_polygons=np.array(polygons, dtype=object),
        reference=np.array([[0.8 * step, 0.0, 0.0] for step in range(STEPS + 1)]),
    )


def noisy(plans: np.ndarray, count: int) -> np.ndarray:
    random = np.random.default_rng(1)
    return plans[np.arange(count) % len(plans)] + random.normal(0, 1, (count, *plans.shape[1:])) * [0.3, 0.1, 0.01]


def milliseconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return 1000 * (time.process_time() - start)


def summary(values: list[float]) -> dict[str, float]:
    spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {"n": len(values), **{name: round(value, 3) for name, value in spread.items()}}


def measure(scenes: dict[str, tuple[Scene, np.ndarray]], batch: int, rounds: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, (scene, own) in scenes.items():
        plans = noisy(own, batch)
        PDMScorer(scene).score(plans)
        prepared = [milliseconds(lambda scene=scene: PDMScorer(scene)) for _ in range(rounds)]
        scorer = PDMScorer(scene)
        scored = [milliseconds(lambda scorer=scorer, plans=plans: scorer.score(plans)) / batch for _ in range(rounds)]
        result[name] = {"ms_per_plan": summary(scored), "ms_to_prepare": summary(prepared)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", type=Path, metavar="SCENE", help="scene files (default: one made here)")
    parser.add_argument("--batch", type=int, default=64, help="plans at a time (default: 64)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")
    args = parser.parse_args()
    scenes = {}
    for path in args.scenes:
        file = read_scene_file(path)
        scenes[path.name] = file.scene, np.stack(file.plans)
    if not scenes:
        straight = np.array([[[4.0 * (k + 1), 0.0, 0.0] for k in range(8)]])
        scenes["made, 300 polygons, 60 objects"] = made_scene(), straight
    found = measure(scenes, args.batch, args.rounds)
    print(f"{'':32}{'ms a plan':>12}{'min':>8}{'max':>8}{'ms to prepare':>16}")
    for name, values in found.items():
        plan, prepared = values["ms_per_plan"], values["ms_to_prepare"]
        print(f"{name:32}{plan['median']:>12.2f}{plan['min']:>8.2f}{plan['max']:>8.2f}{prepared['median']:>16.1f}")
    if args.json is not None:
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": git_commit(),
            "versions": {**package_versions(), "shapely": shapely.__version__},
            "machine": {"processor": platform.machine(), "cores": usable_cores(), "system": platform.system()},
            "batch": args.batch,
            "scenes": found,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
