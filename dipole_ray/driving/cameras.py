"""What three cameras of the car see: NAVSIM's pictures where there are any, else flat polygons and boxes, drawn.

Drawn pictures are there so that a policy that sees is trained and run for real; they look like no street.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from PIL import Image, ImageDraw

from dipole_ray.driving.outlines import outlines
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.scene import RED_LIGHT
from dipole_ray.driving.vehicle import HEADING, Array, X, Y, turned
from dipole_ray.errors import ConfigError, DatasetError

VIEWS = {"CAM_L0": math.radians(55), "CAM_F0": 0.0, "CAM_R0": -math.radians(55)}
"""the cameras and where they look, from the left"""
Colour = tuple[int, int, int]
_SKY, _GROUND, _ROAD, _LINE, _RED = (176, 200, 222), (120, 134, 104), (92, 92, 96), (226, 226, 220), (222, 40, 32)
_COLOURS = {"vehicle": (52, 92, 168), "pedestrian": (206, 128, 52), "bicycle": (140, 72, 150)}
_OTHER = (190, 160, 60)
_HEIGHTS = {"vehicle": 1.6, "pedestrian": 1.75, "bicycle": 1.7}
_NEAR_M, _FAR_M, _POLE_M, _LIGHT_M = 0.4, 80.0, 3.0, 0.9
MAX_PIXELS = 64_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraConfig:
    """The cameras."""

    width: int = 192
    """pixels"""
    height: int = 108
    """pixels"""
    view_degrees: float = 64.0
    """width of the view of each camera"""
    above_m: float = 1.6
    """metres above the road"""
    ahead_m: float = 1.5
    """metres ahead of the rear axle"""

    def __post_init__(self) -> None:
        """Reject cameras that see nothing."""
        if not 8 <= min(self.width, self.height) <= max(self.width, self.height) <= 4096:
            raise ConfigError(f"pictures of {self.width} x {self.height} pixels; 8 to 4096 are possible")
        if not 10 <= self.view_degrees <= 150 or not 0.1 <= self.above_m <= 10:
            raise ConfigError(f"a view of {self.view_degrees} degrees from {self.above_m} m; 10 to 150, 0.1 to 10 m")


def images(one: RecordedScene, config: CameraConfig | None = None, sensors: Path | None = None) -> Array:
    """Return what the cameras of VIEWS see, (3, height, width, 3) uint8.

    Args:
        one: The scene. If its log names pictures, these are read and resized; else they are drawn.
        config: The cameras; of a picture that is read, only the size matters.
        sensors: The folder in which the log's pictures lie.

    Raises:
        DatasetError: A picture is missing, damaged or too large, or the log names pictures and there is no folder.
    """
    config = config or CameraConfig()
    if not one.cameras:
        drawing = _Drawing(one, config)
        return np.stack([drawing.seen(angle) for angle in VIEWS.values()])
    if sensors is None:
        raise DatasetError(f"scene {one.token} has pictures; give the folder of the sensors in which they lie")
    if missing := VIEWS.keys() - one.cameras.keys():
        raise DatasetError(f"scene {one.token} has no camera {min(missing)}")
    return np.stack([_read(sensors / one.cameras[name].path, config) for name in VIEWS])


def resized(picture: Image.Image, config: CameraConfig) -> Array:
    """Return a camera's picture in the size that is wanted, (height, width, 3) uint8."""
    return np.asarray(picture.convert("RGB").resize((config.width, config.height)))


def _read(path: Path, config: CameraConfig) -> Array:
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels, which no camera has")
            return resized(picture, config)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: not a picture that can be read ({error})") from None


