"""The rules that turn a dataset's figures into findings, each with its remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from dipole_ray.data.inspection.summary import Summary
from dipole_ray.data.sources.guarantees import MAX_NAMED
from dipole_ray.data.sources.reading import ImportReport, parts_of
from dipole_ray.errors import counted

Verdict = Literal["ok", "warning", "error"]
Level = Literal["info", "warning", "error"]

JUMP_FACTOR = 20.0  # a step this many times longer than the 99th percentile looks like a missing trajectory end
DUPLICATE_FRACTION = 0.01
SATURATED_FRACTION = 0.5
MASKED_FRACTION = 0.5
LOST_FRACTION = 0.02  # as when trajectories of 50 steps each lose their last
FEW_TRANSITIONS = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a user should know about a dataset."""

    level: Level  # `error`: cannot be trained on as it is; `warning`: likely to mislead; `info`: worth knowing
    what: str  # what was found
    where: str  # where: column, rows, trajectories
    remedy: str  # what to do

    @classmethod
    def from_message(cls, level: Level, message: str) -> Finding:
        """Split one of our error messages, `where: what; remedy`, into a finding."""
        where, separator, rest = message.partition(": ")
        what, _, remedy = (rest if separator else message).rpartition("; ")
        if not what:
            what, remedy = remedy, "'dipole data columns' and 'dipole data import --help' say what a file may hold"
        return cls(level=level, what=what, where=where if separator else "whole dataset", remedy=remedy)


_info, _warning = partial(Finding, "info"), partial(Finding, "warning")  # of what, where and the remedy


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """Return the worst of the findings."""
    levels = {finding.level for finding in findings}
    return "error" if "error" in levels else "warning" if "warning" in levels else "ok"


def judge(summary: Summary, report: ImportReport, *, has_rewards: bool) -> list[Finding]:
    """Return every finding on a dataset that could be read; without rewards, its masks mean nothing either."""
    findings = [*_boundaries(summary), *_numbers(summary, report), *_actions(summary), *_duplicates(summary)]
    return findings + ([*_masks_and_rewards(summary)] if has_rewards else [])


def _boundaries(summary: Summary) -> Iterator[Finding]:
    lengths, jumps = summary.figures("lengths"), summary.figures("jumps")
    if summary.num_transitions < FEW_TRANSITIONS:
        what, where = f"only {counted(summary.num_transitions, 'transition')}", "whole dataset"
        yield _warning(what, where, "collect more; a policy trained on so few will mostly memorise them")
    if len(lengths) == 1 and lengths[0] > 10 * FEW_TRANSITIONS:
        what, where = f"a single trajectory of {lengths[0]} transitions", "trajectory ends"
        yield _warning(what, where, "check that every episode's last row is marked (terminals, timeouts or episode)")
    far = np.flatnonzero(jumps > JUMP_FACTOR * max(float(np.quantile(jumps, 0.99)), 1e-6))
    if len(far):
        jumping = counted(len(far), "transition", verb="jump")
        what = f"{jumping} more than {JUMP_FACTOR:.0f} times farther than 99 % of all"
        remedy = "check for missing trajectory ends there; ignore this if the environment teleports"
        yield _warning(what, f"first at transition {far[0]}", remedy)


def _masks_and_rewards(summary: Summary) -> Iterator[Finding]:
    lengths, terminated = summary.figures("lengths"), summary.figures("terminated")
    at_limit = lengths == lengths.max()
    if len(lengths) >= 5 and terminated[at_limit].all() and at_limit.mean() > 0.9:
        what = f"{int(at_limit.sum())} of {len(lengths)} trajectories end the task after {lengths.max()} steps"
        remedy = "if that is a time limit, store mask 1 there (map it as timeouts): it must not stop the bootstrap"
        yield _warning(what, "masks of the last transitions", remedy)
    if not summary.num_masked:
        what = "no transition ends the task; every trajectory is cut by a time limit and bootstrapped"
        remedy = "right for tasks without an end; otherwise map masks, or collect data that reaches the goal"
        yield _info(what, "masks", remedy)
    if summary.num_masked > MASKED_FRACTION * summary.num_transitions:
        what, where = f"{summary.num_masked / summary.num_transitions:.0%} of the transitions end the task", "masks"
        yield _warning(what, where, "masks are 1 - terminated; check that they are not stored the other way round")
    low, high = summary.ranges["rewards"]
    if low == high:
        what = f"every reward is {low:g}"
        remedy = "no action is better than another here: choose another task, or collect data that reaches the goal"
        yield _warning(what, "rewards", remedy)


