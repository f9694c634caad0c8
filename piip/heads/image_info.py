"""What a head must know of the images behind its maps."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

Target = dict[str, Tensor]
Prediction = dict[str, Any]


class ImageFrame(NamedTuple):
    """One image of a batch.

    Attributes:
        size: (H, W) in network pixels, without padding.
        padded: (H, W) with its own padding.
        batch: (H, W) of the batch it is part of.
        original: (H, W) of the image as it was.
        scale: Network pixels per original pixel, (x, y), as rounded sizes give them.
    """

    size: tuple[int, int]
    padded: tuple[int, int]
    batch: tuple[int, int]
    original: tuple[int, int]
    scale: tuple[float, float]

    @staticmethod
    def make(
        size: tuple[int, int],
        *,
        padded: tuple[int, int] | None = None,
        batch: tuple[int, int] | None = None,
        original: tuple[int, int] | None = None,
    ) -> ImageFrame:
        """Describe an image that was resized from `original` to `size` and padded at the right and bottom.

        Args:
            size: (H, W) in network pixels.
            padded: (H, W) with padding; None is none.
            batch: (H, W) of the batch; None is that of the padded image.
            original: (H, W) before the resize; None was not resized.
        """
        padded, original = padded or size, original or size
        scale = (size[1] / original[1], size[0] / original[0])
        return ImageFrame(size, padded, batch or padded, original, scale)
