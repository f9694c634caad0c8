"""Outlines of objects in COCO files: polygons, RLE (compressed or not), or only a box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NUMBERS = frozenset({int, float})
FARTHEST = 10  # image sides that a polygon may extend outside; drawing allocates memory for its whole extent


Bounds = tuple[float, float, float, float]  # x1, y1, x2, y2


class Outline(NamedTuple):
    """An annotation's outline as it is used.

    Attributes:
        value: Polygons or RLE; None if the annotation has only a box.
        bounds: x1, y1, x2, y2 of its polygons; None for other outlines.
        problem: What is wrong with it, or "".
        is_degenerate: Whether all its polygons are points or lines.
    """

    value: Any = None
    bounds: Bounds | None = None
    problem: str = ""
    is_degenerate: bool = False


def check_outline(segmentation: Any, height: int | None, width: int | None) -> Outline:
    """Check an annotation's "segmentation"; RLE may have the sides of its image swapped, which only the image decides.

    Args:
        segmentation: As in the file.
        height: Height of the image, None if the file lacks it.
        width: Width of the image, None if the file lacks it.
    """
    if isinstance(segmentation, list):
        return _check_polygons(segmentation, height, width)
    if not segmentation:
        return Outline()
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return Outline(problem="is neither a list of polygons nor RLE with 'size' and 'counts'")
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, list) or len(size) != 2 or not all(is_number(side) for side in size):
        return Outline(problem=f"has the size {size!r}, expected height and width")
    if height is not None and width is not None and size not in ([height, width], [width, height]):
        return Outline(problem=f"has the size {size}, its image {[height, width]} (height, width)")
    if isinstance(counts, list):
        if not all(is_number(count) and count >= 0 for count in counts) or sum(counts) != math.prod(size):
            total = sum(count for count in counts if is_number(count))
            return Outline(problem=f"has counts of {total} pixels, its image has {math.prod(size)}")
    elif not isinstance(counts, str):
        return Outline(problem="has counts that are neither a list nor a string")
    return Outline(segmentation)


def _check_polygons(polygons: list[Any], height: int | None, width: int | None) -> Outline:
    if polygons and is_number(polygons[0]):
        polygons = [polygons]  # one polygon without the outer list
    parts: list[list[float]] = []
    bounds: Bounds | None = None
    for polygon in polygons:
        if type(polygon) is not list or len(polygon) % 2:
            count = f"{len(polygon)} numbers" if isinstance(polygon, list) else repr(polygon)
            return Outline(problem=f"has a polygon of {count:.40}, expected x and y of at least three points")
        if not polygon:
            continue
        try:
            is_finite = math.isfinite(sum(polygon))
        except (TypeError, OverflowError):
            is_finite = False
        if not is_finite:
            return Outline(problem="has a polygon with values that are not finite numbers")
        columns, rows = polygon[0::2], polygon[1::2]
        left, top, right, bottom = min(columns), min(rows), max(columns), max(rows)
        problem = _far_away(left, right, width) or _far_away(top, bottom, height)
        if problem:
            return Outline(problem=problem)
        if len(polygon) >= 6 and left < right and top < bottom:
            parts.append(polygon)
            if bounds is not None:
                left, top = min(left, bounds[0]), min(top, bounds[1])
                right, bottom = max(right, bounds[2]), max(bottom, bounds[3])
            bounds = (left, top, right, bottom)
    if not parts:
        return Outline(is_degenerate=any(polygon != [] for polygon in polygons))
    return Outline(parts, bounds)


def bounds_of_polygons(rows: Sequence[Any]) -> NDArray[np.float64]:
    """Return the bounds of outlines that are polygons of plain numbers without a fault, all computed at once.

    Args:
        rows: Annotations as in the file.

    Returns:
        x1, y1, x2, y2 of every annotation, (N, 4); NaN where `check_outline` must look.
    """
    owners: list[int] = []
    polygons: list[list[float]] = []
    for place, row in enumerate(rows):
        parts = row.get("segmentation") if type(row) is dict else None
        if type(parts) is not list:
            continue
        if len(parts) == 1 and type(parts[0]) is list and len(parts[0]) >= 6:
            owners.append(place)
            polygons.append(parts[0])
        elif all(type(part) is list and len(part) >= 6 for part in parts):
            owners += [place] * len(parts)
            polygons += parts
    found = np.full((len(rows), 4), np.nan)
    if not polygons or not NUMBERS.issuperset(map(type, chain.from_iterable(polygons))):
        return found
    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    try:
        numbers = np.fromiter(chain.from_iterable(polygons), np.float64, lengths.sum())
    except OverflowError:  # an integer beyond every float
        return found
    if (lengths % 2).any():
        return found
    points, first = numbers.reshape(-1, 2), np.cumsum(lengths // 2) - lengths // 2
    low, high = np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)
    is_good = np.isfinite(low).all(1) & np.isfinite(high).all(1) & (low < high).all(1)
    places, start = np.unique(owners, return_index=True)
    corners = np.concatenate((np.minimum.reduceat(low, start), np.maximum.reduceat(high, start)), 1)
    good = np.logical_and.reduceat(is_good, start)
    found[places[good]] = corners[good]
    return found


def _far_away(low: float, high: float, side: int | None) -> str:
    """Return what is wrong with a polygon's extent along a side of its image, or ""."""
    if side is None or -FARTHEST * side <= low <= high <= (FARTHEST + 1) * side:
        return ""
    return f"has a polygon from {low} to {high}, its image is {side} pixels long there"


def outline_area(outline: Any, box: Sequence[float]) -> float:
    """Return the area of an outline in pixels, or that of a box if there is none.

    Args:
        outline: Polygons or RLE without a problem, or None.
        box: x, y, width, height.
    """
    if outline is None:
        return float(box[2] * box[3])
    if isinstance(outline, list):
        return float(sum(abs(_signed_area(polygon)) for polygon in outline))
    from faster_coco_eval.core import mask as coder

    coded = coder.frPyObjects(outline, *outline["size"]) if isinstance(outline["counts"], list) else outline
    return float(coder.area(coded))


def _signed_area(polygon: Sequence[float]) -> float:
    columns, rows = np.asarray(polygon[0::2], float), np.asarray(polygon[1::2], float)
    return float(np.dot(columns, np.roll(rows, -1)) - np.dot(rows, np.roll(columns, -1))) / 2


def coded_polygons(polygons: Sequence[Sequence[float]], shape: tuple[int, int]) -> bytes:
    """Return the union of polygons as COCO's compressed run lengths.

    Args:
        polygons: x, y, x, y, ... of each, in pixels.
        shape: (H, W) of the image.
    """
    from faster_coco_eval.core import mask as coder

    counts: bytes = coder.merge(coder.frPyObjects(polygons, *shape))["counts"]
    return counts


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
