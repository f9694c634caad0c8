"""Images with boxes, masks or semantic masks, prepared as a function of seed, epoch and index."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch.utils.data import Dataset

from piip.data.collate import DenseTransform, Sample
from piip.data.findings import Findings, Inspection
from piip.data.image_folder import ADVICE, ON_ERROR, seeded
from piip.data.image_reading import AS_STORED, ReadOptions, read_rgb, verify_image
from piip.data.packed import PackedSamples
from piip.structures import Target

logger = logging.getLogger(__name__)


class DenseImages(Dataset["Sample | None"], ABC):
    """Images and their targets; see `ImageFolder` for randomness and unreadable files.

    Args:
        root: Path for messages.
        samples: Path of every image, and a number defined by the data set.
        classes: Names of the classes in the order of their indices.
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
        seed: int = 0,
        on_error: str = "stop",
        train: bool = False,
        options: ReadOptions = AS_STORED,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error is {on_error!r}, expected one of {', '.join(ON_ERROR)}.")
        if not samples:
            raise ValueError(f"{root} has no usable images.")
        self.root = root
        self.samples: Sequence[tuple[Path, int]] = PackedSamples(samples)
        self.classes = list(classes)
        self.seed = seed
        self.on_error = on_error
        self.train = train
        self.options = options
        self.findings = Findings(root)
        self.transform: DenseTransform | None = None
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._unreadable = torch.zeros(len(samples), dtype=torch.bool).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the augmentation, in this process and in all workers."""
        self._epoch.fill_(epoch)

    def select(self, chosen: Callable[[Path], bool]) -> list[int]:
        """Keep the images whose path is chosen.

        Returns:
            Their former indices.
        """
        kept = [index for index, (path, _) in enumerate(self.samples) if chosen(path)]
        self.samples = PackedSamples(self.samples[index] for index in kept)
        self._unreadable = torch.zeros(len(kept), dtype=torch.bool).share_memory_()
        return kept

    def inspect(self, index: int) -> Inspection:
        """Return what can be seen of a sample without decoding its image."""
        return Inspection(verify_image(self.samples[index][0]))

    def judge(self, inspections: Sequence[Inspection]) -> Findings:
        """Return what all inspections of a split mean together."""
        return Findings(self.root)

    def mark_unreadable(self, index: int) -> None:
        """Skip a sample without reading it again."""
        self._unreadable[index] = True

    def read_image(self, index: int) -> Image.Image:
        """Return an image as it is trained on, before its transform.

        Raises:
            ValueError: The file is unreadable.
        """
        return read_rgb(self.samples[index][0], upright=True, options=self.options)

    counted: ClassVar[str] = "objects"  # by `class_counts`

    def class_counts(self) -> dict[str, int]:
        """Return the number of objects or pixels of each class."""
        return {}

    def label_facts(self) -> dict[str, Any]:
        """Return the facts about the classes that prediction needs."""
        return {"classes": self.classes}

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

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample | None:
        """Return a prepared image, None if it is unreadable and left out.

        Raises:
            IndexError: The index is outside the data set.
            ValueError: A file is unreadable and `on_error` is "stop", or no file is readable.
        """
        if not 0 <= index < len(self.samples):
            raise IndexError(f"index is {index}, expected 0 to {len(self.samples) - 1}")
        return self._prepare_next(index) if self.train else self._prepare(index, index)

    def _prepare_next(self, index: int) -> Sample:
        """Return the first readable image, starting at an index."""
        for step in range(len(self.samples)):
            sample = self._prepare((index + step) % len(self.samples), index)
            if sample is not None:
                return sample
        raise ValueError(f"None of the {len(self.samples)} images of {self.root} can be read: check the disk.")

    def _prepare(self, position: int, index: int) -> Sample | None:
        """Return a prepared image, None if it is unreadable; `index` seeds its transform."""
        if self._unreadable[position]:
            return None
        assert self.transform is not None  # set before the first image is read
        try:
            image = self.read_image(position)
            target = self.read_outlines(position, (image.height, image.width))
            with seeded(self.seed, int(self._epoch.item()), index):
                return self.transform(image, target, position)
        except ValueError as error:
            if self.on_error == "stop":
                raise ValueError(f"{error} {ADVICE}") from error
            self._unreadable[position] = True
            logger.warning("%s It is skipped%s.", error, " from now on" if self.train else "")
        return None
