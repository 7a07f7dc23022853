"""Damaged files of a dataset: kept out of training, named with their rows, and how to get them back.

Nothing is moved or deleted: a dataset is only ever read here, may be shared or read-only, and a file that was restored
is back at the next opening, because every opening verifies every file.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipole_ray.data.segment import SegmentEntry

MAX_NAMED = 5  # damaged files that a message names one by one


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """One file that is not what the manifest says, and is therefore not served."""

    entry: SegmentEntry  # its line of the manifest
    first_row: int  # number of its first row in the whole dataset
    finding: str  # what is wrong, with the file's path

    @property
    def place(self) -> str:
        """Its rows, for messages."""
        return f"rows {self.first_row} to {self.first_row + self.entry.rows - 1}"


def describe_damage(directory: Path, damaged: Sequence[Quarantined], entries: Sequence[SegmentEntry]) -> str:
    """Return which rows of how many are lost, file by file, without what follows from it."""
    lost, total = sum(item.entry.rows for item in damaged), sum(entry.rows for entry in entries)
    named = "; ".join(f"{item.place}: {item.finding}" for item in damaged[:MAX_NAMED])
    more = f"; and {len(damaged) - MAX_NAMED} more files" if len(damaged) > MAX_NAMED else ""
    files = "1 file is" if len(damaged) == 1 else f"{len(damaged)} files are"
    return f"{directory}: {files} damaged of {len(entries)}, with {lost} of {total} rows ({named}{more})"


def restore_hint(directory: Path, source: dict[str, Any]) -> str:
    """Return what brings the files back, from what the manifest says about their origin.

    The same import gives the same bytes, and with them the same file names, so that a checkpoint fits again.
    """
    request = source.get("request")
    if isinstance(request, dict) and {"name", "transitions", "seed"} <= request.keys():
        words = ["collect", str(request["name"]), "--transitions", str(request["transitions"])]
        words += ["--seed", str(request["seed"]), "--out", str(directory.parent)]
        words += [f"env.kwargs={json.dumps(request['env_kwargs'])}"] if "env_kwargs" in request else []
    elif isinstance(source.get("file"), str):
        words = ["import", source["file"], *(["--env", str(source["env"])] if source.get("env") else [])]
        words += ["--out", str(directory), *source.get("env_settings", ())]
    else:
        return "restore the file from a copy, or write the dataset again"
    options = " and the --map options of the first time" if "mapping" in source else ""
    return f"restore the file from a copy, or run 'dipole data {shlex.join(words)} --overwrite'{options}"
