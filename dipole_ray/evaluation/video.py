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

from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.errors import ConfigError, EnvironmentUnavailable
from dipole_ray.evaluation.batches import SamplesActions
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import evaluate_cell
from dipole_ray.files.durable import commit_file
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial.mp4")
    made = make_env(env, render=True)
    rate = round(float(made.metadata.get("render_fps") or 30))
    try:
        writer: Any = imageio.get_writer(partial, fps=rate, macro_block_size=1)
        with closing(writer):
            evaluate_cell(agent, [_Filmed(made, writer)], cell, episodes=episodes, seed=seed)
        commit_file(partial, path)
    finally:
        made.close()
        partial.unlink(missing_ok=True)
    return path


class _Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that writes a picture of each state."""

    def __init__(self, env: gymnasium.Env, writer: Any) -> None:
        super().__init__(env)
        self._writer = writer

    def reset(self, **kwargs: Any) -> Any:
        result = self.env.reset(**kwargs)
        self._film()
        return result

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self._film()
        return result

    def _film(self) -> None:
        """Write one picture (height, width, 3), its sides cut to what the codec takes."""
        picture: Any = self.env.render()
        if picture is None:
            raise EnvironmentUnavailable(f"{self.env}: render() gives no picture; this environment cannot be recorded")
        frame = np.asarray(picture, np.uint8)
        height, width = (max(side - side % _BLOCK, _BLOCK) for side in frame.shape[:2])
        self._writer.append_data(frame[:height, :width])


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
