"""One verdict for any dataset, before training: boundaries, time limits, numbers, actions, duplicates, returns."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.columns import Schema, misfit
from dipole_ray.data.dataset import losses_of, open_dataset, read_manifest
from dipole_ray.data.inspection.summary import Summary
from dipole_ray.data.inspection.verdict import Finding, Verdict, judge, verdict_of
from dipole_ray.data.quarantine import restore_hint
from dipole_ray.data.schema import Rows, validate_rows
from dipole_ray.data.sources.actions import range_warnings, scale_of_dataset
from dipole_ray.data.sources.formats import FORMATS, dataset_kind
from dipole_ray.data.sources.reading import ImportReport, Reading
from dipole_ray.errors import ConfigError, DatasetError, NonFiniteError


@dataclass(frozen=True, slots=True)
class Inspection:
    """The verdict on one dataset and the figures behind it."""

    path: str  # what was inspected
    kind: str  # `dataset`, or the name of its format
    verdict: Verdict  # the worst of the findings
    findings: tuple[Finding, ...]  # what a user should know, worst first
    figures: dict[str, float]  # named numbers: counts, shares, quantiles
    histograms: dict[str, tuple[list[float], list[int]]]  # `returns`, `lengths`, `actions`: bin edges and counts
    observations: str = ""  # what one is, as `Schema.observation_text`
    frames: tuple[tuple[np.ndarray, ...], ...] = ()  # of some trajectories with images, (H, W, C) each

    def to_json(self) -> dict[str, Any]:
        """Return everything but the frames as a JSON object."""
        return {name: value for name, value in asdict(self).items() if name != "frames"}


def inspect_dataset(
    path: Path | str,
    reading: Reading | None = None,
    *,
    expected: Schema | None = None,
    on_transitions: Callable[[int], None] | None = None,
) -> Inspection:
    """Read a dataset from beginning to end and judge it; what cannot be read is a finding, not an exception.

    It is a dataset folder, or any data that can be imported; `expected` are the dimensions that it must have, and
    `on_transitions` is called with the transitions read so far.
    """
    path, reading = Path(path), replace(reading or Reading(), non_finite="drop", needs_rewards=False)
    kind, report, summary = dataset_kind(path, reading.mapping), ImportReport(), Summary()
    row = FORMATS.get(kind)
    findings: list[Finding] = []
    labelled = True
    try:
        labelled = row is None or row.is_rewarded(path, reading)
        for rows in _dataset_rows(path, findings, report) if row is None else row.rows(path, reading, report):
            summary.add(rows)
            if on_transitions is not None:
                on_transitions(summary.num_transitions)
    except (DatasetError, ConfigError, NonFiniteError) as error:
        findings.append(Finding.from_message("error", str(error)))
    if row is not None and not labelled:
        what = "the data holds no rewards of a task, so returns and masks are not judged"
        findings.append(Finding("info", what, path.name, row.unrewarded))
    if summary.num_transitions:
        if row is None:
            scale, stored = scale_of_dataset(read_manifest(path).source), summary.ranges["actions"]
            report.warnings += range_warnings(scale, reading.action_bounds, stored)
        findings += judge(summary, report, has_rewards=labelled)
        if expected is not None and expected != summary.schema:
            what = misfit(summary.schema, expected, "the environment") if summary.schema is not None else ""
            remedy = "name the environment that made this data with --env"
            findings.append(Finding("error", what, path.name, remedy))
    elif not findings:
        findings.append(Finding("error", "no transitions", path.name, "check the source"))
    findings.sort(key=lambda finding: ("error", "warning", "info").index(finding.level))
    figures, histograms = {}, {}
    if summary.num_transitions:
        figures, histograms = _figures(summary, report, labelled), _histograms(summary, labelled)
    seen = "" if summary.schema is None else summary.schema.observation_text
    frames = tuple(map(tuple, summary.frames))
    return Inspection(str(path), kind, verdict_of(findings), tuple(findings), figures, histograms, seen, frames)


def _dataset_rows(path: Path, findings: list[Finding], report: ImportReport) -> Iterator[Rows]:
    """Yield the rows of a dataset, whose checksums say that they are what was written, not who wrote them."""
    dataset = open_dataset(path)
    if dataset.schema.tables or not dataset.schema.actions.is_vector:
        what = f"observations of {dataset.schema.observation_text} and actions of {dataset.schema.actions}"
        raise DatasetError(f"{path}: holds {what}, and only vectors and images are inspected; train on it as it is")
    for item in dataset.quarantined:  # the rest can still be judged
        where, remedy = f"{item.place} of {dataset.manifest.num_rows}", restore_hint(path, dataset.source)
        findings.append(Finding("error", f"damaged file: {item.finding}", where, remedy))
    report.warnings += losses_of(dataset)
    for rows in dataset.iter_rows():
        validate_rows(rows, dataset.schema, str(path))
        yield rows


def _figures(summary: Summary, report: ImportReport, labelled: bool) -> dict[str, float]:
    lengths, returns = summary.figures("lengths"), summary.figures("returns")
    (low, high), schema = summary.ranges["actions"], summary.schema
    assert schema is not None
    figures: dict[str, float] = {
        "transitions": summary.num_transitions,
        "trajectories": len(lengths),
        **({"observation_dim": schema.observation_dim} if schema.is_flat else {}),
        "action_dim": len(low),
        "megabytes": summary.num_rows * schema.row_bytes / 1e6,
        "length_min": int(lengths.min()),
        "length_median": float(np.median(lengths)),
        "length_max": int(lengths.max()),
        "action_min": float(low.min()),
        "action_max": float(high.max()),
        "action_saturated_fraction": summary.num_saturated / max(1, int(summary.action_histogram.sum())),
        "duplicate_transitions": summary.duplicate_transitions(),
        "duplicate_trajectories": summary.repeats.copies,
        "dropped_transitions": report.dropped_transitions,
    }
    if labelled:
        reward_min, reward_max = summary.ranges["rewards"]
        figures |= {
            "reward_min": float(reward_min),
            "reward_max": float(reward_max),
            "return_min": float(returns.min()),
            "return_median": float(np.median(returns)),
            "return_max": float(returns.max()),
            "masked_fraction": summary.num_masked / summary.num_transitions,
            "terminated_fraction": float(summary.figures("terminated").mean()),
            "solved_fraction": float(summary.figures("solved").mean()),
        }
    return figures


def _histograms(summary: Summary, labelled: bool) -> dict[str, tuple[list[float], list[int]]]:
    edges = np.linspace(-1.0, 1.0, len(summary.action_histogram) + 1)
    found = {"actions": (edges.tolist(), summary.action_histogram.tolist())}
    for name in ("lengths", "returns") if labelled else ("lengths",):
        figures = np.asarray(summary.figures(name), np.float64)
        low, high, largest = figures.min(), figures.max(), np.abs(figures).max()
        # Between numbers so large and close together, 30 bins have no edges of their own.
        is_coarse = 100 * np.spacing(largest) > (high - low or 1.0)
        ends = (low - 1e-3 * largest, high + 1e-3 * largest) if is_coarse else None
        counts, edges = np.histogram(figures, bins=30, range=ends)
        found[name] = (edges.tolist(), counts.tolist())
    return found
