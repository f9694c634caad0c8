"""Land-cover labels, splits and patch positions: pure functions on arrays.

Shapes: H W size of the photograph, N windows, K classes. A window is ``(top, left)`` in pixels;
a band is a half-open range of columns ``(first, last)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

IGNORE = 255
SPLITS = ("train", "val", "test")
POLAR_LATITUDE = 84.0
ICE_SHELF_BRIGHTNESS = 150

Band = tuple[int, int]
Windows = NDArray[np.int64]


@dataclass(frozen=True)
class LandClass:
    """One class of the data set, made of classes of the IGBP legend.

    Args:
        name: folder name, lower case with underscores.
        igbp: numbers in the land-cover map that belong to the class.
        colour: RGB in 0 ... 255, for images.
    """

    name: str
    igbp: tuple[int, ...]
    colour: tuple[int, int, int]


# IGBP forests other than evergreen broadleaf (1 evergreen needleleaf, 3 deciduous needleleaf,
# 4 deciduous broadleaf, 5 mixed) are too rare one by one to be held out, as are closed shrublands
# (6) and cropland mosaics (14). Wetlands (11) and towns (13) cover 0.8 % of the land and no patch
# core: they are ignored rather than blurred into another class.
CLASSES = (
    LandClass("water", (0,), (45, 95, 160)),
    LandClass("evergreen_broadleaf_forest", (2,), (10, 85, 40)),
    LandClass("temperate_boreal_forest", (1, 3, 4, 5), (60, 125, 75)),
    LandClass("shrubland", (6, 7), (160, 145, 90)),
    LandClass("woody_savanna", (8,), (130, 150, 65)),
    LandClass("savanna", (9,), (195, 195, 105)),
    LandClass("grassland", (10,), (145, 205, 95)),
    LandClass("cropland", (12, 14), (235, 205, 85)),
    LandClass("snow_and_ice", (15,), (235, 245, 252)),
    LandClass("barren", (16,), (205, 175, 135)),
)
WATER = 0


@dataclass(frozen=True)
class SplitPlan:
    """Where the windows of one task may lie.

    Args:
        size: side of a square window in pixels.
        val_bands: columns held out for validation.
        test_bands: columns held out for testing.
        guard: columns left unused on either side of a held-out band.
        train_stride: distance of neighbouring training windows in pixels.
        eval_stride: distance of neighbouring validation and test windows in pixels.

    Raises:
        ValueError: a band is narrower than a window, or two bands are closer than the guard gap.
    """

    size: int
    val_bands: tuple[Band, ...]
    test_bands: tuple[Band, ...]
    guard: int
    train_stride: int
    eval_stride: int

    def __post_init__(self) -> None:
        bands = sorted(self.val_bands + self.test_bands)
        for first, last in bands:
            if last - first < self.size:
                raise ValueError(
                    f"band {(first, last)} is {last - first} px wide, a window needs {self.size}: widen the band"
                )
        for left, right in pairwise(bands):
            if right[0] - left[1] < self.guard:
                raise ValueError(
                    f"bands {left} and {right} are {right[0] - left[1]} px apart, the guard gap is "
                    f"{self.guard}: move them apart"
                )

    def ranges(self, width: int) -> dict[str, tuple[Band, ...]]:
        """Return the columns open to every split on a map of a given width.

        Args:
            width: columns of the map. Its first and last column are neighbours on the globe.

        Returns:
            For each split the bands its windows must stay in.

        Raises:
            ValueError: a band leaves the map or the date line joins two splits.
        """
        held_out = sorted(self.val_bands + self.test_bands)
        if held_out[0][0] < self.guard or held_out[-1][1] > width - self.guard:
            raise ValueError(
                f"bands span columns {held_out[0][0]} to {held_out[-1][1]} of {width}, "
                f"with a guard gap of {self.guard} at the date line: move them inwards"
            )
        edges = [0]
        for first, last in held_out:
            edges += [first - self.guard, last + self.guard]
        edges.append(width)
        pairs = zip(edges[::2], edges[1::2], strict=True)
        train = tuple((first, last) for first, last in pairs if last - first >= self.size)
        return {"train": train, "val": self.val_bands, "test": self.test_bands}

    def windows(self, split: str, *, height: int, width: int) -> Windows:
        """Return all windows of a split.

        Args:
            split: ``train``, ``val`` or ``test``.
            height: rows of the map.
            width: columns of the map.

        Returns:
            Windows ``(top, left)``, (N, 2), sorted by band, row and column.
        """
        stride = self.train_stride if split == "train" else self.eval_stride
        tops = np.arange(0, height - self.size + 1, stride)
        parts = []
        for first, last in self.ranges(width)[split]:
            lefts = np.arange(first, last - self.size + 1, stride)
            grid = np.meshgrid(tops, lefts, indexing="ij")
            parts.append(np.stack(grid, axis=-1).reshape(-1, 2))
        return np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.int64)


def resample_nearest(labels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resample a label map of the same extent by nearest neighbour (pixel centres).

    Args:
        labels: map, (H', W').
        height: wanted rows.
        width: wanted columns.

    Returns:
        The map, (height, width).
    """
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(np.int64)
    return np.ascontiguousarray(labels[rows][:, columns])


