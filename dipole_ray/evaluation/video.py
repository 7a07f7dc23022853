"""Videos of a policy acting. They are for looking at: no episode recorded here enters a statistic."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v2 as imageio
import numpy as np

from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.errors import ConfigError, EnvironmentUnavailable
from dipole_ray.evaluation.batches import SamplesActions
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import evaluate_cell
from dipole_ray.files.durable import commit_file
from dipole_ray.files.place import make_folder
from dipole_ray.serving.policy import load_policy

_BLOCK = 2  # H.264 with chroma at half resolution wants even sides, in pixels


def record_video(
    agent: SamplesActions, env: EnvConfig | str, cell: Cell, path: Path, *, episodes: int = 1, seed: int = 0
) -> Path:
    """Record episodes, one after another, as the MP4 file `path`, whose folder is made, and return `path`.

    They are the first of the counted ones of the same seed. The video shows each state, in real time or with 30 frames
    per second where the environment names no rate.

    Raises:
        ConfigError: If there are no episodes or the file name does not end in .mp4.
        EnvironmentUnavailable: If the environment cannot be rendered here (no GL), with the remedy.
    """
    if path.suffix != ".mp4" or episodes < 1:
        found = f"found {path.name}, episodes={episodes}"
        raise ConfigError(f"a video needs a name ending in .mp4 and at least 1 episode; {found}")
    made = make_env(env, render=True)
    try:
        with video_file(path, round(float(made.metadata.get("render_fps") or 30))) as write:
            evaluate_cell(agent, [_Filmed(made, write)], cell, episodes=episodes, seed=seed)
    finally:
        made.close()
    return path


@contextmanager
def video_file(path: Path, rate: float) -> Iterator[Callable[[Any], None]]:
    """Give what adds a picture (height, width, 3) to a video, .mp4 or .gif, which is there once the block has ended.

    Its folder is made; its sides are cut to what the codec takes. `rate` is pictures per second.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    how: Any = {"fps": rate, "macro_block_size": 1} if path.suffix == ".mp4" else {"duration": 1000 / rate, "loop": 0}
    writer: Any = imageio.get_writer(partial, **how)

    def write(picture: Any) -> None:
        frame = np.asarray(picture, np.uint8)
        height, width = (max(side - side % _BLOCK, _BLOCK) for side in frame.shape[:2])
        writer.append_data(frame[:height, :width])

    try:
        with closing(writer):
            yield write
        commit_file(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class _Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that writes a picture of each state."""

    def __init__(self, env: gymnasium.Env, write: Callable[[Any], None]) -> None:
        super().__init__(env)
        self._write = write

    def reset(self, **kwargs: Any) -> Any:
        result = self.env.reset(**kwargs)
        self._film()
        return result

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self._film()
        return result

    def _film(self) -> None:
        """Write one picture."""
        picture: Any = self.env.render()
        if picture is None:
            raise EnvironmentUnavailable(f"{self.env}: render() gives no picture; this environment cannot be recorded")
        self._write(picture)


def record_run(run: Path, cell: Cell, path: Path, *, episodes: int = 1, seed: int = 0, **acting: Any) -> Path:
    """Record the policy of a run or checkpoint folder as `record_video` does, in a process of its own.

    `acting` are `load_policy`'s.

    OpenGL drivers end a whole process when they fail, and hardly bear being loaded into one that has grown; a run
    must lose neither its process nor its results to a picture. Raises as `record_video` and `load_policy` do.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_record_run, run, cell, path, episodes, seed, acting).result()
        except BrokenProcessPool as error:
            raise EnvironmentUnavailable(
                f"{path}: the process that renders was ended by its OpenGL driver; 'dipole doctor' tries rendering"
            ) from error


def _record_run(run: Path, cell: Cell, path: Path, episodes: int, seed: int, acting: dict[str, Any]) -> Path:
    trained = load_policy(run, **acting)
    return record_video(trained.policy, trained.env, cell, path, episodes=episodes, seed=seed)
