"""The demo's picture: a grid of classified pictures, accuracy over cost, and the cost of every part."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from piip.cost.estimate import CostReport
from piip.demo.results import DemoPicture, RecordedModel

Point = tuple[float, float]
Box = tuple[float, float, float, float]

WIDTH = 1560
MARGIN = 36
GAP = 12
COLUMNS = 10
ROWS = 4
CAPTION = 44  # pixels below every picture
PANEL = 330  # height of the two panels
TITLE, TEXT, SMALL = 30, 17, 14
INK, GREY, LINE = "#1c2430", "#66707c", "#d9dee4"
RIGHT, WRONG, NEUTRAL = "#1a8a4a", "#c8332b", "#4a78b8"
SHADES = ("#1f4e79", "#3a7ab5", "#7fb2dd", "#b9d5ec")


def draw_demo(
    shown: Sequence[DemoPicture],
    pictures: Sequence[Image.Image],
    cost: CostReport,
    models: Sequence[RecordedModel],
) -> Image.Image:
    """Draw the whole sheet.

    Args:
        shown: Predictions, in the order of `pictures`.
        pictures: RGB pictures of any size.
        cost: Cost of the model that predicted.
        models: Recorded results to compare.

    Returns:
        The sheet, RGB, `WIDTH` pixels wide.
    """
    columns = arrange(shown)
    side = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
    header = 44 if shown[0].truth is not None else 0
    rows = max(len(column) for column in columns)
    grid_top = 110 + header
    panels_top = grid_top + rows * (side + CAPTION) + 24
    sheet = Image.new("RGB", (WIDTH, panels_top + PANEL + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    _draw_title(draw, shown, cost)
    for index, column in enumerate(columns):
        left = MARGIN + index * (side + GAP)
        if header:
            _draw_lines(draw, (left, grid_top - header), wrap(shown[column[0]].truth or "", side), fill=INK)
        for row, number in enumerate(column):
            top = grid_top + row * (side + CAPTION)
            _draw_picture(sheet, draw, (left, top), side, shown[number], pictures[number])
    middle = WIDTH * 0.46
    _draw_accuracy(draw, (MARGIN, panels_top, middle - 24, panels_top + PANEL), models)
    _draw_parts(draw, (middle + 24, panels_top, WIDTH - MARGIN, panels_top + PANEL), cost)
    return sheet


def arrange(shown: Sequence[DemoPicture]) -> list[list[int]]:
    """Return indices of pictures by column: one class a column, or row by row where the classes are unknown.

    Args:
        shown: At least one picture; at most `COLUMNS` times `ROWS` are kept.
    """
    classes = list(dict.fromkeys(picture.truth for picture in shown))
    if classes == [None]:
        numbers = range(min(len(shown), COLUMNS * ROWS))
        return [list(numbers[column::COLUMNS]) for column in range(min(COLUMNS, len(numbers)))]
    by_class = [[i for i, picture in enumerate(shown) if picture.truth == name] for name in classes[:COLUMNS]]
    return [_spread(numbers, ROWS) for numbers in by_class]


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Return round numbers that cover a range.

    Args:
        low: Lower end.
        high: Upper end, above `low`.
        most: Most steps between them.
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, last + 1)]


def wrap(name: str, width: float) -> list[str]:
    """Break a class name such as "temperate_boreal_forest" into at most two lines of `width` pixels."""
    font = _font(SMALL)
    words = name.split("_")
    for count in range(len(words), 0, -1):
        first = " ".join(words[:count])
        if font.getlength(first) <= width:
            return [first, " ".join(words[count:])] if count < len(words) else [first]
    return [name]


def _spread(numbers: list[int], wanted: int) -> list[int]:
    wanted = min(len(numbers), wanted)
    return [numbers[(2 * index + 1) * len(numbers) // (2 * wanted)] for index in range(wanted)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _draw_lines(draw: ImageDraw.ImageDraw, at: Point, lines: Sequence[str], *, fill: str, size: int = SMALL) -> None:
    for index, line in enumerate(lines):
        draw.text((at[0], at[1] + index * (size + 4)), line, fill=fill, font=_font(size))


def _draw_title(draw: ImageDraw.ImageDraw, shown: Sequence[DemoPicture], cost: CostReport) -> None:
    known = [picture for picture in shown if picture.truth is not None]
    correct = sum(picture.is_correct is True for picture in known)
    verdict = f"{correct} of {len(known)} pictures right, as many of each class" if known else f"{len(shown)} pictures"
    height, width = cost.image_size
    draw.text((MARGIN, 26), "Land cover from space, by an inverted image pyramid", fill=INK, font=_font(TITLE))
    line = f"{verdict}   |   {cost.macs / 1e9:.3f} GMACs and {cost.params / 1e6:.2f} M parameters at {height} x {width}"
    draw.text((MARGIN, 68), line, fill=GREY, font=_font(TEXT + 2))


def _draw_picture(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    side: int,
    picture: DemoPicture,
    pixels: Image.Image,
) -> None:
    """Paste one picture in a frame of its verdict's colour, with the model's answer below."""
    left, top = corner
    colour = {None: NEUTRAL, True: RIGHT, False: WRONG}[picture.is_correct]
    thumbnail = pixels.copy()
    thumbnail.thumbnail((side, side), Image.Resampling.LANCZOS)
    if thumbnail.width < side and thumbnail.height < side:
        scale = side / max(thumbnail.size)
        thumbnail = pixels.resize((round(pixels.width * scale), round(pixels.height * scale)), Image.Resampling.BICUBIC)
    draw.rectangle((left, top, left + side, top + side), fill=LINE)
    sheet.paste(thumbnail, (left + (side - thumbnail.width) // 2, top + (side - thumbnail.height) // 2))
    draw.rectangle((left, top, left + side, top + side), outline=colour, width=4)
    share = f"{picture.prediction.score:.0%}"
    lines = wrap(picture.prediction.label, side - 40)
    lines[0] = f"{share}  {lines[0]}"
    _draw_lines(draw, (left, top + side + 4), lines, fill=colour)


def _draw_accuracy(draw: ImageDraw.ImageDraw, box: Box, models: Sequence[RecordedModel]) -> None:
    """Draw recorded top-1 over GMACs, one labelled point a model."""
    left, top, right, bottom = box
    draw.text((left, top), "Recorded on the whole test split: top-1 over cost", fill=INK, font=_font(TEXT))
    if not models:
        return
    left, top, bottom = left + 44, top + 40, bottom - 40
    accuracy = [100 * model.test_top1 for model in models]
    y_ticks = ticks(min(accuracy) - 1, max(accuracy) + 1)
    x_ticks = ticks(0, 1.2 * max(model.macs for model in models) / 1e9)

    def x_of(value: float) -> float:
        return left + (right - left) * value / x_ticks[-1]

    def y_of(value: float) -> float:
        return bottom - (bottom - top) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    for value in y_ticks:
        draw.line((left, y_of(value), right, y_of(value)), fill=LINE)
        draw.text((left - 8, y_of(value)), f"{value:g} %", fill=GREY, font=_font(SMALL), anchor="rm")
    for value in x_ticks:
        draw.line((x_of(value), bottom, x_of(value), bottom + 5), fill=GREY)
        draw.text((x_of(value), bottom + 8), f"{value:g}", fill=GREY, font=_font(SMALL), anchor="ma")
    draw.text((right, bottom + 26), "GMACs an image", fill=GREY, font=_font(SMALL), anchor="ra")
    for model, value in zip(models, accuracy, strict=True):
        x, y = x_of(model.macs / 1e9), y_of(value)
        colour = RIGHT if model.name == "piip" else NEUTRAL
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=colour)
        label = f"{model.name}  {value:.1f} %, {model.macs / 1e9:.3f} G"
        on_left = x + 14 + _font(TEXT).getlength(label) > right
        draw.text(
            (x - 14 if on_left else x + 14, y), label, fill=colour, font=_font(TEXT), anchor="rm" if on_left else "lm"
        )


def _draw_parts(draw: ImageDraw.ImageDraw, box: Box, cost: CostReport) -> None:
    """Draw one bar a part of the shipped model, as long as its share of the multiply-adds."""
    left, top, right, bottom = box
    draw.text((left, top), "Where the multiply-adds of this model go", fill=INK, font=_font(TEXT))
    start, end = left + 280, right - 130
    step = min(46.0, (bottom - top - 50) / len(cost.parts))
    largest = max(part.macs for part in cost.parts.values()) or 1
    for index, (name, part) in enumerate(cost.parts.items()):
        y = top + 54 + index * step
        label = f"{name}: {cost.names[name]}" if name in cost.names else name
        colour = SHADES[min(index, len(SHADES) - 1)] if name.startswith("branch") else GREY
        draw.text((start - 12, y - 8), label, fill=INK, font=_font(SMALL), anchor="rm")
        size = f"{part.params / 1e6:.2f} M parameters"
        draw.text((start - 12, y + 9), size, fill=GREY, font=_font(SMALL), anchor="rm")
        length = max(2.0, (end - start) * part.macs / largest)
        draw.rectangle((start, y - step * 0.3, start + length, y + step * 0.3), fill=colour)
        text = f"{part.macs / 1e6:.1f} M  ({part.macs / max(cost.macs, 1):.0%})"
        draw.text((start + length + 8, y), text, fill=GREY, font=_font(SMALL), anchor="lm")
