"""A sheet of the worst-scoring images with captions."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

HEIGHT = 240  # maximum side of an image on the sheet, in pixels
WIDTH = 360
GAP, CAPTION, LETTER = 10, 22, 14
INK = "#1c2430"


class SheetRow(NamedTuple):
    """One row.

    Attributes:
        caption: Text above the images.
        images: Side by side, RGB.
    """

    caption: str
    images: Sequence[Image.Image]


class Worst:
    """Collects the worst-scoring images for drawing.

    Args:
        max_rows: Maximum number of images.
    """

    def __init__(self, max_rows: int = 12) -> None:
        self.max_rows = max_rows
        self._kept: list[tuple[float, int, Callable[[], SheetRow]]] = []

    def add(self, score: float, number: int, draw: Callable[[], SheetRow]) -> None:
        """Add an image if it is among the worst.

        Args:
            score: Score, higher is better.
            number: Index of the image; images with a lower index are preferred for equal scores.
            draw: Returns its row.
        """
        keep = heapq.heappush if len(self._kept) < self.max_rows else heapq.heappushpop
        keep(self._kept, (-score, -number, draw))

    def rows(self) -> list[SheetRow]:
        """Return the rows of the images, worst first."""
        return [draw() for _, _, draw in sorted(self._kept, key=lambda entry: entry[:2], reverse=True)]


def write_sheet(path: Path, rows: Sequence[SheetRow], *, heads: Sequence[str]) -> None:
    """Draw rows of images below each other.

    Args:
        path: The PNG.
        rows: At least one row.
        heads: Titles of the columns.
    """
    font = ImageFont.load_default(LETTER)
    small = [[_fitted(image) for image in row.images] for row in rows]
    heights = [CAPTION + max(image.height for image in images) + GAP for images in small]
    step = WIDTH + GAP
    widths = [len(heads) * step, *(math.ceil(font.getlength(row.caption)) + GAP for row in rows)]
    sheet = Image.new("RGB", (GAP + max(widths), GAP + CAPTION + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        draw.text((GAP + column * step, GAP), head, fill=INK, font=font)
    top = GAP + CAPTION
    for row, images, height in zip(rows, small, heights, strict=True):
        draw.text((GAP, top), row.caption, fill=INK, font=font)
        for column, image in enumerate(images):
            sheet.paste(image, (GAP + column * step, top + CAPTION))
        top += height
    sheet.save(path)


def _fitted(image: Image.Image) -> Image.Image:
    scale = min(WIDTH / image.width, HEIGHT / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
