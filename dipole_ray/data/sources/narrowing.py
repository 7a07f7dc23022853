"""Observations and rewards of a source become float32, less an offset where one is asked for; losses are reported."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dipole_ray.data.narrowing import Narrowing
from dipole_ray.data.sources.images import are_images
from dipole_ray.data.sources.reading import Block, ImportReport, parts_of
from dipole_ray.errors import ConfigError, DatasetError


class SourceNarrowing:
    """Narrows the blocks of a source one after another."""

    def __init__(self, offset: Sequence[tuple[int, float]] = ()) -> None:
        """`offset` are dimensions of observations, and what is subtracted from them before they are rounded."""
        self._offset = offset
        self._observations: dict[str, Narrowing] = {}  # of each part
        self._rewards = Narrowing()

    def narrow(self, block: Block, *, drop: bool = False) -> Block:
        """Return a block with float32 numbers; DatasetError at one beyond, unless what is not finite is dropped."""
        columns = {**block.columns, "rewards": self._rewards.narrow(block.columns["rewards"])}
        for group in ("observations", "next_observations"):
            for part, values in parts_of(block.columns, group).items():
                columns[group + part] = self._narrowed(part, values)
                if not drop:
                    _require_range(values, columns[group + part], group + part, block)
        if not drop:
            _require_range(block.columns["rewards"], columns["rewards"], "rewards", block)
        return replace(block, columns=columns)

    def _narrowed(self, part: str, values: np.ndarray) -> np.ndarray:
        """Return numbers of a part in float32, less the offset; images as they are."""
        if self._offset and (part or are_images(values)):
            raise ConfigError("--offset: observations are images or several arrays, no one vector; leave it out")
        if are_images(values):
            return values
        return self._observations.setdefault(part, Narrowing()).narrow(self._less(values))

    def _less(self, values: np.ndarray) -> np.ndarray:
        """Return recorded observations, (N, O), less the offset."""
        if not self._offset:
            return values
        values = values.astype(np.float64)
        for dimension, number in self._offset:
            if not dimension < values.shape[1]:
                found = f"observations have the dimensions 0 to {values.shape[1] - 1}"
                raise ConfigError(f"--offset {dimension}={number:.15g}: {found}; name one of them")
            values[:, dimension] -= number
        return values

    def report(self, report: ImportReport) -> None:
        """Say, when all rows were taken, what was subtracted and which dimensions lost much."""
        if self._offset:
            what = ", ".join(f"{number:.15g} from dimension {dimension}" for dimension, number in self._offset)
            report.notes.append(
                f"observations are stored less an offset ({what}): environments of runs on this data subtract it too "
                "(env.observation_offset), and a script of yours by make_env(load_policy(RUN).env).observed"
            )
        for part, lost in ((part, lost) for part, seen in self._observations.items() for lost in seen.losses()):
            how = "before" if part else f"as with --offset {lost.dimension}={lost.offset} when importing"
            where = f"{report.dimension('observations', lost.dimension)} of the observations{part}"
            report.narrowed.append(f"{lost.told(where)}; subtract an offset, {how}, or leave it out")
        for lost in self._rewards.losses():
            remedy = "save them as smaller numbers, such as what each step adds to a total, and import those"
            report.narrowed.append(f"{lost.told('the rewards')}; {remedy}")
        report.warnings += report.narrowed


def _require_range(wide: np.ndarray, narrow: np.ndarray, name: str, block: Block) -> None:
    """Refuse finite numbers beyond float32's, which are no infinity of the original's."""
    beyond = np.isfinite(wide) & np.isinf(narrow)
    if beyond.any():
        row = int(np.argwhere(beyond)[0][0])
        place = f"{block.place} row {block.first_row + row} ({name})".lstrip()
        found = f"{place} holds {wide[beyond][0]:g}, beyond the 3.4e38 of float32"
        remedy = "divide such numbers before, or import without their rows (--non-finite drop)"
        raise DatasetError(f"{block.path}: {found}; {remedy}")
