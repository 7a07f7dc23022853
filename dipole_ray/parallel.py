"""An ordered, resumable map over Ray tasks with a progress bar.

For work that is many independent pieces of seconds to minutes each: collecting data, relabelling, benchmarks. The
function and its items travel to the workers, results come back here, so a cluster needs no shared file system.
"""

import functools
import logging
import os
import re
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dipole_ray.cluster import refuse_client, start_ray
from dipole_ray.errors import ConfigError, DipoleError
from dipole_ray.progress import Progress
from dipole_ray.stopping import keeping_handlers, spare_this_process

Item = TypeVar("Item")
Arrivals = Generator[tuple[int, Any], None, None]  # an item's index and its result

# Longest wait for cancelled tasks to end by themselves, as Ctrl-C would end them, and then for those that are killed
PATIENCE_S, CANCEL_DEADLINE_S = 12.0, 15.0
WORTH_RAY_S = 15.0  # seconds of work on one core above which starting Ray pays
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def map_tasks(
    function: Callable[[Item], Any],
    items: Sequence[Item],
    *,
    description: str,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    max_in_flight: int | None = None,
    unit: str = "tasks",
    local: bool = False,
    size: Callable[[Item], int] | None = None,
    rate: float = 0.0,
    part: Callable[[Item], int] | None = None,
    saved: Callable[[Item], Any] | None = None,
    save: Callable[[Item, Any], Any] | None = None,
    lost: Callable[[Item, str], Any] | None = None,
    progress: bool = True,
) -> list[Any]:
    """Return `[function(item) for item in items]`, computed by Ray tasks, each in a process with one thread.

    Starts a local Ray if there is none. Ray replaces a worker that dies and tries its item again, so `function` must
    not mind being run twice. Ctrl-C cancels what runs: a task sees Ctrl-C too, and is killed if it does not end by it.

    Args:
        function: A function of one item that workers can import.
        items: What it is called with; an item's text names it in errors.
        description: What is being done, for the progress bar and for errors.
        num_cpus: CPU cores a task holds, > 0.
        num_gpus: GPUs a task holds; with 0.25 four tasks share one.
        max_in_flight: Most tasks handed to Ray at a time; None: two for each that the cluster can run at once.
        unit: What `size` counts.
        local: Run in this process, without Ray; so does a single item, unless its `part` is to be shown.
        size: Amount of work in an item; 1 each by default.
        rate: Amount that one core does a second; what takes under 15 s is done here if `max_in_flight` is None.
        part: Returns how much of an unfinished item's size is done, for items of minutes or hours.
        saved: Returns an item's kept result from an earlier, interrupted run, or None if it has to be computed.
        save: Called here with an item and its result as it arrives; what it returns takes the result's place.
        lost: Called here with an item whose worker kept dying, and why; returns its result. Without it the map ends.
        progress: Whether to show progress.

    Raises:
        DipoleError: If a task raised one (of the same class, naming the item), or its worker kept dying.
        RuntimeError: If a task failed in another way; names the item, and the cause keeps its traceback.
    """
    work = _Work(function, items, description, {"num_cpus": num_cpus, "num_gpus": num_gpus}, max_in_flight, lost)
    results = [None if saved is None else saved(item) for item in items]
    pending = [index for index, result in enumerate(results) if result is None]
    sizes = [1 if size is None else size(item) for item in items]
    measure = part or (lambda item: 0)
    done = dict(enumerate(sizes)) | {index: min(measure(items[index]), sizes[index]) for index in pending}
    left = sum(sizes) - sum(done.values())
    bar = Progress(description, sum(sizes), unit, completed=sum(sizes) - left) if progress else None

    def look(running: Iterable[int]) -> None:
        done.update((index, min(measure(items[index]), sizes[index])) for index in running)
        if bar is not None:
            bar.update(sum(done.values()))

    if local or (len(pending) <= 1 and part is None) or (max_in_flight is None and left < WORTH_RAY_S * rate):
        arrivals = work.here(pending)
    else:
        arrivals = work.on_ray(pending, look)
    # Closed here and not by the garbage collector: a pending exception would keep tasks and Ray alive.
    with bar or nullcontext(), closing(arrivals):
        for index, result in arrivals:
            results[index] = result if save is None else save(items[index], result)
            done[index] = sizes[index]
            look(())
    return results


