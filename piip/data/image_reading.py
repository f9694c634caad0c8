"""Reading image files of any mode as RGB."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import get_worker_info

from piip.data.image_tables import is_row, row_bytes
from piip.data.orientation import turn_upright, upright_shape
from piip.fields import at_least

# What Pillow raises for broken files, besides OSError.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
HIGHEST = 65535
HARDLY_USED = 1 / 4  # fraction of the range of 16 bits below which data probably have fewer bits
ONE_IMAGE = ("MPO", "ICO", "ICNS")  # formats whose further pages are previews of the same image

logger = logging.getLogger("piip")
_said: set[str] = set()


@dataclass(frozen=True)
class ReadOptions:
    """How image files are read.

    Args:
        white_level: Value of white in images with 16 bits per channel, such as 4095 for 12-bit data; None for 65535.
        page: Page or frame of files with several, from 0.

    Raises:
        ValueError: A value is out of range.
    """

    white_level: int | None = None
    page: int = 0

    def __post_init__(self) -> None:
        if self.white_level is not None and not 1 <= self.white_level <= HIGHEST:
            raise ValueError(f"white_level is {self.white_level}, expected 1 to {HIGHEST}, such as 4095 for 12 bits.")
        at_least("page", self.page, 0)


AS_STORED = ReadOptions()


def trained_options(description: Mapping[str, Any]) -> ReadOptions:
    """Return how the training images of a saved model were read.

    Args:
        description: Contents of its `config.json`.
    """
    if "white_level" not in description and "page" not in description:
        return AS_STORED
    return ReadOptions(description.get("white_level"), description.get("page", 0))


def read_rgb(path: Path, *, upright: bool = False, options: ReadOptions = AS_STORED) -> Image.Image:
    """Read an image file of any mode as `to_rgb` does.

    Args:
        path: The file.
        upright: Rotate it by its EXIF orientation. Classifiers use images as stored, like timm.
        options: How 16-bit and multi-page files are read.

    Raises:
        ValueError: The file is missing, truncated, or not an image with 8 or 16 bits per channel, or lacks the page.
    """
    try:
        with open_image(path) as image:
            _turn_to_page(image, path, options.page)
            _note_oddities(image, path, options)
            return to_rgb(turn_upright(image) if upright else image, white_level=options.white_level)
    except (*BROKEN_IMAGE, RecursionError, MemoryError) as error:
        raise ValueError(f"The image {path} cannot be read ({type(error).__name__}: {error}).") from error


def open_image(path: Path) -> Image.Image:
    """Open an image file, or a row of a Parquet file; pixels are not decoded."""
    return Image.open(BytesIO(row_bytes(path)) if is_row(path) else path)


def verify_image(path: Path) -> str:
    """Return why a file cannot be opened, or ""; pixels are not decoded, so a truncated JPEG passes."""
    try:
        with open_image(path) as image:
            image.verify()
    except BROKEN_IMAGE as error:
        return f"{path} cannot be opened ({type(error).__name__})"
    return ""


def stored_shape(path: Path) -> tuple[int, int]:
    """Return the size (H, W) after rotation; (1, 1) if unreadable, which is reported when the image is read."""
    try:
        with open_image(path) as image:
            return upright_shape(image)
    except BROKEN_IMAGE:
        return (1, 1)


def to_rgb(image: Image.Image, *, white_level: int | None = None) -> Image.Image:
    """Return an image as 8-bit RGB; transparency is dropped.

    Args:
        image: An image of any mode.
        white_level: See `ReadOptions`.

    Raises:
        ValueError: Pixels have 32 bits, for which white is undefined.
    """
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode is {image.mode}, 32 bits per pixel; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit grey to 255 instead of scaling it.
        pixels = np.asarray(image)
        scaled = pixels >> 8 if white_level is None else (pixels.clip(max=white_level) * (255 / white_level)).round()
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _turn_to_page(image: Image.Image, path: Path, page: int) -> None:
    """Select a page.

    Raises:
        ValueError: The file has fewer pages.
    """
    count = getattr(image, "n_frames", 1) if image.format not in ONE_IMAGE else 1
    if page >= count:
        raise ValueError(f"it has {count} page(s), there is no page {page} (from 0)")
    if page:
        image.seek(page)
    elif count > 1:
        _say("pages", f"{path} has {count} pages; the first is used, also of other such files (page 0).")


def _note_oddities(image: Image.Image, path: Path, options: ReadOptions) -> None:
    """Warn once about files whose colours may mean something else."""
    if image.mode == "CMYK" and image.format == "TIFF":
        _say("cmyk", f"{path} has four channels, which are read as printing inks (CMYK); other bands need conversion.")
    if image.mode.startswith("I;16") and options.white_level is None and "range" not in _said:
        brightest = int(np.asarray(image).max(initial=0))
        if 0 < brightest <= HARDLY_USED * HIGHEST:
            bits = max(8, brightest.bit_length())
            _say(
                "range",
                f"{path} has 16 bits per pixel, but its brightest is {brightest}, which hardly uses the range: if its "
                f"data have {bits} bits, set the white level to {2**bits - 1} (data.white_level, --white-level).",
            )


def _say(kind: str, sentence: str) -> None:
    """Log a sentence once, by one of the loading processes."""
    worker = get_worker_info()
    if kind not in _said and (worker is None or worker.id == 0):
        logger.warning("%s", sentence)
    _said.add(kind)
