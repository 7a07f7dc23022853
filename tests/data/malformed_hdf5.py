"""Malformed HDF5 files: D4RL's and Minari's, with links, holes, bombs and types that only look like arrays."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.data.malformed import Case
from tests.data.malformed_npz import AGAIN, BIG_ROWS, Arrays, Make, cut, payload
from tests.synthetic import write_d4rl

Change = Callable[[h5py.File], Any]
REPACK, GET = "save it again", "get the file again"
ROWS = 50


def good_arrays() -> Arrays:
    """Return two trajectories of 20 and 30 transitions; the first ends the task."""
    random = np.random.default_rng(0)
    return {
        "observations": random.normal(size=(ROWS, 4)).astype(np.float32),
        "actions": random.uniform(-1, 1, size=(ROWS, 2)).astype(np.float32),
        "rewards": random.normal(size=ROWS).astype(np.float32),
        "terminals": np.arange(ROWS) == 19,
        "timeouts": np.arange(ROWS) == 49,
    }


def d4rl(change: Change, **options: Any) -> Make:
    """Return a maker of the good file, changed in place."""

    def make(folder: Path) -> Path:
        path = write_d4rl(folder / "data.hdf5", good_arrays(), **options)
        with h5py.File(path, "a") as file:
            change(file)
        return path

    return make


def replaced(**values: Any) -> Make:
    """Return a maker of the good file with other arrays; None leaves one out."""

    def make(folder: Path) -> Path:
        arrays = {name: value for name, value in (good_arrays() | values).items() if value is not None}
        return write_d4rl(folder / "data.hdf5", arrays)

    return make


def at(name: str, row: int, value: float) -> Make:
    """Return a maker of the good file with one row of an array set to `value`."""
    return d4rl(lambda file: file[name].__setitem__(row, value))


def observations(make: Change) -> Make:
    """Return a maker of the good file whose observations `make` creates."""

    def change(file: h5py.File) -> None:
        del file["observations"]
        make(file)

    return d4rl(change)


def elsewhere(make: Callable[[h5py.File, Path], Any]) -> Make:
    """Return a maker of the good file whose observations `make` leads to a second file, which is good."""

    def change(file: h5py.File) -> None:
        other = Path(file.filename).with_name("other.hdf5")
        write_d4rl(other, good_arrays())
        make(file, other)

    return observations(change)


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((ROWS, 4), np.float32)
    layout[:] = h5py.VirtualSource(other, "observations", (ROWS, 4))
    file.create_virtual_dataset("observations", layout)


def external(file: h5py.File, other: Path) -> None:
    file.create_dataset("observations", (ROWS, 4), np.float32, external=[(str(other), 0, ROWS * 16)])


def chunk(content: Callable[[], bytes], rows: int = ROWS, columns: int = 4, count: int = 1) -> Change:
    """Return a maker of gzipped observations whose chunks hold whatever they are told to."""

    def make(file: h5py.File) -> None:
        array = file.create_dataset(
            "observations", (rows * count, columns), np.float32, chunks=(rows, columns), compression="gzip"
        )
        each = content()
        for number in range(count):
            array.id.write_direct_chunk((number * rows, 0), each)

    return make


def deflated(size: int) -> Callable[[], bytes]:
    """Return a maker of `size` zeros, deflated a megabyte at a time: a gigabyte takes two seconds."""

    def make() -> bytes:
        stream = zlib.compressobj(9)
        parts = [stream.compress(bytes(min(1 << 20, size - done))) for done in range(0, size, 1 << 20)]
        return b"".join([*parts, stream.flush()])

    return make


def plugin(file: h5py.File) -> None:
    """Filter observations by a number that libhdf5 would look for among shared libraries."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((ROWS, 4))
    properties.set_filter(32_768, h5py.h5z.FLAG_OPTIONAL, (1, 2))
    space = h5py.h5s.create_simple((ROWS, 4))
    h5py.h5d.create(file.id, b"observations", h5py.h5t.IEEE_F32LE, space, properties).write(
        h5py.h5s.ALL, h5py.h5s.ALL, np.zeros((ROWS, 4), np.float32)
    )


def odd_names(folder: Path) -> Path:
    """Return a file whose booleans are called something that is no text."""
    path = d4rl(lambda file: None, compression="gzip")(folder)
    path.write_bytes(path.read_bytes().replace(b"FALSE", b"\xffALSE"))
    return path


