"""Resizing 8-bit images as the released models' pipelines did: OpenCV's bilinear rule in fixed-point arithmetic.

Source: behaviour of `cv2.resize(..., INTER_LINEAR)` on 8-bit images, without antialiasing; checked against it in the
tests to one grey level.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
COEFFICIENT = 2048  # weights are 11-bit integers


def resize_like_opencv(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize an image.

    Args:
        image: (H, W, C).
        size: Wanted (H, W).

    Returns:
        The resized image, (H, W, C).
    """
    if image.shape[:2] == tuple(size):
        return image
    top, bottom, vertical = _taps(image.shape[0], size[0])
    left, right, horizontal = _taps(image.shape[1], size[1])
    wide = image.astype(np.int32)
    columns = wide[:, left] * (COEFFICIENT - horizontal)[None, :, None] + wide[:, right] * horizontal[None, :, None]
    upper = ((COEFFICIENT - vertical)[:, None, None] * (columns[top] >> 4)) >> 16
    lower = (vertical[:, None, None] * (columns[bottom] >> 4)) >> 16
    return ((upper + lower + 2) >> 2).clip(0, 255).astype(np.uint8)


def _taps(stored: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Return for every wanted pixel the two stored ones around its centre and the weight of the second."""
    place = (np.arange(wanted) + 0.5) * (stored / wanted) - 0.5
    first = np.floor(place).astype(np.int64)
    weight = np.where((first < 0) | (first >= stored - 1), 0.0, place - first)
    first = first.clip(0, stored - 1)
    return first, (first + 1).clip(max=stored - 1), np.rint(weight * COEFFICIENT).astype(np.int32)
