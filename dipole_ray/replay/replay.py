"""The replay: uniform or exact-share samples of n-step transitions from mapped Arrow files.

    offline datasets (immutable files) ──┐
                                         ├──> sample(batch_size, num_batches) ──> batch for DipoleAgent.update
    insert(rows) ──> online ring ────────┘

Nothing is held in memory but the row numbers of trajectories' ends; sampling is `np.take` on mapped columns. The whole
state is a few kilobytes of JSON: counts, checksums, the sampler's random state and the last insert of each worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np

from dipole_ray.columns import Schema, nested, require_fit
from dipole_ray.data.dataset import common_offset, losses_of, open_dataset, read_manifest, require_same_bounds
from dipole_ray.data.schema import Rows, validate_rows
from dipole_ray.data.segment import SegmentEntry
from dipole_ray.errors import CheckpointError, ConfigError, DatasetError, warn_once
from dipole_ray.files.place import absolute
from dipole_ray.replay.journal import by_sender
from dipole_ray.replay.n_step import gather_n_step
from dipole_ray.replay.ring import OnlineRing
from dipole_ray.spans import spanned

STATE_VERSION = 1
_CHUNK_ROWS = 65_536

_log = logging.getLogger(__name__)


def check_fraction(offline_fraction: float | None) -> None:
    """Raise ConfigError unless `offline_fraction` is None or in [0, 1]."""
    if offline_fraction is not None and not 0.0 <= offline_fraction <= 1.0:
        raise ConfigError(
            f"offline_fraction={offline_fraction} must lie in [0, 1], or be null for the union's own shares"
        )


def _transition_rows(closing: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the rows of transitions by their numbers, in a file whose closing rows lie at `closing`."""
    before = closing - np.arange(len(closing))  # transitions before each closing row
    rows: np.ndarray = numbers + np.searchsorted(before, numbers, side="right")
    return rows


class Batch(dict[str, Any]):
    """Columns by name, and what their windows were made with: an agent that counts otherwise refuses them."""

    n_step: int
    discount: float


