"""Videos of a policy acting. They are for looking at: no episode recorded here enters a statistic."""

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v2 as imageio
import numpy as np
from numpy.typing import NDArray

from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.errors import ConfigError, EnvironmentUnavailable
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import SamplesActions, evaluate_cell
from dipole_ray.files.durable import commit_file
from dipole_ray.serving.policy import load_policy

_BLOCK = 2  # H.264 with chroma at half resolution wants even sides, in pixels


def record_video(
    agent: SamplesActions,
    env: EnvConfig | str,
    cell: Cell,
    path: Path,
    *,
    episodes: int = 1,
    seed: int = 0,
    fps: int | None = None,
    frame_every: int = 1,
) -> Path:
    """Record episodes, one after another, as the MP4 file `path`, whose folder is made, and return `path`.

    The episodes start where the counted ones of the same seed do; their noise differs, for they run alone. `fps` None
    is real time, or 30 where the environment names no rate; with `frame_every` a long episode makes a short video.

    Raises:
        ConfigError: If a count is impossible or the file name does not end in .mp4.
        EnvironmentUnavailable: If the environment cannot be rendered here (no GL), with the remedy.
    """
    if path.suffix != ".mp4" or episodes < 1 or frame_every < 1 or (fps is not None and fps < 1):
        raise ConfigError(
            f"a video needs a name ending in .mp4 and counts of at least 1; found {path.name}, "
            f"episodes={episodes}, fps={fps}, frame_every={frame_every}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial.mp4")
    made = make_env(env, render=True)
    rate = fps or round(float(made.metadata.get("render_fps") or 30))
    try:
        writer: Any = imageio.get_writer(partial, fps=rate, macro_block_size=1)
        with closing(writer):
            evaluate_cell(agent, [_Filmed(made, writer, frame_every)], cell, episodes=episodes, seed=seed)
        commit_file(partial, path)
    finally:
        made.close()
        partial.unlink(missing_ok=True)
    return path


class _Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that writes a picture of each reset, every n-th step and each last state."""

    def __init__(self, env: gymnasium.Env, writer: Any, frame_every: int) -> None:
        super().__init__(env)
        self._writer, self._frame_every, self._length = writer, frame_every, 0

    def reset(self, **kwargs: Any) -> Any:
        result = self.env.reset(**kwargs)
        self._length = 0
        self._writer.append_data(_frame(self.env))
        return result

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self._length += 1
        if result[2] or result[3] or self._length % self._frame_every == 0:  # terminated, truncated
            self._writer.append_data(_frame(self.env))
        return result


def _frame(env: Any) -> NDArray[np.uint8]:
    """Return one picture (height, width, 3), its sides cut to what the codec takes."""
    picture = env.render()
    if picture is None:
        raise EnvironmentUnavailable(f"{env}: render() gives no picture; this environment cannot be recorded")
    frame = np.asarray(picture, np.uint8)
    height, width = (max(side - side % _BLOCK, _BLOCK) for side in frame.shape[:2])
    return frame[:height, :width]


def record_run(run: Path, cell: Cell, path: Path, *, episodes: int = 1, seed: int = 0) -> Path:
    """Record the policy of a run or checkpoint folder as `record_video` does, in a process of its own.

    OpenGL drivers end a whole process when they fail, and hardly bear being loaded into one that has grown; a run
    must lose neither its process nor its results to a picture.

    Raises:
        EnvironmentUnavailable: If nothing can be rendered here, with the remedy.
        CheckpointError: If there is no policy to load.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_record_run, run, cell, path, episodes, seed).result()
        except BrokenProcessPool as error:
            raise EnvironmentUnavailable(
                f"{path}: the process that renders was ended by its OpenGL driver; 'dipole doctor' tries rendering"
            ) from error


def _record_run(run: Path, cell: Cell, path: Path, episodes: int, seed: int) -> Path:
    trained = load_policy(run)
    return record_video(trained.policy, trained.env, cell, path, episodes=episodes, seed=seed)
