"""Images with a truth for places in them, prepared as a function of seed, epoch and index."""

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
from piip.heads.image_info import Target

logger = logging.getLogger(__name__)


class DenseImages(Dataset[Sample], ABC):
    """Images and their truths; see `ImageFolder` for the rules of randomness and of unreadable files.

    Args:
        root: Named in messages.
        samples: Path of every image, and a number that means something to the data set.
        classes: Names of the classes in the order of their indices.
        seed: Seed of the run.
        on_error: "stop" raises at an unreadable image; "skip" warns once and takes the next readable one.

    Attributes:
        transform: Makes a sample of picture, truth and index; None where nothing is read.

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
            raise ValueError(f"{root} names no images that can be used.")
        self.root = root
        self.samples = list(samples)
        self.classes = list(classes)
        self.seed = seed
        self.on_error = on_error
        self.transform: DenseTransform | None = None
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._unreadable = torch.zeros(len(samples), dtype=torch.bool).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw the augmentation of another epoch, in this process and in all workers."""
        self._epoch.fill_(epoch)

    def fingerprint(self) -> str:
        """Return a short hash of the images' names, in order; it says nothing about the files' contents."""
        names = "\n".join(path.name for path, _ in self.samples)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]

    @property
    @abstractmethod
    def shapes(self) -> list[tuple[int, int]]:
        """Size (H, W) of every image."""

    @abstractmethod
    def read_truth(self, index: int, shape: tuple[int, int]) -> Target:
        """Return the truth of an image of size (H, W).

        Raises:
            ValueError: It does not fit the image.
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
        place, picture, target = self._read(index)
        assert self.transform is not None  # given before the first image is read
        with seeded(self.seed, int(self._epoch.item()), index):
            return self.transform(picture, target, place)

    def _read(self, index: int) -> tuple[int, Image, Target]:
        for step in range(len(self.samples)):
            place = (index + step) % len(self.samples)
            if self._unreadable[place]:
                continue
            try:
                picture = read_rgb(self.samples[place][0], upright=True)
                return place, picture, self.read_truth(place, (picture.height, picture.width))
            except ValueError as error:
                if self.on_error == "stop":
                    raise ValueError(f"{error} {ADVICE}") from error
                self._unreadable[place] = True
                logger.warning("%s It is skipped from now on.", error)
        raise ValueError(f"None of the {len(self.samples)} images of {self.root} can be read: check the disk.")
