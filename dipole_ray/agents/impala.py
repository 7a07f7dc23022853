"""The convolutions of IMPALA (Espeholt et al., ICML 2018) as OGBench's and FQL's reference agents have them.

Stacks of a convolution, a maximum that halves height and width, and residual blocks; then one dense layer. Images are
normalized here, from uint8 to [0, 1].

Shapes: B rows, H height, W width, C channels; D embedding dim, V numbers in all vectors.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dipole_ray.agents.networks import LAYER_NORM_EPS, Sizes
from dipole_ray.agents.observations import Observations
from dipole_ray.errors import ConfigError


class Shape(NamedTuple):
    """How large the convolutions are."""

    channels: tuple[int, ...]
    """Of each stack."""
    blocks: int
    """Residual blocks of a stack."""
    width: int
    """Of the dense layer."""


IMPALAS = {
    "impala": Shape((16, 32, 32), 2, 512),
    "impala_small": Shape((16, 32, 32), 1, 512),
    "impala_tiny": Shape((8, 16, 16), 1, 128),
}
"""The first two are OGBench's; the last is for small images on a CPU."""


class Block(nn.Module):
    """Two convolutions, whose result is added to what they read."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        """Return images of the same shape."""
        found: Tensor = images + self.second(F.relu(self.first(F.relu(images))))
        return found


class Trunk(nn.Module):
    """What reads one image."""

    def __init__(self, shape: Shape, image: tuple[int, ...], layer_norm: bool) -> None:
        super().__init__()
        height, width, channels = image
        self.stacks = nn.ModuleList()
        for after in shape.channels:
            blocks = (Block(after) for _ in range(shape.blocks))
            conv = nn.Conv2d(channels, after, 3, padding=1)
            self.stacks.append(nn.Sequential(conv, nn.MaxPool2d(3, 2, padding=1), *blocks))
            height, width, channels = (height + 1) // 2, (width + 1) // 2, after
        self.norm, self.norm_after = (
            nn.LayerNorm(each, eps=LAYER_NORM_EPS) if layer_norm else nn.Identity() for each in (channels, shape.width)
        )
        self.dense = nn.Linear(height * width * channels, shape.width)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, width) of images uint8 (B, H, W, C)."""
        found = images.permute(0, 3, 1, 2).float() / 255.0
        for stack in self.stacks:
            found = stack(found)
        features = self.norm(F.relu(found).permute(0, 2, 3, 1))
        made: Tensor = self.norm_after(F.gelu(self.dense(features.flatten(1)), approximate="tanh"))
        return made


class Impala(nn.Module):
    """A trunk for each image; what they make and the vectors, one after another.

    Attributes:
        embedding_dim: D: the trunks' widths and V.
    """

    def __init__(self, shape: Shape, layer_norm: bool, sizes: Sizes, generator: torch.Generator) -> None:
        super().__init__()
        columns = {name.rpartition(".")[2]: column for name, column in sizes.observed.items()}
        images = {name: column.shape for name, column in columns.items() if column.is_image}
        others = [column for name, column in columns.items() if name not in images and not column.is_vector]
        if others or not images:
            found = f"observations are {', '.join(map(str, columns.values()))}"
            remedy = "set agent.encoder.network=module:factory, a network that reads what they are"
            raise ConfigError(f"{found}, and impala reads uint8 images (H, W, C) beside vectors; {remedy}")
        self.trunks = nn.ModuleDict({name: Trunk(shape, image, layer_norm) for name, image in images.items()})
        self.vectors = tuple(name for name in columns if name not in images)
        self.embedding_dim = len(images) * shape.width + sum(columns[name].shape[0] for name in self.vectors)
        self._draw(generator)

    def forward(self, observations: Observations) -> Tensor:
        """Return (B, D)."""
        given = {"observations": observations} if isinstance(observations, Tensor) else observations
        parts = [trunk(given[name]) for name, trunk in self.trunks.items()]
        return torch.cat([*parts, *(given[name] for name in self.vectors)], dim=-1)

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        """Draw Xavier uniform kernels; biases are zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
