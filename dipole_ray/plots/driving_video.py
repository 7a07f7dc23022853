"""The video of driving scenes: one scene after another, its plans at rising omega, coloured by what they score."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import imageio.v2 as imageio
import numpy as np

from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.errors import ConfigError
from dipole_ray.evaluation.video import video_file
from dipole_ray.plots.driving import draw_scene

PICTURES_A_SECOND, SECONDS_A_PANEL = 10, 1
SUFFIXES = (".mp4", ".gif")


def film(
    scenes: Sequence[tuple[RecordedScene, Mapping[str, np.ndarray]]], path: Path, *, attribution: str = ""
) -> Path:
    """Show each panel of each scene for a second, as `draw_scene` draws it, and return `path`.

    Args:
        scenes: Scenes, each with plans (B, K, 3) by the name of a panel, such as one for each omega.
        path: The video, .mp4 or .gif.
        attribution: Whose map it is.

    Raises:
        ConfigError: The name has another ending, or there is nothing to show.
    """
    require_video(path)
    pictures = [picture for one, panels in scenes for picture in _drawn(one, panels, attribution)]
    height, width = (max(picture.shape[side] for picture in pictures) for side in (0, 1))
    rate = PICTURES_A_SECOND if path.suffix == ".mp4" else 1 / SECONDS_A_PANEL
    with video_file(path, rate) as write:
        for picture in pictures:
            for _ in range(round(rate * SECONDS_A_PANEL)):
                write(_padded(picture, height, width))
    return path


def _drawn(one: RecordedScene, panels: Mapping[str, np.ndarray], attribution: str) -> Iterator[np.ndarray]:
    """Yield the panels of a scene as pictures, all of the same part of the map."""
    with TemporaryDirectory() as folder:
        for name, plans in panels.items():
            file, title = Path(folder) / "panel.png", f"{one.map}\n{one.token}"
            draw_scene(one, {name: plans}, file, title=title, attribution=attribution, within=[*panels.values()])
            yield np.asarray(imageio.imread(file)[..., :3])


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a picture in the middle of a white one of this size."""
    free = height - picture.shape[0], width - picture.shape[1]
    return np.pad(picture, [*((side // 2, side - side // 2) for side in free), (0, 0)], constant_values=255)


def require_video(path: Path) -> None:
    """Raise ConfigError if a file's name is not that of a video."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: a video's name ends in {' or '.join(SUFFIXES)}")
