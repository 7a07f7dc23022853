"""The trade-off picture: what omega and the number of candidates do to success, return and length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from dipole_ray.errors import DatasetError
from dipole_ray.evaluation.report import BC, Evaluation, Row, phases_of
from dipole_ray.plots import style

_LABELS = {"success": "success rate", "return": "return", "length": "episode length (steps)"}


def draw_omega(evaluation: Evaluation, path: Path, *, chosen: tuple[float, int] | None = None, title: str = "") -> Path:
    """Draw the measures over omega, one row of panels per number of candidates, and save them as PNG.

    Args:
        evaluation: Rows per phase; BC rows become horizontal lines.
        path: The PNG to write.
        chosen: Omega and candidates named before the run; ringed.
        title: Headline.

    Returns:
        `path`.

    Raises:
        DatasetError: If no row has an omega.
    """
    rows = [row for phase in phases_of(evaluation) for row in evaluation[phase]]
    if all(row["omega"] is None for row in rows):
        raise DatasetError("the evaluation holds no row with an omega; there is no curve to draw")
    measures = [name for name in _LABELS if _is_worth_drawing(rows, name)]
    counts = sorted({row["candidates"] for row in rows})
    with style.look():
        figure = style.new_figure(3.3 * len(measures) + 0.4, 2.35 * len(counts) + 0.8)
        grid = figure.subplots(len(counts), len(measures), squeeze=False, sharex=True, sharey="col")
        for i, candidates in enumerate(counts):
            for j, measure in enumerate(measures):
                axes = grid[i][j]
                for phase in phases_of(evaluation):
                    here = [row for row in evaluation[phase] if row["candidates"] == candidates]
                    _draw_curve(axes, here, measure, phase)
                    _ring_chosen(axes, here, measure, chosen)
                axes.set_title(f"{candidates} candidate{'s' * (candidates != 1)}" if j == 0 else "")
                axes.set_ylabel(_LABELS[measure])
                if measure == "success":
                    axes.set_ylim(-0.05, 1.05)
        for axes in grid[-1]:
            axes.set_xlabel("greediness \u03c9")
        handles = {handle.get_label(): handle for axes in grid.flat for handle in axes.get_legend_handles_labels()[0]}
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=len(handles), fontsize=8.5)
        if title:
            figure.suptitle(title, fontsize=10.5, fontweight="bold")
        return style.save(figure, path)


def _is_worth_drawing(rows: Sequence[Row], measure: str) -> bool:
    """Leave out what the task does not define, and a length that never varies (fixed-length episodes)."""
    values = [_number(row, measure) for row in rows]
    if any(value is None for value in values):
        return False
    return measure != "length" or len(set(values)) > 1


def _draw_curve(axes: Axes, rows: Sequence[Row], measure: str, phase: str) -> None:
    colour = style.PHASE_COLOURS.get(phase, style.GREEN)
    curve = sorted((row for row in rows if row["omega"] is not None), key=lambda row: row["omega"] or 0.0)
    if not curve:
        return
    omegas = [row["omega"] or 0.0 for row in curve]
    middle = [_number(row, measure) or 0.0 for row in curve]
    low = [_bound(row, measure, "low") for row in curve]
    high = [_bound(row, measure, "high") for row in curve]
    axes.fill_between(omegas, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(omegas, middle, color=colour, marker="o", markersize=4.5, label=f"{curve[0]['method']}, {phase}")
    axes.set_xticks(omegas, [f"{omega:g}" for omega in omegas])
    _draw_bc(axes, rows, measure, phase, colour)


def _draw_bc(axes: Axes, rows: Sequence[Row], measure: str, phase: str, colour: str) -> None:
    """Draw BC, which knows no omega, as a level with its interval."""
    for row in rows:
        if row["method"] == BC:
            axes.axhspan(_bound(row, measure, "low"), _bound(row, measure, "high"), color=colour, alpha=0.07, lw=0)
            level = _number(row, measure) or 0.0
            # Where both phases lie at one level, their dashes alternate.
            dashes = (4 * (phase == "online"), (4, 4))
            axes.axhline(level, color=colour, linestyle=dashes, linewidth=1.2, zorder=1.5, label=f"BC, {phase}")


def _ring_chosen(axes: Axes, rows: Sequence[Row], measure: str, chosen: tuple[float, int] | None) -> None:
    for row in rows:
        if chosen is not None and (row["omega"], row["candidates"]) == chosen:
            axes.plot(
                [row["omega"] or 0.0],
                [_number(row, measure) or 0.0],
                linestyle="",
                marker="o",
                markersize=10,
                markerfacecolor="none",
                markeredgecolor=style.INK,
                markeredgewidth=1.1,
                label="chosen before the run",
            )


def _number(row: Row, key: str) -> float | None:
    value = row[key]  # type: ignore[literal-required]
    return None if value is None else float(value)


def _bound(row: Row, measure: str, end: str) -> float:
    """Return an end of the interval, or the mean itself where there is no interval."""
    bound = _number(row, f"{measure}_{end}")
    return (_number(row, measure) or 0.0) if bound is None else bound