class _Drawing:
    """The faces of a scene, in metres ahead, to the left and above the road, seen from the car."""

    def __init__(self, one: RecordedScene, config: CameraConfig) -> None:
        self._config, self._one = config, one
        around = outlines(one)
        self._ground = [
            *((points, _ROAD, None) for points in _near(around.drivable)),
            *((points, None, _LINE) for points in _near(around.lanes)),
        ]
        self._boxes = sorted(self._standing(), key=lambda face: -face[0])

    def _standing(self) -> Iterator[tuple[float, Array, Colour]]:
        """Yield what stands on the ground: its distance, and its sides as (4, 3) each with a colour."""
        now, ego = self._one.scene.frames[0], self._one.scene.ego
        for token, polygon in zip(now.tokens, now.polygons, strict=True):
            points = turned(shapely.get_coordinates(polygon)[:-1] - ego[[X, Y]], -ego[HEADING])
            distances = np.hypot(*points.T)
            if distances.min() > _FAR_M:
                continue
            if RED_LIGHT in token:
                yield from self._light(points[distances.argmin()])
                continue
            kind = self._one.kinds.get(token, "")
            colour, height = _COLOURS.get(kind, _OTHER), _HEIGHTS.get(kind, 0.9)
            top = np.column_stack([points, np.full(len(points), height)])
            yield float(distances.mean()), top, _shaded(colour, 1.25)
            for here, following, shade in zip(points, np.roll(points, -1, axis=0), (0.8, 1.0, 0.8, 1.0), strict=False):
                side = np.array([[*here, 0], [*following, 0], [*following, height], [*here, height]])
                yield float(np.hypot(*(here + following)) / 2), side, _shaded(colour, shade)

    def _light(self, at: Array) -> Iterator[tuple[float, Array, Colour]]:
        across = np.array([-at[1], at[0]]) / max(float(np.hypot(*at)), 1e-6) * _LIGHT_M / 2
        corners = [[*(at + side * across), _POLE_M + up * _LIGHT_M] for side, up in ((-1, 0), (1, 0), (1, 1), (-1, 1))]
        yield float(np.hypot(*at)), np.array(corners), _RED

    def seen(self, angle: float) -> Array:
        """Return the picture (height, width, 3) of a camera that looks `angle` to the left of ahead."""
        config = self._config
        image = Image.new("RGB", (config.width, config.height), _SKY)
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, config.height // 2, config.width, config.height), fill=_GROUND)
        for points, fill, line in self._ground:
            if len(pixels := self._projected(points, angle)) > 2:
                draw.polygon(pixels, fill=fill, outline=line)
        for _, points, colour in self._boxes:
            if len(pixels := self._projected(points, angle)) > 2:
                draw.polygon(pixels, fill=colour, outline=_shaded(colour, 0.6))
        return np.asarray(image)

    def _projected(self, points: Array, angle: float) -> list[tuple[float, float]]:
        """Return the pixels of a face, cut off where it comes too near."""
        config = self._config
        flat = turned(points[:, :2] - [config.ahead_m, 0.0], -angle)
        seen = _cut(np.column_stack([flat, points[:, 2] - config.above_m]))
        if not len(seen):
            return []
        focal = config.width / 2 / math.tan(math.radians(config.view_degrees) / 2)
        columns = np.clip(config.width / 2 - focal * seen[:, 1] / seen[:, 0], -1e5, 1e5)
        rows = np.clip(config.height / 2 - focal * seen[:, 2] / seen[:, 0], -1e5, 1e5)
        return list(zip(columns.tolist(), rows.tolist(), strict=True))


def _near(rings: Sequence[Array]) -> Iterator[Array]:
    """Yield the rings as (n, 3) on the ground that may be seen."""
    for points in rings:
        if np.hypot(*points.T).min() < _FAR_M:
            yield np.column_stack([points, np.zeros(len(points))])


def _cut(points: Array) -> Array:
    """Return the part of a polygon (n, 3) that is ahead of the camera (Sutherland and Hodgman)."""
    ahead = points[:, 0] >= _NEAR_M
    if ahead.all() or not ahead.any():
        return points[ahead]
    kept = []
    for i, (here, inside) in enumerate(zip(points, ahead, strict=True)):
        before, was_inside = points[i - 1], ahead[i - 1]
        if inside != was_inside:
            share = (_NEAR_M - before[0]) / (here[0] - before[0])
            kept.append(before + share * (here - before))
        if inside:
            kept.append(here)
    return np.array(kept)


def _shaded(colour: Colour, light: float) -> Colour:
    red, green, blue = (min(round(part * light), 255) for part in colour)
    return red, green, blue
