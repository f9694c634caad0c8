"""Masks of objects that stay outlines until it is known which part of the image is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from piip.data.annotations import coded_polygons


class PartialMask(NamedTuple):
    """The pixels of a mask around its object.

    Attributes:
        top: First row in the image.
        left: First column in the image.
        pixels: bool (h, w).
    """

    top: int
    left: int
    pixels: np.ndarray


class PixelMasks:
    """Masks that are decoded already, with the methods of `ObjectMasks`.

    Args:
        pixels: bool (N, H, W).
    """

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def resized(self, size: tuple[int, int]) -> PixelMasks:
        """Return the masks resized to (H, W) by nearest neighbour."""
        rows, columns = (_nearest(torch.arange(old), new) for old, new in zip(self.pixels.shape[1:], size, strict=True))
        return PixelMasks(self.pixels[:, rows][:, :, columns])

    def decode(self, rows: slice = slice(None), columns: slice = slice(None), kept: Tensor | None = None) -> Tensor:
        """Return the pixels of a part of the image; see `ObjectMasks.decode`."""
        chosen = self.pixels if kept is None else self.pixels[kept]
        return chosen[:, rows, columns]


class ObjectMasks:
    """Masks of the objects of an image.

    600 objects of an image of 2000 x 2000 pixels take 2.4 GB as masks; a crop of it needs a fraction.

    Args:
        outlines: Polygons, RLE or None, and box (x1, y1, x2, y2), of every object.
        shape: (H, W) of the image.
        names: Name of every outline, for messages.
    """

    def __init__(
        self, outlines: Sequence[tuple[Any, Sequence[float]]], shape: tuple[int, int], names: Sequence[str]
    ) -> None:
        self.outlines = list(outlines)
        self.names = list(names)
        self._shape = shape
        # which row and column of the image each row and column of the resized image shows
        self._rows, self._columns = (torch.arange(side) for side in shape)

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.outlines)

    def resized(self, size: tuple[int, int]) -> ObjectMasks:
        """Return the masks resized to (H, W) by nearest neighbour, like `torch.nn.functional.interpolate`."""
        made = ObjectMasks(self.outlines, self._shape, self.names)
        made._rows, made._columns = (
            _nearest(indices, side) for indices, side in zip((self._rows, self._columns), size, strict=True)
        )
        return made

    def decode(self, rows: slice = slice(None), columns: slice = slice(None), kept: Tensor | None = None) -> Tensor:
        """Return the pixels of a part of the image, bool (N, h, w).

        Args:
            rows: Rows of the part.
            columns: Columns of the part.
            kept: Which objects, bool (N,); None for all.

        Raises:
            ValueError: An outline is damaged; the message has the name of its object.
        """
        chosen = range(len(self)) if kept is None else kept.nonzero().squeeze(1).tolist()
        of_rows, of_columns = self._rows[rows].numpy(), self._columns[columns].numpy()
        masks = np.zeros((len(chosen), len(of_rows), len(of_columns)), bool)
        for mask, index in zip(masks, chosen, strict=True):
            try:
                segmentation, box = self.outlines[index]
                part = partial_mask(segmentation, box, self._shape)
            except ValueError as error:
                raise ValueError(f"{self.names[index]} is damaged: {error}.") from error
            height, width = part.pixels.shape
            top, bottom = np.searchsorted(of_rows, (part.top, part.top + height))
            left, right = np.searchsorted(of_columns, (part.left, part.left + width))
            places = np.ix_(of_rows[top:bottom] - part.top, of_columns[left:right] - part.left)
            mask[top:bottom, left:right] = part.pixels[places]
        return torch.from_numpy(masks)


def _nearest(indices: Tensor, length: int) -> Tensor:
    """Return `length` of the indices, chosen as nearest-neighbour interpolation does."""
    values = indices.to(torch.float64)[None, None]
    return F.interpolate(values, size=length, mode="nearest")[0, 0].to(torch.int64)


def partial_mask(segmentation: Any, box: Sequence[float], shape: tuple[int, int]) -> PartialMask:
    """Return the mask of an annotation around its object; the pixels are those of `decode_mask`.

    Args:
        segmentation: Polygons, RLE or None, without a problem.
        box: x1, y1, x2, y2 inside the image.
        shape: (H, W) of the image.

    Raises:
        ValueError: The compressed RLE is damaged.
    """
    if segmentation is None:
        left, top, right, bottom = (round(number) for number in box)
        return PartialMask(top, left, np.ones((max(0, bottom - top), max(0, right - left)), bool))
    height = shape[0]
    ends = np.cumsum(run_lengths(segmentation, shape))
    starts, ends = ends[0::2][: len(ends) // 2], ends[1::2]  # of the runs inside the object, column by column
    starts, ends = starts[starts < ends], ends[starts < ends]
    if not len(starts):
        return PartialMask(0, 0, np.zeros((0, 0), bool))
    left, right = int(starts[0]) // height, (int(ends[-1]) - 1) // height + 1
    changes = np.zeros((right - left) * height + 1, np.int8)
    changes[starts - left * height] += 1
    changes[ends - left * height] -= 1
    columns = np.cumsum(changes[:-1], dtype=np.int8).view(bool).reshape(right - left, height)
    rows = np.flatnonzero(columns.any(0))
    return PartialMask(int(rows[0]), left, columns[:, rows[0] : rows[-1] + 1].T)


def run_lengths(segmentation: Any, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return the run lengths of an outline, column by column, the first outside the object.

    Args:
        segmentation: Polygons or RLE.
        shape: (H, W) of the image.

    Raises:
        ValueError: The compressed RLE is damaged.
    """
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        return np.asarray(segmentation["counts"], np.int64)
    counts = coded_polygons(segmentation, shape) if isinstance(segmentation, list) else segmentation["counts"].encode()
    runs = _decoded_counts(np.frombuffer(counts, np.uint8).astype(np.int64) - 48)
    if runs.min(initial=0) < 0 or runs.sum() != shape[0] * shape[1]:
        raise ValueError(f"its RLE has {runs.sum()} pixels, the image {shape[0] * shape[1]}")
    return runs


def _decoded_counts(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Decode COCO's compressed run lengths.

    A number takes one or more characters of five bits, the lowest first; 32 says that another one follows, and 16 in
    the last one that the number is negative. From the third number on they are differences to the last but one.

    Args:
        codes: The characters, from 0.

    Raises:
        ValueError: The characters are not run lengths.
    """
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("its RLE has characters that are not run lengths")
    is_last = (codes & 32) == 0
    first = np.concatenate(([0], np.flatnonzero(is_last)[:-1] + 1))  # character of each number
    place = np.arange(len(codes)) - np.repeat(first, np.diff(np.append(first, len(codes))))
    if place.max() > 11:
        raise ValueError("its RLE has a run length of more than 60 bits")
    numbers = np.add.reduceat((codes & 31) << (5 * place), first)
    negative = (codes[is_last] & 16) != 0
    numbers[negative] -= np.int64(1) << (5 * (place[is_last][negative] + 1))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])  # the first number is not a difference to anything
    return numbers


Masks = PixelMasks | ObjectMasks


def as_masks(given: Masks | Tensor) -> Masks:
    """Return masks of objects with the methods of `ObjectMasks`.

    Args:
        given: Such masks, or pixels, bool (N, H, W).
    """
    return PixelMasks(given) if isinstance(given, Tensor) else given
