"""Finding the annotations of a COCO file that need no second look, all at once: files have up to a million."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from piip.data.annotations import FARTHEST, NUMBERS, bounds_of_polygons
from piip.data.findings import Findings

FARTHEST_PIXEL = 1e9  # boxes beyond it are no boxes
NEAR = 2.0  # pixels; boxes of whole pixels around small outlines differ by a pixel on each side
OUTSIDE = 1.0  # pixels that a box may reach beyond its image before that is odd
CORNERS_SHARE = 0.1  # fraction of boxes that must reach outside before they can be taken for corners
OVERLAP = 0.5  # minimum IoU of a box and the bounding box of its outline


class Regular(NamedTuple):
    """Annotations whose fields all have their usual form.

    Attributes:
        is_regular: Which annotations, bool (N,).
        boxes: x, y, width, height of every regular annotation, (N, 4).
        sides: Width and height of its image, (N, 2).
    """

    is_regular: NDArray[np.bool_]
    boxes: NDArray[np.float64]
    sides: NDArray[np.float64]


def find_regular(rows: Sequence[Any], images: Mapping[int, Mapping[str, Any]], categories: Collection[int]) -> Regular:
    """Return the annotations with nothing to say about.

    Ids are different integers, image and category are known, the flag is 0 or 1, box and area are numbers, the outline
    is missing or made of polygons near the image, and box and outline agree.

    Args:
        rows: Annotations as in the file.
        images: Images by id, with "height" and "width".
        categories: Known ids.
    """
    unknown = np.zeros((len(rows), 4))
    nothing = Regular(np.zeros(len(rows), bool), unknown, unknown[:, :2])
    if not rows or not images or {*map(type, rows)} != {dict}:
        return nothing
    own, image_ids, kinds, crowds, areas = (
        _numbers([row.get(name) for row in rows]) for name in ("id", "image_id", "category_id", "iscrowd", "area")
    )
    boxes = _boxes([row.get("bbox") for row in rows])
    if own is None or image_ids is None or kinds is None or crowds is None or areas is None or boxes is None:
        return nothing
    whole = all(column.dtype.kind == "i" for column in (own, image_ids, kinds, crowds))
    if not whole or not ((np.diff(own) > 0).all() or len(np.unique(own)) == len(rows)):
        return nothing
    sides, bounds = _sides(image_ids, images), bounds_of_polygons(rows)
    good = np.isin(kinds, list(categories)) & np.isin(crowds, (0, 1)) & np.isfinite(areas) & np.isfinite(sides).all(1)
    is_box: Any = (np.abs(boxes) < FARTHEST_PIXEL).all(axis=1)
    near = _is_near(bounds, sides)
    boxes, bounds = np.where(is_box[:, None], boxes, 0), np.where(near[:, None], bounds, np.nan)
    outlines = [row.get("segmentation") for row in rows]
    has_none = np.array([not outline and outline in (None, []) for outline in outlines])
    return Regular(good & is_box & (has_none | (near & _agree(boxes, bounds))), boxes, sides)


def _sides(image_ids: NDArray[np.int64], images: Mapping[int, Mapping[str, Any]]) -> NDArray[np.float64]:
    """Return width and height of the image of every annotation, NaN if image or size is unknown, (N, 2)."""
    known = np.array(sorted(images), np.int64)
    sizes = np.array([(images[key]["width"], images[key]["height"]) for key in known.tolist()], np.float64)
    places = np.searchsorted(known, image_ids).clip(max=len(known) - 1)
    return np.where((known[places] == image_ids)[:, None], sizes[places], np.nan)


def _numbers(values: Sequence[Any]) -> NDArray[Any] | None:
    """Return integers or numbers as an array, None if there is anything else."""
    kinds = {*map(type, values)}
    if not kinds <= NUMBERS:
        return None
    try:
        return np.array(values, "f8" if float in kinds else "i8")
    except OverflowError:
        return None


def _boxes(values: Sequence[Any]) -> NDArray[np.float64] | None:
    """Return boxes as an array (N, 4), None if one of them is not four numbers."""
    if {*map(type, values)} != {list} or {*map(len, values)} != {4}:
        return None
    numbers = _numbers(list(chain.from_iterable(values)))
    return None if numbers is None else numbers.reshape(-1, 4).astype(np.float64)


def _is_near(bounds: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which outlines are at most `FARTHEST` image sides outside; False where there is none."""
    low, high = bounds[:, :2], bounds[:, 2:]
    near: Any = ((low >= -FARTHEST * sides) & (high <= (FARTHEST + 1) * sides)).all(1)
    return near


