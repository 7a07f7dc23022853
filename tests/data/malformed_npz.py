"""Malformed .npz archives, from a missing key to a bomb of ten gigabytes."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.malformed import EXECUTED, Case
from tests.synthetic import ogbench_arrays, write_ogbench

Arrays = dict[str, Any]
Make = Callable[[Path], Path]

AGAIN = "get it again"
BIG_ROWS = 500_000
"""Rows of a table or archive of 16 numbers a row, 32 MB: large enough to see a copy too many."""


class Payload:
    """What a pickle of somebody else's would run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def payload(folder: Path) -> bytes:
    """Return a pickle that makes a file in `folder` when it is loaded."""
    return pickle.dumps(Payload(folder / EXECUTED))


# ---- .npz ----


def good_arrays() -> Arrays:
    """Return the arrays of a good file: two trajectories of 20 and 30 transitions."""
    return {**ogbench_arrays(np.random.default_rng(0), [20, 30]), "rewards": np.zeros(52, np.float32)}


def npz(change: Callable[[Arrays], Arrays]) -> Make:
    """Return a maker of the good file with changed arrays."""
    return lambda folder: write_ogbench(folder / "data.npz", change(good_arrays()))


def replaced(**values: Any) -> Make:
    """Return a maker of the good file with some arrays replaced."""
    return npz(lambda arrays: arrays | values)


def at(name: str, row: int, value: float) -> Make:
    """Return a maker of the good file with one row of an array set to `value`."""

    def change(arrays: Arrays) -> Arrays:
        arrays[name][row] = value
        return arrays

    return npz(change)


def array_file(shape: tuple[int, ...], data: bytes, *, is_fortran: bool = False) -> bytes:
    """Return the bytes of an .npy file whose header says whatever it is told to."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": is_fortran, "shape": shape})
    return stream.getvalue() + data


def member(content: Callable[[Path], bytes], name: str = "observations.npy", **info: Any) -> Make:
    """Return a maker of the good file with one member written by hand."""

    def make(folder: Path) -> Path:
        arrays = good_arrays()
        arrays.pop(name.removesuffix(".npy"), None)
        path = write_ogbench(folder / "data.npz", arrays)
        entry = zipfile.ZipInfo(name)
        for key, value in info.items():
            setattr(entry, key, value)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(entry, content(folder), compress_type=info.get("compress_type", zipfile.ZIP_DEFLATED))
        return path

    return make


def header(text: str) -> Make:
    """Return a maker of a file whose observations have this header."""
    encoded = text.encode("latin1")
    return member(lambda _: b"\x93NUMPY\x01\x00" + struct.pack("<H", len(encoded)) + encoded + bytes(832))


def patched(make: Make, old: Callable[[bytes], bytes], new: Callable[[bytes], bytes]) -> Make:
    """Return a maker that replaces bytes in the file that another one makes."""

    def change(folder: Path) -> Path:
        path = make(folder)
        content = path.read_bytes()
        assert old(content) in content
        path.write_bytes(content.replace(old(content), new(content)))
        return path

    return change


def cut(make: Make, end: int) -> Make:
    """Return a maker of the first bytes of a file."""

    def change(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(path.read_bytes()[:end])
        return path

    return change


def ten_gigabytes(folder: Path) -> Path:
    """Write 10 MB that decompress to 10 GB: one deflated block of zeros, repeated, under a directory by hand."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = compressor.compress(bytes(1 << 24)) + compressor.flush(zlib.Z_FULL_FLUSH)
    body, directory = io.BytesIO(), io.BytesIO()
    for name, blocks in ((b"observations.npy", 230), (b"actions.npy", 230), (b"terminals.npy", 170)):
        data, size = block * blocks, blocks << 24
        common = struct.pack("<HHHHHLLLHH", 20, 0, 8, 0, 33, 0, len(data), size, len(name), 0)
        directory.write(b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHLL", 0, 0, 0, 0, body.tell()))
        directory.write(name)
        body.write(b"PK\3\4" + common + name + data)
    start, entries = body.tell(), directory.getvalue()
    end = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 3, 3, len(entries), start, 0)
    path = folder / "data.npz"
    path.write_bytes(body.getvalue() + entries + end)
    return path


