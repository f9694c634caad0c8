"""Drawing classes and objects into an image; a class has the same colour in target and prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw

GOLDEN = 0.618034  # of the circle of hues from one class to the next: neighbours are far apart


def class_colour(index: int) -> tuple[int, ...]:
    """Return the RGB colour of a class."""
    return ImageColor.getrgb(f"hsl({360 * (index * GOLDEN % 1):.0f}, 80%, 55%)")


def draw_map(image: Image.Image, labels: np.ndarray, ignored: np.ndarray) -> Image.Image:
    """Return an RGB image with its classes tinted.

    Args:
        image: The image.
        labels: Class of every pixel, (H, W).
        ignored: Pixels that are not tinted, bool (H, W).
    """
    table = np.array([class_colour(index) for index in range(int(labels.max()) + 1)], np.uint8)
    tinted = Image.blend(image, Image.fromarray(table[labels]), 0.5)
    return Image.composite(image, tinted, Image.fromarray(ignored))


def draw_objects(
    image: Image.Image, boxes: Sequence[Sequence[float]], labels: Sequence[int], masks: np.ndarray | None
) -> Image.Image:
    """Return an RGB image with its objects outlined and, if they have masks, tinted.

    Args:
        image: The image.
        boxes: x1, y1, x2, y2 in pixels, N of them.
        labels: Classes.
        masks: bool (N, H, W).
    """
    drawn = image.copy()
    for label, mask in zip(labels, [] if masks is None else masks, strict=masks is not None):
        drawn.paste(
            Image.blend(drawn, Image.new("RGB", drawn.size, class_colour(label)), 0.5), mask=Image.fromarray(mask)
        )
    pen = ImageDraw.Draw(drawn)
    for label, box in zip(labels, boxes, strict=True):
        pen.rectangle(list(box), outline=class_colour(label))
    return drawn
