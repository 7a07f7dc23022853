"""The look that all pictures share: colours, text sizes, the frame of a figure and its legend.

Colours are from Okabe and Ito's palette, which stays distinct under the common colour-vision deficiencies.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dipole_ray.files.durable import replacing
from dipole_ray.files.place import make_folder

DPI = 150
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#7A7A7A", "#222222"
WALL, FLOOR = "#C9CCD1", "#FFFFFF"

CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)  # of lines, in the order of use
PHASE_COLOURS = {"clone": GREY, "offline": ORANGE, "online": BLUE}

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


@contextmanager
def picture(
    path: Path, size: tuple[float, float], shape: tuple[int, int] = (1, 1), *, title: str = "", **sharing: Any
) -> Iterator[tuple[Figure, NDArray[Any]]]:
    """Give a figure in the shared look and its grid of axes; when the block ends, write it as PNG, whole or not at all.

    `size` is width and height in inches, `shape` rows and columns; `sharing` is `sharex` and `sharey` of `subplots`.
    """
    with mpl.rc_context(_RC):
        # Without pyplot, so that drawing never touches a global backend.
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        yield figure, figure.subplots(*shape, squeeze=False, **sharing)
        if title:
            figure.suptitle(title, fontsize=10.5, fontweight="bold")
        make_folder(path.parent)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI)


def legend_below(figure: Figure, handles: Sequence[Artist] = (), columns: int | None = None, **look: Any) -> None:
    """Put one legend below all axes, of `handles` or of everything drawn that has a label, each label once."""
    drawn = handles or [one for axes in figure.axes for one in axes.get_legend_handles_labels()[0]]
    named = {str(handle.get_label()): handle for handle in drawn}
    if named:
        most = min(len(named), columns or len(named))
        figure.legend(handles=list(named.values()), loc="outside lower center", ncols=most, fontsize=8.5, **look)


def candidates_text(count: int) -> str:
    """Return `1 candidate`, `4 candidates`."""
    return f"{count} candidate{'s' * (count != 1)}"


def thousands(number: float) -> str:
    """Return a number with thin spaces between thousands (20 000)."""
    return f"{number:,.0f}".replace(",", "\u2009")


def is_wide(values: Sequence[float]) -> bool:
    """Tell whether numbers are better read on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > 20


def count_along_x(axes: Axes) -> None:
    """Label the x axis with whole numbers."""
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: thousands(value)))


def shade_phase(axes: Axes, start: float, end: float, colour: str = SKY) -> None:
    """Shade a phase, the online one by default."""
    axes.axvspan(start, end, color=colour, alpha=0.10, linewidth=0, zorder=0)
    axes.axvline(start or end, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)))