def hidden_bomb(folder: Path) -> Path:
    """Write 64 MB of zeros in a few hundred bytes of bzip2, which the directory says are 832."""
    zeros = array_file((52, 4), bytes(1 << 26))
    real, said = (struct.pack("<L", count) for count in (len(zeros), len(zeros) - (1 << 26) + 832))
    make = member(lambda _: zeros, compress_type=zipfile.ZIP_BZIP2)
    return patched(make, lambda _: real, lambda _: said)(folder)


def many_members(folder: Path) -> Path:
    """Write an archive of fifty thousand empty members."""
    path = write_ogbench(folder / "data.npz", good_arrays())
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(50_000):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"")
    return path


def big_npz(*, is_fortran: bool = False, **last_row: float) -> Make:
    """Return a maker of an uncompressed file of 34 MB with a wrong number in the last transition."""

    def make(folder: Path) -> Path:
        arrays = {
            "observations": np.zeros((BIG_ROWS, 14), np.float32),
            "actions": np.zeros((BIG_ROWS, 2), np.float32),
            "rewards": np.zeros(BIG_ROWS, np.float32),
            "terminals": np.arange(BIG_ROWS) % 1000 == 999,
        }
        for name, value in last_row.items():
            arrays[name][-2] = value
        if is_fortran:
            arrays["observations"] = np.asfortranarray(arrays["observations"])
        np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
        return folder / "data.npz"

    return make


def objects(folder: Path) -> Path:
    return write_ogbench(
        folder / "data.npz", good_arrays() | {"observations": np.array([Payload(folder / EXECUTED)] * 52, dtype=object)}
    )


def twice(folder: Path) -> Path:
    path = write_ogbench(folder / "data.npz", good_arrays())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo("actions.npy"), array_file((52, 2), bytes(52 * 8)))
    return path


def nowhere(folder: Path) -> Path:
    (folder / "data.npz").symlink_to(folder / "data.npz")
    return folder / "data.npz"


TOO_FAR = b"\x93NUMPY\x02\x00" + struct.pack("<I", 200_000_000) + bytes(200_000_000)
LINK = 0o120777 << 16

