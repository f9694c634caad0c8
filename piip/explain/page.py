"""The page of an explanation: one HTML file with everything inside, the same as one PNG, and a PNG per section."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from piip.explain.explanation import Explanation
from piip.explain.figures import DPI, GREY, INK, SECTIONS, WIDTH, Section
from piip.output import writable_folder

MARGIN, LINE, CHARACTERS = 24, 22, 160  # pixels; characters per line of the PNG
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#1c2430}"
    "img{max-width:100%;height:auto}p{color:#5a6570}h2{margin-bottom:0}"
)


@dataclass(frozen=True)
class DrawnSection:
    """A section with its figure.

    Args:
        section: The section.
        image: Its figure, RGB.
    """

    section: Section
    image: Image.Image


def write_page(explanation: Explanation, out: str | Path) -> list[Path]:
    """Draw an explanation; return the files: explain.html, explain.png, and NAME.png of every section.

    Args:
        explanation: The explanation.
        out: Folder, made if necessary.

    Raises:
        ValueError: The folder is not writable.
    """
    folder = writable_folder(out)
    drawn = [
        DrawnSection(section, _rendered(section.draw(explanation)))
        for section in SECTIONS
        if section.is_there(explanation)
    ]
    page, png = folder / "explain.html", folder / "explain.png"
    page.write_text(_html(explanation, drawn), encoding="utf-8")
    png.write_bytes(_png(_sheet(explanation, drawn)))
    files = [page, png]
    for each in drawn:
        files.append(folder / f"{each.section.name}.png")
        files[-1].write_bytes(_png(each.image))
    return files


def heading(explanation: Explanation) -> str:
    """Return the title of the page.

    Args:
        explanation: The explanation.
    """
    name = "an image" if explanation.path is None else Path(explanation.path).name
    return f"What the pyramid does with {name}"


def summary(explanation: Explanation) -> list[str]:
    """Return a line about the model, the result, and what is not there.

    Args:
        explanation: The explanation.
    """
    total = sum(explanation.macs.values()) / 1e9
    lines = [f"Model {explanation.model}: {len(explanation.branches)} branches, {total:.3g} G multiply-adds"]
    if len(explanation.branches) == 1:
        lines = [lines[0].replace("branches", "branch")]
    if explanation.prediction is not None:
        lines.append(f"Result: {explanation.prediction.summary()}")
    return [*lines, *explanation.notes]


def _rendered(figure: Figure) -> Image.Image:
    canvas = figure.canvas
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]


def _png(image: Image.Image) -> bytes:
    """Return a PNG with 256 colours, a third of the size with all."""
    data = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    return data.getvalue()


def _html(explanation: Explanation, drawn: Sequence[DrawnSection]) -> str:
    title = html.escape(heading(explanation))
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in summary(explanation))
    parts = [
        f"<h2>{html.escape(each.section.title)}</h2><p>{html.escape(each.section.text)}</p>"
        f'<img alt="{html.escape(each.section.title)}" '
        f'src="data:image/png;base64,{base64.b64encode(_png(each.image)).decode()}">'
        for each in drawn
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"</head><body><h1>{title}</h1>{lines}{''.join(parts)}</body></html>\n"
    )


def _sheet(explanation: Explanation, drawn: Sequence[DrawnSection]) -> Image.Image:
    """Return all sections below each other, with headings."""
    head = _text_block(heading(explanation), summary(explanation), size=28)
    blocks = [head]
    for each in drawn:
        blocks += [_text_block(each.section.title, [each.section.text], size=22), each.image]
    sheet = Image.new("RGB", (blocks[0].width, sum(block.height for block in blocks) + MARGIN), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, ((sheet.width - block.width) // 2, top))
        top += block.height
    return sheet


def _text_block(title: str, lines: Sequence[str], *, size: int) -> Image.Image:
    wrapped = [part for line in lines for part in textwrap.wrap(line, CHARACTERS)]
    start = MARGIN + size + 12
    block = Image.new("RGB", (round(WIDTH * DPI) + 2 * MARGIN, start + LINE * len(wrapped) + 8), "white")
    pen = ImageDraw.Draw(block)
    pen.text((MARGIN, MARGIN), title, fill=INK, font=ImageFont.load_default(size))
    for index, line in enumerate(wrapped):
        pen.text((MARGIN, start + LINE * index), line, fill=GREY, font=ImageFont.load_default(15))
    return block