def merge_classes(igbp: NDArray[np.uint8], photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn IGBP numbers into class indices, with `IGNORE` where the map cannot be trusted.

    Ignored are IGBP classes in no class of ours, everything beyond 84 degrees north and south
    (stretched fill in the photograph), and "water" that is white in the photograph: the map knows
    land only and calls floating ice shelves water.

    Args:
        igbp: numbers 0 ... 16, (H, W), covering 90 degrees north to 90 degrees south.
        photo: RGB in 0 ... 255, (H, W, 3).

    Returns:
        Class indices or `IGNORE`, (H, W).
    """
    table = np.full(256, IGNORE, dtype=np.uint8)
    for index, land_class in enumerate(CLASSES):
        table[list(land_class.igbp)] = index
    merged = table[igbp]
    merged[(merged == WATER) & (photo.min(axis=2) >= ICE_SHELF_BRIGHTNESS)] = IGNORE
    height = igbp.shape[0]
    latitude = 90.0 - (np.arange(height) + 0.5) * 180.0 / height
    merged[np.abs(latitude) > POLAR_LATITUDE] = IGNORE
    return merged


def class_counts(labels: NDArray[np.uint8], windows: Windows, *, size: int, num_classes: int) -> NDArray[np.int64]:
    """Count the pixels of every class in square windows.

    Args:
        labels: class indices or `IGNORE`, (H, W).
        windows: ``(top, left)``, (N, 2).
        size: side of a window in pixels.
        num_classes: number of classes K.

    Returns:
        Pixels, (N, K); ignored pixels count for no class.
    """
    tops, lefts = windows[:, 0], windows[:, 1]
    counts = np.zeros((len(windows), num_classes), dtype=np.int64)
    sums = np.zeros((labels.shape[0] + 1, labels.shape[1] + 1), dtype=np.int32)
    for index in range(num_classes):
        # Summed-area table: four look-ups count a window of any size.
        sums[1:, 1:] = (labels == index).cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
        bottom = sums[tops + size, lefts + size] - sums[tops + size, lefts]
        counts[:, index] = bottom - sums[tops, lefts + size] + sums[tops, lefts]
    return counts


def majority_class(
    labels: NDArray[np.uint8],
    windows: Windows,
    *,
    size: int,
    core: int,
    min_cover: float,
    num_classes: int,
) -> NDArray[np.int64]:
    """Return the class that covers enough of the central square of each window.

    Args:
        labels: class indices or `IGNORE`, (H, W).
        windows: ``(top, left)``, (N, 2).
        size: side of a window in pixels.
        core: side of the central square in pixels.
        min_cover: share of the central square the class must cover, above 0.5.
        num_classes: number of classes K.

    Returns:
        Class index of each window, -1 where no class covers enough, (N,).
    """
    offset = (size - core) // 2
    counts = class_counts(labels, windows + offset, size=core, num_classes=num_classes)
    winner = counts.argmax(axis=1)
    enough = counts.max(axis=1, initial=0) >= min_cover * core * core
    return np.where(enough, winner, -1)


def cap_class(windows: Windows, cap: int, rng: np.random.Generator) -> Windows:
    """Keep at most `cap` windows, drawn without replacement, in their old order.

    Args:
        windows: ``(top, left)``, (N, 2).
        cap: most windows to keep.
        rng: source of randomness.

    Returns:
        Windows, (min(N, cap), 2).
    """
    if len(windows) <= cap:
        return windows
    return windows[np.sort(rng.choice(len(windows), size=cap, replace=False))]
