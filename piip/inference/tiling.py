"""Big images in overlapping tiles: where tiles lie, and how what is found in them becomes one answer.

A tile is prepared and predicted like an image of its own. Source: own; overlap relative to the smaller object is that
of sliced prediction (SAHI, arXiv 2202.06934), here counted where both tiles look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from piip.inference.compact_masks import CompactMask, Region
from piip.inference.sliding_window import window_corners

SAME = 0.5  # minimum overlap of two detections of the same object
BORDER = 0.02  # fraction of a tile's side: a box this close to an inner border may be cut off
LEAST_BORDER = 4  # pixels; boxes are not more precise
LEAST_SIDE = 32  # pixels; a smaller tile is a few patches of a network
LEAST_STEP = 8  # pixels from a tile to the next
MOST_OVERLAP = 0.9  # of the side; beyond it, every pixel is in more than a hundred tiles
LEAST_SCORE = 0.05  # detections below it would only merge others incorrectly


@dataclass(frozen=True)
class Tiling:
    """Tiling of an image.

    Args:
        side: Height and width of a tile in pixels of the image, at least 32.
        overlap: Overlap of neighbouring tiles as a fraction of the side, in [0, 0.9]; steps are of 8 pixels or more.

    Raises:
        ValueError: A value is out of range.
    """

    side: int
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if self.side < LEAST_SIDE:
            raise ValueError(
                f"tile is {self.side}, expected at least {LEAST_SIDE} pixels: choose about the size of training images."
            )
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise ValueError(
                f"tile_overlap is {self.overlap}, expected a fraction of the side in [0, {MOST_OVERLAP}]: choose it a "
                "little wider than an object."
            )
        if self.step < LEAST_STEP:
            raise ValueError(
                f"tile_overlap {self.overlap} of a tile of {self.side} puts a tile every {self.step} pixels, expected "
                f"{LEAST_STEP} or more: choose a smaller overlap or a larger tile."
            )

    @property
    def step(self) -> int:
        """Pixels from a tile to the next."""
        return round(self.side * (1 - self.overlap))

    def corners(self, length: int) -> list[int]:
        """Return the positions of tiles along a side of the image; the last one ends at the border."""
        return window_corners(length, self.side, self.step)

    def tiles(self, shape: tuple[int, int]) -> list[Region]:
        """Return the tiles of an image (H, W), row by row."""
        height, width = shape
        return [
            Region(left, top, min(left + self.side, width), min(top + self.side, height))
            for top in self.corners(height)
            for left in self.corners(width)
        ]


@dataclass(frozen=True, eq=False)
class Detection:
    """One detection in a tile, in pixels of the image.

    Args:
        tile: The tile.
        box: x1, y1, x2, y2.
        score: In [0, 1].
        label: Index of its class.
        mask: Its mask, None if the model predicts only boxes.
        is_cut: Whether its box is close to a tile border inside the image.
    """

    tile: Region
    box: tuple[float, float, float, float]
    score: float
    label: int
    mask: CompactMask | None
    is_cut: bool

    def overlap(self, other: Detection) -> float:
        """Return the overlap with a detection of another tile, inside the area of both tiles, in [0, 1].

        It is relative to the union if both are whole, as in a model's own duplicate suppression, so that small objects
        inside large ones stay. It is relative to the smaller one if one is cut off, since little of it may be visible.

        Args:
            other: The other detection.
        """
        seen = self.tile.shared(other.tile)
        parts = [each.extent.shared(seen) for each in (self, other)]
        common = parts[0].shared(parts[1])
        if not common.area:
            return 0.0
        shared, areas = common.area, [part.area for part in parts]
        if self.mask is not None and other.mask is not None:
            areas = [int(each.within(part).sum()) for each, part in zip((self.mask, other.mask), parts, strict=True)]
            shared = int((self.mask.within(common) & other.mask.within(common)).sum())
        whole = min(areas) if self.is_cut or other.is_cut else sum(areas) - shared
        return shared / max(1, whole)

    @property
    def extent(self) -> Region:
        """Bounding box in whole pixels."""
        if self.mask is not None:
            return self.mask.region
        left, top, right, bottom = (round(number) for number in self.box)
        return Region(left, top, right, bottom)


def tile_detections(values: Mapping[str, Tensor], tile: Region, shape: tuple[int, int]) -> list[Detection]:
    """Return the detections of a tile, in pixels of the image.

    Args:
        values: "boxes" (N, 4), "scores" (N,), "labels" (N,), optionally "masks" bool (N, h, w), in pixels of the tile.
        tile: The tile.
        shape: (H, W) of the image.
    """
    middle = whole_within(tile, shape)
    found = []
    rows = zip(values["boxes"].tolist(), values["scores"].tolist(), values["labels"].tolist(), strict=True)
    for index, (box, score, label) in enumerate(rows):
        if score < LEAST_SCORE:
            continue
        mask = None
        if "masks" in values:
            mask = CompactMask.crop(values["masks"][index].numpy(), left=tile.left, top=tile.top)
        moved = (box[0] + tile.left, box[1] + tile.top, box[2] + tile.left, box[3] + tile.top)
        is_whole = moved[0] >= middle[0] and moved[1] >= middle[1] and moved[2] <= middle[2] and moved[3] <= middle[3]
        found.append(Detection(tile, moved, score, label, mask, not is_whole))
    return found


def whole_within(tile: Region, shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the area (x1, y1, x2, y2) of a tile with whole boxes: away from borders inside the image."""
    near = max(LEAST_BORDER, round(BORDER * max(tile.right - tile.left, tile.bottom - tile.top)))
    return (
        tile.left + near if tile.left > 0 else -math.inf,
        tile.top + near if tile.top > 0 else -math.inf,
        tile.right - near if tile.right < shape[1] else math.inf,
        tile.bottom - near if tile.bottom < shape[0] else math.inf,
    )


