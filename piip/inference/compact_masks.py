"""Masks of objects in big pictures: the part inside a box, so that hundreds of them fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Region(NamedTuple):
    """A rectangle of whole pixels, its right and bottom sides outside.

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
        """Number of pixels, 0 where sides have changed places."""
        return max(0, self.right - self.left) * max(0, self.bottom - self.top)

    def shared(self, other: Region) -> Region:
        """Return what is in both; without area where nothing is."""
        return Region(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        )


class MaskPiece(NamedTuple):
    """A mask, cut to the pixels that it may have.

    Attributes:
        left: Column of the picture where the piece begins.
        top: Row where it begins.
        pixels: bool (h, w).
    """

    left: int
    top: int
    pixels: np.ndarray

    @staticmethod
    def cut(mask: np.ndarray, *, left: int = 0, top: int = 0) -> MaskPiece:
        """Return the piece of a mask (H, W) that has pixels.

        Args:
            mask: bool (H, W), a picture or a part of one.
            left: Column of the picture where that part begins.
            top: Row where it begins.
        """
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return MaskPiece(left, top, np.zeros((0, 0), bool))
        inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return MaskPiece(left + int(columns[0]), top + int(rows[0]), inside.copy())

    @staticmethod
    def united(pieces: Sequence[MaskPiece]) -> MaskPiece:
        """Return the piece with all pixels of at least one piece."""
        regions = [piece.region for piece in pieces if piece.region.area]
        if not regions:
            return pieces[0]
        left, top = min(region.left for region in regions), min(region.top for region in regions)
        right, bottom = max(region.right for region in regions), max(region.bottom for region in regions)
        pixels = np.zeros((bottom - top, right - left), bool)
        for piece in pieces:
            x, y, height, width = piece.left - left, piece.top - top, *piece.pixels.shape
            pixels[y : y + height, x : x + width] |= piece.pixels
        return MaskPiece(left, top, pixels)

    @property
    def region(self) -> Region:
        """Where it is in the picture."""
        height, width = self.pixels.shape
        return Region(self.left, self.top, self.left + width, self.top + height)

    def within(self, region: Region) -> np.ndarray:
        """Return its pixels in a region that lies inside its own, bool (h, w)."""
        rows = slice(region.top - self.top, region.bottom - self.top)
        return self.pixels[rows, region.left - self.left : region.right - self.left]

    def whole(self, shape: tuple[int, int]) -> np.ndarray:
        """Return the mask of the picture (H, W), bool."""
        mask = np.zeros(shape, bool)
        region = self.region
        mask[region.top : region.bottom, region.left : region.right] = self.pixels
        return mask

    def run_lengths(self, shape: tuple[int, int]) -> dict[str, Any]:
        """Return the mask of a picture (H, W) as COCO's compressed run lengths, without making the mask.

        Args:
            shape: (H, W) of the picture.
        """
        from faster_coco_eval.core import mask as coder

        height, width = shape
        edges = np.diff(np.pad(self.pixels.astype(np.int8), ((1, 1), (0, 0))), axis=0)  # columns begin and end empty
        columns, rows = edges.T.nonzero()
        places, times = np.unique((self.left + columns) * height + self.top + rows, return_counts=True)
        # a run may go on from the bottom of a column at the top of the next, and the last one ends by itself
        changes = places[(times == 1) & (places < height * width)]
        counts = np.diff(changes, prepend=0, append=height * width)
        coded = coder.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        return {"size": [height, width], "counts": coded["counts"].decode()}
