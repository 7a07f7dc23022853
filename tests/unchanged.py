"""What a change of structure must leave as it is, recorded in one checkout and compared in another.

    python tests/unchanged.py --record before.json          # in the checkout before the change
    python tests/unchanged.py --compare before.json         # in the checkout after it

Groups: `agents` (parameters after 50 updates of every preset on fixed batches, and actions), `run` (a one-process run
of both phases, its resume, its evaluation rows, and the resume of the run that the recorder left), `data` (imported
rows and verdicts of every format), `help` (the texts of `--help`, and the settings). Numbers are compared bitwise:
record and compare on one machine, with the same packages.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["COLUMNS"] = "120"
os.environ.pop("RAY_ADDRESS", None)

import numpy as np
import yaml

Record = dict[str, Any]

SMALL_RUN: dict[str, Any] = {
    "name": "unchanged",
    "env": {"id": "Pendulum-v1"},
    "data": {"collect_transitions": 3000},
    "agent": {
        "preset": "small",
        "hidden_dims": [32, 32],
        "batch_size": 32,
        "denoise_steps": 4,
        "omega": 1.0,
        "num_candidates": 4,
        "n_step": 3,
        "train_bc": True,
        "observation_normalization": "dataset",
    },
    "training": {
        "offline_learner_steps": 60,
        "online_env_steps": 240,
        "updates_per_env_step": 0.5,
        "offline_fraction": 0.5,
        "learner_steps_per_call": 10,
        "learner_steps_per_iteration": 20,
        "env_steps_per_iteration": 60,
    },
    "rollout": {"envs_per_worker": 2, "fragment_steps": 30},
    "learner": {"num_threads": 1},
    "evaluation": {"episodes": 3, "omegas": [0.0, 1.0], "candidates": [1, 2], "every_learner_steps": 40},
    "tracking": {"mlflow": False},
}
LONGER = ("training.online_env_steps=420", "training.replay_capacity=null")


def digest(arrays: Any) -> str:
    """Return a hash of named arrays: names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes())
    return found.hexdigest()


def dipole(*words: Any) -> str:
    """Run a command in this process; return its status and what it printed, without places and times."""
    from dipole_ray.cli import main

    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        try:
            status: Any = main([str(word) for word in words])
        except SystemExit as end:
            status = end.code
    errors = [line for line in told.getvalue().splitlines() if line.startswith("error:")]
    text = "\n".join([f"status {status}", printed.getvalue(), *errors])
    text = re.sub(r"\d{8}-\d{6}", "TIME", text)
    return re.sub(r"[^\s'\"]*unchanged-[^/\s]*/", "PLACE/", text)


# ---- agents ----

VARIANTS: dict[str, dict[str, Any]] = {
    "bc_added": {"train_bc": True},
    "batch_std": {"advantage_normalization": "batch_std"},
    "dataset_statistics": {"preset": "small", "observation_normalization": "dataset"},
    "best_of_4_targets": {"target_candidates": 4, "target_omega": 1.0, "target_aggregation": "mean_minus_std"},
    "guided": {"omega": 1.5, "shift": -0.5, "n_step": 3},
    "negative": {"omega": -1.0},
    "fql_normalized": {"preset": "fql", "normalize_q_loss": True},
    "iql_running": {"preset": "iql", "advantage_normalization": "running_std"},
}


