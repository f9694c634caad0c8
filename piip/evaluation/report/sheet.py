"""A sheet of pictures with captions: what the model gets most wrong."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

HEIGHT = 240  # pixels of a picture on the sheet, at most
WIDTH = 360
GAP, CAPTION, LETTER = 10, 22, 14
INK = "#1c2430"


class SheetRow(NamedTuple):
    """One row.

    Attributes:
        caption: What stands above it.
        pictures: Side by side, RGB.
    """

    caption: str
    pictures: Sequence[Image.Image]


class Worst:
    """Keeps what is needed to draw the lowest-scored images, and forgets the rest.

    Args:
        most: Images kept.
    """

    def __init__(self, most: int = 12) -> None:
        self.most = most
        self._kept: list[tuple[float, int, Callable[[], SheetRow]]] = []

    def add(self, score: float, number: int, draw: Callable[[], SheetRow]) -> None:
        """Offer an image.

        Args:
            score: The higher the better.
            number: The image's own number; of equal scores the first images are kept.
            draw: Makes its row.
        """
        keep = heapq.heappush if len(self._kept) < self.most else heapq.heappushpop
        keep(self._kept, (-score, -number, draw))

    def rows(self) -> list[SheetRow]:
        """Return the rows of the images kept, worst first."""
        return [draw() for _, _, draw in sorted(self._kept, key=lambda entry: entry[:2], reverse=True)]


def write_sheet(path: Path, rows: Sequence[SheetRow], *, heads: Sequence[str]) -> None:
    """Draw rows of pictures below each other.

    Args:
        path: The PNG.
        rows: At least one.
        heads: What stands above the columns.
    """
    font = ImageFont.load_default(LETTER)
    small = [[_fitted(picture) for picture in row.pictures] for row in rows]
    heights = [CAPTION + max(picture.height for picture in pictures) + GAP for pictures in small]
    step = WIDTH + GAP
    widths = [len(heads) * step, *(math.ceil(font.getlength(row.caption)) + GAP for row in rows)]
    sheet = Image.new("RGB", (GAP + max(widths), GAP + CAPTION + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        draw.text((GAP + column * step, GAP), head, fill=INK, font=font)
    top = GAP + CAPTION
    for row, pictures, height in zip(rows, small, heights, strict=True):
        draw.text((GAP, top), row.caption, fill=INK, font=font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (GAP + column * step, top + CAPTION))
        top += height
    sheet.save(path)


def _fitted(picture: Image.Image) -> Image.Image:
    scale = min(WIDTH / picture.width, HEIGHT / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
