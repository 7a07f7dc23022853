"""The soak's judgement finds leaks that are there and none that are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.chaos.slopes import draw, leaks, read_samples, replaced, table, trend

MINUTES = np.arange(0.0, 30.0, 1 / 12)


def memory(slope: float, *, noise: float = 3.0, seed: int = 0) -> np.ndarray:
    """Return memory that rises by 100 MB while it warms up, then by `slope` a minute, with noise and spikes."""
    rng = np.random.default_rng(seed)
    spikes = 40.0 * (rng.random(len(MINUTES)) < 0.05)
    return (
        500.0 + 100.0 * (1.0 - np.exp(-MINUTES)) + slope * MINUTES + noise * rng.standard_normal(len(MINUTES)) + spikes
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_of_memory_is_found_and_flat_memory_is_not_blamed(seed: int) -> None:
    for slope, leaking in ((0.0, False), (0.5, False), (-2.0, False), (1.2, True), (5.0, True)):
        samples = {"driver[1]/rss_mb": (MINUTES, memory(slope, seed=seed))}
        assert bool(leaks(samples)) == leaking, slope
    moves = trend(MINUTES, memory(5.0, seed=seed))
    assert abs(moves.slope - 5.0) < 0.2 and moves.low < moves.slope < moves.high < moves.low + 0.5


def test_a_leak_of_five_megabytes_a_minute_is_found_within_three_minutes() -> None:
    early = MINUTES < 3.0
    assert leaks({"replay[7]/rss_mb": (MINUTES[early], 60.0 + 5.0 * MINUTES[early])})


def test_one_descriptor_or_thread_that_stays_is_found_and_one_that_comes_and_goes_is_not() -> None:
    visits = 40.0 + (np.arange(len(MINUTES)) % 7 == 0)
    assert not leaks({"learner[2]/descriptors": (MINUTES, visits), "learner[2]/threads": (MINUTES, visits)})
    for quantity in ("descriptors", "threads"):
        assert leaks({f"learner[2]/{quantity}": (MINUTES, visits + (MINUTES > 15))})


def test_objects_that_pile_up_are_found() -> None:
    rng = np.random.default_rng(0)
    busy = rng.integers(0, 12, len(MINUTES)).astype(float)
    assert not leaks({"object store/objects": (MINUTES, busy)})
    assert leaks({"object store/objects": (MINUTES, busy + MINUTES)})
    assert leaks({"object store/used_mb": (MINUTES, busy + 2 * MINUTES)})


def test_a_process_that_was_replaced_is_named_and_others_processes_are_not_ours(tmp_path: Path) -> None:
    half = len(MINUTES) // 2
    samples = {
        "learner[2]/rss_mb": (MINUTES[:half], memory(0.0)[:half]),
        "learner[3]/rss_mb": (MINUTES[half:], memory(0.0)[half:]),
        "driver[1]/rss_mb": (MINUTES, memory(0.0)),
        "gcs_server[4]/rss_mb": (MINUTES, memory(9.0)),
    }
    assert replaced(samples) == ["learner[2]/rss_mb", "learner[3]/rss_mb"]
    assert leaks(samples) == []
    lines = [
        f"{minute},{name},{value}"
        for name, (span, values) in samples.items()
        for minute, value in zip(span, values, strict=True)
    ]
    (tmp_path / "samples.csv").write_text("\n".join(["minutes,series,value", *lines]) + "\n")
    read = read_samples(tmp_path / "samples.csv")
    assert table(read) == table(samples) and "gcs_server[4]/rss_mb" in table(read)
    draw(read, tmp_path / "samples.png")
    assert (tmp_path / "samples.png").stat().st_size > 10_000
