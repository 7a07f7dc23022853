"""Pictures are drawn from a run's files alone, in the right size, whatever columns are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from dipole_ray.envs.make import EnvConfig, make_env
from dipole_ray.errors import ConfigError, DatasetError
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.play import CellResult, evaluate_cell
from dipole_ray.evaluation.report import Row, write_evaluation
from dipole_ray.evaluation.table import summarize
from dipole_ray.evaluation.trajectories import FILE_NAME, read_trajectories, write_trajectories
from dipole_ray.evaluation.video import record_video
from dipole_ray.plots import draw_curves, draw_maze, draw_omega, draw_run, read_metrics
from dipole_ray.plots.maze import _score
from dipole_ray.plots.panels import Line, Panel, draw_panels
from dipole_ray.plots.style import CYCLE, DPI
from tests.evaluation.test_report import ROWS, row
from tests.maze_walker import MAZE, MazeWalker

CELLS = [Cell("bc", None, 1), Cell("guided", 0.0, 1), Cell("guided", 2.0, 1), Cell("guided", 2.0, 4)]


@pytest.fixture(scope="module")
def results() -> list[CellResult]:
    walker = MazeWalker()
    envs = [make_env(EnvConfig(id=MAZE, max_episode_steps=250)) for _ in range(4)]
    return [evaluate_cell(walker, envs, cell, episodes=4, seed=0, trajectories=3) for cell in CELLS]


@pytest.fixture
def run(tmp_path: Path, results: list[CellResult]) -> Path:
    """Return a run folder with the files of a short real evaluation."""
    rows = [summarize(result) for result in results]
    write_evaluation(tmp_path / "evaluation.json", {"offline": rows, "online": rows})
    paths = [path for phase in ("offline", "online") for result in results for path in result.trajectories(phase)]
    maze = results[0].maze
    assert maze is not None
    write_trajectories(tmp_path / FILE_NAME, maze, paths)
    write_metrics(tmp_path / "metrics.jsonl")
    return tmp_path


def test_a_panel_of_ifql_has_the_counted_success_of_its_row(results: list[CellResult]) -> None:
    """IFQL's rows have no omega, as those of BC, but bear their own name."""
    here = results[0].trajectories("offline")
    counted: Row = {**row(None, 1), "method": "IFQL", "success": 0.25, "episodes": 8}
    assert _score(here, [counted]).startswith("success 2/8")


def write_metrics(path: Path) -> None:
    """Write metrics in which, as in real runs, no line holds every key."""
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for step in range(100, 10_001, 100):
            line: dict[str, object] = {
                "time_s": step / 100,
                "phase": "offline" if step <= 6000 else "online",
                "env_steps": max(0, step - 6000) * 4,
                "learner_steps": step,
                "actor/loss_positive": float(generator.exponential()),
            }
            if step % 200 == 0:
                line |= {"critic/loss": 1 / step, "value/loss": float("nan") if step == 400 else 2 / step}
                line |= {f"actor/weight_q{level:02d}": level / 100 for level in (5, 25, 50, 75, 95)}
            if step % 1000 == 0:
                line |= {"eval/success": 0.5, "eval/success_low": 0.4, "eval/success_high": 0.6, "eval/return": -200.0}
            if step > 6000:
                line["rollout/success"] = 0.7
            file.write(json.dumps(line) + "\n")


def pixels(path: Path) -> np.ndarray:
    picture = np.asarray(imageio.imread(path))[..., :3]
    assert picture.min() < 60, "nothing dark was drawn"
    assert picture.max() == 255
    return picture


def test_a_run_folder_gives_every_picture_and_nothing_half_written(run: Path) -> None:
    pictures = draw_run(run, chosen=(2.0, 4), title=MAZE)
    assert [path.name for path in pictures] == [
        "curves.png",
        "omega.png",
        "maze-candidates-1.png",
        "maze-candidates-4.png",
    ]
    for path in pictures:
        height, width, _ = pixels(path).shape
        assert 2 * DPI < height < 8 * DPI
        assert 4 * DPI <= width < 14 * DPI
    assert not list(run.glob("*.partial"))


def test_paths_come_back_as_they_went(run: Path, results: list[CellResult]) -> None:
    maze, paths = read_trajectories(run / FILE_NAME)
    expected = [path for phase in ("offline", "online") for result in results for path in result.trajectories(phase)]
    assert results[0].maze is not None
    assert np.array_equal(maze.walls, results[0].maze.walls)
    assert (maze.start, maze.goal, maze.goal_radius) == ((0.0, 0.0), (20.0, 20.0), 1.0)
    assert len(paths) == len(expected) == 24
    for path, other in zip(paths, expected, strict=True):
        assert (path.phase, path.policy, path.omega, path.success) == (
            other.phase,
            other.policy,
            other.omega,
            other.success,
        )
        assert np.array_equal(path.positions, other.positions)


def test_no_path_crosses_a_drawn_wall(run: Path) -> None:
    maze, paths = read_trajectories(run / FILE_NAME)
    positions = np.concatenate([path.positions for path in paths])
    columns = np.rint((positions[:, 0] + maze.offset_x) / maze.unit).astype(int)
    rows = np.rint((positions[:, 1] + maze.offset_y) / maze.unit).astype(int)
    assert not maze.walls[rows, columns].any()


