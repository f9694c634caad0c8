"""Images in ImageNet layout (one folder per class), with augmentation as a function of seed, epoch and index."""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from piip.data.findings import Findings, Inspection, shorten
from piip.data.image_reading import AS_STORED, ReadOptions, read_rgb, verify_image
from piip.data.listing import list_images
from piip.data.packed import PackedSamples

ON_ERROR = ("stop", "skip")
# Not "delete it": the order of a resumed epoch depends on the list of files.
ADVICE = "Replace it, or continue with --data.on_error skip (and --resume auto if a run has started)."

logger = logging.getLogger(__name__)


class ImageFolder(Dataset["tuple[Any, int] | None"]):
    """Images below `root/CLASS/`, sorted by class and path.

    The transform runs with `random`, NumPy and torch seeded from (seed, epoch, index); their states are restored
    afterwards. An item therefore does not depend on the worker, on the items read before, or on a restart.

    Args:
        root: Folder with one folder per class; images may be in subfolders of it. Links are followed, names starting
            with a dot are skipped.
        transform: Function of an RGB image; None returns the image.
        seed: Seed of the run.
        on_error: "stop" raises at an unreadable file; "skip" warns once per file and leaves it out, or in training
            uses the next readable one, with its own class.
        expected_classes: Known class names, which determine the order of indices; some may have no folder.
        train: Whether the images are trained on, in batches of a fixed size.
        options: How 16-bit and multi-page files are read.

    Attributes:
        classes: Class names in the order of their indices.
        class_to_idx: Index of each class name.
        samples: Path and class index of every image.

    Raises:
        ValueError: The folder is missing, has no class folders, has class folders without images, or classes differ.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        transform: Callable[[Image.Image], Any] | None = None,
        seed: int = 0,
        on_error: str = "stop",
        expected_classes: Sequence[str] | None = None,
        train: bool = True,
        options: ReadOptions = AS_STORED,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error is {on_error!r}, expected one of {', '.join(ON_ERROR)}.")
        self.root = Path(root)
        self.transform = transform
        self.seed = seed
        self.on_error = on_error
        self.train = train
        self.options = options
        self.findings = Findings(self.root)
        self.classes, samples = self.find_samples(expected_classes)
        self.samples: Sequence[tuple[Path, int]] = PackedSamples(samples)
        self.findings.log()
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}
        # In shared memory, so persistent workers see the next epoch and the unreadable files of other workers.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._unreadable = torch.zeros(len(self.samples), dtype=torch.bool).share_memory_()

    def find_samples(self, expected_classes: Sequence[str] | None) -> tuple[list[str], list[tuple[Path, int]]]:
        """Return the class names, and path and class index of every image; override it for another layout.

        Args:
            expected_classes: Class names in the order of their indices; None sorts those found.

        Raises:
            ValueError: The folder or its images are missing, or classes differ.
        """
        classes = _find_classes(self.root, expected_classes, self.findings)
        return classes, _find_samples(self.root, classes, self.findings, expected_classes)

    def select(self, chosen: Callable[[Path], bool]) -> None:
        """Keep the images whose path is chosen."""
        self.samples = PackedSamples((path, target) for path, target in self.samples if chosen(path))
        self._unreadable = torch.zeros(len(self.samples), dtype=torch.bool).share_memory_()

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
        return read_rgb(self.samples[index][0], options=self.options)

    def read_target(self, index: int, shape: tuple[int, int]) -> dict[str, Any]:
        """Return "class", the name of the class of an image of any size."""
        return {"class": self.classes[self.samples[index][1]]}

    counted: ClassVar[str] = "images"  # by `class_counts`

    def class_counts(self) -> dict[str, int]:
        """Return the number of images of each class."""
        labels = Counter(label for _, label in self.samples)
        return {name: labels[index] for index, name in enumerate(self.classes)}

    def label_facts(self) -> dict[str, Any]:
        """Return the facts about the classes that prediction needs."""
        return {"classes": self.classes}

    @property
    def epoch(self) -> int:
        """The current epoch of the augmentation."""
        return int(self._epoch.item())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the augmentation, in this process and in all workers."""
        self._epoch.fill_(epoch)

    def fingerprint(self) -> str:
        """Return a short hash of all paths below the root, in order, not of the file contents."""
        start = len(str(self.root)) + 1
        names = "\n".join(str(path)[start:] for path, _ in self.samples)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int] | None:
        """Return a transformed image and its class index, None if the file is unreadable and left out.

        Raises:
            IndexError: The index is outside the data set.
            ValueError: The file is unreadable and `on_error` is "stop", or no file is readable.
        """
        if not 0 <= index < len(self.samples):
            raise IndexError(f"index is {index}, expected 0 to {len(self.samples) - 1}")
        found = self._read_next(index) if self.train else self._read(index)
        if found is None or self.transform is None:
            return found
        image, target = found
        with seeded(self.seed, self.epoch, index):
            return self.transform(image), target

    def _read_next(self, index: int) -> tuple[Image.Image, int]:
        """Return the image and class of the first readable sample, starting at an index."""
        for step in range(len(self.samples)):
            found = self._read((index + step) % len(self.samples))
            if found is not None:
                return found
        raise ValueError(f"None of the {len(self.samples)} images in {self.root} can be read: check the disk.")

    def _read(self, position: int) -> tuple[Image.Image, int] | None:
        """Return an image and its class, None if the file is unreadable."""
        if self._unreadable[position]:
            return None
        path, target = self.samples[position]
        try:
            return read_rgb(path, options=self.options), target
        except ValueError as error:
            if self.on_error == "stop":
                raise ValueError(f"{error} {ADVICE}") from error
            self._unreadable[position] = True
            logger.warning("%s It is skipped%s.", error, " from now on" if self.train else "")
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


