"""What a sweep compares: the metric of a row, the best cell of a grid, and the better of two scores."""

from collections.abc import Sequence

from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.report import Row
from dipole_ray.evaluation.table import score_of
from dipole_ray.sweep.config import SweepConfig


def measure_of(row: Row, metric: str) -> str:
    """Return the measure that a metric means in this task: `score` is success where there is one, else the return."""
    if metric == "score":
        return "return" if row["success"] is None else "success"
    if metric == "success" and row["success"] is None:
        raise ConfigError("sweep.metric is 'success', which this environment does not define: set sweep.metric=return")
    return metric


def metric_of(row: Row, metric: str) -> float:
    """Return the compared number of a row."""
    return score_of(row) if metric == "score" else float(row[measure_of(row, metric)])  # type: ignore[literal-required]


def interval_of(row: Row, metric: str) -> tuple[float | None, float | None]:
    """Return the ends of the compared number's interval."""
    measure = measure_of(row, metric)
    return row[f"{measure}_low"], row[f"{measure}_high"]  # type: ignore[literal-required]


def gain(score: float, sweep: SweepConfig) -> float:
    """Return a score so that more is better."""
    return score if sweep.mode == "max" else -score


def best_row(rows: Sequence[Row], sweep: SweepConfig) -> Row:
    """Return the best cell: ties go to the higher return, then to the cheaper and less greedy one."""

    def rank(row: Row) -> tuple[float, float, int, float]:
        omega = 0.0 if row["omega"] is None else abs(row["omega"])
        return -gain(metric_of(row, sweep.metric), sweep), -row["return"], row["candidates"], omega

    return min(rows, key=rank)


def cell_of(row: Row) -> Cell:
    """Return the cell that a row is about."""
    return Cell("bc" if row["omega"] is None else "guided", row["omega"], row["candidates"])
