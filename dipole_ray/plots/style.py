"""The look that all pictures share: colours, text sizes, and saving.

Colours are from Okabe and Ito's palette, which stays distinct under the common colour-vision
deficiencies. Figures are built without pyplot, so that drawing never touches a global backend.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dipole_ray.files.durable import replacing

DPI = 150
"""Dots per inch of every picture."""

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#7A7A7A", "#222222"
WALL, FLOOR = "#C9CCD1", "#FFFFFF"

CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
"""Line colours in the order of use."""

PHASE_COLOURS = {"offline": ORANGE, "online": BLUE}
"""One colour a phase, the same in every picture."""

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9A9A9A",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "legend.frameon": True,
    "legend.framealpha": 0.75,
    "legend.edgecolor": "none",
    "legend.borderpad": 0.2,
    "legend.fontsize": 8,
    "text.color": INK,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "savefig.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
}


def look() -> AbstractContextManager[None]:
    """Return a context inside which figures are made and saved in the shared look."""
    return mpl.rc_context(_RC)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches that lays its axes out by itself."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, replacing an older file atomically, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return path


def thousands(axes: Axes) -> None:
    """Label the x axis with thin spaces between thousands (20 000)."""
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", "\u2009")))
