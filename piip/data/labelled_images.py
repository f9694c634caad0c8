"""What all data sets of labelled images share: samples, randomness by index, and unreadable files."""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from piip.data.findings import Findings, Inspection
from piip.data.image_reading import AS_STORED, ReadOptions, read_rgb, verify_image
from piip.data.packed import PackedSamples
from piip.fields import one_of

ON_ERROR = ("stop", "skip")
# Not "delete it": the order of a resumed epoch depends on the list of files.
ADVICE = "Replace it, or continue with --data.on_error skip (and --resume auto if a run has started)."
Item = TypeVar("Item")

logger = logging.getLogger(__name__)


class LabelledImages(Dataset[Any], ABC):
    """Images with labels, read by index.

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
        counted: What `class_counts` counts: "images", "objects" or "pixels".
        is_upright: Whether images are rotated by their EXIF orientation.

    Raises:
        ValueError: `on_error` is unknown.
    """

    counted: ClassVar[str] = "objects"
    is_upright: ClassVar[bool] = True

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
        one_of("on_error", on_error, ON_ERROR)
        self.root = root
        self.samples: Sequence[tuple[Path, int]] = PackedSamples(samples)
        self.classes = list(classes)
        self.findings = Findings(root) if findings is None else findings
        self.findings.log()
        self.seed = seed
        self.on_error = on_error
        self.train = train
        self.options = options
        # In shared memory, so persistent workers see the next epoch and the unreadable files of other workers.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._unreadable = torch.zeros(len(self.samples), dtype=torch.bool).share_memory_()

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short hash of the images' names, in order, not of their contents."""

    @property
    def epoch(self) -> int:
        """The current epoch of the augmentation."""
        return int(self._epoch.item())

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
        problem = verify_image(self.samples[index][0])
        if problem:
            return Inspection(problem)
        try:
            return self.inspect_label(index)
        except ValueError as error:
            return Inspection(str(error).rstrip("."))

    def inspect_label(self, index: int) -> Inspection:
        """Return what can be seen of the label of an image that can be opened.

        Raises:
            ValueError: The label does not fit the image.
        """
        return Inspection()

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
        return read_rgb(self.samples[index][0], upright=self.is_upright, options=self.options)

    def class_counts(self) -> dict[str, int]:
        """Return the number of images, objects or pixels of each class."""
        return {}

    def label_facts(self) -> dict[str, Any]:
        """Return the facts about the classes that prediction needs."""
        return {"classes": self.classes}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def read_first(self, index: int, read: Callable[[int], Item]) -> Item | None:
        """Return what a function reads of a sample, or in training of the first readable one after it.

        Args:
            index: The sample.
            read: Index of a sample -> item; raises ValueError if it is unreadable.

        Returns:
            The item, None for an unreadable sample that is left out.

        Raises:
            IndexError: The index is outside the data set.
            ValueError: A file is unreadable and `on_error` is "stop", or no file is readable.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}, expected 0 to {len(self) - 1}")
        for step in range(len(self) if self.train else 1):
            position = (index + step) % len(self)
            if self._unreadable[position]:
                continue
            try:
                return read(position)
            except ValueError as error:
                if self.on_error == "stop":
                    raise ValueError(f"{error} {ADVICE}") from error
                self._unreadable[position] = True
                logger.warning("%s It is skipped%s.", error, " from now on" if self.train else "")
        if self.train:
            raise ValueError(f"None of the {len(self)} images in {self.root} can be read: check the disk.")
        return None


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed `random`, NumPy and torch's CPU generator in a block, and restore their states after it.

    Args:
        key: Non-negative integers; the same key gives the same random numbers.
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1:3])
    # Not torch.manual_seed: it would also reseed accelerators, whose states are not restored.
    torch.default_generator.manual_seed(int(words[3]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
