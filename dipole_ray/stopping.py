"""Polite requests to stop: Ctrl-C, SIGTERM of a scheduler, SIGHUP of a terminal that is closed.

All mean the same: finish what is short, save, and end with status 128 + the signal's number. Handlers can be set in
the main thread alone, so in any other one requests are left to whoever owns the main thread; and a signal that is
ignored, as under nohup, stays ignored.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """Somebody asked the process to stop."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number


class StopRequests:
    """The signals that came in a block: they are noted, for the block to end itself in good order.

    Ctrl-C pressed again ends the block at once. Other signals may come twice of themselves (`timeout` sends two), so
    the second one says nothing new.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        """The signals, in their order."""
        self._raises = False

    def __len__(self) -> int:
        return len(self.numbers)

    def __call__(self, number: int, frame: FrameType | None) -> Any:
        """Handle a signal."""
        again = number == signal.SIGINT and number in self.numbers
        self.numbers.append(number)
        if again or (self._raises and len(self.numbers) == 1):
            raise Stopped(number)

    @property
    def exit_status(self) -> int:
        """Status of a command that one of them, or else Ctrl-C, ended; such as 143 after SIGTERM."""
        return 128 + next(iter(self.numbers), signal.SIGINT)

    @contextlib.contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """Raise Stopped at the first request before or in the block, whose work is lost without harm."""
        self._raises = True
        try:
            if self.numbers:
                raise Stopped(self.numbers[0])
            yield
        except KeyboardInterrupt:  # Ray raises a plain one in place of what a handler raised while it waited
            if self.numbers.count(signal.SIGINT) > 1:
                raise
            raise Stopped(*self.numbers[:1]) from None
        finally:
            self._raises = False


@contextlib.contextmanager
def noting_stops() -> Iterator[StopRequests]:
    """Note requests to stop in the block, instead of ending it."""
    requests = StopRequests()
    with _handling(requests) as before:
        try:
            yield requests
        finally:
            for handler in before.values():
                if requests and isinstance(handler, _End):
                    handler.number = requests.numbers[0]  # what follows is the end already


@contextlib.contextmanager
def ending_on_stops() -> Iterator[None]:
    """Raise Stopped in the block at the first SIGTERM or SIGHUP, as Python itself does at Ctrl-C."""
    end = _End()
    with _handling(end, [number for number in SIGNALS if number != signal.SIGINT]):
        try:
            yield
        except KeyboardInterrupt:  # Ray raises a plain one in place of what a handler raised while it waited
            raise Stopped(end.number or signal.SIGINT) from None


class _End:
    """Ends what runs, once: what it does to end in good order is not cut short."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, frame: FrameType | None) -> Any:
        if not self.number:
            self.number = number
            raise Stopped(number)


@contextlib.contextmanager
def _handling(
    handler: Callable[[int, FrameType | None], Any], numbers: Iterable[int] = SIGNALS
) -> Iterator[dict[int, Any]]:
    """Handle signals in the block, and give the handlers that they had and get back."""
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, handler)
        yield before
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Keep the handlers that the caller has in a block in which a library would set its own.

    Requests to stop in the block are met when it ends: in its midst they would leave processes that it has begun to
    start. Ctrl-C pressed again ends it at once. Processes that are started in the block do not hear SIGTERM and SIGHUP:
    sent to all processes of a terminal, a job or a service, they would end those that a run needs for its last
    checkpoint. The mask that they inherit keeps signals from no other thread of this process.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, set(SIGNALS) - {signal.SIGINT})
    requests, handled = StopRequests(), [number for number in SIGNALS if callable(signal.getsignal(number))]
    try:
        with _handling(requests, handled) as before, _handlers_kept(before):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number in requests.numbers[:1]:
        signal.raise_signal(number)


@contextlib.contextmanager
def _handlers_kept(numbers: Container[int]) -> Iterator[None]:
    """Let nobody set the handlers of these signals in the block."""
    set_handler = signal.signal

    def keep(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number in numbers else set_handler(number, handler)

    signal.signal = keep  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = set_handler


def spare_this_process() -> None:
    """In a worker of Ray: ignore what `keeping_handlers` keeps away, but let processes that it starts hear it."""
    if threading.current_thread() is threading.main_thread():
        for number in set(SIGNALS) - {signal.SIGINT}:
            signal.signal(number, lambda *_: None)  # not SIG_IGN, which they would inherit
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(SIGNALS) - {signal.SIGINT})
