"""Resizing of 8-bit images as in the released pipelines: OpenCV's bilinear rule in fixed-point arithmetic.

Source: behaviour of `cv2.resize(..., INTER_LINEAR)` on 8-bit images, without antialiasing; checked against it in the
tests to within one grey level.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
COEFFICIENT = 2048  # weights are 11-bit integers


def resize_like_opencv(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize an image.

    Args:
        image: (H, W, C).
        size: Output (H, W).

    Returns:
        The resized image, (H, W, C).
    """
    if image.shape[:2] == tuple(size):
        return image
    rows, columns = _taps(image.shape[0], size[0]), _taps(image.shape[1], size[1])
    wide = image.astype(np.int32)
    left, right = (wide[:, tap.pixels] * tap.weights[None, :, None] for tap in columns)
    across = left + right
    upper, lower = (((tap.weights[:, None, None] * (across[tap.pixels] >> 4)) >> 16) for tap in rows)
    return ((upper + lower + 2) >> 2).clip(0, 255).astype(np.uint8)


class _Tap(NamedTuple):
    """One of the two input pixels of every output pixel, and its weight."""

    pixels: NDArray[np.int64]
    weights: NDArray[np.int32]


def _taps(stored: int, wanted: int) -> tuple[_Tap, _Tap]:
    position = ((np.arange(wanted) + 0.5) * (stored / wanted) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    weight = np.where((first < 0) | (first >= stored - 1), np.float32(0), position - first.astype(np.float32))
    first = first.clip(0, stored - 1)
    second = (first + 1).clip(max=stored - 1)
    near, far = (np.rint(part * COEFFICIENT).astype(np.int32) for part in (1 - weight, weight))
    return _Tap(first, near), _Tap(second, far)
