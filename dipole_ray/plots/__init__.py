"""The pictures of a run: trajectories in the maze, learning curves, and the omega trade-off.

Everything is drawn from the files in the run folder, so that pictures can be made again at any time.
"""

from pathlib import Path

from dipole_ray.evaluation import report, trajectories
from dipole_ray.plots.curves import draw_curves, panels_of, read_metrics
from dipole_ray.plots.maze import draw_maze
from dipole_ray.plots.omega import draw_omega

__all__ = ["draw_curves", "draw_maze", "draw_omega", "draw_run", "read_metrics"]


def draw_run(run: Path, *, chosen: tuple[float, int] | None = None, title: str = "") -> list[Path]:
    """Draw every picture that the files of a run folder allow, beside those files, and return what was written.

    `metrics.jsonl` gives `curves.png`, `evaluation.json` gives `omega.png`, and `evaluation-paths.npz` gives
    `maze-candidates-N.png` for each number of candidates. `chosen` are omega and candidates named before the run.

    Raises:
        DatasetError: If one of the files is damaged.
    """
    pictures, evaluation = [], None
    if (run / "metrics.jsonl").exists():
        metrics = read_metrics(run / "metrics.jsonl")
        if panels_of(metrics):
            pictures.append(draw_curves(metrics, run / "curves.png", title=title))
    if (run / report.FILE_NAME).exists():
        evaluation = report.read_evaluation(run / report.FILE_NAME)
        if any(row["omega"] is not None for rows in evaluation.values() for row in rows):
            pictures.append(draw_omega(evaluation, run / "omega.png", chosen=chosen, title=title))
    if (run / trajectories.FILE_NAME).exists():
        maze, paths = trajectories.read_trajectories(run / trajectories.FILE_NAME)
        for candidates in sorted({path.candidates for path in paths}):
            target = run / f"maze-candidates-{candidates}.png"
            pictures.append(draw_maze(maze, paths, target, candidates=candidates, evaluation=evaluation, title=title))
    return pictures