def _agree(boxes: NDArray[np.float64], bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which boxes (x, y, width, height) and bounds (x1, y1, x2, y2) are about the same."""
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)
    common = np.minimum(corners[:, 2:], bounds[:, 2:]) - np.maximum(corners[:, :2], bounds[:, :2])
    shared = common.clip(0).prod(1)
    union = boxes[:, 2:].prod(1) + (bounds[:, 2:] - bounds[:, :2]).prod(1) - shared
    same: Any = (np.abs(corners - bounds) <= NEAR).all(axis=1)
    return np.logical_or(same, shared >= OVERLAP * union)


def agrees(box: Sequence[float], bounds: Sequence[float]) -> bool:
    """Return whether a box (x, y, width, height) and the bounds of an outline (x1, y1, x2, y2) are about the same."""
    return bool(_agree(np.array([box], np.float64), np.array([bounds], np.float64))[0])


class BoxesTogether:
    """Looks at all boxes together: fractions instead of pixels, or corners instead of sizes?

    Args:
        findings: Gets the answer.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._count = self._outside = 0
        self._largest = 0.0
        self._fit_as_corners = True

    def add_all(self, regular: Regular, rows: Sequence[Any], images: Mapping[int, dict[str, Any]]) -> None:
        """Add the boxes of the regular annotations; images with boxes outside get "has_outside".

        Args:
            regular: The regular annotations.
            rows: All annotations.
            images: Images by id.
        """
        boxes, sides = regular.boxes[regular.is_regular], regular.sides[regular.is_regular]
        if not len(boxes):
            return
        is_outside = (boxes[:, :2] + boxes[:, 2:] > sides + OUTSIDE).any(1)
        self._count, self._outside, self._largest = len(boxes), int(is_outside.sum()), float(boxes.max())
        fits = (boxes[:, :2] >= 0) & (boxes[:, :2] < boxes[:, 2:]) & (boxes[:, 2:] <= sides + OUTSIDE)
        self._fit_as_corners = bool(fits.all())
        for place in np.flatnonzero(regular.is_regular)[is_outside].tolist():
            images[rows[place]["image_id"]]["has_outside"] = True

    def add(self, box: Sequence[float], image: dict[str, Any]) -> None:
        """Add one box (x, y, width, height), and mark its image if it is outside."""
        width, height = image["width"], image["height"]
        if width is None or height is None:
            return
        left, top, right, bottom = box
        self._count += 1
        if right > self._largest or bottom > self._largest or left > self._largest or top > self._largest:
            self._largest = max(box)
        if left + right > width + OUTSIDE or top + bottom > height + OUTSIDE:
            self._outside += 1
            image["has_outside"] = True
        if self._fit_as_corners:
            self._fit_as_corners = 0 <= left < right <= width + OUTSIDE and 0 <= top < bottom <= height + OUTSIDE

    def judge(self) -> None:
        """Add what all boxes mean together to the findings."""
        if 0 < self._largest <= 1:
            self._findings.problem(
                "all boxes lie between 0 and 1, expected pixels: multiply them by the sizes of their images"
            )
        elif self._fit_as_corners and self._outside > CORNERS_SHARE * self._count:
            self._findings.say(
                f"{self._outside} of {self._count} boxes reach outside their images, and all would fit as x1, y1, x2, "
                "y2; bbox is read as x, y, width, height: convert them."
            )
