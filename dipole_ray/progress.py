"""Progress of anything that takes longer than a moment: a bar on a terminal, sparse plain lines elsewhere.

Both show the phase, the count, the rate, the time left and the caller's fields. In a log file a line comes at the
start, at the end, every 10 s while the count moves, and every 60 s while it stands still: no wait is silent.
"""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

LINE_INTERVAL_S = 10.0
STALL_INTERVAL_S = 60.0
RATE_WINDOW_S = 30.0

Value = float | int | str | None


class Progress:
    """A context manager that shows how far something is; its methods may be called from any thread."""

    def __init__(
        self,
        description: str,
        total: int | None = None,
        unit: str = "steps",
        *,
        completed: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the display of a phase, such as `offline`; nothing is shown before the `with` block is entered.

        `total` is the count at the end (None: not known), `unit` what is counted, in the plural. What is `completed`
        already, as after a resume, does not enter the rate. `stream` is standard error by default.
        """
        self._description, self._total = description, total
        self._unit, self._completed = unit, completed
        self._stream, self._clock = sys.stderr if stream is None else stream, clock
        self._fields: dict[str, Value] = {}
        self._last_line_s = self._start_s = clock()
        self._lock, self._finished = threading.RLock(), threading.Event()
        self._watcher: threading.Thread | None = None
        self._rich: RichProgress | None = None
        self._restart(completed)

    def __enter__(self) -> Self:
        """Show the first state."""
        self._start_s = self._clock()
        self._restart(self._completed)
        if self._stream.isatty() and os.environ.get("TERM", "") != "dumb":
            from rich.console import Console  # here alone: most streams are no terminals
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as RichProgress

            status = TextColumn("{task.fields[status]}", markup=False)
            columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), status)
            self._rich = RichProgress(*columns, console=Console(file=self._stream), refresh_per_second=5)
            self._rich.add_task(self._description, total=self._total, completed=self._completed, status="")
            self._rich.start()
        else:
            self._show()
            self._watcher = threading.Thread(target=self._watch, name="progress", daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Show the last state and give the terminal back."""
        self._finished.set()
        if self._watcher is not None:
            self._watcher.join()
        with self._lock:
            self._show(f"{'stopped' if error else 'done'} in {_duration(self._clock() - self._start_s)}")
            if self._rich is not None:
                self._rich.stop()
                self._rich = None

    def advance(self, n: int = 1, **fields: Value) -> None:
        """Count `n` more, and show `fields` (`loss=0.2`, `success=0.9`) from now on."""
        with self._lock:
            self.update(self._completed + n, **fields)

    def update(self, completed: int, **fields: Value) -> None:
        """Set the count, which may go back, and show `fields` from now on; a field of None is no longer shown."""
        with self._lock:
            self._fields.update(fields)
            now = self._clock()
            if completed < self._completed:  # a run that goes on from its last checkpoint
                self._restart(completed)
            elif completed > self._completed:
                self._completed, self._last_move_s = completed, now
                if now - self._history[-1][0] >= 0.1:  # a few hundred points at most
                    self._history.append((now, completed))
                # One point from before the window stays, or the rate would be over less than it says.
                while len(self._history) > 2 and now - self._history[1][0] > RATE_WINDOW_S:
                    self._history.popleft()
            if self._rich is not None or now - self._last_line_s >= LINE_INTERVAL_S:
                self._show()

    def begin(self, description: str, total: int | None, completed: int = 0) -> None:
        """Start another phase, whose total is known only now or differs; its rate is counted from here."""
        with self._lock:
            self._description, self._total = description, total
            self._restart(completed)
            self._show()

    @property
    def rate(self) -> float:
        """Counts per second over the last half minute, or from the start while that is all there is."""
        now, (past_s, past) = self._clock(), self._history[0]
        return (self._completed - past) / (now - past_s) if now > past_s else 0.0

    def check_stall(self) -> None:
        """Write a line if nothing was written for a minute; the watching thread calls it once a second."""
        with self._lock:
            now = self._clock()
            if now - self._last_line_s >= STALL_INTERVAL_S:
                self._show(f"waiting, no progress for {_duration(now - self._last_move_s)}")

    def _watch(self) -> None:
        """Look for a stall once a second until the block is left."""
        while not self._finished.wait(1.0):
            self.check_stall()

    def _restart(self, completed: int) -> None:
        """Count from here: what came before does not enter the rate, whose window of (time, count) begins anew."""
        self._completed = self._first_count = completed
        self._last_move_s = self._clock()
        self._history: deque[tuple[float, int]] = deque([(self._last_move_s, completed)])

    def _status(self) -> str:
        """Return rate, time left and fields as one text."""
        rate = self.rate
        parts = [f"{_number(rate)} {self._unit}/s"] if self._completed != self._first_count else []
        if self._total is not None and rate > 0 and self._completed < self._total:
            parts.append(f"ETA {_duration((self._total - self._completed) / rate)}")
        parts += [f"{name}={_number(value)}" for name, value in self._fields.items() if value is not None]
        return "  ".join(parts)

    def _show(self, end: str = "") -> None:
        """Bring the bar to the present state, or write one plain line that ends with `end`."""
        if self._rich is not None:
            task = self._rich.tasks[0]
            task.total = self._total  # which `update` would not set back to None
            self._rich.update(task.id, description=self._description, completed=self._completed, status=self._status())
            return
        count = f"{self._completed}" if self._total is None else f"{self._completed}/{self._total}"
        parts = [f"{self._description}: {count} {self._unit}", self._status(), end]
        self._last_line_s = self._clock()
        try:
            self._stream.write("  ".join(part for part in parts if part) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # a closed or full log never stops the work it reports on
            self._finished.set()


def _number(value: Value) -> str:
    """Return a value with four significant digits and no exponent where a person would write none."""
    if isinstance(value, float):
        return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)


def _duration(seconds: float) -> str:
    """Return seconds as `12 s`, `3:05` or `2:03:05`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
