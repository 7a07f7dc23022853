"""A dataset as one small file that travels: Parquet, each number's bytes apart, at two thirds of the size.

python -m benchmarks.gpu.cell.carried ~/.cache/dipole_ray/converted/NAME rows.parquet
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dipole_ray.columns import Schema
from dipole_ray.data.dataset import open_dataset, write_dataset
from dipole_ray.data.schema import Rows, concatenate

ABOUT = b"dipole-dataset"


def pack(directory: Path, file: Path) -> None:
    """Write the rows of a dataset of flat vectors, a column of the file for each of their numbers."""
    dataset = open_dataset(directory, strict=True)
    rows = concatenate([segment.columns for segment in dataset.segments])
    numbers = {
        f"{name}.{i}": column
        for name, values in rows.items()
        for i, column in enumerate(np.asarray(values).reshape(len(values), -1).T)
    }
    about = json.dumps({"schema": dataset.schema.to_json(), "source": dataset.source})
    table = pa.table(numbers).replace_schema_metadata({ABOUT: about})
    split = [name for name, column in numbers.items() if column.dtype == np.float32]
    how = {"use_dictionary": False, "use_byte_stream_split": split}
    pq.write_table(table, file, compression="zstd", compression_level=19, row_group_size=1 << 22, **how)


def unpack(file: Path, directory: Path) -> tuple[Rows, Schema]:
    """Make the dataset of a packed file in a new folder; return its rows and what they are."""
    table = pq.read_table(file)
    about = json.loads(table.schema.metadata[ABOUT])
    schema = Schema.from_json(about["schema"])
    rows = {}
    for name, column in schema.columns.items():
        size = int(np.prod(column.shape, dtype=int))
        parts = [table[f"{name}.{i}"].to_numpy() for i in range(size)]
        rows[name] = np.ascontiguousarray(np.stack(parts, axis=-1).reshape(len(table), *column.shape))
    write_dataset(directory, [rows], schema, about["source"])
    return rows, schema


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="a dataset's folder, such as a run converts OGBench's files into")
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    pack(args.dataset.expanduser(), args.file)
    print(f"{args.file}: {args.file.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