def _has_classification(root: Path) -> bool:
    """Return whether the data set has several kinds of labels and its parent folder was given."""
    return (root.parent / "classification" / root.name).is_dir()


def _find_classes(root: Path, expected: Sequence[str] | None, findings: Findings) -> list[str]:
    """Return the names of the class folders, sorted or in the order expected."""
    if not root.is_dir():
        hint = (
            f" There is {root.parent / 'classification'}: is this the data root?" if _has_classification(root) else ""
        )
        raise ValueError(
            f"The image folder {root} does not exist, expected ROOT/SPLIT/CLASS/IMAGE, such as "
            f"ROOT/train/cat/1.jpg and ROOT/val/cat/2.jpg.{hint}"
        )
    visible = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    found = [entry.name for entry in visible if entry.is_dir() and entry.name != "__MACOSX"]
    if not found:
        raise ValueError(f"{root} has no class folders, expected {root}/CLASS/IMAGE: move images into them.")
    for entry in visible:
        if not entry.is_dir():
            findings.note("files are in no class folder and are left out", entry.name)
    if expected is None:
        return found
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if unexpected:
        raise ValueError(
            f"{root} has {len(found)} classes, expected {len(expected)}: missing {shorten(missing) or 'none'}, "
            f"unexpected {shorten(unexpected)}. Rename the folders, or pass their class names."
        )
    for name in missing:
        findings.note("classes have no folder; nothing is measured for them", name)
    return list(expected)


def _find_samples(
    root: Path, classes: list[str], findings: Findings, expected: Sequence[str] | None
) -> list[tuple[Path, int]]:
    """Return path and class index of every image, by class and then by path."""
    samples: list[tuple[Path, int]] = []
    empty = []
    for target, name in enumerate(classes):
        paths = list_images(root / name, findings) if (root / name).is_dir() else []
        samples += [(path, target) for path in paths]
        if not paths and (root / name).is_dir():
            empty.append(name)
    if empty and (expected is None or not samples):
        raise ValueError(f"{root} has class folders without images: {shorten(empty)}. Fill or delete them.")
    for name in empty:
        findings.note("classes have an empty folder; nothing is measured for them", name)
    return samples
