"""Data in ExORL's own files, collected on the spot: by uniform noise, or by an explorer that seeks new states.

`{out}/{domain}/{algorithm}/buffer/episode_{index:06d}_{steps}.npz` holds T+1 rows: `observation`, `action`, `reward`,
`discount` and the state of the simulation, `physics`. Row 0 is the start, with an action of zeros; row i holds action i
and what it led to. The reward is that of the domain's first task; importing the data labels it for the task at hand.
"""

import difflib
import shutil
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.collect.episode import Columns, exorl_file, play_exorl, write_columns
from dipole_ray.collect.request import check_numbers, read_record, request_in_words, writing
from dipole_ray.envs.exorl.tasks import DOMAINS, Domain, primary_task
from dipole_ray.envs.make import make_env
from dipole_ray.envs.standard import StandardEnv
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.files.durable import write_json
from dipole_ray.parallel import map_tasks

# How actions are chosen, with its version: files change only when this does.
ALGORITHMS = {"random": "uniform-1", "rnd": "rnd-1"}
# The packages behind the episodes, whose versions are written down.
PACKAGES = {"random": ("dm_control", "mujoco", "numpy"), "rnd": ("dm_control", "mujoco", "numpy", "torch")}
BLOCK_STEPS = 5000  # of one Ray task of the uniform collector: seconds
RECORD = "collect.json"


def collect_exorl(
    domain: str,
    algorithm: str,
    steps: int,
    seed: int,
    out: Path | str,
    num_workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Collect whole episodes of at least `steps` steps, or go on with what an earlier call left in `out`.

    The files depend on domain, algorithm and seed alone: a run that was interrupted, or asked for fewer steps, is
    continued as if it had never stopped.

    Args:
        domain: `walker`, `quadruped`, `cheetah` or `jaco`.
        algorithm: `random`, uniform noise, in parallel through Ray; or `rnd`, an explorer, in this process.
        steps: At least 1; rounded up to whole episodes.
        seed: At least 0.
        out: Folder above `{domain}/{algorithm}`, which is returned.
        num_workers: `random` only: Ray tasks at a time; 1 collects in this process. None: what the work is worth.
        progress: Whether to show progress.
        overwrite: Whether to start from the beginning, replacing whatever episodes are there.

    Raises:
        ConfigError: If domain or algorithm is unknown, or a number is out of range.
        DatasetError: If other episodes are there, or some that other versions of the simulation would have to go on
            with, or `out` cannot be written.
    """
    task = _checked(domain, algorithm, steps, seed, num_workers)
    folder = Path(out) / domain / algorithm
    request = {"domain": domain, "collector": ALGORITHMS[algorithm], "seed": seed}
    count = -(-steps // task.episode_steps)
    wanted = [exorl_file(folder, index, task.episode_steps) for index in range(count)]
    if not overwrite and read_record(folder / RECORD).get("request") == request and all(map(Path.exists, wanted)):
        return folder
    with writing(folder, f"{domain} into {folder}", "episodes"):
        if overwrite and folder.exists():
            shutil.rmtree(folder)
        installed = {package: version(package) for package in PACKAGES[algorithm]}
        made_with = _claim(folder, request, installed)
        if all(map(Path.exists, wanted)):  # by a process that this one waited for
            return folder
        _check_versions(folder, made_with, installed)
        if algorithm == "random":
            _collect_random(task, seed, wanted, num_workers, progress)
        else:
            from dipole_ray.collect.exploration import explore  # loads torch

            explore(task, count, seed, folder, progress=progress)
    return folder


def _checked(domain: str, algorithm: str, steps: int, seed: int, num_workers: int | None) -> Domain:
    """Return the domain of a request that can be fulfilled."""
    for value, names, what in ((domain, list(DOMAINS), "domain"), (algorithm, list(ALGORITHMS), "algorithm")):
        if value not in names:
            near = difflib.get_close_matches(value, names, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(f"no exorl {what} '{value}' can be collected; {hint}there are {', '.join(names)}")
    check_numbers(f"exorl {domain}", steps=steps, seed=seed, num_workers=num_workers)
    if algorithm == "rnd" and num_workers is not None and num_workers > 1:
        raise ConfigError(
            f"cannot collect exorl {domain}: rnd explores in one process, each step after the other; for more data in "
            "the same time, start several seeds with --out DIR/seed0, DIR/seed1 and so on, and train with data.path=DIR"
        )
    return DOMAINS[domain]


def _claim(folder: Path, request: dict[str, Any], installed: dict[str, str]) -> dict[str, Any]:
    """Write down what the folder's episodes are, or check that it is the same; return the versions that made them."""
    buffer = folder / "buffer"
    if not (folder / RECORD).is_file() and not (buffer.is_dir() and any(buffer.iterdir())):
        buffer.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, {"request": request, "versions": installed})
    record = read_record(folder / RECORD)
    if record.get("request") != request:
        found = f"{folder} already holds other episodes ({request_in_words(record)})"
        raise DatasetError(f"{found}; choose another folder, or overwrite them")
    made_with = record.get("versions")
    return made_with if isinstance(made_with, dict) else {}


def _check_versions(folder: Path, made_with: dict[str, Any], installed: dict[str, str]) -> None:
    """Refuse to go on with episodes that another simulation, or another network library, began."""
    for package in ("mujoco", "dm_control", "torch"):
        began, here = made_with.get(package), installed.get(package)
        if began is not None and began != here:
            found = f"{folder}: its episodes were made with {package} {began}, installed is {here}; both would be mixed"
            raise DatasetError(f"{found}: install {package}=={began}, choose another folder, or overwrite them")


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some consecutive episodes of uniform noise."""

    domain: Domain
    seed: int  # of the request
    episodes: range

    def __str__(self) -> str:
        return f"{self.domain.name} episodes {self.episodes[0]}-{self.episodes[-1]}"


def play_uniform(block: Block) -> list[Columns]:
    """Play the episodes of `block`; each depends on the seed and its own number alone."""
    with closing(make_env(primary_task(block.domain.name))) as env:
        return [_play_uniform(env, block.domain, block.seed, index) for index in block.episodes]


def _play_uniform(env: StandardEnv, domain: Domain, seed: int, index: int) -> Columns:
    start = np.random.SeedSequence(seed, spawn_key=(index,))
    rng = np.random.default_rng(start)
    return play_exorl(env, start, domain.episode_steps, lambda *_: rng.uniform(-1.0, 1.0, domain.action_dim))


def _collect_random(domain: Domain, seed: int, wanted: list[Path], num_workers: int | None, progress: bool) -> None:
    size = max(1, BLOCK_STEPS // domain.episode_steps)
    numbers = [range(len(wanted))[first : first + size] for first in range(0, len(wanted), size)]

    def files(block: Block) -> list[Path]:
        return [wanted[index] for index in block.episodes]

    def save(block: Block, episodes: list[Columns]) -> None:
        for path, columns in zip(files(block), episodes, strict=True):
            write_columns(path, columns)

    map_tasks(
        play_uniform,
        [Block(domain=domain, seed=seed, episodes=episodes) for episodes in numbers],
        description=f"collect exorl {domain.name}",
        max_in_flight=num_workers,
        unit="steps",
        local=num_workers == 1,
        size=lambda block: len(block.episodes) * domain.episode_steps,
        rate=domain.steps_per_s,
        saved=lambda block: all(map(Path.exists, files(block))) or None,
        save=save,
        progress=progress,
    )
