"""A scene from above as a raster: what may be driven on, the route, red lights, and who is where, now and 1 s ago."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from PIL import Image, ImageDraw

from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.scene import DRIVABLE, LANES, RED_LIGHT
from dipole_ray.driving.vehicle import HEADING, Array, X, Y, turned
from dipole_ray.errors import ConfigError

CHANNELS = ("drivable", "route", "red", "agents", "agents 1 s ago")


@dataclass(frozen=True, kw_only=True, slots=True)
class RasterConfig:
    """The raster's frame: the car looks up."""

    pixels: int = 128
    """rows and columns"""
    metres_per_pixel: float = 0.5
    """size of a pixel"""
    behind_m: float = 16.0
    """metres behind the rear axle that are seen; the rest of the rows are ahead of it"""

    def __post_init__(self) -> None:
        """Reject a raster without room."""
        if not 8 <= self.pixels <= 2048 or not 0.01 <= self.metres_per_pixel <= 10:
            raise ConfigError(f"a raster of {self.pixels} pixels of {self.metres_per_pixel} m; 8 to 2048, 0.01 to 10 m")
        if not 0 <= self.behind_m < self.pixels * self.metres_per_pixel:
            raise ConfigError(
                f"behind_m is {self.behind_m}; the raster is {self.pixels * self.metres_per_pixel:g} m long"
            )


def raster(one: RecordedScene, config: RasterConfig | None = None) -> Array:
    """Return the scene from above, (5, pixels, pixels) uint8 of 0 and 255, by CHANNELS; the left is left.

    The car itself is on none of them: it is always at the same place.
    """
    config, scene = config or RasterConfig(), one.scene
    place = _Placing(config, scene.ego)
    types, tokens = np.array(scene.map_types), np.array(scene.map_tokens)
    on_route = np.isin(types, list(LANES)) & np.isin(tokens, list(scene.route))
    now = scene.frames[0]
    red = np.array([RED_LIGHT in token for token in now.tokens], dtype=bool)
    layers = (
        scene.map_polygons[np.isin(types, list(DRIVABLE))],
        scene.map_polygons[on_route],
        now.polygons[red],
        now.polygons[~red],
        one.past.polygons,
    )
    return np.stack([place.drawn(layer) for layer in layers])


class _Placing:
    """Where metres of the world are on the raster."""

    def __init__(self, config: RasterConfig, ego: Array) -> None:
        self._config, self._origin, self._heading = config, ego[[X, Y]], ego[HEADING]

    def drawn(self, polygons: Iterable[Any]) -> Array:
        """Return the raster (pixels, pixels) in which the polygons are 255."""
        size = self._config.pixels
        image = Image.new("L", (size, size))
        draw = ImageDraw.Draw(image)
        for polygon in shapely.get_parts(np.array(list(polygons), dtype=object)):
            for ring, value in ((polygon.exterior, 255), *((hole, 0) for hole in polygon.interiors)):
                draw.polygon(self._pixels(shapely.get_coordinates(ring)), fill=value)
        return np.asarray(image)

    def _pixels(self, points: Array) -> list[tuple[float, float]]:
        seen = turned(points - self._origin, -self._heading)
        middle = self._config.pixels / 2
        rows = self._config.pixels - (seen[:, 0] + self._config.behind_m) / self._config.metres_per_pixel
        columns = middle - seen[:, 1] / self._config.metres_per_pixel
        return list(zip(columns.tolist(), rows.tolist(), strict=True))