def test_successful_paths_are_drawn_in_their_colour(run: Path, tmp_path: Path) -> None:
    maze, paths = read_trajectories(run / FILE_NAME)
    assert all(path.success for path in paths if path.omega == 2.0)

    def blue(selected: bool) -> int:
        target = tmp_path / "maze.png"
        draw_maze(maze, [path for path in paths if path.omega is None or selected], target)
        picture = pixels(target)[30:-60].astype(int)
        return int((picture[..., 2] - picture[..., 0] > 50).sum())

    assert blue(True) > blue(False) + 200


def test_missing_columns_and_files_leave_panels_and_pictures_out(tmp_path: Path) -> None:
    assert draw_run(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"phase": "offline", "learner_steps": 1, "time/x": 1.0}\n')
    assert draw_run(tmp_path) == []
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "offline", "learner_steps": 2, "critic/loss": 1.0}\n{"phase": "offline", "lear')
    assert [path.name for path in draw_run(tmp_path)] == ["curves.png"]
    write_evaluation(tmp_path / "evaluation.json", {"offline": [row(None, 1)]})
    assert [path.name for path in draw_run(tmp_path)] == ["curves.png"]


def test_the_switch_to_online_is_where_the_offline_phase_ended(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl")
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics.switch() == (6000.0, 16_000)
    assert len(metrics.series("value/loss")[0]) == 49, "the NaN is left out"


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        [row(omega, 1, success=None) for omega in (None, 0.0, 1.0)],
        [row(0.0, 1)],
        [{**row(1.0, 1), "return_low": None, "return_high": None}],
    ],
    ids=["full", "no success", "one point", "one episode"],
)
def test_the_omega_curve_takes_what_there_is(tmp_path: Path, rows: list[Row]) -> None:
    pixels(draw_omega({"offline": rows}, tmp_path / "omega.png", chosen=(1.0, 1)))


def test_a_length_that_never_varies_has_no_panel(tmp_path: Path) -> None:
    constant = pixels(draw_omega({"offline": [row(0.0, 1), row(1.0, 1)]}, tmp_path / "constant.png"))
    rows = [row(0.0, 1), row(1.0, 1, length=90.0)]
    varying = pixels(draw_omega({"offline": rows}, tmp_path / "varying.png"))
    assert constant.shape[1] < varying.shape[1]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / FILE_NAME).write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DatasetError, match=r"metrics\.jsonl, line 1"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(DatasetError, match="evaluation-paths"):
        read_trajectories(tmp_path / FILE_NAME)
    with pytest.raises(DatasetError, match="no metrics"):
        read_metrics(tmp_path / "absent.jsonl")


def test_drawing_touches_no_global_matplotlib_state(run: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw_curves(read_metrics(run / "metrics.jsonl"), run / "again.png")
    assert dict(mpl.rcParams) == before


def test_a_video_refuses_impossible_requests_before_making_anything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found clip"):
        record_video(MazeWalker(), MAZE, Cell(), tmp_path / "folder" / "clip.gif")
    assert not list(tmp_path.iterdir())


FILM = """
import sys
from pathlib import Path
from dipole_ray.envs.make import EnvConfig
from dipole_ray.evaluation.cells import Cell
from dipole_ray.evaluation.video import record_video
from tests.maze_walker import MAZE, MazeWalker
env = EnvConfig(id=MAZE, max_episode_steps=12)
record_video(MazeWalker(), env, Cell(), Path(sys.argv[1]), episodes=2)
"""


def test_a_video_shows_the_episode_frame_by_frame(tmp_path: Path) -> None:
    """In a process of its own, as `record_run` does it: OpenGL drivers do not bear a long test session."""
    path = tmp_path / "videos" / "clip.mp4"
    done = subprocess.run([sys.executable, "-c", FILM, str(path)], capture_output=True, text=True)
    if "EnvironmentUnavailable" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    frames = list(imageio.get_reader(path).iter_data())
    assert len(frames) == 2 * (1 + 12), "reset and the steps of each episode"
    assert all(side % 2 == 0 for side in frames[0].shape[:2])
    assert np.std(frames[0]) > 1
    assert [entry.name for entry in path.parent.iterdir()] == ["clip.mp4"]


def test_long_names_in_a_legend_are_not_cut_off_at_the_edges(tmp_path: Path) -> None:
    lines = [
        Line(label=f"a method with a rather long name {index}", colour=colour, x=[0, 1], y=[index, index + 1])
        for index, colour in enumerate(CYCLE)
    ]
    panels = [Panel(title=title, xlabel="x", ylabel="y", lines=lines) for title in ("left", "right")]
    picture = imageio.imread(draw_panels(panels, tmp_path / "panels.png", columns=2))
    edges = np.concatenate((picture[:, :6], picture[:, -6:]), axis=1)
    assert int(edges[..., :3].min()) > 250, "something is drawn across the edge"
