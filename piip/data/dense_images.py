"""Images with boxes, masks or semantic masks, prepared as a function of seed, epoch and index."""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from piip.data.collate import DenseTransform, Sample
from piip.data.findings import Findings
from piip.data.image_reading import AS_STORED, ReadOptions
from piip.data.labelled_images import LabelledImages, seeded
from piip.structures import Target

logger = logging.getLogger(__name__)


class DenseImages(LabelledImages):
    """Images and their targets; see `ImageFolder` for randomness.

    Args:
        root: Path for messages.
        samples: Path of every image, and a number defined by the data set.
        classes: Names of the classes in the order of their indices.
        findings: What was left out or read differently; it is logged.
        seed: Seed of the run.
        on_error: "stop" raises at an unreadable image; "skip" warns once and leaves it out, or in training uses the
            next readable one.
        train: Whether the images are trained on, in batches of a fixed size.
        options: How 16-bit and multi-page files are read.

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
        findings: Findings | None = None,
        seed: int = 0,
        on_error: str = "stop",
        train: bool = False,
        options: ReadOptions = AS_STORED,
    ) -> None:
        if not samples:
            raise ValueError(f"{root} has no usable images.")
        super().__init__(
            root, samples, classes, findings=findings, seed=seed, on_error=on_error, train=train, options=options
        )
        self.transform: DenseTransform | None = None

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

    def read_outlines(self, index: int, shape: tuple[int, int]) -> dict[str, Any]:
        """Return the target for a transform, in which "masks" may be `ObjectMasks`; by default `read_target`."""
        return self.read_target(index, shape)

    def __getitem__(self, index: int) -> Sample | None:
        """Return a prepared image, None if it is unreadable and left out.

        Raises:
            IndexError: The index is outside the data set.
            ValueError: A file is unreadable and `on_error` is "stop", or no file is readable.
        """
        assert self.transform is not None  # set before the first image is read
        prepare = self.transform

        def read(position: int) -> Sample:
            image = self.read_image(position)
            target = self.read_outlines(position, (image.height, image.width))
            with seeded(self.seed, self.epoch, index):
                return prepare(image, target, position)

        return self.read_first(index, read)
