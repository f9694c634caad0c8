"""The demo's figure: images in tiles with captions, a legend, and bar charts below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP = 36, 12
LINE = 20
TITLE, TEXT, SMALL = 30, 17, 14
BAR = 34
INK, GREY, FIRST, OTHER = "#1c2430", "#66707c", "#1f4e79", "#9aa7b4"
RIGHT, WRONG = "#1a8a4a", "#c8332b"


@dataclass(frozen=True)
class Layout:
    """Arrangement of tiles.

    Args:
        columns: Number of columns.
        side: Longer side of every image in pixels.
        max_tiles: Maximum number of tiles, selected evenly; None shows all.
    """

    columns: int
    side: int
    max_tiles: int | None = None

    def choose(self, tiles: Sequence[Tile]) -> list[Tile]:
        """Return the tiles that are shown."""
        count = len(tiles) if self.max_tiles is None else min(len(tiles), self.max_tiles)
        return [tiles[(2 * index + 1) * len(tiles) // (2 * count)] for index in range(count)]


@dataclass(frozen=True)
class Tile:
    """Images side by side, with lines of text below.

    Args:
        images: RGB, of any size.
        lines: Text below.
        colour: Colour of the first line.
    """

    images: Sequence[Image.Image]
    lines: Sequence[str]
    colour: str = INK


@dataclass(frozen=True)
class Bar:
    """One value of a bar chart.

    Args:
        name: Label.
        value: Length, at least 0.
        text: Value as text.
    """

    name: str
    value: float
    text: str


def draw_sheet(
    title: str,
    subtitle: str,
    tiles: Sequence[Tile],
    charts: Mapping[str, Sequence[Bar]],
    layout: Layout,
    legend: Image.Image | None = None,
) -> Image.Image:
    """Return the whole figure, RGB.

    Args:
        title: Title.
        subtitle: Lines below the title.
        tiles: At least one tile.
        charts: Bars by title.
        layout: Arrangement of tiles.
        legend: Legend between tiles and charts.
    """
    drawn = [_draw_tile(tile, layout.side) for tile in layout.choose(tiles)]
    columns = min(layout.columns, len(drawn))
    column_width = max(tile.width for tile in drawn)
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    heights = [max(tile.height for tile in row) + GAP for row in rows]
    legend_height = 0 if legend is None else legend.height + 2 * GAP
    chart_height = 40 + BAR * max(len(bars) for bars in charts.values())
    width = max(2 * MARGIN + columns * (column_width + GAP) - GAP, 1100)
    top = 110 + (LINE + 6) * subtitle.count("\n")
    sheet = Image.new("RGB", (width, top + sum(heights) + legend_height + chart_height + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 26), title, fill=INK, font=_font(TITLE))
    pen.text((MARGIN, 68), subtitle, fill=GREY, font=_font(TEXT + 2))
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (MARGIN + column * (column_width + GAP), top))
        top += height
    if legend is not None:
        sheet.paste(legend, (MARGIN, top + GAP))
    _draw_charts(pen, top + legend_height + GAP, sheet.width, charts)
    return sheet


def _draw_tile(tile: Tile, side: int) -> Image.Image:
    """Return the images of a tile with the lines below them."""
    shown = [_fitted(image, side) for image in tile.images]
    width = sum(image.width for image in shown) + GAP * (len(shown) - 1)
    height = max(image.height for image in shown)
    size = TEXT if side > 200 else SMALL
    drawn = Image.new("RGB", (width, height + 6 + LINE * len(tile.lines)), "white")
    left = 0
    for image in shown:
        drawn.paste(image, (left, 0))
        left += image.width + GAP
    pen = ImageDraw.Draw(drawn)
    for index, line in enumerate(tile.lines):
        pen.text((0, height + 6 + index * LINE), line, fill=tile.colour if index == 0 else GREY, font=_font(size))
    return drawn


def _fitted(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _draw_charts(pen: ImageDraw.ImageDraw, top: int, width: int, charts: Mapping[str, Sequence[Bar]]) -> None:
    chart_width = (width - 2 * MARGIN - (len(charts) - 1) * MARGIN) // len(charts)
    for index, (heading, bars) in enumerate(charts.items()):
        left = MARGIN + index * (chart_width + MARGIN)
        pen.text((left, top), heading, fill=INK, font=_font(TEXT))
        start, end = left + 70, left + chart_width - 90
        largest = max((bar.value for bar in bars), default=0) or 1.0
        for row, bar in enumerate(bars):
            y = top + 50 + row * BAR
            pen.text((start - 10, y), bar.name, fill=INK, font=_font(TEXT), anchor="rm")
            length = max(2.0, (end - start) * bar.value / largest)
            pen.rectangle((start, y - 10, start + length, y + 10), fill=FIRST if row == 0 else OTHER)
            pen.text((start + length + 8, y), bar.text, fill=GREY, font=_font(TEXT), anchor="lm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
