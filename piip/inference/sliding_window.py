"""Segmenting large images by overlapping windows, and averaging over flips.

Source: the released segmentors' evaluation (`docs/official.md`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from piip.heads.upernet import resize_logits
from piip.structures import ImageInfo

Segment = Callable[[Tensor], Tensor]


def window_corners(side: int, crop: int, stride: int) -> list[int]:
    """Return the window positions along one side; the last window is shifted inside, a short side has one window."""
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [max(min(index * stride + crop, side) - crop, 0) for index in range(count)]


def sliding_probabilities(
    segment: Segment, image: Tensor, image_info: ImageInfo, *, crop: int, stride: int, rescale: bool = True
) -> Tensor:
    """Return class probabilities averaged over overlapping windows.

    Args:
        segment: Windows (B, 3, h, w) -> logits (B, K, h', w') on any grid.
        image: Normalised image (B, 3, H, W).
        image_info: Sizes of the image and its padding.
        crop: Side of a window in pixels.
        stride: Stride of the windows in pixels.
        rescale: Return probabilities at the original image size.

    Returns:
        (B, K, H, W) of the original image, or of the image without padding.

    Raises:
        ValueError: The windows leave gaps.
    """
    if not 0 < stride <= crop:
        raise ValueError(f"stride is {stride} and crop {crop}, expected a stride from 1 to the crop.")
    height, width = image.shape[-2:]
    total: Tensor | None = None
    count = image.new_zeros(1, 1, height, width)
    for top in window_corners(height, crop, stride):
        for left in window_corners(width, crop, stride):
            window = image[..., top : top + crop, left : left + crop]
            size = window.shape[-2:]
            logits = resize_logits(segment(window).float(), size)
            if total is None:
                total = logits.new_zeros(len(image), logits.shape[1], height, width)
            total[..., top : top + size[0], left : left + size[1]] += logits
            count[..., top : top + size[0], left : left + size[1]] += 1
    assert total is not None  # there is at least one window
    inside = (total / count)[..., : image_info.size[0], : image_info.size[1]]
    return (resize_logits(inside, image_info.original) if rescale else inside).softmax(1)


def flip_image(image: Tensor, image_info: ImageInfo) -> Tensor:
    """Flip an image (B, 3, H, W) left to right; the padding stays on the right."""
    width = image_info.size[1]
    return torch.cat((image[..., :width].flip(-1), image[..., width:]), -1)
