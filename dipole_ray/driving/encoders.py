"""The encoders of the driving policy: what each sees of a scene, and where its weights come from.

tiny    Florence-2's encoder with random weights: three pictures of 128 x 128 and the prompt; for tests
small   a scene from above through convolutions, trained by `dipole drive train-encoder`
large   Florence-2-large's encoder: three pictures of 384 x 384 and the prompt, weights of a local folder
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from dipole_ray.agents import state
from dipole_ray.agents.adapters import checksum
from dipole_ray.agents.backbones import read_weights
from dipole_ray.agents.florence import SHAPES, FlorenceEncoder, load_florence
from dipole_ray.agents.precision import require_device
from dipole_ray.driving import bev_encoder
from dipole_ray.driving.cameras import VIEWS, CameraConfig, images
from dipole_ray.driving.container import SceneFolder, joined_status
from dipole_ray.driving.ego_status import inputs
from dipole_ray.driving.prompt import TOKENIZER, Tokenizer, few_words, padded, prompt, read_tokenizer
from dipole_ray.driving.raster import CHANNELS, raster
from dipole_ray.driving.recorded import RecordedScene
from dipole_ray.driving.vehicle import Array
from dipole_ray.errors import CheckpointError, ConfigError
from dipole_ray.files.durable import replacing
from dipole_ray.files.place import make_folder
from dipole_ray.progress import Progress

POLICIES = ("tiny", "small", "large")
FLORENCE_FILE, SMALL_FILE = "model.safetensors", "encoder.safetensors"
BATCH = 8
"""Scenes that are encoded at a time."""
_VERSION = 1  # of what is seen: prompts, pictures and rasters


def context_shape(policy: str) -> tuple[int, int]:
    """Return how many tokens a policy's encoder makes of a scene, and the numbers in each."""
    if policy == "small":
        return bev_encoder.TOKENS, bev_encoder.WIDTH
    return SHAPES[policy].tokens(len(VIEWS)), SHAPES[policy].width


@dataclass(frozen=True, slots=True)
class ContextEncoder:
    """Makes context tokens of scenes."""

    identity: str
    """SHA-256 of its weights, and of how it sees a scene: context tokens of another are no use to a policy"""
    shape: tuple[int, int]
    """tokens, and numbers in each"""
    _encoded: Callable[[Sequence[RecordedScene]], Tensor]

    @torch.no_grad()
    def __call__(self, scenes: Sequence[RecordedScene]) -> Array:
        """Return the context tokens of scenes, (N, T, C) float16."""
        return _halved(torch.cat([self._encoded(scenes[i : i + BATCH]) for i in range(0, len(scenes), BATCH)]))


@dataclass(frozen=True, slots=True)
class PictureEncoder:
    """Makes context tokens of what three cameras see and of the prompt, without a scene around them."""

    identity: str
    """as ContextEncoder's"""
    cameras: CameraConfig
    """what the pictures have to be like"""
    _encoder: FlorenceEncoder
    _tokenizer: Tokenizer
    _device: str

    @torch.no_grad()
    def __call__(self, pictures: Array, prompts: Sequence[str]) -> Array:
        """Return the context tokens (N, T, C) float16 of pictures (N, 3, height, width, 3) uint8 and N prompts."""
        return _halved(self.encoded(pictures, prompts))

    def encoded(self, pictures: Array, prompts: Sequence[str]) -> Tensor:
        """Return them as the encoder has them."""
        tokens = torch.from_numpy(padded(prompts, self._tokenizer, self._encoder.shape.prompt))
        found: Tensor = self._encoder(torch.from_numpy(pictures).to(self._device), tokens.to(self._device))
        return found


def _halved(tokens: Tensor) -> Array:
    found: Array = tokens.to(torch.float16).cpu().numpy()
    if not np.isfinite(found).all():
        raise CheckpointError("the encoder's tokens do not fit float16; its weights are not those of this encoder")
    return found


def open_encoder(
    policy: str, weights: Path | None = None, sensors: Path | None = None, device: str = "cpu"
) -> ContextEncoder:
    """Return an encoder by the name of the policy that has it.

    Args:
        policy: One of POLICIES.
        weights: The folder of its weights: for `small` the one that `train_small` wrote, for `large` that of
            Florence-2-large, with `model.safetensors` and `tokenizer.json`. `tiny` has none.
        sensors: The folder of the log's pictures, where scenes have some.
        device: Where it computes.

    Raises:
        ConfigError: There is no such policy, or weights are missing, damaged or too many.
    """
    _require_weights(policy, weights)
    if policy == "small":
        assert weights is not None
        require_device(device)
        return _small(read_small(weights), device)
    encoder = picture_encoder(policy, weights, device)

    def encoded(scenes: Sequence[RecordedScene]) -> Tensor:
        pictures = np.stack([images(one, encoder.cameras, sensors) for one in scenes])
        return encoder.encoded(pictures, [prompt(one) for one in scenes])

    return ContextEncoder(encoder.identity, context_shape(policy), encoded)


