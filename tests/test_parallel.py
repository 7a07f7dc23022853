import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from dipole_ray.errors import ConfigError, DatasetError, DipoleError
from dipole_ray.parallel import map_tasks


@pytest.fixture(scope="module")
def cluster(no_ray: None) -> None:
    """A Ray of this module's, whose workers have imported nothing yet."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)


def uneven_square(number: int) -> int:
    """Take longer for small numbers, so that results arrive out of order."""
    return sum(number for _ in range(number)) if sum(range(2_000_000 // number)) else 0


@pytest.mark.usefixtures("cluster")
def test_results_come_in_the_order_of_the_items() -> None:
    numbers = [1, 50, 2, 40, 3, 30, 4, 20]
    expected = [number**2 for number in numbers]
    assert map_tasks(uneven_square, numbers, description="square", progress=False) == expected
    assert map_tasks(uneven_square, numbers, description="square", local=True, progress=False) == expected
    assert map_tasks(uneven_square, [], description="square", progress=False) == []
    assert ray.is_initialized(), "a Ray that was there before was stopped"


def surroundings(_: int) -> tuple[str | None, bool, int]:
    return os.environ.get("OMP_NUM_THREADS"), "torch" in sys.modules, os.getpid()


@pytest.mark.usefixtures("cluster")
def test_workers_are_other_processes_with_one_thread_and_without_torch() -> None:
    found = map_tasks(surroundings, [0, 1], description="look", progress=False)
    assert all((threads, torch) == ("1", False) and pid != os.getpid() for threads, torch, pid in found)
    ((_, _, pid),) = map_tasks(surroundings, [0], description="look", progress=False)
    assert pid == os.getpid(), "a single item is not worth a worker"


def test_work_of_seconds_is_done_here_unless_tasks_are_asked_for() -> None:
    def pids(**how: Any) -> list[int]:
        found = map_tasks(surroundings, [1, 2], description="short", size=lambda _: 10, progress=False, **how)
        return [pid for _, _, pid in found]

    assert set(pids(rate=2.0)) == {os.getpid()}
    assert os.getpid() not in pids(rate=1.0) + pids(rate=2.0, max_in_flight=2)


def alone(item: tuple[Path, int]) -> int:
    """Fail if another task runs at the same time."""
    lock, number = item
    lock.touch(exist_ok=False)
    result = sum(range(500_000))
    lock.unlink()
    return result + number


@pytest.mark.usefixtures("cluster")
def test_no_more_tasks_run_than_are_allowed_in_flight(tmp_path: Path) -> None:
    items = [(tmp_path / "lock", number) for number in range(6)]
    assert len(map_tasks(alone, items, description="one by one", max_in_flight=1, progress=False)) == 6


def refuse_three(number: int) -> int:
    if number == 3:
        raise DatasetError("no threes")
    if number == 4:
        raise ValueError("no fours")
    return number


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("local", [True, False])
def test_an_error_keeps_its_class_and_names_the_item(local: bool) -> None:
    with pytest.raises(DatasetError, match=r"^count: 3: no threes$"):
        map_tasks(refuse_three, [1, 2, 3], description="count", local=local, progress=False)
    with pytest.raises(RuntimeError, match="count: 4 failed with ValueError: no fours") as caught:
        map_tasks(refuse_three, [4, 5], description="count", local=local, progress=False)
    assert caught.value.__cause__ is not None, "the traceback of the cause is lost"


def die_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker.name


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    markers = [tmp_path / name for name in ("a", "b")]
    assert map_tasks(die_once, markers, description="survive", progress=False) == ["a", "b"]


def die_on_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_item_whose_worker_keeps_dying_ends_the_map_or_is_answered_for() -> None:
    with pytest.raises(DipoleError, match=r"^count: 2: its worker process was lost again .*use fewer workers"):
        map_tasks(die_on_two, [1, 2], description="count", progress=False)
    found = map_tasks(
        die_on_two, [1, 2, 3, 4], description="count", progress=False, lost=lambda item, words: f"{item}: {words}"
    )
    assert [found[0], *found[2:]] == [1, 3, 4] and found[1].startswith("2: its worker process was lost again"), found


def endless_unless_zero(number: int) -> int:
    while number:
        time.sleep(0.05)
    return number


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("cluster")
def test_what_runs_is_cancelled_when_a_result_cannot_be_saved() -> None:
    def save(number: int, result: int) -> None:
        raise DatasetError("disk full")

    with pytest.raises(DatasetError, match="disk full") as caught:
        map_tasks(endless_unless_zero, [0, 1, 2], description="fill", save=save, progress=False)
    # Both cores are needed, and the exception is still held: only cancelled tasks let this finish.
    assert map_tasks(uneven_square, [5, 6], description="square", num_cpus=2, progress=False) == [25, 36]
    assert caught.value is not None


def fail_on_last(number: int) -> int:
    if number == 4:
        raise DipoleError("interrupted")
    return 10 * number


def test_what_was_saved_is_not_computed_again() -> None:
    store: dict[int, str] = {}
    kept: dict[str, object] = {"saved": store.get, "description": "keep", "progress": False, "local": True}

    def save(number: int, result: int) -> str:
        store[number] = f"{result}!"
        return store[number]

    with pytest.raises(DipoleError, match="interrupted"):
        map_tasks(fail_on_last, [1, 2, 4], save=save, **kept)  # type: ignore[arg-type]
    assert store == {1: "10!", 2: "20!"}
    store[2] = "kept"
    assert map_tasks(fail_on_last, [1, 2, 3], save=save, **kept) == ["10!", "kept", "30!"]  # type: ignore[arg-type]


INTERRUPTIBLE = """
import time
from dipole_ray.parallel import map_tasks

def work(number):
    if number:
        while True:
            time.sleep(0.1)
    return number

def save(number, result):
    print("running", flush=True)

try:
    map_tasks(work, range(6), description="endless", save=save)
except KeyboardInterrupt:
    import ray
    print("cancelled", ray.is_initialized())
"""


@pytest.mark.slow
def test_ctrl_c_cancels_the_tasks_and_stops_the_ray_it_started() -> None:
    command = [sys.executable, "-c", INTERRUPTIBLE]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "running\n"
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=60)
    assert output == "cancelled False\n", errors
    assert "stopped in" in errors, "the progress display was not closed"


def halves(folder: Path) -> int:
    """Do half of an item, wait until the driver has looked at it, and finish."""
    (folder / "half").touch()
    deadline = time.monotonic() + 30
    while not (folder / "seen").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return 10


@pytest.mark.usefixtures("cluster")
def test_the_bar_counts_parts_of_items_that_take_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def part(folder: Path) -> int:
        looks.append(5 * (folder / "half").exists())
        if looks.count(5) > 1:
            (folder / "seen").touch()
        return looks[-1]

    looks: list[int] = []
    results = map_tasks(halves, [tmp_path], description="slow", size=lambda _: 10, part=part, unit="steps")
    assert results == [10] and 5 in looks, "half an item was never counted"
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("slow: 0/10 steps") and lines[-1].startswith("slow: 10/10 steps")


@pytest.mark.usefixtures("cluster")
def test_gpus_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigError, match=r"needs num_gpus=0\.5, and Ray has 0\.0 GPUs"):
        map_tasks(uneven_square, [1, 2], description="square", num_gpus=0.5, progress=False)
    with pytest.raises(ConfigError, match="num_gpus, -1"):
        map_tasks(uneven_square, [1, 2], description="square", num_gpus=-1, progress=False)
