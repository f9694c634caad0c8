"""Images of the land-cover data sets: a sheet of samples, and a small subset to ship.

Shapes: H W size of the photograph, N windows.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from piip.data.sources.landcover_map import CLASSES, IGNORE, SPLITS, Windows

SAMPLES_PER_SPLIT = 4
MARGIN = 8
LINE_HEIGHT = 16
THUMBNAIL = 128
TILE_THUMBNAIL = 256


def spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` different indices below `count`, evenly spread.

    Args:
        count: number of things to choose from.
        wanted: number of things to choose.

    Returns:
        Increasing indices.
    """
    wanted = min(count, wanted)
    return [(2 * index + 1) * count // (2 * wanted) for index in range(wanted)]


def colour_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paint class indices in the colours of their classes, ignored pixels in black.

    Args:
        labels: class indices or `IGNORE`, (H, W).

    Returns:
        RGB in 0 ... 255, (H, W, 3).
    """
    palette = np.zeros((IGNORE + 1, 3), dtype=np.uint8)
    palette[: len(CLASSES)] = [entry.colour for entry in CLASSES]
    return palette[labels]


def draw_samples(
    photo: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    patches: dict[str, dict[str, Windows]],
    tiles: dict[str, Windows],
    patch_size: int,
    tile_size: int,
) -> Image.Image:
    """Draw a sheet with patches of every class and tiles with their labels, by split.

    Args:
        photo: RGB in 0 ... 255, (H, W, 3).
        labels: class indices or `IGNORE`, (H, W).
        patches: windows of the classification set, by split and class name.
        tiles: windows of the segmentation set, by split.
        patch_size: side of a patch in pixels.
        tile_size: side of a tile in pixels.

    Returns:
        The sheet, RGB.
    """
    row = THUMBNAIL + LINE_HEIGHT
    column = SAMPLES_PER_SPLIT * THUMBNAIL + MARGIN
    pair = TILE_THUMBNAIL + LINE_HEIGHT
    height = (len(CLASSES) + 1) * row + 2 * pair + LINE_HEIGHT
    sheet = Image.new("RGB", (len(SPLITS) * column, height), "white")
    draw = ImageDraw.Draw(sheet)
    for split_index, split in enumerate(SPLITS):
        left = split_index * column
        for row_index, entry in enumerate(CLASSES):
            windows = patches[split][entry.name]
            caption = f"{split}: {entry.name} ({len(windows)})"
            draw.text((left, row_index * row + 2), caption, fill="black")
            for place, index in enumerate(spread(len(windows), SAMPLES_PER_SPLIT)):
                thumbnail = _crop(photo, windows[index], patch_size, THUMBNAIL)
                position = (left + place * THUMBNAIL, row_index * row + LINE_HEIGHT)
                sheet.paste(thumbnail, position)
        top = len(CLASSES) * row
        draw.text((left, top + 2), f"{split}: {len(tiles[split])} tiles and labels", fill="black")
        for place, index in enumerate(spread(len(tiles[split]), 2)):
            window = tiles[split][index]
            position = (left, top + LINE_HEIGHT + place * pair)
            sheet.paste(_crop(photo, window, tile_size, TILE_THUMBNAIL), position)
            painted = _crop(colour_labels(labels), window, tile_size, TILE_THUMBNAIL)
            sheet.paste(painted, (left + TILE_THUMBNAIL, position[1]))
    _draw_legend(draw, top=sheet.height - row + LINE_HEIGHT)
    return sheet


def _crop(image: NDArray[np.uint8], window: NDArray[np.int64], size: int, side: int) -> Image.Image:
    """Cut a window out of an RGB array and scale it to a square thumbnail."""
    top, left = window.tolist()
    crop = Image.fromarray(image[top : top + size, left : left + size])
    return crop.resize((side, side), Image.Resampling.NEAREST)


def _draw_legend(draw: ImageDraw.ImageDraw, *, top: int) -> None:
    """Name the label colours in two lines."""
    half = (len(CLASSES) + 1) // 2
    for index, entry in enumerate(CLASSES):
        left, line = (index % half) * 220, top + (index // half) * 2 * LINE_HEIGHT
        draw.rectangle((left, line, left + 12, line + 12), fill=entry.colour, outline="black")
        draw.text((left + 18, line), entry.name, fill="black")


def export_demo_subset(data: Path, out: Path, per_class: int) -> int:
    """Copy a few test images of every class, for demonstrations that must not download.

    Writes ``CLASS-yTTTT_xLLLL.jpg`` and ``labels.json``, a list of ``{"file", "class", "index",
    "top", "left"}`` with the position in the photograph in pixels.

    Args:
        data: folder that `landcover` wrote.
        out: folder to write; it must not exist.
        per_class: most images of a class.

    Returns:
        Number of images.

    Raises:
        ValueError: `data` holds no classification set, or `out` exists.
    """
    test = data / "classification" / "test"
    if not test.is_dir():
        raise ValueError(f"{test} is missing: make it with 'piip data landcover --out {data}'")
    if out.exists():
        raise ValueError(f"{out} exists: choose another folder")
    out.mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for class_index, entry in enumerate(CLASSES):
        paths = sorted((test / entry.name).glob("*.jpg"))
        for path in (paths[index] for index in spread(len(paths), per_class)):
            name = f"{entry.name}-{path.name}"
            shutil.copyfile(path, out / name)
            top, left = (int(part[1:]) for part in path.stem.split("_"))
            place = {"index": class_index, "top": top, "left": left}
            rows.append({"file": name, "class": entry.name, **place})
    (out / "labels.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return len(rows)