def picture_encoder(policy: str, weights: Path | None = None, device: str = "cpu") -> PictureEncoder:
    """Return the encoder of `tiny` or `large`, see `open_encoder`, for who has pictures and no scene."""
    _require_weights(policy, weights)
    require_device(device)
    encoder, tokenizer = FlorenceEncoder(policy), few_words
    seen: dict[str, Any] = {}
    if weights is not None:
        tokenizer = _with_weights(encoder, weights)
        seen["tokenizer"] = hashlib.sha256((weights / TOKENIZER).read_bytes()).hexdigest()
    shape = encoder.shape
    cameras = CameraConfig(width=shape.pixels, height=shape.pixels)
    identity = _identity(encoder, policy, {**seen, "cameras": asdict(cameras), "prompt": shape.prompt})
    encoder.to(device=device, dtype=torch.float16 if device != "cpu" else torch.float32)
    return PictureEncoder(identity, cameras, encoder, tokenizer, device)


def _require_weights(policy: str, weights: Path | None) -> None:
    if policy not in POLICIES:
        raise ConfigError(f"policy '{policy}': unknown; choose one of {', '.join(POLICIES)}")
    if (policy == "tiny") != (weights is None):
        remedy = {
            "tiny": "leave --weights out: its weights are random, and always the same",
            "small": "give --weights the folder that 'dipole drive train-encoder' wrote",
            "large": f"give --weights the folder of Florence-2-large, with {FLORENCE_FILE} and {TOKENIZER}",
        }
        raise ConfigError(f"policy '{policy}': found --weights {weights}; {remedy[policy]}")


def train_small(folders: Sequence[SceneFolder], out: Path, seed: int = 0) -> None:
    """Train the small encoder on the scenes of folders, and write its weights into a folder.

    Raises:
        ConfigError: There are too few scenes.
        CorruptSegment: A file of scenes is damaged.
    """
    make_folder(out)  # before the work for it is done
    status, count = joined_status(folders), sum(map(len, folders))
    rasters = np.empty((count, len(CHANNELS), bev_encoder.RASTER.pixels, bev_encoder.RASTER.pixels), dtype=np.uint8)
    with Progress("draw scenes from above", count, "scenes") as bar:
        for number, one in enumerate(one for folder in folders for one in folder):
            rasters[number] = raster(one, bev_encoder.RASTER)
            bar.update(number + 1)
    encoder = bev_encoder.train_bev_encoder(rasters, inputs(status).numpy(), status.human, seed)
    save_small(encoder, out)


def save_small(encoder: bev_encoder.BEVEncoder, folder: Path) -> None:
    """Write the small encoder's weights into a folder, whole or not at all."""
    make_folder(folder)
    with replacing(folder / SMALL_FILE) as temporary:
        temporary.write_bytes(safetensors.torch.save(dict(encoder.state_dict())))


def read_small(folder: Path) -> bev_encoder.BEVEncoder:
    """Return the small encoder of a folder; ConfigError where there is none."""
    encoder, tensors = bev_encoder.BEVEncoder(), read_weights(folder / SMALL_FILE, "--weights")
    own = encoder.state_dict()
    try:
        state.check_matches(own, tensors, str(folder / SMALL_FILE))
    except CheckpointError as error:
        raise ConfigError(f"--weights: not the small encoder's: {error}") from None
    state.copy_into(own, tensors)
    return encoder.eval()


def _small(encoder: bev_encoder.BEVEncoder, device: str) -> ContextEncoder:
    def encoded(scenes: Sequence[RecordedScene]) -> Tensor:
        seen = np.stack([raster(one, bev_encoder.RASTER) for one in scenes])
        found: Tensor = encoder(torch.from_numpy(seen).to(device))
        return found

    identity = _identity(encoder, "small", {"raster": asdict(bev_encoder.RASTER)})
    encoder.to(device)
    return ContextEncoder(identity, context_shape("small"), encoded)


def _with_weights(encoder: FlorenceEncoder, folder: Path) -> Tokenizer:
    """Give the encoder the weights of a folder, and return the tokenizer that they belong to."""
    tokenizer = read_tokenizer(folder)
    try:
        load_florence(encoder, read_weights(folder / FLORENCE_FILE, "--weights"))
    except CheckpointError as error:
        raise ConfigError(f"--weights: {folder / FLORENCE_FILE} are not those of Florence-2-large: {error}") from None
    return tokenizer


def _identity(encoder: nn.Module, policy: str, seen: dict[str, Any]) -> str:
    """Return the SHA-256 of the weights, before a device rounds them, and of how a scene is seen."""
    said = json.dumps({"policy": policy, "version": _VERSION, **seen}, sort_keys=True)
    return hashlib.sha256(checksum(encoder.state_dict()) + said.encode()).hexdigest()
