"""Each format's reader by its own arguments, through the table of formats."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dipole_ray.columns import Schema
from dipole_ray.data.schema import Rows
from dipole_ray.data.sources.formats import FORMATS
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.reading import ImportReport, Reading, Relabel

Report = ImportReport | None


def read_ogbench(
    path: Path, relabel: Relabel | None = None, *, report: Report = None, **reading: Any
) -> Iterator[Rows]:
    return FORMATS["ogbench"].rows(path, Reading(relabel=relabel, **reading), report)


def read_d4rl(path: Path, *, report: Report = None, **reading: Any) -> Iterator[Rows]:
    return FORMATS["d4rl"].rows(path, Reading(**reading), report)


def read_minari(
    path: Path, observations: Sequence[str] = (), *, report: Report = None, **reading: Any
) -> Iterator[Rows]:
    return FORMATS["minari"].rows(path, Reading(observations=observations, **reading), report)


def read_table(path: Path, mapping: TableMapping, *, report: Report = None, **reading: Any) -> Iterator[Rows]:
    return FORMATS["table"].rows(path, Reading(mapping=mapping, **reading), report)


def read_exorl(
    files: Sequence[Path], rewards: Iterable[np.ndarray], *, report: Report = None, **reading: Any
) -> Iterator[Rows]:
    return FORMATS["exorl"].rows(above(files), Reading(labels=lambda found: rewards, **reading), report)


def above(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.parent for file in files]))


def ogbench_schema(path: Path) -> Schema:
    return FORMATS["ogbench"].schema(path, Reading())


def d4rl_schema(path: Path) -> Schema:
    return FORMATS["d4rl"].schema(path, Reading())


def minari_schema(path: Path) -> Schema:
    return FORMATS["minari"].schema(path, Reading())


def table_schema(path: Path, mapping: TableMapping) -> Schema:
    return FORMATS["table"].schema(path, Reading(mapping=mapping))


def exorl_schema(files: Sequence[Path]) -> Schema:
    return FORMATS["exorl"].schema(above(files), Reading())
