"""The small encoder: a scene from above, through convolutions, to context tokens; it learns from drivers' plans.

A token stands for a square of 16 x 16 pixels of the raster, 8 m wide. What trains it, a readout of plans from all
tokens, is left behind: the policy's head reads the tokens instead.

Shapes: N scenes, T = 64 tokens of C = 128 numbers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dipole_ray.driving.raster import CHANNELS, RasterConfig
from dipole_ray.driving.recorded import PLAN_POSES
from dipole_ray.driving.vehicle import Array
from dipole_ray.errors import ConfigError
from dipole_ray.progress import Progress

RASTER = RasterConfig()
TOKENS, WIDTH = 64, 128
EPOCHS, BATCH, LEARNING_RATE = 30, 64, 1e-3
_READ = 16


class BEVEncoder(nn.Module):
    """Three convolutions with strides 4, 2 and 2, and a place for each token."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(len(CHANNELS), 32, 8, stride=4, padding=2),
                nn.GELU(),
                nn.Conv2d(32, 64, 4, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(64, WIDTH, 4, stride=2, padding=1),
            )
            self.places = nn.Parameter(0.02 * torch.randn(TOKENS, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, rasters: Tensor) -> Tensor:
        """Return the tokens (N, T, C) of rasters (N, 5, 128, 128) uint8."""
        seen = self.layers(rasters.to(self.places.dtype) / 255.0)
        tokens: Tensor = self.norm(seen.flatten(2).transpose(1, 2) + self.places)
        return tokens


class _Readout(nn.Module):
    """Plans from the tokens and what the car knows of itself."""

    def __init__(self, encoder: BEVEncoder, ego_dim: int) -> None:
        super().__init__()
        self.encoder, self.read = encoder, nn.Linear(WIDTH, _READ)
        self.layers = nn.Sequential(nn.Linear(TOKENS * _READ + ego_dim, 256), nn.GELU(), nn.Linear(256, PLAN_POSES * 3))

    def forward(self, rasters: Tensor, ego: Tensor) -> Tensor:
        seen = F.gelu(self.read(self.encoder(rasters))).flatten(1)
        plans: Tensor = self.layers(torch.cat((seen, ego), dim=-1))
        return plans


def train_bev_encoder(rasters: Array, ego: Array, plans: Array, seed: int, epochs: int = EPOCHS) -> BEVEncoder:
    """Return an encoder that learned to tell the drivers' plans, by L1 loss in units of each number's mean size.

    Args:
        rasters: (N, 5, 128, 128) uint8.
        ego: (N, E) what the car knows of itself.
        plans: (N, 8, 3) what the drivers drove.
        seed: Of the weights and the order of the scenes.
        epochs: Passes over the scenes.

    Raises:
        ConfigError: There are too few scenes to learn from.
    """
    if len(rasters) < BATCH:
        raise ConfigError(f"{len(rasters)} scenes to learn from; the small encoder needs at least {BATCH}")
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Readout(BEVEncoder(seed), ego.shape[1])
    seen, known = torch.from_numpy(rasters), torch.from_numpy(ego).float()
    wanted = torch.from_numpy(plans).float().flatten(1)
    scale = wanted.abs().mean(dim=0).clamp(min=0.01)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    steps = epochs * -(-len(seen) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    with Progress("train the encoder", epochs * len(seen), "scenes") as bar:
        for epoch in range(epochs):
            done = epoch * len(seen)
            for rows in torch.randperm(len(seen), generator=random).split(BATCH):
                loss = ((network(seen[rows], known[rows]) - wanted[rows]) / scale).abs().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                done += len(rows)
                bar.update(done)
    return network.encoder.eval()