class Replay:
    """Samples transitions from offline datasets and an online ring.

    The loop without Ray:

        data = open_dataset(path)
        config = AgentConfig()
        replay = Replay(schema=data.schema, offline=[path], n_step=config.n_step, discount=config.discount)
        agent = DipoleAgent(config, data.schema, seed=0)
        for _ in range(10_000):
            agent.update(replay.sample(256))
    """

    def __init__(
        self,
        *,
        schema: Schema,
        offline: Sequence[Path | str] = (),
        online: Path | str | None = None,
        capacity: int = 0,
        n_step: int = 1,
        discount: float = 0.995,
        offline_fraction: float | None = None,
        seed: int = 0,
        run: str | None = None,
    ) -> None:
        """Open the offline datasets and map (or make) the online ring.

        Args:
            schema: What observations and actions are in every part. Where it refers to side tables, all rows refer to
                those of the only dataset; otherwise inserted rows hold whole observations.
            offline: Folders of datasets.
            online: File of the online ring; None for offline training only. An existing ring counts as empty until
                `load_state` names its rows, unless it belongs to `run`.
            capacity: Rows of the ring that can be sampled at a time; 0 exactly when `online` is None.
            n_step: Transitions per window, >= 1; the agent's own.
            discount: Per transition, in [0, 1]; the agent's own.
            offline_fraction: Share of offline transitions in every batch once there are online ones (until then all are
                offline); None for the union's own shares.
            seed: Of the sampler.
            run: Name of this run, for a replay that shall survive the death of its process: opened again under the
                same name, it holds all rows that were acknowledged or loaded, and knows who inserted them. An insert
                that was interrupted is not there; rows of a damaged block are left out, with a warning. The sampler
                then draws numbers that it never drew before, other ones after each death.

        Raises:
            ConfigError: If settings contradict each other.
            DatasetError: If a dataset cannot be opened or holds other observations or actions.
        """
        check_fraction(offline_fraction)
        if n_step < 1 or not 0.0 <= discount <= 1.0:
            raise ConfigError(f"n_step={n_step} must be >= 1 and discount={discount} in [0, 1]")
        if (online is None) != (capacity == 0):
            remedy = "give both a file and a capacity for online rows, or neither"
            raise ConfigError(f"online={online} with capacity={capacity}: {remedy}")
        self.schema, self.offline_fraction = schema, offline_fraction
        self.n_step, self.discount = n_step, discount
        self._powers = discount ** np.arange(n_step + 1, dtype=np.float64)
        self._entries: list[SegmentEntry] = []
        self._damaged: list[str] = []
        # Of each file, the ring last: its columns, the rows of its transitions by their number, and its side tables.
        self._parts: list[tuple[Rows, Callable[[np.ndarray], np.ndarray], Rows]] = []
        self._ends: list[int] = []  # offline transitions up to and with each offline file
        self._table_rows: dict[str, int] = {}
        self.num_offline, tables = 0, {}
        for directory in offline:
            tables = self._open_offline(Path(directory))
        sources = {directory: read_manifest(Path(directory)).source for directory in offline}
        common_offset(sources)
        require_same_bounds(sources)
        if schema.tables and len(offline) != 1:
            found = f"rows refer to side tables of one dataset ({', '.join(schema.tables)})"
            raise ConfigError(f"{found}, and {len(offline)} are given; give one")
        self._ring = None if online is None else OnlineRing(absolute(online), schema, capacity, run)
        if self._ring is not None:
            self._parts.append((self._ring.columns, self._ring.transition_rows, tables if schema.tables else {}))
        entropy: int | list[int] = seed
        if self._ring is not None and self._ring.recoveries:
            # After a death the sampler must not draw again what it drew before.
            entropy = [seed, self._ring.recoveries, int.from_bytes((run or "").encode())]
        self._random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def _open_offline(self, directory: Path) -> Rows:
        """Add the files of a dataset; return the side table of each column that has one."""
        dataset = open_dataset(directory)
        remedy = "use a dataset of this environment"
        require_fit(dataset.schema, self.schema.keeping({}), what=directory, whom="this replay", remedy=remedy)
        for text in losses_of(dataset):
            warn_once(f"{directory}: {text}")
        self._entries += [*dataset.manifest.files, *dataset.manifest.tables.values()]
        self._damaged += [item.entry.name for item in dataset.quarantined]
        self._table_rows = {name: len(entries) for name, entries in dataset.tables.items()}
        tables = {name: dataset.tables[table] for name, table in dataset.schema.references.items()}
        for segment in dataset.segments:
            remaining = segment.columns["remaining"]
            closing = np.flatnonzero(remaining == 0)
            self.num_offline += len(remaining) - len(closing)
            self._ends.append(self.num_offline)
            self._parts.append((segment.columns, partial(_transition_rows, closing), tables))
        return tables

    @property
    def num_online(self) -> int:
        """Online transitions that can be sampled now."""
        return 0 if self._ring is None else self._ring.num_transitions

    @property
    def env_steps_inserted(self) -> int:
        """Transitions ever inserted, evicted ones included."""
        return 0 if self._ring is None else self._ring.contents.env_steps

    def sizes(self) -> dict[str, int]:
        """Return how many offline and online transitions can be sampled now."""
        return {"offline": self.num_offline, "online": self.num_online}

    @spanned("insert")
    def insert(self, rows: Rows, worker: int, incarnation: int, sequence: int) -> int:
        """Add rows, as `close_trajectory` makes them, to the online ring, all of them or none.

        The `sequence` increases with the inserts of a worker in one incarnation, its life between two restarts. A
        number seen before (a retry) is ignored; the 1024 incarnations heard last are remembered.

        Returns:
            Transitions ever inserted into this replay: an answer that a retry gives as well.

        Raises:
            DatasetError: If the rows do not fit.
            NonFiniteError: If a number is NaN or infinite.
        """
        if self._ring is None:
            raise ConfigError("this replay is offline only; pass online=FILE and capacity=ROWS to insert into it")
        if sequence > self._ring.contents.last_sequence.get((worker, incarnation), -1):
            where = f"insert {sequence} of worker {worker} (incarnation {incarnation})"
            validate_rows(rows, self.schema, where, self._table_rows)
            self._ring.append(rows, worker=worker, incarnation=incarnation, sequence=sequence)
        return self._ring.contents.env_steps

    @spanned("sample")
    def sample(
        self, batch_size: int, num_batches: int = 1, offline_fraction: float | EllipsisType | None = ...
    ) -> dict[str, Any]:
        """Draw batches of B transitions uniformly with replacement; asking for many at once is much faster.

        In each batch `offline_fraction` of B, rounded, are offline transitions, which come first; None draws from the
        union. Left out: as configured, and offline only while the ring is empty.

        Returns:
            Arrays with leading dimension num_batches * B: observations and next_observations (dicts of arrays where the
            schema names several), and float32 actions, rewards (n-step sum), masks, discounts, is_offline (1 or 0),
            and what the schema keeps, 0 in offline rows.
            Each consecutive B of them is one batch.

        Raises:
            DatasetError: If a side that must contribute holds no transitions.
        """
        configured = self.offline_fraction if self.num_online else None
        fraction = configured if offline_fraction is ... else offline_fraction
        picks = self._pick(batch_size, num_batches, fraction).reshape(-1)
        batch = Batch(nested(self._gather(picks)), is_offline=(picks < self.num_offline).astype(np.float32))
        batch.n_step, batch.discount = self.n_step, self.discount
        return batch

    def _gather(self, picks: np.ndarray) -> dict[str, np.ndarray]:
        """Gather transitions by number; those from `num_offline` on are online ones."""
        if len(self._ends) + (self.num_online > 0) == 1:
            return self._gather_part(0, picks)
        # One gather a file, scattered to where its transitions stand in the batches.
        part = np.searchsorted(self._ends, picks, side="right")
        batch: dict[str, np.ndarray] = {}
        for index in np.unique(part):
            chosen = np.flatnonzero(part == index)
            first = self._ends[index - 1] if index else 0
            for name, values in self._gather_part(index, picks[chosen] - first).items():
                if name not in batch:  # zeros where a file has no such column
                    batch[name] = np.zeros((len(picks), *values.shape[1:]), dtype=values.dtype)
                batch[name][chosen] = values
        return batch

    def _gather_part(self, part: int, picks: np.ndarray) -> dict[str, np.ndarray]:
        columns, rows_of, tables = self._parts[part]
        return gather_n_step(columns, rows_of(picks), self._powers, tables, self.schema.kept)

    def _pick(self, batch_size: int, num_batches: int, fraction: float | None) -> np.ndarray:
        """Draw (num_batches, batch_size) numbers; those from `num_offline` on mean online transitions."""
        if batch_size < 1 or num_batches < 1:
            raise ConfigError(f"batch_size={batch_size} and num_batches={num_batches} must be at least 1")
        total = self.num_offline + self.num_online
        if total == 0:
            raise DatasetError(
                "the replay holds no transitions; give it an offline dataset or insert rows before sampling"
            )
        if fraction is None:
            return self._random.integers(0, total, size=(num_batches, batch_size))
        check_fraction(fraction)
        share = round(fraction * batch_size)
        wanted = {"offline": share, "online": batch_size - share}
        for side, held in self.sizes().items():
            if wanted[side] and not held:
                found = f"{wanted[side]} {side} transitions in every batch of {batch_size}, but there are none"
                remedy = f"until there are, sample with offline_fraction={0.0 if side == 'offline' else 1.0}"
                raise DatasetError(f"offline_fraction={fraction} asks for {found}; {remedy}")
        offline = self._random.integers(0, max(1, self.num_offline), size=(num_batches, share))
        online = self._random.integers(self.num_offline, max(1, total), size=(num_batches, batch_size - share))
        return np.concatenate([offline, online], axis=1)

    def observation_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation (O,), float64, of the offline observations, closing rows included.

        Of several arrays the vectors count, one after another in the schema's order.
        """
        vectors = {name: column for name, column in self.schema.observed.items() if column.is_vector}
        if not vectors:
            what = f"observations are {self.schema.observation_text}: mean and deviation are those of flat vectors"
            raise DatasetError(f"{what}; set agent.observation_normalization=none")
        if not self._ends:
            raise DatasetError("observation statistics need offline rows, and this replay has none; open a dataset")
        means, deviations = zip(*(self._moments(name, column.shape) for name, column in vectors.items()), strict=True)
        return np.concatenate(means), np.concatenate(deviations)

    def _moments(self, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of a column of vectors in the offline rows."""
        count, total, squares, shift = 0, 0.0, 0.0, np.zeros(shape)
        for columns, _, tables in self._parts[: len(self._ends)]:
            for start in range(0, len(columns[name]), _CHUNK_ROWS):
                found = columns[name][start : start + _CHUNK_ROWS]
                chunk = (tables[name][found] if name in tables else found).astype(np.float64)
                shift = shift if count else chunk[0].copy()  # against cancellation far from zero
                chunk -= shift
                count, total, squares = count + len(chunk), total + chunk.sum(axis=0), squares + (chunk**2).sum(axis=0)
        mean = total / count
        return mean + shift, np.sqrt(np.maximum(squares / count - mean**2, 0.0))

    def state(self) -> dict[str, Any]:
        """Return everything needed to continue, as JSON of a few kilobytes; online rows are flushed to disk first."""
        sampler = self._random.bit_generator.state
        return {
            "version": STATE_VERSION,
            "schema": self.schema.to_json(),
            "env_steps_inserted": self.env_steps_inserted,
            "offline": [entry.to_json() for entry in self._entries],
            "offline_damaged": self._damaged,
            "online": None if self._ring is None else self._ring.state(),
            "last_sequences": [] if self._ring is None else self._ring.contents.senders(),
            # 128-bit numbers as text: not every JSON reader keeps them.
            "sampler": {name: str(sampler["state"][name]) for name in ("state", "inc")}
            | {name: int(sampler[name]) for name in ("has_uint32", "uinteger")},
        }

    def load_state(self, state: dict[str, Any]) -> int:
        """Continue exactly where `state` was taken: the next samples are bitwise those of the original.

        Rows inserted after the state was taken are dropped; their workers may send them again.

        Returns:
            Online rows that were overwritten since and are gone; 0 unless far more was inserted after the checkpoint
            than the ring has to spare (an eighth of its capacity). A warning says so as well.

        Raises:
            CheckpointError: If the state belongs to other data, another capacity or another version.
            CorruptSegment: If online rows are missing or fail their checksum.
        """
        try:
            self._check_state(state)
            sampler = state["sampler"]
            restored: dict[str, Any] = {name: int(sampler[name]) for name in ("has_uint32", "uinteger")}
            restored |= {"bit_generator": "PCG64", "state": {name: int(sampler[name]) for name in ("state", "inc")}}
            senders, env_steps, lost = by_sender(state["last_sequences"]), int(state["env_steps_inserted"]), 0
            if self._ring is not None and state["online"] is not None:  # an offline run may go on online, with no rows
                lost = self._ring.load_state(state["online"], env_steps=env_steps, last_sequence=senders)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"replay state is incomplete ({error!r}); resume from another checkpoint") from error
        self._random.bit_generator.state = restored
        return lost

    def _check_state(self, state: dict[str, Any]) -> None:
        if state["version"] != STATE_VERSION or Schema.from_json(state["schema"]) != self.schema:
            raise CheckpointError(
                f"replay state of version {state['version']} and dimensions {state['schema']} does not fit this replay "
                f"(version {STATE_VERSION}, {self.schema.to_json()}); resume with the original environment and data"
            )
        stored, found = state["offline"], [entry.to_json() for entry in self._entries]
        if stored != found:
            names = [[entry["name"] for entry in side] for side in (stored, found)]
            raise CheckpointError(
                f"the checkpoint was trained on offline files {names[0]}, this replay has {names[1]}; "
                "resume with the same datasets in the same order"
            )
        before, now = set(state.get("offline_damaged", [])), set(self._damaged)  # a key that older checkpoints lack
        if before != now:
            _log.warning(
                "the offline files differ from the checkpoint's: damaged since then %s, whole again %s; the run goes "
                "on, but its samples are no longer those of the uninterrupted run",
                *(", ".join(sorted(names)) or "none" for names in (now - before, before - now)),
            )
        if state["online"] is not None and self._ring is None:
            raise CheckpointError(
                "the checkpoint has an online ring and this replay has none; resume with the online steps that the "
                "run had, or more"
            )

    def close(self) -> None:
        """Flush and give up the online ring; the replay cannot be used afterwards."""
        if self._ring is not None:
            self._ring.close()

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
