"""Random shifts of images (DrQ, Yarats et al., ICLR 2021), which keep critics from learning pixels by heart.

Shapes: B rows, H height, W width, C channels.
"""

import torch
from torch import Tensor


def random_shift(images: Tensor, uniform: Tensor, pad: int) -> Tensor:
    """Return images (B, H, W, C), each moved by up to `pad` pixels either way; what enters repeats the border.

    The numbers, uniform in [0, 1) and (B, 2), say how far each is moved along H and W, every whole shift equally often.
    """
    height, width = images.shape[1:3]
    shifts = (uniform * (2 * pad + 1)).long() - pad
    rows, columns = (
        (torch.arange(length, device=images.device) + shifts[:, axis, None]).clamp_(0, length - 1)
        for axis, length in enumerate((height, width))
    )
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return images[each, rows[:, :, None], columns[:, None, :]]
