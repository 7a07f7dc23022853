"""One verdict for any dataset, before training: boundaries, time limits, numbers, actions, duplicates, returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dipole_ray.data.dataset import MANIFEST, OfflineDataset, open_dataset
from dipole_ray.data.quarantine import restore_hint
from dipole_ray.data.schema import Rows, Schema, validate_rows
from dipole_ray.data.sources.actions import ActionBounds
from dipole_ray.data.sources.d4rl import SUFFIXES, read_d4rl
from dipole_ray.data.sources.exorl import episode_steps, find_episodes, is_exorl, read_exorl
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.minari import is_minari, read_minari
from dipole_ray.data.sources.ogbench import Relabel, has_rewards, read_ogbench
from dipole_ray.data.sources.pieces import ImportReport
from dipole_ray.data.sources.table import read_table, table_columns
from dipole_ray.data.summary import Summary
from dipole_ray.data.verdict import Finding, Verdict, judge, worst
from dipole_ray.errors import ConfigError, DatasetError, NonFiniteError

Kind = Literal["dataset", "ogbench", "exorl", "minari", "d4rl", "table"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """The verdict on one dataset and the figures behind it."""

    path: str
    """What was inspected."""
    kind: Kind
    """A dipole dataset, an OGBench .npz, ExORL's episodes, Minari's folder, D4RL's .hdf5, or a table."""
    verdict: Verdict
    """The worst of the findings."""
    findings: tuple[Finding, ...]
    """What a user should know, worst first."""
    figures: dict[str, float]
    """Named numbers: counts, shares, quantiles."""
    histograms: dict[str, tuple[list[float], list[int]]]
    """`returns`, `lengths`, `actions`: bin edges and counts."""

    def to_json(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        return asdict(self) | {"findings": [asdict(finding) for finding in self.findings]}


def dataset_kind(path: Path) -> Kind:
    """Return what lies at `path`, by its name and contents.

    Raises:
        DatasetError: If nothing lies there.
    """
    if not path.exists():
        raise DatasetError(
            f"{path}: no such file or folder; give a dataset folder, a file of OGBench or D4RL, a Minari folder or a "
            "table"
        )
    if path.suffix == ".npz":
        return "ogbench"
    if path.is_dir() and ((path / MANIFEST).exists() or any(path.glob("data-*.arrow"))):
        return "dataset"
    if is_minari(path):
        return "minari"
    if path.suffix in SUFFIXES:
        return "d4rl"
    return "exorl" if is_exorl(path) else "table"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What data in anybody's format does not say itself, each for some kinds only."""

    mapping: TableMapping | None = None
    """For tables; by default columns are taken by their names."""
    relabel: Relabel | None = None
    """For .npz files without rewards."""
    labels: Callable[[list[Path]], Iterator[np.ndarray]] | None = None
    """For ExORL: returns the rewards (T,) of each of its episodes."""
    observations: Sequence[str] = ()
    """For Minari: which entries of dict observations are joined."""
    max_episode_steps: int | None = None
    """For D4RL files without timeouts: the environment's time limit."""
    action_bounds: ActionBounds | None = None
    """For D4RL's and Minari's data without such: the bounds of the environment's actions."""


def inspect_dataset(
    path: Path | str,
    reading: Reading | None = None,
    *,
    expected: Schema | None = None,
    on_transitions: Callable[[int], None] | None = None,
) -> Inspection:
    """Read a dataset from beginning to end and judge it; what cannot be read is a finding, not an exception.

    Args:
        path: A dataset folder, or any data that can be imported.
        reading: How to read it.
        expected: The dimensions that it must have.
        on_transitions: Called with the transitions read so far.

    Raises:
        DatasetError: If there is nothing at `path`.
    """
    path, reading = Path(path), reading or Reading()
    kind, report, summary = dataset_kind(path), ImportReport(), Summary()
    findings: list[Finding] = []
    labelled = True
    try:
        labelled = _has_rewards(path, kind, reading)
        for rows in _read(path, kind, reading, report, findings):
            summary.add(rows)
            if on_transitions is not None:
                on_transitions(summary.num_transitions)
    except (DatasetError, ConfigError, NonFiniteError) as error:
        findings.append(Finding.from_message("error", str(error)))
    if not labelled:
        findings.append(
            Finding(
                level="info",
                what="the data holds no rewards of a task, so returns and masks are not judged",
                where=path.name,
                remedy="name a task with --env, here and when importing",
            )
        )
    if summary.num_transitions:
        findings += judge(summary, report, has_rewards=labelled)
        findings += _wrong_dimensions(path, summary, expected)
    elif not findings:
        findings.append(Finding(level="error", what="no transitions", where=path.name, remedy="check the source"))
    findings.sort(key=lambda finding: ("error", "warning", "info").index(finding.level))
    return Inspection(
        path=str(path),
        kind=kind,
        verdict=worst(findings),
        findings=tuple(findings),
        figures=_figures(summary, report, labelled) if summary.num_transitions else {},
        histograms=_histograms(summary, labelled) if summary.num_transitions else {},
    )


def _has_rewards(path: Path, kind: Kind, reading: Reading) -> bool:
    if kind == "ogbench":
        return reading.relabel is not None or has_rewards(path)
    return kind != "exorl" or reading.labels is not None


def _read(path: Path, kind: Kind, reading: Reading, report: ImportReport, findings: list[Finding]) -> Iterator[Rows]:
    """Return the rows of whatever lies at `path`; the damaged files of a dataset become findings."""
    common: dict[str, Any] = {"non_finite": "drop", "report": report}
    if kind == "dataset":
        dataset = open_dataset(path)
        findings += _damage(dataset)
        return _checked(dataset)
    if kind == "ogbench":
        relabel = reading.relabel if _has_rewards(path, kind, reading) else _no_rewards
        return read_ogbench(path, relabel, **common)
    if kind == "exorl":
        files = find_episodes(path)
        labels = map(_zeros, files) if reading.labels is None else reading.labels(files)
        return read_exorl(files, labels, **common)
    if kind == "minari":
        return read_minari(path, reading.observations, action_bounds=reading.action_bounds, **common)
    if kind == "d4rl":
        limit, bounds = reading.max_episode_steps, reading.action_bounds
        return read_d4rl(path, max_episode_steps=limit, action_bounds=bounds, **common)
    return read_table(path, reading.mapping or TableMapping.guess(table_columns(path)), **common)


def _wrong_dimensions(path: Path, summary: Summary, expected: Schema | None) -> Iterator[Finding]:
    found = Schema(len(summary.observation_min), len(summary.action_min))
    if expected is not None and expected != found:
        yield Finding(
            level="error",
            what=f"observations have {found.observation_dim} and actions {found.action_dim} dimensions, the "
            f"environment has {expected.observation_dim} and {expected.action_dim}",
            where=path.name,
            remedy="name the environment that made this data with --env",
        )


def _checked(dataset: OfflineDataset) -> Iterator[Rows]:
    """Yield the rows of a dataset; its checksums say that they are what was written, not who wrote them."""
    for rows in dataset.iter_rows():
        validate_rows(rows, dataset.schema, str(dataset.directory))
        yield rows


def _damage(dataset: OfflineDataset) -> list[Finding]:
    """Return one finding a damaged file of a dataset, of which the rest can still be judged."""
    remedy = restore_hint(dataset.directory, dataset.source)
    return [
        Finding(
            level="error",
            what=f"damaged file: {item.finding}",
            where=f"rows {item.first_row} to {item.first_row + item.entry.rows - 1} of {dataset.manifest.num_rows}",
            remedy=remedy,
        )
        for item in dataset.quarantined
    ]


def _zeros(file: Path) -> np.ndarray:
    return np.zeros(episode_steps(file), np.float32)


def _no_rewards(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    count = len(arrays["observations"])
    return np.zeros(count, dtype=np.float32), np.ones(count, dtype=np.float32)


def _figures(summary: Summary, report: ImportReport, labelled: bool) -> dict[str, float]:
    lengths, returns = summary.lengths, summary.returns
    figures: dict[str, float] = {
        "transitions": summary.num_transitions,
        "trajectories": len(lengths),
        "observation_dim": len(summary.observation_min),
        "action_dim": len(summary.action_min),
        "megabytes": summary.num_rows * 4 * (len(summary.observation_min) + len(summary.action_min) + 3) / 1e6,
        "length_min": int(lengths.min()),
        "length_median": float(np.median(lengths)),
        "length_max": int(lengths.max()),
        "action_min": float(summary.action_min.min()),
        "action_max": float(summary.action_max.max()),
        "action_saturated_fraction": summary.num_saturated / max(1, int(summary.action_histogram.sum())),
        "duplicate_transitions": summary.duplicate_transitions(),
        "duplicate_trajectories": summary.duplicate_trajectories(),
        "dropped_transitions": report.dropped_transitions,
    }
    if labelled:
        figures |= {
            "reward_min": summary.reward_min,
            "reward_max": summary.reward_max,
            "return_min": float(returns.min()),
            "return_median": float(np.median(returns)),
            "return_max": float(returns.max()),
            "masked_fraction": summary.num_masked / summary.num_transitions,
            "terminated_fraction": float(summary.terminated.mean()),
            "solved_fraction": float(summary.solved.mean()),
        }
    return figures


def _histograms(summary: Summary, labelled: bool) -> dict[str, tuple[list[float], list[int]]]:
    edges = np.linspace(-1.0, 1.0, len(summary.action_histogram) + 1)
    found = {"actions": (edges.tolist(), summary.action_histogram.tolist())}
    for name, values in (("lengths", summary.lengths), ("returns", summary.returns)):
        if labelled or name == "lengths":
            counts, edges = np.histogram(values, bins=30)
            found[name] = (edges.tolist(), counts.tolist())
    return found