def flipped(folder: Path) -> Path:
    """Return a file with a wrong bit in a deflated chunk."""
    path = d4rl(lambda file: None, compression="gzip", chunks=True)(folder)
    with h5py.File(path) as file:
        place = file["observations"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 100] ^= 0x10
    path.write_bytes(content)
    return path


def written(name: str, content: Callable[[Path], bytes]) -> Make:
    """Return a maker of a file with any content."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content(folder))
        return folder / name

    return make


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "data.hdf5")
    return folder / "data.hdf5"


def large(folder: Path) -> Path:
    """Return a file of 38 MB whose last row is broken."""
    arrays = good_arrays()
    large = {name: np.zeros((BIG_ROWS, *values.shape[1:]), values.dtype) for name, values in arrays.items()}
    large["observations"] = np.zeros((BIG_ROWS, 16), np.float32)
    large["timeouts"][999::1000] = True
    large["observations"][-2, 3] = np.nan
    return write_d4rl(folder / "data.hdf5", large)


D4RL = [
    Case("h5 bytes of a pickle", written("data.hdf5", payload), "not a complete HDF5 file .*signature", AGAIN),
    Case("h5 of nothing", written("data.hdf5", lambda _: b""), "not a complete HDF5 file", AGAIN),
    Case("h5 that is a zip", written("data.hdf5", lambda _: b"PK\x03\x04" + bytes(2000)), "not a complete HDF5", AGAIN),
    Case("h5 signature alone", written("data.hdf5", lambda _: b"\x89HDF\r\n\x1a\n"), "not a complete HDF5 file", AGAIN),
    Case("h5 half", cut(d4rl(lambda _: None), 3000), "not a complete HDF5 file .*truncated", AGAIN),
    Case("h5 last byte", cut(d4rl(lambda _: None, compression="gzip"), -1), "not a complete HDF5 .*truncated", AGAIN),
    Case("h5 that is a pipe", pipe, "no such file", "give the path"),
    Case("h5 no actions", replaced(actions=None), r"'actions' is missing \(found observations", AGAIN),
    Case("h5 lengths", replaced(rewards=np.zeros(49)), "rows .*observations 50.*rewards 49", AGAIN),
    Case("h5 no rows", replaced(**{k: v[:0] for k, v in good_arrays().items()}), "holds no rows", AGAIN.split()[0]),
    Case("h5 no timeouts", replaced(timeouts=None), "'timeouts' is missing", "--env"),
    Case("h5 no end", replaced(timeouts=np.zeros(ROWS), terminals=np.zeros(ROWS)), "'timeouts' holds no 1", "--env"),
    Case("h5 pixels", replaced(observations=np.zeros((ROWS, 3, 8, 8), np.uint8)), "'observations' .* channels first",
         "transpose"),
    Case("h5 bright", replaced(observations=np.zeros((ROWS, 8, 8, 3))), "images are uint8", "np.rint"),
    Case("h5 images", replaced(observations=np.zeros((ROWS, 8, 8))), "'observations' has shape", "flatten"),
    Case("h5 truths", replaced(actions=np.zeros(ROWS, bool)), "'actions' is of type bool", "float32"),
    Case("h5 two rewards", replaced(rewards=np.zeros((ROWS, 2))), r"'rewards' has shape \(50, 2\)", "as it was"),
    Case("h5 other next", replaced(next_observations=np.zeros((ROWS, 3))), r"'next_observations' has shape \(50, 3\)",
         "as it was"),
    Case("h5 nan", at("observations", 7, np.nan), r"row 7 \(observations\)", "--non-finite drop",
         is_readable_for_inspect=True),
    Case("h5 range", at("actions", 9, 3.0), r"2?1? ?of .*row 9", "--env"),
    Case("h5 flag", replaced(terminals=np.full(ROWS, 0.5)), "'terminals' must be 0 or 1, row 0 holds 0.5", "store 1"),
    Case("h5 ragged", observations(lambda file: file.create_dataset(
        "observations", (ROWS,), h5py.vlen_dtype(np.float32))), "'observations' is of type object", "float32"),
    Case("h5 texts", d4rl(lambda file: (file.__delitem__("rewards"), file.create_dataset(
        "rewards", data=["a"] * ROWS))), "'rewards' is of type object", "numbers"),
    Case("h5 references", d4rl(lambda file: (file.__delitem__("terminals"), file.create_dataset(
        "terminals", data=[file.ref] * ROWS, dtype=h5py.ref_dtype))), "'terminals' is of type object .*Ref", "numbers"),
    Case("h5 enumeration", d4rl(lambda file: (file.__delitem__("terminals"), file.create_dataset(
        "terminals", data=good_arrays()["terminals"].astype("i1"), dtype=h5py.enum_dtype({"NO": 0, "YES": 1})))),
        "'terminals' is of type an enumeration", "numbers"),
    Case("h5 enumeration of noise", odd_names, "'terminals' is of type an enumeration", "numbers"),
    Case("h5 records", observations(lambda file: file.create_dataset(
        "observations", (ROWS,), np.dtype([("x", "f4"), ("y", "f4")]))), "'observations' is of type .*'x'", "float32"),
    Case("h5 opaque", observations(lambda file: file.create_dataset("observations", data=np.zeros((ROWS, 4), "V8"))),
         r"'observations' is of type \|V8", "float32"),
    Case("h5 group", observations(lambda file: file.create_group("observations")), "'observations' is a group", REPACK),
    Case("h5 named type", observations(lambda file: file.__setitem__("observations", np.dtype("f4"))),
         "'observations' is a .*not an array", REPACK),
    Case("h5 null", observations(lambda file: file.create_dataset("observations", data=h5py.Empty("f4"))),
         "'observations' has shape None", "flatten"),
    Case("h5 external link", elsewhere(lambda file, other: file.__setitem__(
        "observations", h5py.ExternalLink(other, "/observations"))), "'observations' is a link into another", "copy"),
    Case("h5 link to a device", observations(lambda file: file.__setitem__(
        "observations", h5py.ExternalLink("/dev/zero", "/observations"))), "'observations' is a link into an", "copy"),
    Case("h5 soft link", d4rl(lambda file: (file.move("observations", "there"), file.__setitem__(
        "observations", h5py.SoftLink("/there")))), "'observations' is a soft link", "copy what"),
    Case("h5 link in a circle", observations(lambda file: file.__setitem__(
        "observations", h5py.SoftLink("/observations"))), "'observations' is a soft link", "copy what"),
    Case("h5 virtual", elsewhere(virtual), "'observations' is a virtual dataset, .*other files", REPACK),
    Case("h5 external storage", elsewhere(external), "'observations' is a dataset with external", REPACK),
    Case("h5 plugin", observations(plugin), r"'observations' is filtered by .*\(32768\)", REPACK),
    Case("h5 lzf", d4rl(lambda _: None, compression="lzf"), "'observations' is filtered by lzf", REPACK),
    Case("h5 huge", observations(lambda file: file.create_dataset("observations", (1 << 40, 4), "f4")),
         "'observations'", "refused as a decompression bomb"),
    Case("h5 huge chunks", observations(lambda file: file.create_dataset(
        "observations", (1 << 50, 4), "f4", chunks=(1024, 4))), "'observations'", "refused as a decompression bomb"),
    Case("h5 never written", observations(lambda file: file.create_dataset("observations", (ROWS, 4), "f4")),
         r"'observations' says shape \(50, 4\) \(800 bytes\) but 0 bytes", AGAIN),
    Case("h5 half written", observations(lambda file: file.create_dataset(
        "observations", (ROWS, 4), "f4", chunks=(10, 4)).__setitem__(slice(0, 20), 1.0)), "but 2 chunks", AGAIN),
    Case("h5 bomb", observations(chunk(deflated(1 << 24), 1 << 20, count=640)), "10.* GB of array", "bomb"),
    Case("h5 chunk bomb", observations(chunk(deflated(1 << 28), columns=5000)),
         "'observations' is damaged in the chunk at row 0 .*not inflate to its 1000000 bytes", GET),
    Case("h5 small chunk bomb", observations(chunk(deflated(800_000))), "not inflate to its 800 bytes", GET),
    Case("h5 short chunk", observations(chunk(deflated(700))), "not inflate to its 800 bytes", GET),
    Case("h5 long chunk", observations(chunk(lambda: bytes(1 << 20))), "chunk at row 0 .*1048576 bytes hold", GET),
    Case("h5 chunk of noise", observations(chunk(lambda: b"\x01\x02\x03")), "'observations' .*row 0 .*header", GET),
    Case("h5 wide chunk", observations(lambda file: file.create_dataset(
        "observations", data=np.zeros((ROWS, 400_000), "f4"), chunks=(ROWS, 400_000), compression="gzip")),
        "'observations' has chunks of 80", "chunks=True"),
    Case("h5 flipped bit", flipped, "'observations' is damaged in the chunk at row 0", GET),
    Case("h5 of Minari", d4rl(lambda file: file.create_group("episode_0")), "the layout of Minari", "give the folder"),
    Case("h5 large", large, r"row 499998 \(observations\)", "--non-finite drop", is_readable_for_inspect=True),
]  # fmt: skip


# ---- Minari ----


def minari(change: Callable[[Path, h5py.File], Any], count: int = 3, steps: int = 10) -> Make:
    """Return a maker of a good dataset, changed in place."""

    def make(folder: Path) -> Path:
        data = folder / "walk-v0" / "data"
        data.mkdir(parents=True)
        random = np.random.default_rng(0)
        space = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1, -1], "high": [1, 1]}
        description = {"data_format": "hdf5", "total_episodes": count, "action_space": json.dumps(space)}
        (data / "metadata.json").write_text(json.dumps(description))
        with h5py.File(data / "main_data.hdf5", "w") as file:
            for number in range(count):
                group = file.create_group(f"episode_{number}")
                group["observations"] = random.normal(size=(steps + 1, 4))
                group["actions"] = random.uniform(-1, 1, size=(steps, 2)).astype(np.float32)
                group["rewards"] = random.normal(size=steps)
                group["terminations"] = np.zeros(steps, bool)
                group["truncations"] = np.arange(steps) == steps - 1
            change(data, file)
        return folder / "walk-v0"

    return make


def copies(data: Path, file: h5py.File) -> None:
    """Give one episode of a megabyte a thousand names."""
    for number in range(1, 1000):
        file[f"episode_{number}"] = file["episode_0"]
    description = json.loads((data / "metadata.json").read_text()) | {"total_episodes": 1000}
    (data / "metadata.json").write_text(json.dumps(description))


def other_episode(data: Path, file: h5py.File) -> None:
    with h5py.File(data / "other.hdf5", "w") as other:
        file.copy("episode_1", other)
    del file["episode_1"]
    file["episode_1"] = h5py.ExternalLink("other.hdf5", "/episode_1")


def relinked(link: Any) -> Callable[[Path, h5py.File], None]:
    def change(data: Path, file: h5py.File) -> None:
        del file["episode_1/observations"]
        file["episode_1/observations"] = link

    return change


MINARI = [
    Case("minari external link", minari(other_episode), "'episode_1' is a link into another file", "copy what"),
    Case("minari soft link", minari(relinked(h5py.SoftLink("/episode_0/observations"))),
         "'episode_1/observations' is a soft link", "copy what"),
    Case("minari texts", minari(relinked(["a"] * 11)), "'episode_1/observations' is of type object", "float32"),
    Case("minari dict", minari(lambda _, file: (file.__delitem__("episode_0/observations"), file.create_dataset(
        "episode_0/observations/goal", data=np.zeros((11, 2))))), "'observations' is a dict of goal", "--map"),
    Case("minari copies", minari(copies, 1, 20_000), "declare .*of [0-9]+ episodes", "bomb"),
    Case("minari gap", minari(lambda _, file: file.__delitem__("episode_1")), "the first missing is episode_1", AGAIN),
    Case("minari array as episode", minari(lambda _, file: (file.__delitem__("episode_2"), file.__setitem__(
        "episode_2", 1.0))), "'episode_2' is no group", AGAIN),
    Case("minari short", minari(relinked(np.zeros((10, 4)))), "has 10 rows, 10 actions need 11", "get the"),
    Case("minari bytes", written("main_data.hdf5", lambda _: b"no"), "not a complete HDF5 file", AGAIN),
    Case("minari pickled description", minari(lambda data, _: (data / "metadata.json").write_bytes(payload(data))),
         "metadata.json: not the description", AGAIN.split()[0]),
    Case("minari endless description", minari(lambda data, _: (data / "metadata.json").write_text("[" * 100_000)),
         "metadata.json: not the description of a dataset .*nested", "get it again"),
]  # fmt: skip

HDF5 = [*D4RL, *MINARI]