def merge_detections(found: list[Detection], tiles: Sequence[Region], shape: tuple[int, int]) -> list[Detection]:
    """Return every object once, sorted by score.

    1. A detection cut off by a tile border is dropped if another tile sees that area whole, whether that tile detects
       the object or not.
    2. Of the others, detections of one class in different tiles are the same object if they overlap by at least `SAME`
       (`Detection.overlap`). Whole detections are preferred to cut ones, then higher scores.
    3. An object that no tile sees whole is joined from its parts.

    Args:
        found: Detections of all tiles.
        tiles: All tiles, including those without detections.
        shape: (H, W) of the image.
    """
    middles = np.array([whole_within(tile, shape) for tile in tiles]).reshape(-1, 4)

    def is_seen_whole(box: tuple[float, float, float, float]) -> bool:
        corners = np.array(box)
        return bool(((middles[:, :2] <= corners[:2]) & (corners[2:] <= middles[:, 2:])).all(1).any())

    found = [each for each in found if not (each.is_cut and is_seen_whole(each.box))]
    partners = _partners(found)
    order = sorted(range(len(found)), key=lambda index: (found[index].is_cut, -found[index].score))
    kept, gone = [], set()
    for index in order:
        if not found[index].is_cut and index not in gone:
            kept.append(found[index])
            gone |= partners[index]
    parts = [index for index in order if found[index].is_cut and index not in gone]
    kept += [_united([found[index] for index in group]) for group in _connected(parts, partners)]
    return sorted(kept, key=lambda each: -each.score)


def _partners(found: list[Detection]) -> list[set[int]]:
    """Return for every detection the other detections of the same object."""
    partners: list[set[int]] = [set() for _ in found]
    if not found:
        return partners
    boxes = np.array([each.box for each in found])
    tiles = np.array([each.tile for each in found])
    labels = np.array([each.label for each in found])
    for index, each in enumerate(found[:-1]):
        later = slice(index + 1, None)
        near = (boxes[later, :2] < boxes[index, 2:]).all(1) & (boxes[later, 2:] > boxes[index, :2]).all(1)
        near &= (labels[later] == labels[index]) & (tiles[later] != tiles[index]).any(1)
        for other in (near.nonzero()[0] + index + 1).tolist():
            if each.overlap(found[other]) >= SAME:
                partners[index].add(other)
                partners[other].add(index)
    return partners


def _connected(members: list[int], partners: list[set[int]]) -> Iterable[list[int]]:
    """Yield the connected groups of partners; each group starts with its first member."""
    left = dict.fromkeys(members)
    while left:
        group = [next(iter(left))]
        del left[group[0]]
        for index in group:  # grows during the loop
            joined = sorted(partners[index] & left.keys())
            group += joined
            for other in joined:
                del left[other]
        yield group


def _united(parts: list[Detection]) -> Detection:
    """Join parts to one detection with the score and class of the first."""
    first = parts[0]
    lefts, tops, rights, bottoms = zip(*(part.box for part in parts), strict=True)
    box = (min(lefts), min(tops), max(rights), max(bottoms))
    masks = [part.mask for part in parts if part.mask is not None]
    mask = CompactMask.united(masks) if masks else None
    return Detection(first.tile, box, first.score, first.label, mask, is_cut=False)


def tiled_labels(probabilities: Callable[[Region], Tensor], shape: tuple[int, int], tiling: Tiling) -> Tensor:
    """Return a semantic mask from probabilities averaged over overlapping tiles, uint8 (H, W).

    Memory: the probabilities of one row of tiles, K * side * W numbers.

    Args:
        probabilities: A tile -> float (K, h, w) on the CPU, in pixels of the tile.
        shape: (H, W) of the image.
        tiling: The tiling.
    """
    height, width = shape
    labels = torch.zeros(shape, dtype=torch.uint8)
    tops = tiling.corners(height)
    rest: Tensor | None = None  # sums of earlier tiles in rows that this row of tiles also covers
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        bottom = min(top + tiling.side, height)
        band: Tensor | None = None
        for left in tiling.corners(width):
            right = min(left + tiling.side, width)
            probs = probabilities(Region(left, top, right, bottom)).float()
            if band is None:
                band = probs.new_zeros(len(probs), bottom - top, width)
            band[:, :, left:right] += probs
        assert band is not None  # a row has at least one tile
        if rest is not None:
            band[:, : rest.shape[1]] += rest
        labels[top:following] = band[:, : following - top].max(0).indices  # the largest sum is the largest average
        rest = band[:, following - top :].clone()
    return labels
