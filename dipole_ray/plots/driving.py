"""The picture of a driving scene: from above, the plans in it coloured by what they score."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Normalize

from dipole_ray.driving.collisions import Bearing
from dipole_ray.driving.outlines import Outlines, outlines
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.score import PDMScorer
from dipole_ray.errors import ConfigError
from dipole_ray.plots import style

_ROAD, _LANE, _ROUTE, _RED = "#E9EAEC", "#C4C7CC", "#D5E8DA", "#E58A84"
_OTHERS = {"vehicle": "#8A94A6", "pedestrian": style.ORANGE, "bicycle": style.PURPLE}
_MARGIN_M, _LEAST_M = 12.0, 18.0
_MOST_M = np.array([120.0, 30.0])  # ahead and aside, of plans that are not the driver's
COLOURS = "RdYlGn"
_LETTERS_AN_INCH = 24  # of what stands below


def draw_scene(
    one: RecordedScene,
    plans: Mapping[str, np.ndarray],
    path: Path,
    *,
    bearing: Bearing = "clipped",
    title: str = "",
    attribution: str = "",
    within: Sequence[np.ndarray] = (),
) -> Path:
    """Draw a scene once for each name in `plans`, save the picture as PNG, and return `path`.

    Args:
        one: The scene; the car looks up.
        plans: Plans (B, K, 3) by name, such as one for each omega; each is coloured by its PDM score.
        path: Where the picture is written.
        bearing: As `PDMScorer` takes it.
        title: Stands above the panels.
        attribution: Whose map it is; stands below them.
        within: Plans (N, K, 3) of other pictures that are to show the same part of the map.

    Raises:
        ConfigError: There are no plans.
    """
    if not plans or any(len(found) == 0 for found in plans.values()):
        raise ConfigError("there are no plans to draw")
    scorer, around = PDMScorer(one.scene, bearing), outlines(one)
    reached = np.array([_reached(found) for found in [*plans.values(), *within]]).max(axis=0).clip(max=_MOST_M)
    ahead, aside = np.maximum(reached, _reached(one.human[None])) + _MARGIN_M
    ahead, aside = max(float(ahead), 3 * _LEAST_M), max(float(aside), _LEAST_M)
    tall = (ahead + _MARGIN_M) / (2 * aside)
    panel = 4.0 if len(plans) == 1 else 2.3
    size = (panel * len(plans) + 0.9, panel * min(tall, 2.5) + 0.8)
    norm = Normalize(0, 1)
    with style.picture(path, size, (1, len(plans)), title=title, sharex=True, sharey=True) as (figure, grid):
        for axes, (name, found) in zip(grid[0], plans.items(), strict=True):
            scores = scorer.score(found).pdms
            _draw_surroundings(axes, around)
            order = np.argsort(scores)  # the best on top
            lines = [np.vstack([[0.0, 0.0], plan[:, :2]])[:, ::-1] * [-1, 1] for plan in found[order]]
            colours = mpl.colormaps[COLOURS](norm(scores[order]))
            axes.add_collection(LineCollection(lines, colors=colours, linewidths=2.2, zorder=5, capstyle="round"))
            for line, colour in zip(lines, colours, strict=True):
                axes.plot(*line[-1], marker="o", markersize=4, color=colour, zorder=6)
            axes.set_title(name)
            axes.set_xlabel(f"PDMS {100 * scores.mean():.1f}", fontsize=8.5)
            axes.set(xlim=(-aside, aside), ylim=(-_MARGIN_M, ahead), xticks=[], yticks=[])
            axes.set_aspect("equal")
        figure.colorbar(ScalarMappable(norm, COLOURS), ax=list(grid[0]), label="PDM score", shrink=0.7)
        if attribution:
            figure.supxlabel(fill(attribution, int(size[0] * _LETTERS_AN_INCH)), fontsize=5.5, color=style.GREY)
    return path


def _reached(plans: np.ndarray) -> np.ndarray:
    """Return how far ahead and aside, (2,), the nearest four fifths of plans (B, K, 3) reach: a wild one may leave."""
    farthest: np.ndarray = np.sort(np.abs(plans[..., :2]).max(axis=1), axis=0)
    reached: np.ndarray = farthest[int(0.8 * (len(plans) - 1))]
    return reached


def _draw_surroundings(axes: Axes, around: Outlines) -> None:
    """Draw roads, the route, red lights and others; ahead is up, and the left is left."""
    layers: list[tuple[list[np.ndarray], dict[str, Any]]] = [
        (around.drivable, {"facecolor": _ROAD, "edgecolor": "none"}),
        (around.route, {"facecolor": _ROUTE, "edgecolor": "none"}),
        (around.red, {"facecolor": _RED, "edgecolor": "none"}),
        (around.lanes, {"facecolor": "none", "edgecolor": _LANE, "linewidth": 0.5}),
    ]
    for kind in {kind for kind, _ in around.others}:
        rings = [ring for one, ring in around.others if one == kind]
        layers.append((rings, {"facecolor": _OTHERS.get(kind, style.GREY), "edgecolor": "white", "linewidth": 0.4}))
    layers.append(([around.car], {"facecolor": style.INK, "edgecolor": "white", "linewidth": 0.4}))
    for zorder, (rings, look) in enumerate(layers, start=1):
        flipped = [ring[:, ::-1] * [-1, 1] for ring in rings]
        axes.add_collection(PolyCollection(flipped, zorder=1 + zorder / 10, **look))
    axes.grid(visible=False)