def record_agents(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield parameters and actions of every preset, and of what the presets leave out."""
    import torch

    from dipole_ray import AgentConfig
    from dipole_ray.agents.agent import make_agent
    from dipole_ray.agents.config import PRESETS
    from dipole_ray.columns import Schema

    torch.set_num_threads(1)
    cases: dict[str, dict[str, Any]] = {name: {"preset": name} for name in PRESETS}
    cases |= {f"{name} 48 x 48": {"preset": name, "hidden_dims": (48, 48)} for name in PRESETS}
    cases |= {name: {"hidden_dims": (48, 48), **changes} for name, changes in VARIANTS.items()}
    for name, settings in cases.items():
        changes = dict(settings)
        config = AgentConfig.preset(changes.pop("preset", "paper"), **{"batch_size": 32, **changes})
        agent = make_agent(config, Schema(5, 3), seed=7)
        random = np.random.default_rng(1)
        if config.observation_normalization == "dataset":
            agent.fit_observations(random.normal(size=5), random.uniform(0.5, 2, size=5))
        for step in range(50):
            agent.update(batch(random), diagnostics=step % 10 == 0)
        yield name, digest({key: tensor.numpy() for key, tensor in agent.state_dict().items()})
        observations = random.normal(size=(6, 5)).astype(np.float32)
        yield f"{name}: actions", digest({"a": agent.sample_actions(observations).numpy()})
        yield f"{name}: policy", digest({key: tensor.numpy() for key, tensor in agent.policy.policy_state().items()})


def batch(random: np.random.Generator, rows: int = 32) -> dict[str, np.ndarray]:
    """Return a batch of a replay's columns."""
    drawn = {
        "observations": random.normal(size=(rows, 5)),
        "actions": random.uniform(-1, 1, size=(rows, 3)),
        "rewards": random.normal(size=rows),
        "masks": (random.random(rows) > 0.1).astype(np.float32),
        "next_observations": random.normal(size=(rows, 5)),
        "discounts": np.full(rows, 0.97),
        "is_offline": (random.random(rows) > 0.5).astype(np.float32),
    }
    return {name: values.astype(np.float32) for name, values in drawn.items()}


# ---- a run ----


def record_run(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield what a run leaves, what its resume leaves, and what the resume of the recorder's run leaves."""
    config = folder / "run.yaml"
    here = {"folder": str(folder / "runs"), "data": {**SMALL_RUN["data"], "cache": str(folder / "cache")}}
    config.write_text(yaml.safe_dump({**SMALL_RUN, **here}))
    yield "printed", dipole("train", config)
    (run,) = (folder / "runs").iterdir()
    yield from (("finished: " + name, value) for name, value in left_by(run))
    kept = folder / "kept"
    if not kept.exists():  # the recorder leaves its run to be resumed by others
        shutil.copytree(run, kept / run.name)
    (before,) = kept.iterdir()
    old = folder / "runs" / f"old-{before.name}"
    shutil.copytree(before, old)
    for name, place in (("resumed", run), ("recorder's run resumed", old)):
        yield f"{name}: printed", re.sub(r"old-", "", dipole("train", "--resume", place, *LONGER))
        yield from ((f"{name}: {what}", value) for what, value in left_by(place))
    table = folder / "table.json"
    options = ("--omega", 0, 1, 2, "--candidates", 1, 3, "--episodes", 3, "--json", table)
    yield "evaluate: printed", dipole("evaluate", run, *options)
    yield "evaluate: rows", json.loads(table.read_text())


def left_by(run: Path) -> Iterator[tuple[str, Any]]:
    """Yield checkpoints, metrics, rows and paths of a run's folder."""
    import safetensors.numpy

    for file in sorted((run / "checkpoints").glob("*/*.safetensors")):
        yield str(file.relative_to(run)), digest(safetensors.numpy.load_file(file))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "wall", "system/memory")
    yield "metrics.jsonl", [strip(line, timed) for line in lines]
    yield "evaluation.json", json.loads((run / "evaluation.json").read_text())
    yield "files", sorted(path.name for path in run.iterdir())


def strip(value: Any, timed: tuple[str, ...]) -> Any:
    """Return JSON values without the entries whose names begin with one of `timed`."""
    if isinstance(value, dict):
        return {key: strip(item, timed) for key, item in value.items() if not key.startswith(timed)}
    return value


# ---- data ----


def record_data(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of every format and the verdict on it."""
    from dipole_ray import open_dataset

    for name, words in sources(folder / "files").items():
        out = folder / "imported" / name
        yield f"{name}: import", dipole("data", "import", *words, "--out", out)
        if (out / "manifest.json").exists():
            chunks = list(open_dataset(out).iter_rows())
            yield f"{name}: rows", digest({c: np.concatenate([x[c] for x in chunks]) for c in chunks[0]})
        verdict = folder / f"{name}.json"
        yield f"{name}: inspect", dipole("data", "inspect", *words, "--json", verdict)
        if verdict.exists():
            yield f"{name}: verdict", json.loads(re.sub(r"[^\"']*unchanged-[^/\"']*/", "", verdict.read_text()))


def sources(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Write a file of every format and return what `dipole data import` is told about each."""
    import h5py
    import pyarrow as pa
    import pyarrow.feather as feather
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    lengths = (7, 12, 1, 9, 5, 12)
    last = np.cumsum(lengths) - 1
    rows = np.arange(sum(lengths))
    states = [random.normal(size=(length + 1, 3)).astype(np.float32) for length in lengths]
    table = {
        "observations": np.concatenate([state[:-1] for state in states]),
        "next_observations": np.concatenate([state[1:] for state in states]),
        "actions": random.uniform(-1, 1, size=(len(rows), 2)).astype(np.float32),
        "rewards": random.normal(size=len(rows)).astype(np.float32),
        "terminals": np.isin(rows, last[1::2]),
        "timeouts": np.isin(rows, last[0::2]),
        "episode": np.repeat(np.arange(len(lengths)), lengths),
    }
    columns = {name: list(values) if values.ndim > 1 else values for name, values in table.items()}
    pq.write_table(pa.table(columns), folder / "table.parquet", row_group_size=7)
    feather.write_feather(pa.table(columns), str(folder / "table.feather"), chunksize=7)
    scalars = {f"o_{i}": table["observations"][:, i] for i in range(3)}
    scalars |= {"r": table["rewards"], "run": table["episode"]}
    scalars |= {"gas": table["actions"][:, 0], "steer": table["actions"][:, 1], "crash": table["terminals"]}
    pq.write_table(pa.table(scalars), folder / "named.parquet")
    with h5py.File(folder / "d4rl.hdf5", "w") as file:
        for name in ("observations", "next_observations", "actions", "rewards", "terminals", "timeouts"):
            file.create_dataset(name, data=table[name], compression="gzip")
    with h5py.File(folder / "bare.hdf5", "w") as file:
        for name in ("observations", "actions", "rewards", "terminals"):
            file.create_dataset(name, data=table[name])
    ends = np.cumsum([length + 1 for length in lengths]) - 1
    count = int(ends[-1]) + 1
    file_arrays = {
        "observations": random.normal(size=(count, 3)).astype(np.float32),
        "actions": random.uniform(-1, 1, size=(count, 1)).astype(np.float32),
        "terminals": np.isin(np.arange(count), ends),
        "rewards": random.normal(size=count).astype(np.float32),
    }
    np.savez_compressed(folder / "ogbench.npz", **file_arrays)  # type: ignore[arg-type]
    broken = table["rewards"].copy()
    broken[3] = np.nan
    pq.write_table(pa.table({**columns, "rewards": broken}), folder / "nan.parquet")
    dipole("data", "collect", "pointmaze-medium-navigate-v0", "--transitions", 2000, "--out", folder / "maze")
    dipole("data", "collect", "exorl", "cheetah", "--algo", "random", "--steps", 2000, "--out", folder / "exorl")
    maze = ("--env", "pointmaze-medium-navigate-singletask-task1-v0")
    names = ("--map", "observations=o_*", "--map", "actions=gas,steer", "--map", "rewards=r", "--map", "episode=run")
    return {
        "parquet": (folder / "table.parquet",),
        "feather": (folder / "table.feather",),
        "named": (folder / "named.parquet", *names, "--map", "terminals=crash"),
        "nan": (folder / "nan.parquet",),
        "d4rl": (folder / "d4rl.hdf5",),
        "d4rl_env": (folder / "d4rl.hdf5", "--env", "Hopper-v5"),
        "bare": (folder / "bare.hdf5", "--max-episode-steps", 5),
        "bare_refused": (folder / "bare.hdf5",),
        "ogbench": (folder / "ogbench.npz",),
        "ogbench_task": (folder / "maze" / "pointmaze-medium-navigate-v0.npz", *maze),
        "exorl": (folder / "exorl", "--env", "exorl/cheetah-run", "--cache", folder / "rewards", "--workers", 1),
        **{f"minari_{kind}": (path,) for kind, path in minari_datasets(folder).items()},
    }


def minari_datasets(folder: Path) -> dict[str, Path]:
    """Write a dataset by Minari's own API in each of its storages."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    import minari
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer

    seen, taken = Box(-np.inf, np.inf, (3,), np.float32), Box(-2, 2, (2,), np.float32)
    paths = {}
    for kind in ("hdf5", "arrow"):
        random = np.random.default_rng(0)
        buffers = []
        for index, steps in enumerate((5, 1, 8, 12)):
            flags = np.arange(steps) == steps - 1
            buffers.append(
                EpisodeBuffer(
                    seed=index,
                    observations=list(random.normal(size=(steps + 1, 3)).astype(np.float32)),
                    actions=list(random.uniform(-2, 2, size=(steps, 2)).astype(np.float32)),
                    rewards=random.normal(size=steps).tolist(),
                    terminations=(flags & (steps % 2 == 1)).tolist(),
                    truncations=(flags & (steps % 2 == 0)).tolist(),
                    infos={},
                )
            )
        about = {"algorithm_name": "random", "author": "a", "author_email": "a@example.com", "description": "d"}
        spaces = {"observation_space": seen, "action_space": taken}
        minari.create_dataset_from_buffers(
            f"written/{kind}-v0", buffers, data_format=kind, code_permalink="https://example.com", **spaces, **about
        )
        paths[kind] = folder / "written" / f"{kind}-v0"
    return paths


# ---- help ----


def record_help(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield every parser's `--help`, and the lines of `--help-config`, sorted."""
    from dipole_ray.cli import parser

    def parsers(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
        yield top
        for action in top._actions:
            if isinstance(action, argparse._SubParsersAction):
                for below in dict.fromkeys(action.choices.values()):
                    yield from parsers(below)

    for one in parsers(parser()):
        yield one.prog, one.format_help()
    yield "settings", sorted(dipole("train", "--help-config").splitlines())


GROUPS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    "help": record_help,
    "agents": record_agents,
    "data": record_data,
    "run": record_run,
}


def main() -> int:
    """Record, or compare and name what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--record", metavar="FILE", type=Path, help="write what this checkout does")
    how.add_argument("--compare", metavar="FILE", type=Path, help="compare this checkout with a record")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)} (default: all)")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    target = arguments.record or arguments.compare
    before = None if arguments.record else json.loads(target.read_text())
    differences = checked = 0
    after: dict[str, Record] = {}
    for group in arguments.groups or GROUPS:
        with tempfile.TemporaryDirectory(prefix="unchanged-") as place:
            folder = Path(place)
            left = target.parent / "kept"
            if before is not None and group == "run":
                shutil.copytree(left, folder / "kept")
            after[group] = json.loads(json.dumps(dict(GROUPS[group](folder))))
            if before is None and group == "run":
                shutil.copytree(folder / "kept", left)
        for name in [] if before is None else sorted(before[group].keys() | after[group].keys()):
            checked += 1
            if before[group].get(name) != after[group].get(name):
                differences += 1
                print(f"differs: {group}: {name}")
                show(before[group].get(name), after[group].get(name))
        print(f"{group}: {len(after[group])} entries", flush=True)
    if before is None:
        target.write_text(json.dumps(after, indent=1))
        return 0
    print(f"{checked} compared, {differences} differ")
    return min(differences, 1)


def show(before: Any, after: Any) -> None:
    """Print the first lines that differ between two values."""
    import difflib

    sides = [json.dumps(value, indent=1).replace("\\n", "\n").splitlines() for value in (before, after)]
    for line in list(difflib.unified_diff(*sides, "before", "after", lineterm="", n=0))[2:12]:
        print(f"    {line[:200]}")


if __name__ == "__main__":
    sys.exit(main())
