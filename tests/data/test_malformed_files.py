"""Whatever is wrong with a file, the user gets one DatasetError with file, place and remedy."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole_ray.data.inspect import inspect_dataset
from dipole_ray.data.sources.ogbench import read_ogbench
from dipole_ray.errors import DatasetError
from tests.synthetic import ogbench_arrays, write_ogbench

Arrays = dict[str, Any]


def good_arrays() -> Arrays:
    arrays = ogbench_arrays(np.random.default_rng(0), [20, 30])
    arrays["rewards"] = np.zeros(52, np.float32)
    return arrays


def with_bad_actions(arrays: Arrays) -> Arrays:
    arrays["actions"][[7, 9]] = 1.5
    return arrays


def with_values(name: str, row: int, value: float) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        arrays[name][row] = value
        return arrays

    return change


def replaced(**values: Any) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | values


ARRAY_CASES: list[tuple[str, Callable[[Arrays], Arrays], str]] = [
    ("missing key", lambda a: {k: v for k, v in a.items() if k != "actions"}, "array 'actions' is missing"),
    ("no rewards", lambda a: {k: v for k, v in a.items() if k != "rewards"}, "holds no rewards; name the task"),
    ("nothing", lambda a: {}, "'observations' is missing"),
    ("pixels", lambda a: a | {"observations": np.zeros((52, 4), np.uint8)}, "'observations' is of type uint8"),
    ("complex", replaced(actions=np.zeros((52, 2), complex)), "'actions' is of type complex128"),
    ("text", replaced(terminals=np.full(52, "no")), "'terminals' is of type <U2"),
    ("images", replaced(observations=np.zeros((52, 4, 4), np.float32)), r"shape \(52, 4, 4\)"),
    ("flat", replaced(actions=np.zeros(52, np.float32)), r"shape \(52,\)"),
    ("no dimension", replaced(actions=np.zeros((52, 0), np.float32)), r"shape \(52, 0\)"),
    ("scalar", replaced(terminals=np.float32(1)), r"shape \(\)"),
    ("ragged", replaced(actions=np.zeros((51, 2), np.float32)), "actions 51"),
    ("ragged rewards", replaced(rewards=np.zeros(51, np.float32)), "rewards 51"),
    ("reward columns", replaced(rewards=np.zeros((52, 1), np.float32)), r"'rewards' has shape \(52, 1\)"),
    ("no terminal", replaced(terminals=np.zeros(52, bool)), "no row is terminal"),
    ("all terminal", replaced(terminals=np.ones(52, bool)), "every row is terminal"),
    ("cut", lambda a: {k: v[:-1] for k, v in a.items()}, r"last row \(50\) is not terminal, the last end is at row 20"),
    ("fractional end", replaced(terminals=np.full(52, 0.5)), "terminals must be 0 or 1"),
    ("empty", lambda a: {k: v[:0] for k, v in a.items()}, "holds no rows"),
    ("out of range", with_bad_actions, r"2 of 50 actions lie outside \[-1, 1\], the first at row 7"),
    ("NaN state", with_values("observations", 3, np.nan), r"the first at row 3 \(observations\)"),
    ("NaN reward", with_values("rewards", 5, np.nan), r"the first at row 5 \(rewards\)"),
    ("Inf action", with_values("actions", 40, np.inf), r"the first at row 40 \(actions\)"),
    ("too large", replaced(observations=np.full((52, 4), 1e300)), "NaN or infinity"),
    ("half masks", replaced(masks=np.full(52, 0.5)), "masks must be 0 .*row 0 holds 0.5"),
]


@pytest.mark.parametrize(
    ("change", "message"), [case[1:] for case in ARRAY_CASES], ids=[case[0] for case in ARRAY_CASES]
)
def test_wrong_arrays(tmp_path: Path, change: Callable[[Arrays], Arrays], message: str) -> None:
    path = write_ogbench(tmp_path / "data.npz", change(good_arrays()))
    with pytest.raises(DatasetError, match=f"data.npz: .*{message}.*[;:,] "):
        list(read_ogbench(path))
    inspection = inspect_dataset(path)
    assert inspection.verdict == "error" or any("no rewards" in f.what for f in inspection.findings)


def member(shape: tuple[int, ...], data: bytes, descr: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def with_member(path: Path, name: str, content: bytes) -> None:
    arrays = good_arrays()
    arrays.pop(name)
    write_ogbench(path, arrays)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", content)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    arrays = good_arrays() | {"observations": np.array([Bomb()] * 52, dtype=object)}
    path = write_ogbench(tmp_path / "data.npz", arrays)
    with pytest.raises(DatasetError, match="Python objects"):
        list(read_ogbench(path))
    assert not (tmp_path / "executed").exists()


def test_a_header_that_promises_more_than_is_there(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with_member(path, "observations", member((10**12, 4), b"\0" * 64))
    with pytest.raises(DatasetError, match=r"shape \(1000000000000, 4\) .* 64 bytes are stored"):
        list(read_ogbench(path))


def test_a_decompression_bomb_is_refused_from_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    chunks = 300
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("observations.npy", "w") as stream:
        stream.write(member((chunks * 62_500, 4), b""))
        for _ in range(chunks):
            stream.write(bytes(1_000_000))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DatasetError, match="decompression bomb"):
        list(read_ogbench(path))


def test_damage_anywhere_in_the_file_is_found(tmp_path: Path) -> None:
    path = write_ogbench(tmp_path / "data.npz", good_arrays())
    original = path.read_bytes()
    for content in (b"", b"not a zip", original[:-1], original[: len(original) // 2], original[:30]):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"not a complete .npz file .* get it again"):
            list(read_ogbench(path))
    with zipfile.ZipFile(io.BytesIO(original)) as archive:
        info = archive.getinfo("observations.npy")
    for place in (200, 400, 700):  # inside the compressed observations
        damaged = bytearray(original)
        damaged[info.header_offset + place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"data.npz: .*get it again"):
            list(read_ogbench(path))
    with pytest.raises(DatasetError, match="no such file"):
        list(read_ogbench(tmp_path / "missing.npz"))


def test_a_file_of_another_environment(tmp_path: Path) -> None:
    path = write_ogbench(tmp_path / "data.npz", good_arrays())

    def relabel(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return arrays["qpos"][:, 14], arrays["qpos"][:, 14]

    with pytest.raises(DatasetError, match=r"do not fit the task .* --env"):
        list(read_ogbench(path, relabel))
