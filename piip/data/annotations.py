"""Outlines of objects in COCO files: polygons, RLE (compressed or not), or only a box."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FARTHEST = 10  # image sides that a polygon may extend outside; drawing allocates memory for its whole extent


def outline_problem(segmentation: Any, shape: tuple[int, int]) -> str:
    """Return the problem with an annotation's "segmentation", or "".

    Args:
        segmentation: As in the file.
        shape: (H, W) of the image.
    """
    if not segmentation:
        return ""
    if isinstance(segmentation, list):
        return next((problem for part in segmentation if (problem := _polygon_problem(part, shape))), "")
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "is neither a list of polygons nor RLE with 'size' and 'counts'"
    if list(segmentation["size"]) != list(shape):
        return f"has the size {segmentation['size']}, its image {list(shape)} (height, width)"
    counts = segmentation["counts"]
    if isinstance(counts, list) and (any(count < 0 for count in counts) or sum(counts) != math.prod(shape)):
        return f"has counts of {sum(counts)} pixels, its image has {math.prod(shape)}"
    return "" if isinstance(counts, (list, str)) else "has counts that are neither a list nor a string"


def _polygon_problem(polygon: Any, shape: tuple[int, int]) -> str:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        count = f"{len(polygon)} numbers" if isinstance(polygon, list) else repr(polygon)
        return f"has a polygon of {count}, expected x and y of at least three points"
    try:
        is_finite = math.isfinite(sum(polygon))
    except TypeError:
        is_finite = False
    if not is_finite:
        return "has a polygon with values that are not finite numbers"
    for numbers, side in ((polygon[0::2], shape[1]), (polygon[1::2], shape[0])):
        if not -FARTHEST * side <= min(numbers) <= max(numbers) <= (FARTHEST + 1) * side:
            return f"has a polygon from {min(numbers)} to {max(numbers)}, its image is {side} pixels long there"
    return ""


def decode_mask(segmentation: Any, box: Sequence[float], shape: tuple[int, int]) -> np.ndarray:
    """Return the mask of an annotation, bool (H, W), from its polygons or RLE, or from its box if it has neither.

    Args:
        segmentation: As in the file, without a problem.
        box: x1, y1, x2, y2 inside the image.
        shape: (H, W) of the image.

    Raises:
        ValueError: The compressed RLE is damaged.
    """
    from faster_coco_eval.core import mask as coder

    height, width = shape
    if not segmentation:
        left, top, right, bottom = (round(number) for number in box)
        mask = np.zeros(shape, bool)
        mask[top:bottom, left:right] = True
        return mask
    if isinstance(segmentation, list):
        coded = coder.merge(coder.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        coded = coder.frPyObjects(segmentation, height, width)
    else:
        coded = segmentation
    decoded: np.ndarray = coder.decode(coded).astype(bool)
    return decoded


def check_box(box: Any, place: str) -> None:
    """Check that a box is x, y, width and height.

    Args:
        box: As in the file.
        place: Position in the file, for the message.

    Raises:
        ValueError: Not four finite numbers.
    """
    numbers = box if isinstance(box, list) else []
    if len(numbers) != 4 or not all(is_number(number) for number in numbers):
        raise ValueError(f"{place} has the bbox {box!r}, expected x, y, width and height in pixels.")


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_image(image: Mapping[str, Any], place: str) -> None:
    """Check that an image entry has a valid size.

    Args:
        image: Its entry in the file.
        place: Position in the file, for the message.

    Raises:
        ValueError: Height or width is not a positive integer.
    """
    for name in ("height", "width"):
        value = image[name]
        if not is_number(value) or value < 1 or value != int(value):
            raise ValueError(f"{place} has the {name} {value!r}, expected an integer of at least 1.")
