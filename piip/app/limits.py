"""Limits on what users of the web page may upload and how long they may compute."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from piip.data.image_reading import BROKEN_IMAGE, ReadOptions, read_rgb


@dataclass(frozen=True)
class Limits:
    """Limits per request.

    Args:
        upload_bytes: Size of an uploaded file.
        image_pixels: Pixels of an uploaded image.
        input_pixels: Pixels of the model's input, after resizing; of a tile, if there are tiles.
        tiles: Number of tiles.
        seconds: Time of one prediction.
        waiting: Requests that wait; further ones are refused.
    """

    upload_bytes: int = 20_000_000
    image_pixels: int = 40_000_000
    input_pixels: int = 4_000_000
    tiles: int = 100
    seconds: float = 120.0
    waiting: int = 20


def read_upload(path: str | Path, limits: Limits, *, upright: bool, options: ReadOptions) -> Image.Image:
    """Return an uploaded image as RGB; its size is checked before it is decoded.

    Args:
        path: The file.
        limits: The limits.
        upright: Whether it is rotated by its EXIF orientation.
        options: How 16-bit and multi-page files are read.

    Raises:
        ValueError: The file or image is too large, or it cannot be read; the message does not name the server's path.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > limits.upload_bytes:
        raise ValueError(f"The file has {size / 1e6:.1f} MB, expected at most {limits.upload_bytes / 1e6:g} MB.")
    most = f"{limits.image_pixels / 1e6:g} million pixels"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower
            with Image.open(path) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"The image is far too large, expected at most {most}.") from error
    except BROKEN_IMAGE as error:
        raise ValueError("The file is not an image that can be read: use PNG, JPEG, TIFF or WebP.") from error
    if width * height > limits.image_pixels:
        raise ValueError(f"The image has {width} x {height} pixels, expected at most {most}: make it smaller.")
    try:
        return read_rgb(path, upright=upright, options=options)
    except ValueError as error:
        raise ValueError(str(error).replace(f"{path} ", "")) from error


@contextmanager
def deadline(model: nn.Module, seconds: float) -> Iterator[None]:
    """Stop a model inside this context when its time is over: the next of its modules that starts raises an error.

    Args:
        model: The model.
        seconds: Its time.

    Raises:
        ValueError: The time is over.
    """
    end = time.monotonic() + seconds

    def check(_module: nn.Module, _args: tuple[Any, ...]) -> None:
        if time.monotonic() > end:
            raise ValueError(f"The prediction took more than {seconds:g} seconds: choose a smaller image or scale.")

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(check).remove)
        yield
