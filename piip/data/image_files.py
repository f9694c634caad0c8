"""Reading image files one by one or in batches, for evaluation and prediction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from piip.data.image_reading import AS_STORED, ReadOptions, read_rgb
from piip.data.labelled_images import ON_ERROR
from piip.data.listing import find_images
from piip.fields import one_of

logger = logging.getLogger(__name__)

Item = tuple[int, Tensor | None, str]  # index, image (3, H, W) or None, error message


class ImagePaths(Dataset[Item]):
    """Image files, read and transformed, or an error message for unreadable ones.

    Args:
        paths: The files.
        transform: RGB image -> float (3, H, W), the same size for all.
        options: How 16-bit and multi-page files are read.
    """

    def __init__(
        self, paths: Sequence[Path], transform: Callable[[Image], Tensor], options: ReadOptions = AS_STORED
    ) -> None:
        self.paths = paths
        self.transform = transform
        self.options = options

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        """Return index, image and an empty message, or index, None and an error message."""
        try:
            return index, self.transform(read_rgb(self.paths[index], options=self.options)), ""
        except ValueError as error:
            return index, None, str(error)


def read_batches(
    paths: Sequence[Path],
    transform: Callable[[Image], Tensor],
    *,
    batch_size: int,
    workers: int = 0,
    on_error: str = "stop",
    options: ReadOptions = AS_STORED,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the images of the files in batches, in order.

    Args:
        paths: The files.
        transform: RGB image -> float (3, H, W), the same size for all.
        batch_size: Files per batch; unreadable ones make a batch smaller.
        workers: Data loading processes; 0 loads in this process.
        on_error: "stop" at an unreadable file, or "skip" it with a warning that names it.
        options: How 16-bit and multi-page files are read.

    Yields:
        Indices of the files in the batch, and their images (B, 3, H, W).

    Raises:
        ValueError: `on_error` is unknown, or a file is unreadable with "stop".
    """
    one_of("on_error", on_error, ON_ERROR)
    loader = DataLoader(
        ImagePaths(paths, transform, options), batch_size=batch_size, num_workers=workers, collate_fn=list
    )
    for items in loader:
        for _, image, problem in items:
            if image is None:
                _complain(problem, on_error)
        readable = [(index, image) for index, image, _ in items if image is not None]
        if readable:
            yield [index for index, _ in readable], torch.stack([image for _, image in readable])


def read_images(
    paths: Iterable[str | Path],
    *,
    on_error: str = "stop",
    allow_huge: bool = False,
    options: ReadOptions = AS_STORED,
) -> Iterator[tuple[Path, Image]]:
    """Yield files with their images, RGB and rotated by their EXIF orientation, in order.

    Args:
        paths: Files, folders or shell patterns.
        on_error: "stop" at an unreadable file, or "skip" it with a warning that names it.
        allow_huge: Also read images above Pillow's limit on pixels (179 million).
        options: How 16-bit and multi-page files are read.

    Raises:
        ValueError: `on_error` is unknown, there are no images, or a file is unreadable.
    """
    one_of("on_error", on_error, ON_ERROR)
    for path in find_images(paths):
        try:
            with _huge_images(allow_huge):
                image = read_rgb(path, upright=True, options=options)
        except ValueError as error:
            is_huge = isinstance(error.__cause__, PIL.Image.DecompressionBombError)
            _complain(f"{error}{' Use --tile for images of this size.' if is_huge else ''}", on_error)
            continue
        yield path, image


@contextmanager
def _huge_images(allowed: bool) -> Iterator[None]:
    limit = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.MAX_IMAGE_PIXELS = None if allowed else limit
    try:
        yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def _complain(problem: str, on_error: str) -> None:
    if on_error == "stop":
        raise ValueError(f"{problem} Replace or remove it, or use --on-error skip.")
    logger.warning("%s It is skipped.", problem)
