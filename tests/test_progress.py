"""Progress is never silent for long, never chatty, and tells the truth about rate and time left."""

from __future__ import annotations

import io

import pytest

from dipole_ray.progress import Progress


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say yes."""
        return True


def test_a_log_gets_a_line_at_start_and_end_and_every_ten_seconds_between() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("offline", total=1000, stream=stream, clock=clock) as progress:
        for _ in range(100):
            clock.now += 0.5
            progress.advance(10, loss=0.25)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 5 + 1
    assert lines[0] == "offline: 0/1000 steps"
    assert lines[1] == "offline: 200/1000 steps  20 steps/s  ETA 40 s  loss=0.25"
    assert lines[-1].startswith("offline: 1000/1000 steps") and lines[-1].endswith("done in 50 s")


def test_a_stall_is_reported_every_minute() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("online", total=10, stream=stream, clock=clock) as progress:
        for _ in range(125):
            clock.now += 1
            progress.check_stall()
    waiting = [line for line in stream.getvalue().splitlines() if "waiting" in line]
    assert [line.rpartition("for ")[2] for line in waiting] == ["1:00", "2:00"]


def test_a_resumed_count_does_not_enter_the_rate() -> None:
    clock = Clock()
    with Progress("online", total=2000, completed=1000, stream=io.StringIO(), clock=clock) as progress:
        clock.now += 10
        progress.update(1050)
        assert progress.rate == 5.0


def test_a_count_that_goes_back_to_a_checkpoint_shows_no_negative_rate() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("suite", total=2000, completed=1400, stream=stream, clock=clock) as progress:
        clock.now += 10
        progress.update(1000)
        clock.now += 10
        progress.update(1050)
        assert progress.rate == 5.0
    assert "-" not in stream.getvalue()


def test_the_rate_follows_the_last_half_minute() -> None:
    clock = Clock()
    with Progress("online", stream=io.StringIO(), clock=clock) as progress:
        for second in range(200):
            clock.now += 1
            progress.advance(100 if second < 100 else 10)
        assert progress.rate == 10.0


def test_a_terminal_gets_a_bar_with_phase_count_and_fields() -> None:
    clock, stream = Clock(), Terminal()
    with Progress("offline", total=40, unit="updates", stream=stream, clock=clock) as progress:
        clock.now += 2
        progress.advance(20, loss=0.5)
        progress.begin("online", 40, 20)
        progress.update(40, success="[1/2]")
    shown = stream.getvalue()
    for part in ("offline", "online", "40/40", "updates/s", "loss=0.5", "success=[1/2]"):
        assert part in shown


def test_an_error_inside_is_said_and_passed_on() -> None:
    stream = io.StringIO()
    try:
        with Progress("online", stream=stream):
            raise ValueError("inside")
    except ValueError:
        pass
    assert "stopped in" in stream.getvalue()


def test_a_closed_log_does_not_stop_the_work() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress("online", stream=stream, clock=clock) as progress:
        stream.close()
        clock.now += 20
        progress.advance()


def test_a_new_phase_has_its_own_total_and_rate() -> None:
    """A download that starts over, or goes on to be verified, shows neither a negative rate nor the old total."""
    clock, stream = Clock(), io.StringIO()
    with Progress("download", unit="kB", stream=stream, clock=clock) as progress:
        progress.begin("download", 1000, 400)
        clock.now += 10
        progress.update(600)
        progress.begin("download", 500)
        clock.now += 10
        progress.update(100)
        progress.begin("verify", None)
    lines = stream.getvalue().splitlines()
    assert lines[:3] == ["download: 0 kB", "download: 400/1000 kB", "download: 600/1000 kB  20 kB/s  ETA 20 s"]
    assert lines[3:6] == ["download: 0/500 kB", "download: 100/500 kB  10 kB/s  ETA 40 s", "verify: 0 kB"]


def test_a_bar_forgets_the_total_of_the_phase_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress("verify", total=77, stream=stream) as progress:
        progress.begin("check", None, 3)
    assert "3/?" in stream.getvalue().replace(" ", "")