def _numbers(summary: Summary, report: ImportReport) -> Iterator[Finding]:
    if report.dropped_transitions:
        what = f"{report.share(report.dropped_transitions, 'touch')} NaN, infinity or a number beyond float32"
        where = ", ".join(report.non_finite) + (", ..." if len(report.non_finite) == MAX_NAMED else "")
        yield Finding("error", what, where, "repair them, or import with --non-finite drop")
    if report.unfollowed_transitions:
        lost, count = report.unfollowed_transitions, report.transitions + report.unfollowed_transitions
        what = f"{report.share(lost, 'are')} left out: nothing says what they led to"
        level: Level = "warning" if lost > LOST_FRACTION * count else "info"
        yield Finding(level, what, "last rows of trajectories that were cut", "store next_observations to keep them")
    if report.unread:
        shown = ", ".join(report.unread[:12]) + ", ..." * (len(report.unread) > 12)
        remedy = "map them if they mean something here (--map); 'dipole data columns' shows all"
        yield _info(f"nothing reads {counted(len(report.unread), 'column')}", shown, remedy)
    for warning in report.warnings:
        yield Finding.from_message("warning", f"whole dataset: {warning}")
    if report.clipped_transitions:
        clipped = counted(report.clipped_transitions, "transition", verb="have")
        what = f"{clipped} an action outside its bounds, brought to them"
        yield _info(what, "actions", "harmless if it is noise; otherwise name their environment with --env")
    for note in report.notes:
        yield _info(note, "whole dataset", "check that this is what was recorded")
    for part, (low, high) in parts_of(summary.ranges).items():
        constant = np.flatnonzero(low == high)
        if low.dtype == np.uint8 and len(constant) == low.size:
            what, where = "every picture is the same", f"observations{part}"
            yield _warning(what, where, "check what was recorded: a policy sees nothing there")
        elif low.dtype != np.uint8 and len(constant):
            what = f"{len(constant)} of {len(low)} observation dimensions never change"
            where = f"dimensions {_list(constant)}" + (f" of observations{part}" if part else "")
            yield _info(what, where, "harmless; drop them if they carry no meaning online either")


def _actions(summary: Summary) -> Iterator[Finding]:
    share = summary.num_saturated / max(1, int(summary.action_histogram.sum()))
    if share > SATURATED_FRACTION:
        what, where = f"{share:.0%} of the action entries lie at -1 or 1", "actions"
        yield _warning(what, where, "check the scaling; clipped actions hide what the behaviour policy did")
    low, high = summary.ranges["actions"]
    constant = np.flatnonzero(low == high)
    if len(constant):
        what = f"{len(constant)} of {len(low)} action dimensions never change"
        yield _warning(what, f"dimensions {_list(constant)}", "the policy cannot learn to use them from this data")
    largest = float(np.abs([low, high]).max())
    if largest < 0.1 and len(constant) < len(low):
        what, where = f"no action is larger than {largest:.3g}", "actions"
        yield _warning(what, where, "check that their environment's bounds are -1 and 1 here (import with --env)")


def _duplicates(summary: Summary) -> Iterator[Finding]:
    transitions = summary.duplicate_transitions()
    if told := summary.repeats.told():
        what, _, remedy = told.partition("; ")
        yield _warning(what, "observations and actions", remedy)
    elif transitions > DUPLICATE_FRACTION * summary.num_transitions:
        what = f"{transitions / summary.num_transitions:.1%} of the transitions repeat an earlier one exactly"
        yield _warning(what, "observations and actions", "check the recording; repeated rows weigh more in training")


def _list(indices: np.ndarray) -> str:
    return ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