@contextmanager
def ray_session(stop: Callable[[], None] | None = None) -> Iterator[None]:
    """Connect to Ray for the block: keep a connection there is, else join the cluster found, else start a local one.

    What was started here is stopped here, by `stop` or else `ray.shutdown`, on failure and Ctrl-C too; see `start_ray`
    for what it raises.
    """
    import ray

    if ray.is_initialized():
        refuse_client()
        yield
        return
    # Ray's C++ core prints advice to its own developers at level ERROR; real failures surface as exceptions.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with keeping_handlers(), _without_greeting():
            start_ray(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield
    finally:
        (stop or ray.shutdown)()


@contextmanager
def _without_greeting() -> Iterator[None]:
    """Leave out of standard error the line in which Ray's C++ core says how loud it is told to be; no setting does."""
    greeting, end = re.compile(rb"^.*Set ray log level from environment variable.*\n", re.MULTILINE), b"\0"
    try:
        screen = os.dup(2)
    except OSError:  # there is none
        yield
        return
    reading, writing = os.pipe()

    def forward() -> None:
        chunk = b""
        while not chunk.endswith(end):
            chunk = os.read(reading, 1 << 16)
            with suppress(OSError):  # of a reader that is gone
                os.write(screen, greeting.sub(b"", chunk.removesuffix(end)))

    thread = threading.Thread(target=forward, name="stderr", daemon=True)
    thread.start()
    os.dup2(writing, 2)
    try:
        yield
    finally:
        os.dup2(screen, 2)
        os.write(writing, end)
        thread.join()
        for descriptor in (reading, writing, screen):
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Work(Generic[Item]):
    """The items of a map and what is done with each."""

    function: Callable[[Item], Any]
    items: Sequence[Item]
    description: str
    resources: dict[str, float]  # of a task, by Ray's names
    max_in_flight: int | None
    lost: Callable[[Item, str], Any] | None

    def __post_init__(self) -> None:
        """Reject counts that cannot be."""
        what, (cpus, gpus) = self.description, self.resources.values()
        if cpus <= 0 or gpus < 0:
            raise ConfigError(f"{what}: num_cpus is {cpus}; it must be above 0 (num_gpus, {gpus}, may be 0)")
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise ConfigError(f"{what}: max_in_flight is {self.max_in_flight}; it must be at least 1")

    def here(self, pending: list[int]) -> Arrivals:
        """Yield (index, result) one after the other, computed in this process."""
        for index in pending:
            try:
                result = self.function(self.items[index])
            except Exception as error:
                raise self._failure(index, error) from error
            yield index, result

    def on_ray(self, pending: list[int], waiting: Callable[[Iterable[int]], None]) -> Arrivals:
        """Yield (index, result) in order of completion; what still runs is cancelled when the caller stops early."""
        import ray

        with ray_session():
            task = ray.remote(_spared(self.function)).options(**self.resources, runtime_env={"env_vars": _ONE_THREAD})
            queue = list(reversed(pending))  # taken from its end
            running: dict[Any, int] = {}
            try:
                while queue or running:
                    limit = self.max_in_flight or 2 * self._slots()
                    while queue and len(running) < limit:
                        index = queue.pop()
                        running[task.remote(self.items[index])] = index
                    # A time-out so that Ctrl-C is seen soon, and a growing cluster is used.
                    for reference in ray.wait(list(running), timeout=1.0)[0]:
                        index = running.pop(reference)
                        yield index, self._result(reference, index)
                    waiting(running.values())
            finally:
                _cancel(list(running))

    def _slots(self) -> int:
        """Return how many tasks the cluster can run at once."""
        import ray

        slots = []
        for key, name, words in (("num_cpus", "CPU", "CPU cores"), ("num_gpus", "GPU", "GPUs")):
            wanted, there = self.resources[key], ray.cluster_resources().get(name, 0.0)
            if there < wanted:
                found = f"Ray has {there} {words} in all"
                raise ConfigError(f"{self.description}: a task needs {key}={wanted}, and {found}")
            if wanted:
                slots.append(int(there / wanted))
        return min(slots)

    def _result(self, reference: Any, index: int) -> Any:
        """Return what a task returned, or what `lost` makes of a worker that kept dying."""
        import ray

        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise self._failure(index, error.cause or error) from error
        except ray.exceptions.RayError as error:
            kind = type(error).__name__
            words = f"its worker process was lost again after Ray's retries ({kind}); usually memory ran out"
            if self.lost is not None:
                return self.lost(self.items[index], words)
            remedy = "use fewer workers. What was finished is kept where the work is resumable"
            raise DipoleError(f"{self._place(index)}: {words}: {remedy}") from error

    def _failure(self, index: int, error: BaseException) -> Exception:
        """Return an item's error with its place: ours as its own class, another one as a RuntimeError."""
        if isinstance(error, DipoleError):
            return type(error)(f"{self._place(index)}: {error}")
        return RuntimeError(f"{self._place(index)} failed with {type(error).__name__}: {error}")

    def _place(self, index: int) -> str:
        return f"{self.description}: {textwrap.shorten(str(self.items[index]), 200, placeholder='...')}"


def _spared(function: Callable[[Item], Any]) -> Callable[[Item], Any]:
    """Return the function as a task calls it; see `spare_this_process`."""

    @functools.wraps(function)
    def task(item: Item) -> Any:
        spare_this_process()
        return function(item)

    return task


def _cancel(references: list[Any]) -> None:
    """Cancel tasks and see them end; Ray loses a cancellation that meets a task whose worker is still starting."""
    import ray

    for reference in references:
        ray.cancel(reference)
    if references:
        _, references = ray.wait(references, num_returns=len(references), timeout=PATIENCE_S)
    deadline = time.monotonic() + CANCEL_DEADLINE_S
    while references and time.monotonic() < deadline:
        for reference in references:
            ray.cancel(reference, force=True)
        _, references = ray.wait(references, num_returns=len(references), timeout=0.5)
