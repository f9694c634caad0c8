"""Images with boxes, masks or semantic masks, prepared as a function of seed, epoch and index."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch.utils.data import Dataset

from piip.data.collate import DenseTransform, Sample
from piip.data.image_folder import ADVICE, ON_ERROR, read_rgb, seeded
from piip.structures import Target

logger = logging.getLogger(__name__)


class DenseImages(Dataset[Sample], ABC):
    """Images and their targets; see `ImageFolder` for randomness and unreadable files.

    Args:
        root: Path for messages.
        samples: Path of every image, and a number defined by the data set.
        classes: Names of the classes in the order of their indices.
        seed: Seed of the run.
        on_error: "stop" raises at an unreadable image; "skip" warns once and uses the next readable one.

    Attributes:
        transform: Returns a sample from image, target and index; None if no image is read.

    Raises:
        ValueError: There are no images, or `on_error` is unknown.
    """

    def __init__(
        self,
        root: Path,
        samples: Sequence[tuple[Path, int]],
        classes: Sequence[str],
        *,
        seed: int = 0,
        on_error: str = "stop",
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error is {on_error!r}, expected one of {', '.join(ON_ERROR)}.")
        if not samples:
            raise ValueError(f"{root} has no usable images.")
        self.root = root
        self.samples = list(samples)
        self.classes = list(classes)
        self.seed = seed
        self.on_error = on_error
        self.transform: DenseTransform | None = None
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._unreadable = torch.zeros(len(samples), dtype=torch.bool).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the augmentation, in this process and in all workers."""
        self._epoch.fill_(epoch)

    def fingerprint(self) -> str:
        """Return a short hash of the image names, in order, not of their contents."""
        names = "\n".join(path.name for path, _ in self.samples)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]

    @property
    @abstractmethod
    def shapes(self) -> list[tuple[int, int]]:
        """Size (H, W) of every image."""

    @abstractmethod
    def read_target(self, index: int, shape: tuple[int, int]) -> Target:
        """Return the target of an image of size (H, W).

        Raises:
            ValueError: The target does not match the image.
        """

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """Return a prepared image.

        Raises:
            IndexError: The index is outside the data set.
            ValueError: A file is unreadable and `on_error` is "stop", or no file is readable.
        """
        if not 0 <= index < len(self.samples):
            raise IndexError(f"index is {index}, expected 0 to {len(self.samples) - 1}")
        position, image, target = self._read(index)
        assert self.transform is not None  # set before the first image is read
        with seeded(self.seed, int(self._epoch.item()), index):
            return self.transform(image, target, position)

    def _read(self, index: int) -> tuple[int, Image, Target]:
        for step in range(len(self.samples)):
            position = (index + step) % len(self.samples)
            if self._unreadable[position]:
                continue
            try:
                image = read_rgb(self.samples[position][0], upright=True)
                return position, image, self.read_target(position, (image.height, image.width))
            except ValueError as error:
                if self.on_error == "stop":
                    raise ValueError(f"{error} {ADVICE}") from error
                self._unreadable[position] = True
                logger.warning("%s It is skipped from now on.", error)
        raise ValueError(f"None of the {len(self.samples)} images of {self.root} can be read: check the disk.")
