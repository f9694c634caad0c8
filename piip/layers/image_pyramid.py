"""The image pyramid: one image resized for every branch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.structures import Size


def pyramid_sizes(size: Size, ratios: Sequence[float], strides: Sequence[int]) -> list[Size]:
    """Return the image size of every branch, each a multiple of its stride.

    Args:
        size: (H, W) of the given image in pixels.
        ratios: Side of each branch's image relative to the last branch's.
        strides: Pixels every branch's image side must be a multiple of.

    Returns:
        (H, W) in pixels, one per branch: `max(1, round(side * ratio / stride)) * stride`.
    """
    return [
        (max(1, round(size[0] * ratio / stride)) * stride, max(1, round(size[1] * ratio / stride)) * stride)
        for ratio, stride in zip(ratios, strides, strict=True)
    ]


def image_pyramid(image: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """Resize one batch of images to several sizes, bilinear without antialias.

    Args:
        image: (B, 3, H, W).
        sizes: (H, W) in pixels, one per result.

    Returns:
        Images (B, 3, H_i, W_i); the input image if its size is the same.
    """
    return [
        image
        if tuple(image.shape[-2:]) == tuple(size)
        else F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        for size in sizes
    ]


def official_image_pyramid(image: Tensor, ratios: Sequence[float]) -> list[Tensor]:
    """Resize one batch of images by factors, as the released code does.

    parity: sample positions follow the given factor, not the ratio of the truncated sizes, and a factor of 1 or
    more leaves the image as it is. At the sizes of the released models this equals `image_pyramid`.

    Args:
        image: (B, 3, H, W).
        ratios: Side of each branch's image relative to the last branch's.

    Returns:
        Images (B, 3, floor(H * ratio), floor(W * ratio)).
    """
    return [
        image if ratio >= 1 else F.interpolate(image, scale_factor=ratio, mode="bilinear", align_corners=False)
        for ratio in ratios
    ]


def check_image(image: Tensor, *, in_chans: int = 3, min_size: int = 1) -> None:
    """Check that an object is a batch of images.

    Values are checked only on CPU and outside compiled graphs: on accelerators the host would wait for the answer, and
    a forward pass there synchronises nowhere.

    Args:
        image: The input, expected as (B, C, H, W).
        in_chans: Expected channels C.
        min_size: Minimum side in pixels.

    Raises:
        ValueError: Dimensions, channels, dtype or size are wrong, or values are not finite.
    """
    if not isinstance(image, Tensor):
        raise ValueError(f"The image is a {type(image).__name__}, expected a torch.Tensor (B, {in_chans}, H, W).")
    if image.dim() != 4:
        raise ValueError(
            f"The image has shape {tuple(image.shape)}, expected a batch (B, {in_chans}, H, W); "
            "add the batch dimension with image[None]."
        )
    if image.shape[1] != in_chans:
        raise ValueError(f"The image has {image.shape[1]} channels, expected {in_chans}: (B, {in_chans}, H, W), RGB.")
    if not image.is_floating_point():
        raise ValueError(
            f"The image has dtype {image.dtype}, expected a float tensor: scale to [0, 1] and normalise first."
        )
    if min(image.shape[-2:]) < min_size:
        raise ValueError(
            f"The image is {tuple(image.shape[-2:])} pixels, smaller than one patch ({min_size}); use a larger image."
        )
    is_real = type(image) is Tensor and image.device.type == "cpu"  # not a proxy of a tracer
    if is_real and not torch.compiler.is_compiling() and not _is_finite(image):
        raise ValueError("The image has NaN or infinite values, expected finite values: check its normalisation.")


def _is_finite(image: Tensor) -> bool:
    """Return whether all values are finite; for nearly all images their sum is enough to decide."""
    return math.isfinite(image.sum(dtype=torch.float32).item()) or bool(torch.isfinite(image).all())
