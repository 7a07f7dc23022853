"""Figures over a stream of rows: what `inspect` judges a dataset by.

Memory stays at some 25 bytes a transition and 130 a trajectory, whatever the dimensions.
"""

from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from dipole_ray.columns import Schema
from dipole_ray.data.schema import Rows, stored_schema
from dipole_ray.data.sources.images import are_images, sampled
from dipole_ray.data.sources.reading import Arrays, parts_of

ACTION_BINS = 41
SHEET = (4, 6)  # trajectories of which frames are shown, and how many frames of each
SATURATED = 0.999  # action magnitude from which on an action counts as being at its limit


class Repeats:
    """Finds trajectories that are exact copies of earlier ones, by observations and actions; 12 bytes each are kept."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.trajectories = self.copies = self.transitions = self.copied_transitions = 0

    def add(self, rows: Rows) -> None:
        """Take rows of whole trajectories; the last row is a closing row."""
        start = 0
        for end in np.flatnonzero(rows["remaining"] == 0).tolist():
            found = blake2b(digest_size=12)
            for part in parts_of(rows).values():
                found.update(part[start : end + 1].tobytes())
            found.update(rows["actions"][start:end].tobytes())
            is_copy, length = found.digest() in self._seen, end - start
            self._seen.add(found.digest())
            self.trajectories, self.transitions = self.trajectories + 1, self.transitions + length
            self.copies, self.copied_transitions = self.copies + is_copy, self.copied_transitions + is_copy * length
            start = end + 1

    def told(self) -> str | None:
        """Return in words how much is copied, `what; remedy`; None if nothing is."""
        if not self.copies:
            return None
        share = f"{100 * self.copied_transitions / self.transitions:.3g} % of the transitions"
        what = f"{self.copies} of {self.trajectories} trajectories, {share}, are exact copies of others"
        return f"{what}; remove them, or know that they count twice (were files imported twice, or seeds repeated?)"


class Summary:
    """Accumulates figures from chunks of whole trajectories; read the properties after the last `add`."""

    def __init__(self) -> None:
        self.num_rows = self.num_transitions = self.num_masked = self.num_saturated = 0
        self.action_histogram = np.zeros(ACTION_BINS, dtype=np.int64)
        self.ranges: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # least and greatest entries of each column
        self.repeats = Repeats()
        self.frames: list[list[np.ndarray]] = []  # of the first trajectories with images, some of each
        self.schema: Schema | None = None  # what was added
        self._scale = np.zeros(0)
        self._parts: defaultdict[str, list[np.ndarray]] = defaultdict(list)

    def add(self, rows: Rows) -> None:
        """Add rows of whole trajectories; the last row is a closing row."""
        closing = rows["remaining"] == 0
        ends = np.flatnonzero(closing)
        starts = np.append(0, ends[:-1] + 1)
        moving = {name: rows[name][~closing] for name in ("actions", "rewards")}
        parts = parts_of(rows)
        self.schema = stored_schema({name[1:]: values for name, values in parts.items()}, rows["actions"])
        for name, values in {**moving, **{f"observations{name}": values for name, values in parts.items()}}.items():
            low, high = self.ranges.get(name, (values[0], values[0]))
            self.ranges[name] = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
        self.num_rows += len(closing)
        self.num_transitions += len(moving["rewards"])
        self.num_masked += int(np.count_nonzero(rows["masks"] == 0))
        self._parts["lengths"].append(ends - starts)
        self._parts["returns"].append(np.add.reduceat(rows["rewards"].astype(np.float64), starts))
        self._parts["terminated"].append(rows["masks"][ends - 1] == 0)
        self._parts["solved"].append(np.minimum.reduceat(rows["masks"], starts) == 0)
        self.num_saturated += int(np.count_nonzero(np.abs(moving["actions"]) >= SATURATED))
        bins = ((np.clip(moving["actions"], -1.0, 1.0) + 1.0) * (ACTION_BINS / 2)).astype(np.int64)
        self.action_histogram += np.bincount(np.minimum(bins, ACTION_BINS - 1).reshape(-1), minlength=ACTION_BINS)
        self._add_jumps(sampled(parts), np.flatnonzero(~closing))
        self._parts["hashes"].append(_hash_rows([*parts.values(), rows["actions"]])[~closing])
        self._add_frames(parts, starts, ends)
        self.repeats.add(rows)

    def figures(self, name: str) -> np.ndarray:
        """Return a figure of every trajectory or transition.

        Of trajectories: `lengths` (transitions), `returns` (undiscounted), `terminated` (whether the last transition
        ended the task), `solved` (whether any did); of transitions: `jumps`, steps in deviations of the observations.
        """
        return np.concatenate(self._parts[name])

    def duplicate_transitions(self) -> int:
        """Return how many transitions repeat an earlier one, by their (observation, action)."""
        hashes = self.figures("hashes")
        return len(hashes) - len(np.unique(hashes))

    def _add_frames(self, parts: Arrays, starts: np.ndarray, ends: np.ndarray) -> None:
        """Keep some images of the first trajectories, evenly spaced, for people to look at."""
        images = next((values for values in parts.values() if are_images(values)), None)
        if images is None or len(self.frames) >= SHEET[0]:
            return
        for start, end in zip(starts[: SHEET[0] - len(self.frames)], ends, strict=False):
            self.frames.append([images[row].copy() for row in np.linspace(start, end, SHEET[1]).astype(int)])

    def _add_jumps(self, observations: np.ndarray, moving: np.ndarray) -> None:
        if not self._scale.size:
            spread = observations.std(axis=0, dtype=np.float64)
            self._scale = np.where(spread > 0, spread, 1.0).astype(np.float32)
        step = (observations[moving + 1] - observations[moving]) / self._scale
        self._parts["jumps"].append(np.sqrt(np.mean(step * step, axis=1)))


def _hash_rows(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return one 64-bit hash a row of columns, (N, ...) each."""
    if not all(column.dtype == np.float32 and column.ndim == 2 for column in columns):
        rows = zip(*columns, strict=True)
        return np.array([_hash_bytes(b"".join(part.tobytes() for part in row)) for row in rows], np.uint64)
    values = np.concatenate(columns, axis=1)
    words = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    weights = np.random.Generator(np.random.PCG64(0)).integers(1, 1 << 63, size=(words.shape[1],), dtype=np.uint64)
    total = np.zeros(len(words), dtype=np.uint64)
    for index, weight in enumerate(weights.tolist()):
        total += _mix(words[:, index].astype(np.uint64) * np.uint64(weight | 1) + np.uint64(weight))
    return total


def _hash_bytes(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest())


def _mix(values: np.ndarray) -> np.ndarray:
    mixed = (values ^ (values >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.asarray(mixed ^ (mixed >> np.uint64(32)))
