"""Images of every format: imported as they are, byte for byte, and refused in one sentence where they are none."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dipole_ray.columns import Column, Schema
from dipole_ray.data.dataset import open_dataset
from dipole_ray.data.inspection.inspect import inspect_dataset
from dipole_ray.data.sources.formats import FORMATS, dataset_kind
from dipole_ray.data.sources.mapping import TableMapping
from dipole_ray.data.sources.reading import Reading
from dipole_ray.errors import DatasetError
from dipole_ray.replay.replay import Replay
from tests.cli.test_data_cli import dipole
from tests.synthetic import ogbench_arrays, write_ogbench

LENGTHS = (5, 9)
SHAPE = (16, 12, 3)
SCHEMA = Schema(Column(SHAPE, "uint8"), 2)
COUNT = sum(LENGTHS)


def pictures(count: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, *shape)).astype(np.uint8)


def transitions() -> dict[str, np.ndarray]:
    """Return one row a transition, with images; both trajectories are cut by a time limit."""
    random, ends = np.random.default_rng(0), np.cumsum(LENGTHS) - 1
    return {
        "observations": pictures(COUNT),
        "actions": random.uniform(-1, 1, (COUNT, 2)).astype(np.float32),
        "rewards": random.normal(size=COUNT).astype(np.float32),
        "terminals": np.zeros(COUNT, bool),
        "timeouts": np.isin(np.arange(COUNT), ends),
        "state": random.normal(size=(COUNT, 4)).astype(np.float32),
    }


def encoded(images: np.ndarray, kind: str = "PNG") -> list[bytes]:
    files = []
    for image in images:
        Image.fromarray(image if image.shape[-1] > 1 else image[..., 0]).save(file := io.BytesIO(), kind)
        files.append(file.getvalue())
    return files


def nested(images: np.ndarray, *, fixed: bool = True) -> pa.Array:
    """Return images as lists of lists of lists."""
    values = pa.array(images.reshape(-1))
    for length in reversed(images.shape[1:]):
        ends = pa.array(np.arange(0, len(values) + 1, length, dtype=np.int32))
        values = pa.FixedSizeListArray.from_arrays(values, length) if fixed else pa.ListArray.from_arrays(ends, values)
    return values


def tensors(images: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(images)


WRITTEN: dict[str, Callable[[np.ndarray], Any]] = {
    "nested": nested,
    "lists": lambda images: nested(images, fixed=False),
    "tensors": tensors,
    "flat": lambda images: pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), images[0].size),
    "png": lambda images: pa.array(encoded(images), pa.binary()),
    "struct": lambda images: pa.array([{"bytes": one, "path": None} for one in encoded(images)]),
}


def write(path: Path, column: Any, name: str = "observations", **others: Any) -> Path:
    columns = {key: values for key, values in transitions().items() if key not in ("observations", "state")} | others
    table = pa.table(
        {name: column} | {key: list(values) if values.ndim > 1 else values for key, values in columns.items()}
    )
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=6)
    else:
        feather.write_feather(table, str(path), chunksize=6)
    return path


def rows_of(path: Path, reading: Reading) -> dict[str, np.ndarray]:
    row = FORMATS[dataset_kind(path, reading.mapping)]
    pieces = list(row.rows(path, reading))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def test_a_visual_ogbench_file_is_imported_and_its_batches_are_the_sources_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = ogbench_arrays(np.random.default_rng(0), (40, 25, 31))
    count = len(arrays["terminals"])
    images = arrays["observations"] = pictures(count, (64, 64, 3))
    arrays["rewards"] = -np.ones(count, np.float32)
    source = write_ogbench(tmp_path / "visual-cube-single-play-v0.npz", arrays)
    assert dipole("import", source, "--out", tmp_path / "data") == 0
    assert "observations uint8 (64, 64, 3), actions 2" in capsys.readouterr().out
    dataset = open_dataset(tmp_path / "data", strict=True)
    stored = np.concatenate([segment.columns["observations"] for segment in dataset.segments])
    assert stored.dtype == np.uint8 and np.array_equal(stored, images)
    size = sum(file.stat().st_size for file in (tmp_path / "data").iterdir())
    assert size < 1.01 * images.nbytes + 10_000, "a byte a number, each observation once"
    with Replay(schema=dataset.schema, offline=[tmp_path / "data"]) as replay:
        batch = replay.sample(32, 4)
    place = {image.tobytes(): row for row, image in enumerate(images)}
    assert batch["observations"].dtype == batch["next_observations"].dtype == np.uint8
    for seen, following in zip(batch["observations"], batch["next_observations"], strict=True):
        row = place[seen.tobytes()]
        assert not arrays["terminals"][row] and place[following.tobytes()] == row + 1
    assert dipole("inspect", tmp_path / "data", "--plot", tmp_path / "sheet.png") == 0
    assert "observations uint8 (64, 64, 3), actions 2" in capsys.readouterr().out
    assert Image.open(tmp_path / "sheet.png").size[1] > 384, "frames below the histograms"


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_images_in_the_column_of_a_table_are_read_byte_for_byte(kind: str, ending: str, tmp_path: Path) -> None:
    images = transitions()["observations"]
    path = write(tmp_path / f"table.{ending}", WRITTEN[kind](images))
    reading = Reading(schema=SCHEMA if kind == "flat" else None)
    assert FORMATS["table"].schema(path, reading) == SCHEMA
    rows = rows_of(path, reading)
    assert rows["observations"].dtype == np.uint8 and np.array_equal(rows["observations"], images)


@pytest.mark.parametrize("ending", ["npz", "hdf5"])
def test_images_in_files_of_arrays_with_a_row_a_transition_are_read_byte_for_byte(ending: str, tmp_path: Path) -> None:
    made = {name: values for name, values in transitions().items() if name != "state"}
    path = tmp_path / f"table.{ending}"
    if ending == "npz":
        np.savez_compressed(path, **made)  # type: ignore[arg-type]
    else:
        with h5py.File(path, "w") as file:
            for name, values in made.items():
                file.create_dataset(name, data=values)
    mapping = TableMapping(terminals_are="boundary")
    assert FORMATS["table"].schema(path, Reading(mapping=mapping)) == SCHEMA
    rows = rows_of(path, Reading(mapping=mapping))
    assert rows["observations"].dtype == np.uint8 and np.array_equal(rows["observations"], made["observations"])


def test_an_image_beside_numbers_is_an_observation_of_several_arrays(tmp_path: Path) -> None:
    """As LeRobot and datasets name and write them."""
    made = transitions()
    column = WRITTEN["struct"](made["observations"])
    path = write(tmp_path / "t.parquet", column, "observation.images.top", **{"observation.state": made["state"]})
    mapping = TableMapping(observations=("observation.images.top", "observation.state"))
    rows = rows_of(path, Reading(mapping=mapping))
    assert np.array_equal(rows["observations.top"], made["observations"])
    assert np.array_equal(rows["observations.state"], made["state"])
    found = FORMATS["table"].schema(path, Reading(mapping=mapping))
    assert found == Schema({"top": Column(SHAPE, "uint8"), "state": Column((4,))}, 2)
    assert inspect_dataset(path, Reading(mapping=mapping), expected=found).verdict != "error"


@pytest.mark.parametrize("has_next", [False, True])
def test_d4rl_files_with_images_are_read_byte_for_byte(has_next: bool, tmp_path: Path) -> None:
    made, following = transitions(), pictures(COUNT + 1)[1:]
    del made["state"]
    made |= {"next_observations": following} if has_next else {}
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as file:
        for name, values in made.items():
            chunks = (4, *values.shape[1:])
            file.create_dataset(name, data=values, compression="gzip", chunks=chunks)
    rows = rows_of(tmp_path / "d4rl.hdf5", Reading())
    images, ends = made["observations"], np.flatnonzero(made["timeouts"])
    if has_next:  # what the last action led to is known
        images = np.insert(images, ends + 1, following[ends], axis=0)
    assert rows["observations"].dtype == np.uint8 and np.array_equal(rows["observations"], images)


def collected(storage: str, space: gymnasium.Space, jpeg: bool, seed: int = 0) -> tuple[Path, list[Any]]:
    """Return a dataset that Minari wrote, and the observations of its episodes as Minari reads them."""
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    space.seed(seed)
    episodes = []
    for number, length in enumerate(LENGTHS):
        seen = [space.sample() for _ in range(length + 1)]
        observations: Any = (
            {name: np.stack([one[name] for one in seen]) for name in seen[0]} if isinstance(seen[0], dict) else seen
        )
        flags = [False] * length
        actions = list(np.random.default_rng(number).uniform(-1, 1, (length, 2)).astype(np.float32))
        episodes.append(
            EpisodeBuffer(
                id=number,
                observations=observations if isinstance(observations, dict) else list(observations),
                actions=actions,
                rewards=[0.5] * length,
                terminations=flags,
                truncations=[*flags[:-1], True],
            )
        )
    name = f"pixels/{storage}-{'jpeg' if jpeg else 'raw'}-{type(space).__name__.lower()}-v0"
    dataset = minari.create_dataset_from_buffers(
        name,
        episodes,
        observation_space=space,
        action_space=gymnasium.spaces.Box(-1, 1, (2,), np.float32),
        data_format=storage,
        jpeg_encoding=jpeg,
        description="images",
    )
    found = [episode.observations for episode in dataset.iterate_episodes()]
    return Path(dataset.storage.data_path).parent, found


BOX = gymnasium.spaces.Box(0, 255, (32, 40, 3), np.uint8)


@pytest.mark.parametrize("storage", ["hdf5", "arrow"])
@pytest.mark.parametrize("jpeg", [False, True])
@pytest.mark.parametrize(
    "space", [BOX, gymnasium.spaces.Dict(pixels=BOX, state=gymnasium.spaces.Box(-1, 1, (4,), np.float32))]
)
@pytest.mark.filterwarnings("ignore")
def test_minari_images_are_what_minari_reads(
    storage: str, jpeg: bool, space: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    path, episodes = collected(storage, space, jpeg)
    entries = ("pixels", "state") if isinstance(space, gymnasium.spaces.Dict) else ()
    rows = rows_of(path, Reading(observations=entries))
    for name in entries or ("",):
        wanted = np.concatenate([np.asarray(one[name] if name else one) for one in episodes])
        found = rows[f"observations.{name}" if name else "observations"]
        assert found.dtype == wanted.dtype and np.array_equal(found, wanted)


def broken(path: Path, how: str) -> Path:
    images = transitions()["observations"]
    if how == "undecodable":
        files = encoded(images)
        files[7] = files[7][: len(files[7]) // 2]
        return write(path, pa.array(files, pa.binary()))
    if how == "sizes":
        return write(path, pa.array([*encoded(images[:9]), *encoded(images[9:, :8])], pa.binary()))
    if how == "lists of sizes":
        values = images.tolist()
        values[3] = images[3, :5].tolist()
        return write(path, pa.array(values, pa.list_(pa.list_(pa.list_(pa.uint8())))))
    if how == "only paths":
        return write(path, pa.array([{"bytes": None, "path": f"{row}.png"} for row in range(COUNT)]))
    made = transitions()
    del made["state"]
    made["observations"] = {
        "floats": images / np.float32(255),
        "channels first": images.transpose(0, 3, 1, 2),
        "no channels": images[..., 0],
        "stack": images[:, None],
    }[how]
    np.savez(path.with_suffix(".npz"), **made)
    return path.with_suffix(".npz")


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("undecodable", r"column 'observations', row 7: \d+ bytes are no picture .*; save it as PNG or JPEG"),
        ("sizes", r"row 9: the picture is \(8, 12, 3\) and others are \(16, 12, 3\); bring all to one size"),
        ("lists of sizes", r"has 5 values at row 3, 16 before; bring all pictures to one size"),
        ("only paths", r"has no bytes at row 0, only .*0\.png.*; embed the pictures"),
        ("floats", r"float32, and images are uint8 from 0 to 255; save np\.rint\(255 \* images\)"),
        ("channels first", r"\(14, 3, 16, 12\).*channels first.*; save images\.transpose\(0, 2, 3, 1\)"),
        ("no channels", r"expected \(rows, dim\), or images .*; flatten it, or save images\[\.\.\., None\]"),
        ("stack", r"stacks of frames with their channels last"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(how: str, found: str, tmp_path: Path) -> None:
    path = broken(tmp_path / "t.parquet", how)
    with pytest.raises(DatasetError, match=found):
        dipole("import", path, "--out", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("env_id", "what"),
    [
        ("Pendulum-v1", r"observations are images \(uint8 \(16, 12, 3\)\), and 'Pendulum-v1' observes numbers \(3\)"),
        ("tests.pixel_envs:Square-v0", r"uint8 \(16, 12, 3\) and actions 2 .* has uint8 \(12, 16, 3\) and 2"),
    ],
)
def test_images_of_another_environment_are_refused(env_id: str, what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", WRITTEN["png"](transitions()["observations"]))
    with pytest.raises(DatasetError, match=what):
        dipole("import", path, "--env", env_id, "--out", tmp_path / "data")


def test_numbers_are_refused_for_an_environment_that_is_seen_as_images(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", list(transitions()["state"]))
    with pytest.raises(
        DatasetError, match=r"observations are numbers \(4\), and 'tests.pixel_envs:Square-v0' observes im"
    ):
        dipole("import", path, "--env", "tests.pixel_envs:Square-v0", "--out", tmp_path / "data")


def test_columns_shows_what_a_table_has_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("png", "nested", "tensors"):
        assert dipole("columns", write(tmp_path / f"{kind}.parquet", WRITTEN[kind](transitions()["observations"]))) == 0
        assert f"({COUNT}, 16, 12, 3)" in capsys.readouterr().out