NPZ = [
    Case("missing key", npz(lambda a: {k: v for k, v in a.items() if k != "actions"}), "'actions'", "map the arrays"),
    Case(
        "no rewards",
        npz(lambda a: {k: v for k, v in a.items() if k != "rewards"}),
        "rewards",
        "--env",
        is_readable_for_inspect=True,
    ),
    Case("no arrays", npz(lambda a: {}), "'observations'", "map the arrays"),
    Case(
        "wrong dtype",
        replaced(observations=np.zeros((52, 4), np.complex64)),
        "'observations' .*complex64",
        "save it as float32",
    ),
    Case("text", replaced(terminals=np.full(52, "no")), "'terminals'", "save it as a number"),
    Case("complex numbers", replaced(actions=np.zeros((52, 2), complex)), "'actions' .*complex128", "save"),
    Case(
        "images", replaced(observations=np.zeros((52, 4, 4), np.float32)), r"'observations' .*\(52, 4, 4\)", "flatten"
    ),
    Case("one dimension too many", replaced(terminals=np.zeros((52, 2))), r"'terminals' .*\(52, 2\)", "flatten"),
    Case("no dimension", replaced(actions=np.zeros((52, 0), np.float32)), r"'actions' .*\(52, 0\)", "flatten"),
    Case("a scalar", replaced(terminals=np.float32(1)), "'terminals'", "flatten"),
    Case("ragged lengths", replaced(actions=np.zeros((51, 2), np.float32)), "actions 51", AGAIN),
    Case("no terminal", replaced(terminals=np.zeros(52, bool)), "terminal", "set terminals to 1"),
    Case("all terminal", replaced(terminals=np.ones(52, bool)), "terminal", "mark only the last row"),
    Case("last trajectory cut", npz(lambda a: {k: v[:-1] for k, v in a.items()}), r"last row \(50\)", "drop the rows"),
    Case("ends of one half", replaced(terminals=np.full(52, 0.5)), "terminals .*row 0 holds 0.5", "store 1"),
    Case("NaN for an end", replaced(terminals=np.full(52, np.nan)), "terminals .*row 0 holds nan", "store 1"),
    Case("empty", npz(lambda a: {k: v[:0] for k, v in a.items()}), "rows", "get the file again"),
    Case("actions outside [-1, 1]", at("actions", 7, 1.5), "row 7", "--env"),
    Case("NaN in a state", at("observations", 3, np.nan), r"row 3 \(observations\)", "--non-finite drop"),
    Case("infinity in an action", at("actions", 40, np.inf), r"row 40 \(actions\)", "--non-finite drop"),
    Case(
        "float64 beyond float32",
        replaced(observations=np.full((52, 4), 1e300)),
        r"row 0 \(observations\)",
        "--non-finite drop",
    ),
    Case("masks of one half", replaced(masks=np.full(52, 0.5)), "masks .*row 0", "store 1 - terminated"),
    Case("another environment's", npz(lambda a: a), "task", "--env", is_relabelled=True, is_readable_for_inspect=True),
    Case("objects that run code", objects, "'observations.npy'", "save plain numbers"),
    Case("a pickle for an array", member(payload), "'observations.npy'", AGAIN),
    Case("a bomb, 10 MB to 10 GB", ten_gigabytes, "observations.npy", "original source"),
    Case("a bomb behind a false size", hidden_bomb, "'observations.npy'", "save it again"),
    Case("fifty thousand members", many_members, "table of contents", AGAIN),
    Case(
        "a path out of the archive",
        member(lambda _: b"x", name="../../actions.npy"),
        "'../../actions.npy'",
        "save it again",
    ),
    Case("an absolute path", member(lambda _: b"x", name="/etc/actions.npy"), "'/etc/actions.npy'", "save it again"),
    Case(
        "a link in the archive",
        member(lambda _: b"/etc/passwd", external_attr=LINK, create_system=3),
        "'observations.npy'",
        "save it again",
    ),
    Case("a link to itself", nowhere, "no such file", "give"),
    Case("the same array twice", twice, "'actions.npy'", "save it again"),
    Case(
        "encrypted",
        patched(
            npz(lambda a: a), lambda d: d[d.rindex(b"PK\1\2") :][:10], lambda d: d[d.rindex(b"PK\1\2") :][:8] + b"\1\0"
        ),
        "'observations.npy' is encrypted",
        "save it again",
    ),
    Case(
        "names in Unicode",
        npz(lambda a: {"\u043e" + k[1:] if k == "observations" else k: v for k, v in a.items()}),
        "'observations'",
        "map the arrays",
    ),
    Case("a negative shape", member(lambda _: array_file((-52, -4), bytes(832))), "'observations.npy'", AGAIN),
    Case(
        "more promised than stored", member(lambda _: array_file((10**12, 4), bytes(64))), "'observations.npy'", AGAIN
    ),
    Case("a header of 200 MB", member(lambda _: TOO_FAR), "'observations.npy'", AGAIN),
    Case("a header that is no text", header("{'descr': '<f4', 'shape': (52, 4'''"), "'observations.npy'", AGAIN),
    Case("a header that nests", header("(" * 9000), "'observations.npy'", AGAIN),
    Case(
        "a header of minus signs",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 9000 + "1,)}"),
        "'observations.npy'",
        AGAIN,
    ),
    Case(
        "a type that is none",
        header("{'descr': (), 'fortran_order': False, 'shape': (52, 4)}"),
        "'observations.npy'",
        AGAIN,
    ),
    Case("cut short", cut(npz(lambda a: a), -1), "zip", AGAIN),
    Case("no bytes", cut(npz(lambda a: a), 0), "zip", AGAIN),
    Case("34 MB, NaN in the end", big_npz(rewards=np.nan), rf"row {BIG_ROWS - 2} \(rewards\)", "--non-finite drop"),
    Case("34 MB, wide in the end", big_npz(actions=2.0), f"row {BIG_ROWS - 2}", "--env"),
    Case(
        "34 MB by columns, NaN in the end",
        big_npz(rewards=np.nan, is_fortran=True),
        rf"row {BIG_ROWS - 2} \(rewards\)",
        "--non-finite drop",
    ),
]
