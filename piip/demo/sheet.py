"""A sheet of pictures in rows, with captions, and bars below: what the demos of detectors and segmentors write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP = 36, 12
COLUMNS = 2  # rows beside each other
SIDE = 400  # pixels of the longer side of every picture
LINE = 22
TITLE, TEXT = 30, 17
BAR = 34
INK, GREY, FIRST, OTHER = "#1c2430", "#66707c", "#1f4e79", "#9aa7b4"


@dataclass(frozen=True)
class Row:
    """Pictures of one thing, beside each other.

    Args:
        pictures: RGB, of any size.
        lines: What stands below, the first one in ink.
    """

    pictures: Sequence[Image.Image]
    lines: Sequence[str]


@dataclass(frozen=True)
class Bar:
    """One value of a bar chart.

    Args:
        name: What it belongs to.
        value: Its length, at least 0.
        text: How it is written.
    """

    name: str
    value: float
    text: str


def draw_sheet(title: str, subtitle: str, rows: Sequence[Row], charts: Mapping[str, Sequence[Bar]]) -> Image.Image:
    """Return the whole sheet, RGB.

    Args:
        title: Heading.
        subtitle: The line below.
        rows: At least one.
        charts: Bars by heading.
    """
    tiles = [_draw_row(row) for row in rows]
    columns = min(COLUMNS, len(tiles))
    column_width = max(tile.width for tile in tiles)
    lines = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in line) for line in lines]
    chart_height = 40 + BAR * max(len(bars) for bars in charts.values())
    width = 2 * MARGIN + columns * column_width + (columns - 1) * 2 * GAP
    sheet = Image.new("RGB", (max(width, 900), 110 + sum(heights) + GAP * len(lines) + chart_height + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 26), title, fill=INK, font=_font(TITLE))
    pen.text((MARGIN, 68), subtitle, fill=GREY, font=_font(TEXT + 2))
    top = 110
    for line, height in zip(lines, heights, strict=True):
        for column, tile in enumerate(line):
            sheet.paste(tile, (MARGIN + column * (column_width + 2 * GAP), top))
        top += height + GAP
    chart_width = (sheet.width - 2 * MARGIN - (len(charts) - 1) * MARGIN) // len(charts)
    for index, (heading, bars) in enumerate(charts.items()):
        _draw_bars(pen, (MARGIN + index * (chart_width + MARGIN), top + GAP), chart_width, heading, bars)
    return sheet


def _draw_row(row: Row) -> Image.Image:
    """Return the pictures of a row with the lines below them."""
    shown = [_fitted(picture) for picture in row.pictures]
    width = sum(picture.width for picture in shown) + GAP * (len(shown) - 1)
    height = max(picture.height for picture in shown)
    tile = Image.new("RGB", (width, height + 6 + LINE * len(row.lines)), "white")
    left = 0
    for picture in shown:
        tile.paste(picture, (left, 0))
        left += picture.width + GAP
    pen = ImageDraw.Draw(tile)
    for index, line in enumerate(row.lines):
        pen.text((0, height + 6 + index * LINE), line, fill=INK if index == 0 else GREY, font=_font(TEXT))
    return tile


def _fitted(picture: Image.Image) -> Image.Image:
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _draw_bars(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, heading: str, bars: Sequence[Bar]
) -> None:
    left, top = corner
    pen.text((left, top), heading, fill=INK, font=_font(TEXT))
    start, end = left + 70, left + width - 90
    largest = max(bar.value for bar in bars) or 1.0
    for index, bar in enumerate(bars):
        y = top + 50 + index * BAR
        pen.text((start - 10, y), bar.name, fill=INK, font=_font(TEXT), anchor="rm")
        length = max(2.0, (end - start) * bar.value / largest)
        pen.rectangle((start, y - 10, start + length, y + 10), fill=FIRST if index == 0 else OTHER)
        pen.text((start + length + 8, y), bar.text, fill=GREY, font=_font(TEXT), anchor="lm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
