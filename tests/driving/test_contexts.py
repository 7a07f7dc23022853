"""What the encoders make of scenes, once: of pictures, prompts and rasters, kept on disk and refused elsewhere."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("shapely")

import safetensors.torch
import tokenizers
import torch

from dipole_ray.agents import florence
from dipole_ray.agents.florence import SHAPES
from dipole_ray.collect.scenes import scene_dataset
from dipole_ray.data import schema, segment
from dipole_ray.data.dataset import open_dataset, write_dataset
from dipole_ray.driving import bev_encoder, contexts, encoders
from dipole_ray.driving.container import Origin, SceneFolder, finish_folder, start_folder, write_shard
from dipole_ray.driving.container import shard_bytes as packed
from dipole_ray.driving.contexts import Contexts, default_folder, encode_scenes, require_one_encoder
from dipole_ray.driving.encoders import open_encoder, read_small, save_small
from dipole_ray.driving.group import judged_rows
from dipole_ray.driving.observations import schema_of
from dipole_ray.driving.prompt import _WORDS, few_words, padded, prompt
from dipole_ray.envs.scenes import DrivingConfig
from dipole_ray.errors import ConfigError, CorruptSegment, DatasetError, NonFiniteError
from tests.agents.test_florence import as_published, whole_model
from tests.driving.test_anchors import scene


def make_folder(path: Path, *parts: list[Any]) -> SceneFolder:
    origin = Origin("made by hand", "nobody", {})
    start_folder(path, origin)
    finish_folder(path, origin, [write_shard(path, f"part{i}", packed(part)) for i, part in enumerate(parts)])
    return SceneFolder(path)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneFolder:
    folder = tmp_path_factory.mktemp("scenes")
    return make_folder(folder / "scenes", [scene("a"), scene("b", speed=5.0)], [scene("c", start=40.0)])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_small(bev_encoder.BEVEncoder(seed=3), folder)
    return folder


def test_a_prompt_says_command_speed_and_acceleration_in_words_of_either_vocabulary() -> None:
    one = scene("a", speed=5.0)
    text = prompt(one)
    assert text == "navigation straight, speed 5.0, acceleration 0.0, aside 0.0"
    assert "".join(_WORDS[token] for token in few_words(text)[1:-1]) == text.replace(" ", "")
    longest = "navigation unknown, speed 33.3, acceleration -11.1, aside -11.1"
    tokens = padded([text, longest], few_words, SHAPES["tiny"].prompt)
    assert tokens.shape == (2, 28) and (tokens[0, 19:] == florence.PADDING).all() and tokens.max() < 63
    with pytest.raises(ConfigError, match="has 19 tokens, the encoder takes 9"):
        padded([text], few_words, 9)


def test_tiny_sees_pictures_and_prompt_and_small_the_scene_from_above(scenes: SceneFolder, small: Path) -> None:
    some = [scenes.read(token) for token in scenes.tokens]
    for encoder, shape in ((open_encoder("tiny"), (79, 128)), (open_encoder("small", small), (64, 128))):
        found = encoder(some)
        assert encoder.shape == shape and found.shape == (3, *shape) and found.dtype == np.float16
        assert not np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
        again = encoder(some[1:2])
        np.testing.assert_allclose(again[0].astype(float), found[1].astype(float), atol=0.01)
    assert open_encoder("tiny").identity == open_encoder("tiny").identity != open_encoder("small", small).identity


def test_large_takes_weights_and_tokenizer_of_a_local_folder(
    scenes: SceneFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(florence.SHAPES, "large", SHAPES["tiny"])  # the real one has 570 million weights
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(_WORDS)}, "</s>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("[a-z]+|[0-9]|[^a-z0-9 ]"), "isolated")
    given = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in as_published(whole_model().state_dict()).items()
    }
    with pytest.raises(
        ConfigError, match=r"tokenizer\.json: no such file.*take it from the folder of Florence-2-large"
    ):
        open_encoder("large", tmp_path)
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
        open_encoder("large", tmp_path)
    safetensors.torch.save_file(given, tmp_path / "model.safetensors")
    encoder = open_encoder("large", tmp_path)
    assert encoder([scenes.read("a")]).shape == (1, 79, 128)
    assert encoder.identity != open_encoder("tiny").identity
    given["image_projection"] = given["image_projection"][:5].contiguous()
    safetensors.torch.save_file(given, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"are not those of Florence-2-large.*image_projection"):
        open_encoder("large", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a tokenizer"):
        open_encoder("large", tmp_path)


def test_scenes_are_encoded_once_and_what_was_interrupted_goes_on(
    scenes: SceneFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, seen = contexts._encoded, []

    def interrupted(task: Any) -> Any:
        seen.append(task.tokens)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return encoded(task)

    monkeypatch.setattr(contexts, "_encoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_scenes(scenes, tmp_path, "tiny")
    with pytest.raises(DatasetError, match="1 scene not encoded; run 'dipole drive encode' again, it goes on"):
        Contexts(tmp_path, scenes)
    found = encode_scenes(scenes, tmp_path, "tiny")
    encode_scenes(scenes, tmp_path, "tiny")
    assert seen == [("a", "b"), ("c",), ("c",)]
    direct = open_encoder("tiny")([scenes.read(token) for token in ("c", "a", "a")])
    np.testing.assert_allclose(found.read(["c", "a", "a"]).astype(float), direct.astype(float), atol=0.01)
    assert found.shape == (79, 128) and found.encoder == open_encoder("tiny").identity and len(found) == 3
    with pytest.raises(DatasetError, match="no scene 'z'"):
        found.read(["z"])


def test_tokens_of_another_encoder_or_of_other_scenes_or_damaged_ones_are_refused(
    scenes: SceneFolder, small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "contexts"
    first = encode_scenes(scenes, out, "small", small)
    save_small(bev_encoder.BEVEncoder(seed=4), tmp_path / "other")
    with pytest.raises(DatasetError, match="holds the tokens of another encoder"):
        encode_scenes(scenes, out, "small", tmp_path / "other")
    others = make_folder(tmp_path / "scenes", [scene("a", speed=5.0), scene("b")], [scene("c")])
    with pytest.raises(DatasetError, match="holds the tokens of other scenes than"):
        encode_scenes(others, out, "small", small)
    with pytest.raises(DatasetError, match="holds the tokens of other scenes than"):
        Contexts(out, others)
    second = encode_scenes(others, default_folder(others.folder, "small"), "small", tmp_path / "other")
    assert require_one_encoder([first, first]) == first.encoder
    with pytest.raises(DatasetError, match="a policy reads one encoder's tokens"):
        require_one_encoder([first, second])
    file = min(out.glob("*.arrow"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptSegment, match=r"checksum mismatch.*run 'dipole drive encode' again"):
        Contexts(out, scenes)
    (out / "contexts.json").write_text('{"version": 1, "format": 1, "files": 3}')
    with pytest.raises(DatasetError, match=r"not a list of context tokens|cannot be read"):
        Contexts(out, scenes)


def test_one_seed_trains_one_small_encoder_which_is_read_as_it_was_written(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rasters = np.zeros((80, 5, 128, 128), np.uint8)
    ahead = random.integers(20, 100, 80)
    for raster, row in zip(rasters, ahead, strict=True):
        raster[3, row - 8 : row + 8, 50:70] = 255
    plans = np.repeat(ahead[:, None, None], 8, axis=1) * np.ones((1, 1, 3)) / 10.0
    ego = random.normal(size=(80, 8))
    first, again = (bev_encoder.train_bev_encoder(rasters, ego, plans, seed=1, epochs=2) for _ in range(2))
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    start = bev_encoder.BEVEncoder(seed=1)
    assert all(not torch.equal(one, other) for one, other in zip(start.parameters(), first.parameters(), strict=True))
    save_small(first, tmp_path)
    seen = torch.from_numpy(rasters[:2])
    with torch.no_grad():
        assert torch.equal(read_small(tmp_path)(seen), first(seen))
    with pytest.raises(ConfigError, match="30 scenes to learn from; the small encoder needs at least 64"):
        bev_encoder.train_bev_encoder(rasters[:30], ego[:30], plans[:30], seed=1)
    safetensors.torch.save_file({"places": torch.zeros(2, 2)}, tmp_path / encoders.SMALL_FILE)
    with pytest.raises(ConfigError, match="not the small encoder's"):
        read_small(tmp_path)


def test_weights_belong_to_the_policies_that_have_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --weights out: its weights are random"):
        open_encoder("tiny", tmp_path)
    with pytest.raises(
        ConfigError, match="found --weights None; give --weights the folder that 'dipole drive train-enc"
    ):
        open_encoder("small")
    with pytest.raises(ConfigError, match="choose one of tiny, small, large"):
        open_encoder("huge")


def test_tokens_go_into_a_dataset_in_parts(
    scenes: SceneFolder, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are of NAVSIM's scenes, 100 GB of them, would fit into no memory; their order is the scenes'."""
    found = encode_scenes(scenes, default_folder(scenes.folder, "small"), "small", small)
    dataset = open_dataset(scene_dataset(DrivingConfig(scenes=(str(scenes.folder),), observation="small"), tmp_path))
    np.testing.assert_array_equal(dataset.tables["context"], found.read(scenes.tokens))
    assert [path.name for path in (tmp_path / "converted").iterdir() if path.is_dir()] == [dataset.directory.name]
    many, numbers = 1600, np.random.default_rng(0).integers(0, 9, (64, 128)).astype(np.float16)
    monkeypatch.setattr(schema, "_CHECKED_NUMBERS", 1 << 16)
    monkeypatch.setattr(segment, "_CHUNK_BYTES", 1 << 16)
    table = np.memmap(tmp_path / "many", np.float16, "w+", shape=(many, 64, 128))  # 26 MB
    table[:] = numbers
    rows = judged_rows(np.arange(many), np.zeros((many, 32)), np.zeros(many), DrivingConfig(observation="small"))
    tables = {"ego": np.zeros((many, 29), np.float32), "context": table}
    tracemalloc.start()
    write_dataset(tmp_path / "large", [rows], schema_of("small"), {"offset": {}}, tables=tables)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < table.nbytes / 2  # of which a list of files takes 8 MB
    table[311, 5, 7] = np.inf
    with pytest.raises(NonFiniteError, match="entry 311 of table 'context'"):
        write_dataset(tmp_path / "bad", [rows], schema_of("small"), {"offset": {}}, tables=tables)
