"""The verdict of `dipole data inspect` as a table with small histograms, and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dipole_ray.data.inspection.inspect import Inspection
from dipole_ray.errors import ConfigError, counted

_BARS = " ▁▂▃▄▅▆▇█"
_STYLES = {"ok": "bold green", "info": "cyan", "warning": "bold yellow", "error": "bold red"}
_TITLES = {"returns": "return of a trajectory", "lengths": "transitions of a trajectory", "actions": "action entries"}


def print_inspection(inspection: Inspection) -> None:
    """Print verdict, findings, figures and histograms."""
    console = Console()
    verdict = (inspection.verdict, _STYLES[inspection.verdict])
    lines = [Text.assemble(f"{inspection.path} ({inspection.kind}): ", verdict)]
    for finding in inspection.findings:
        level = (f"{finding.level}: ", _STYLES[finding.level])
        lines.append(Text.assemble("  ", level, f"{finding.what} [{finding.where}]"))
        lines.append(Text(f"    -> {finding.remedy}"))
    console.print(*lines, sep="\n", soft_wrap=True)
    if not inspection.figures:
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in _figure_lines(inspection.figures, inspection.observations):
        table.add_row(name, text)
    for name, (edges, counts) in inspection.histograms.items():
        bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // max(*counts, 1))] for count in counts)
        table.add_row(_TITLES[name], f"{edges[0]:.6g} |{bars}| {edges[-1]:.6g}")
    console.print(table)


def plot_inspection(inspection: Inspection, path: Path) -> None:
    """Draw the histograms side by side, and below them frames of some trajectories where observations are images.

    ConfigError if there is nothing to draw, or the file's ending names no picture format.
    """
    from matplotlib.figure import Figure

    if not inspection.histograms:
        why = f"no transition of {inspection.path} could be read"
        raise ConfigError(f"{path}: no picture, because {why}; see the findings")
    shown = [name for name in ("returns", "lengths", "actions") if name in inspection.histograms]
    # Not by pyplot, which would keep the figure and choose a backend for the whole process.
    figure = Figure(figsize=(4.2 * len(shown), 3.2 + 1.2 * len(inspection.frames)), layout="constrained")
    parts: Any = figure.subfigures(1 + bool(inspection.frames), 1, squeeze=False)
    if inspection.frames:
        _draw_frames(parts[1, 0], inspection.frames)
    for axis, name in zip(parts[0, 0].subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        edges, counts = inspection.histograms[name]
        axis.stairs(counts, edges, fill=True, color="tab:blue")
        axis.set_xlabel(_TITLES[name])
        axis.set_ylabel("count")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{Path(inspection.path).name}: {inspection.verdict}")
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; let the name end in .png, .pdf or .svg") from error


def _draw_frames(part: Any, frames: Sequence[Sequence[np.ndarray]]) -> None:
    """Draw a contact sheet, a trajectory a row: of stacked frames the newest, in colours where there are three."""
    axes = part.subplots(len(frames), len(frames[0]), squeeze=False)
    for row, pictures in zip(axes, frames, strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            channels = picture.shape[2]
            shown = picture if channels == 4 else picture[..., -3:] if channels % 3 == 0 else picture[..., -1]
            axis.imshow(shown, cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
    part.suptitle(f"frames of the first {counted(len(frames), 'trajectory')}, from left to right")


def _figure_lines(figures: dict[str, float], observations: str) -> list[tuple[str, str]]:
    """Return the figures as named lines for a person."""
    value = {name: f"{number:.6g}" for name, number in figures.items()}
    saturated = f"{figures['action_saturated_fraction']:.1%}"
    lines = [
        ("transitions", f"{figures['transitions']:,.0f} in {counted(figures['trajectories'], 'trajectory', ',.0f')}"),
        ("dimensions", f"observations {observations}, actions {value['action_dim']}"),
        ("size", f"{figures['megabytes']:,.1f} MB as a dataset"),
        ("length", f"{value['length_min']} to {value['length_max']}, median {value['length_median']}"),
        ("actions", f"{value['action_min']} to {value['action_max']}, {saturated} at the limits"),
    ]
    if "reward_min" in figures:
        ended = figures["terminated_fraction"]
        lines += [
            ("rewards", f"{value['reward_min']} to {value['reward_max']}"),
            ("return", f"{value['return_min']} to {value['return_max']}, median {value['return_median']}"),
            ("task ended (mask 0)", f"{figures['masked_fraction']:.2%} of transitions"),
            ("trajectories with it", f"{figures['solved_fraction']:.1%}, as the end {ended:.1%}"),
        ]
    again = counted(figures["duplicate_transitions"], "transition")
    return [*lines, ("duplicates", f"{again}, {counted(figures['duplicate_trajectories'], 'trajectory')}")]
