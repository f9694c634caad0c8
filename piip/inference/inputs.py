"""What `Predictor.predict` takes: images in memory, arrays and files, one or several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from piip.data.image_reading import ReadOptions, read_rgb

ImageInput = Image.Image | NDArray[np.uint8] | str | Path
EXPECTED = "expected a Pillow image, an array uint8 (H, W, 3) in RGB, a path of an image file, or a list of these"


class NamedImage(NamedTuple):
    """An image to predict on.

    Attributes:
        path: Its file, None for an image in memory.
        image: The image, of any mode.
    """

    path: str | None
    image: Image.Image


def named_images(given: ImageInput | Sequence[ImageInput], options: ReadOptions, *, upright: bool) -> list[NamedImage]:
    """Return what a user passes as a list of images.

    Args:
        given: An image, array or path, or several.
        options: How 16-bit and multi-page files are read.
        upright: Whether files are rotated by their EXIF orientation.

    Raises:
        ValueError: A file is unreadable.
        TypeError: Something is not an image.
    """
    # the kinds of what users pass have nothing in common that could be asked
    if isinstance(given, (Image.Image, np.ndarray, str, Path)):
        return [_named_image(given, options, upright)]
    if not isinstance(given, Iterable) or isinstance(given, (bytes, dict)):
        raise TypeError(f"images is a {type(given).__name__}, {EXPECTED}.")
    return [_named_image(each, options, upright) for each in given]


def _named_image(given: object, options: ReadOptions, upright: bool) -> NamedImage:
    if isinstance(given, Image.Image):
        return NamedImage(None, given)
    if isinstance(given, (str, Path)):
        return NamedImage(str(given), read_rgb(Path(given), upright=upright, options=options))
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim not in (2, 3) or (given.ndim == 3 and given.shape[2] != 3):
            raise TypeError(f"The image is an array {given.dtype} {given.shape}, {EXPECTED}.")
        if not given.size:
            raise TypeError(f"The image is an array without pixels {given.shape}, {EXPECTED}.")
        return NamedImage(None, Image.fromarray(given))
    raise TypeError(f"The image is a {type(given).__name__}, {EXPECTED}.")
