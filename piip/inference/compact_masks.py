"""Masks of objects in large images, cropped to a box so that hundreds of them fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Region(NamedTuple):
    """A rectangle of pixels; right and bottom are exclusive.

    Attributes:
        left: First column.
        top: First row.
        right: Column after the last.
        bottom: Row after the last.
    """

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        """Number of pixels; 0 if the sides are reversed."""
        return max(0, self.right - self.left) * max(0, self.bottom - self.top)

    def shared(self, other: Region) -> Region:
        """Return the intersection, whose area may be 0."""
        return Region(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        )


class CompactMask(NamedTuple):
    """A mask, cropped to its bounding box.

    Attributes:
        left: First column of the crop in the image.
        top: First row of the crop in the image.
        pixels: bool (h, w).
    """

    left: int
    top: int
    pixels: np.ndarray

    @staticmethod
    def crop(mask: np.ndarray, *, left: int = 0, top: int = 0) -> CompactMask:
        """Return a mask (H, W) cropped to its pixels.

        Args:
            mask: bool (H, W), of an image or a part of it.
            left: First column of that part in the image.
            top: First row of that part in the image.
        """
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return CompactMask(left, top, np.zeros((0, 0), bool))
        inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return CompactMask(left + int(columns[0]), top + int(rows[0]), inside.copy())

    @staticmethod
    def united(pieces: Sequence[CompactMask]) -> CompactMask:
        """Return the union of masks."""
        regions = [piece.region for piece in pieces if piece.region.area]
        if not regions:
            return pieces[0]
        left, top = min(region.left for region in regions), min(region.top for region in regions)
        right, bottom = max(region.right for region in regions), max(region.bottom for region in regions)
        pixels = np.zeros((bottom - top, right - left), bool)
        for piece in pieces:
            x, y, height, width = piece.left - left, piece.top - top, *piece.pixels.shape
            pixels[y : y + height, x : x + width] |= piece.pixels
        return CompactMask(left, top, pixels)

    @property
    def region(self) -> Region:
        """Region of the crop in the image."""
        height, width = self.pixels.shape
        return Region(self.left, self.top, self.left + width, self.top + height)

    def within(self, region: Region) -> np.ndarray:
        """Return the pixels in a region inside `self.region`, bool (h, w)."""
        rows = slice(region.top - self.top, region.bottom - self.top)
        return self.pixels[rows, region.left - self.left : region.right - self.left]

    def whole(self, shape: tuple[int, int]) -> np.ndarray:
        """Return the mask of the image (H, W), bool."""
        mask = np.zeros(shape, bool)
        region = self.region
        mask[region.top : region.bottom, region.left : region.right] = self.pixels
        return mask

    def run_lengths(self, shape: tuple[int, int]) -> dict[str, Any]:
        """Return the mask as COCO's compressed RLE, without making the whole mask.

        Args:
            shape: (H, W) of the image.
        """
        from faster_coco_eval.core import mask as coder

        height, width = shape
        edges = np.diff(np.pad(self.pixels.astype(np.int8), ((1, 1), (0, 0))), axis=0)  # columns begin and end empty
        columns, rows = edges.T.nonzero()
        positions, times = np.unique((self.left + columns) * height + self.top + rows, return_counts=True)
        # a run may continue from the bottom of a column to the top of the next; the last one needs no end
        changes = positions[(times == 1) & (positions < height * width)]
        counts = np.diff(changes, prepend=0, append=height * width)
        coded = coder.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        return {"size": [height, width], "counts": coded["counts"].decode()}
