"""What an agent writes down and reads back: plain tensors by name, checked before anything is overwritten."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dipole_ray.errors import CheckpointError

BACKBONE_CHECKSUM = "backbone_checksum"
"""How the name of a tensor ends that says, as a SHA-256 of 32 numbers, to which frozen weights the others belong."""
FLAT_ALIGNMENT = 64
"""Numbers: where a tensor begins in a flat one, as aligned as an own allocation (256 bytes)."""


def make_adam(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Return Adam over `parameters` in its fused form, with its moments and step counts in place from the start."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    # torch makes them at the first step; a fresh agent must be saved, and restored in place, before that.
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    return optimizer


def adam_tensors(optimizer: torch.optim.Adam, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimizer's live tensors as `{step, exp_avg, exp_avg_sq}.{parameter name}`."""
    return {
        f"{kind}.{name}": optimizer.state[parameter][kind]
        for kind in ("step", "exp_avg", "exp_avg_sq")
        for name, parameter in parameters.items()
    }


@torch.no_grad()
def flatten(tensors: Sequence[Tensor], like: Tensor | None = None) -> Tensor:
    """Make `tensors` views of one flat tensor, which is returned; see `flatten_each`."""
    return flatten_each([tensors], like)[0]


@torch.no_grad()
def flatten_each(groups: Sequence[Sequence[Tensor]], like: Tensor | None = None) -> Tensor:
    """Make each of S groups of tensors, of the same shapes, views of a row of one tensor (S, P), which is returned.

    They stay the same objects, with equal values. There may be none in a group, where it is said what the empty tensor
    is to be `like`.
    """
    model = groups[0][0] if like is None else like
    flat = model.detach().new_zeros(len(groups), sum(map(_aligned_length, groups[0])))
    for row, tensors in zip(flat, groups, strict=True):
        for tensor, view in zip(tensors, views(row, tensors), strict=True):
            tensor.data = view.copy_(tensor)
    return flat


def views(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the part of a flat tensor (..., P) that belongs to each of `tensors`, (..., its shape); see `flatten`."""
    parts = flat.split([_aligned_length(tensor) for tensor in tensors], dim=-1)
    places = zip(parts, tensors, strict=True)
    return [part[..., : tensor.numel()].view((*flat.shape[:-1], *tensor.shape)) for part, tensor in places]


def _aligned_length(tensor: Tensor) -> int:
    """Return how many numbers a flat tensor has for this one, its padding with it."""
    return -(-tensor.numel() // FLAT_ALIGNMENT) * FLAT_ALIGNMENT


def check_matches(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError unless `found` is finite, with exactly the keys, shapes and types of `expected`."""
    both = [(name, tensor, found[name]) for name, tensor in expected.items() if name in found]
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    shapes = [(name, tuple(tensor.shape), tuple(other.shape)) for name, tensor, other in both]
    problems += [f"{name} has shape {other}, expected {shape}" for name, shape, other in shapes if other != shape]
    types = [(name, tensor.dtype, other.dtype) for name, tensor, other in both]
    problems += [f"{name} holds {other}, expected {kind}" for name, kind, other in types if other != kind]
    problems += [
        f"{name} holds NaN or infinity"
        for name, tensor in found.items()
        if name in expected and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    for name, tensor, other in both:
        if name.endswith(BACKBONE_CHECKSUM) and not problems and not torch.equal(tensor.cpu(), other.cpu()):
            theirs, ours = (bytes(each.tolist()).hex()[:12] for each in (other, tensor))
            raise CheckpointError(
                f"{what}: its adapters belong to the backbone {theirs}, and this agent's is {ours}; give the file of "
                "that backbone as agent.backbone.path"
            )
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{what}: {'; '.join(problems[:5])}{more}; load it into an agent with the configuration and dimensions "
            "it was saved from"
        )


@torch.no_grad()
def copy_into(destination: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Overwrite each destination tensor in place with the source tensor of the same name."""
    for name, tensor in destination.items():
        tensor.copy_(source[name])


def restore_generator(generator: torch.Generator, saved: Tensor) -> None:
    """Put `generator` where `saved` was taken; CheckpointError if that is the state of no generator.

    A state taken on another type of device has another layout and cannot be continued; the generator is then
    seeded from its bytes, so that the draws are new but still reproducible.
    """
    saved = saved.cpu()
    if saved.dtype != torch.uint8 or saved.dim() != 1:
        raise CheckpointError(
            f"generator holds {saved.dtype} of shape {tuple(saved.shape)}, expected bytes; use another checkpoint"
        )
    if saved.shape == generator.get_state().shape:
        try:
            generator.set_state(saved)
        except RuntimeError as error:
            raise CheckpointError(f"generator: not a state of torch's ({error}); use another checkpoint") from error
    else:
        generator.manual_seed(zlib.crc32(saved.numpy().tobytes()))


def save_batch(path: Path, batch: Mapping[str, Tensor]) -> str:
    """Write a batch to a safetensors file, making its folder if need be; return in words where it is, or why not."""
    from safetensors.torch import save

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in batch.items()}))
    except OSError as error:
        return f"the last batch could not be saved in {path} ({error.strerror or error})"
    return f"the last batch is in {path}"
