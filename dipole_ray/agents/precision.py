"""In which numbers a learner multiplies matrices: float32, or factors rounded to fewer digits where that is faster.

Parameters, moments, sums of products, losses and all that is no matrix product stay float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from dipole_ray.errors import ConfigError

PRECISIONS = ("float32", "tf32", "bf16")
SETTING = "learner.matmul_precision"
_AMPERE = 8
"""The first generation of GPUs that has TF32."""


def require_device(device: str | torch.device) -> None:
    """Raise ConfigError, with what is there instead, where this machine has no such device."""
    with suppress(RuntimeError):  # of a name that is none
        found = torch.device(device)
        if found.type == "cpu" or (found.type == "cuda" and (found.index or 0) < torch.cuda.device_count()):
            return
    have = "cpu and cuda" if torch.cuda.is_available() else "only cpu"
    raise ConfigError(f"device '{device}': torch has {have} here; choose among those")


def require_precision(precision: str, device: torch.device) -> None:
    """Raise ConfigError, with what is there instead, where a device has no such products."""
    if precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"{SETTING}: tf32 is a GPU's, and this learner computes on a CPU; set bf16 or float32")
    if precision == "tf32" and (found := torch.cuda.get_device_capability(device))[0] < _AMPERE:
        name = f"{torch.cuda.get_device_name(device)} (compute capability {found[0]}.{found[1]})"
        raise ConfigError(f"{SETTING}: tf32 needs compute capability {_AMPERE}.0, and this is {name}; set float32")
    if precision == "bf16" and device.type != "cpu":
        raise ConfigError(f"{SETTING}: bf16 is for a CPU, and this learner computes on {device}; set tf32 or float32")
    if precision == "bf16" and not _has_pairs():
        raise ConfigError(
            f"{SETTING}: bf16 needs numba and a CPU with AVX512-BF16 (avx512_bf16 in /proc/cpuinfo), and one of them "
            "is missing here; set float32"
        )


def _has_pairs() -> bool:
    """Return whether compiled updates can multiply in bfloat16."""
    try:
        from dipole_ray.agents.tiles import HAS_PAIRS
    except ImportError:
        return False
    return HAS_PAIRS


@contextmanager
def torch_products(precision: str) -> Iterator[None]:
    """Let torch's own products in this block round their factors to TF32, if that is the precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
