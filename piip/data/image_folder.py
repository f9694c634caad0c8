"""Images in ImageNet layout (one folder per class), with augmentation as a function of seed, epoch and index."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from piip.data.orientation import turn_upright

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
ON_ERROR = ("stop", "skip")
# What Pillow raises for broken files of the formats above, besides OSError.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
NAMES_SHOWN = 10
# Not "delete it": the order of a resumed epoch depends on the list of files.
ADVICE = "Replace it, or continue with --data.on_error skip (and --resume auto if a run has started)."

logger = logging.getLogger(__name__)


class ImageFolder(Dataset[tuple[Any, int]]):
    """Images below `root/CLASS/`, sorted by class and path.

    The transform runs with `random`, NumPy and torch seeded from (seed, epoch, index); their states are restored
    afterwards. An item therefore does not depend on the worker, on the items read before, or on a restart.

    Args:
        root: Folder with one folder per class; images may be in subfolders of it. Names starting with a dot are
            skipped.
        transform: Function of an RGB image; None returns the image.
        seed: Seed of the run.
        on_error: "stop" raises at an unreadable file; "skip" warns once per file and uses the next readable one,
            with its own class.
        expected_classes: Required class names, exactly these; they determine the order of indices.

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
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error is {on_error!r}, expected one of {', '.join(ON_ERROR)}.")
        self.root = Path(root)
        self.transform = transform
        self.seed = seed
        self.on_error = on_error
        self.classes, self.samples = self.find_samples(expected_classes)
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
        classes = _find_classes(self.root, expected_classes)
        return classes, _find_samples(self.root, classes)

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

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return a transformed image and its class index.

        Raises:
            IndexError: The index is outside the data set.
            ValueError: The file is unreadable and `on_error` is "stop", or no file is readable.
        """
        if not 0 <= index < len(self.samples):
            raise IndexError(f"index is {index}, expected 0 to {len(self.samples) - 1}")
        image, target = self._read(index)
        if self.transform is None:
            return image, target
        with seeded(self.seed, self.epoch, index):
            return self.transform(image), target

    def _read(self, index: int) -> tuple[Image.Image, int]:
        """Return the image and class of the first readable sample, starting at an index."""
        for step in range(len(self.samples)):
            position = (index + step) % len(self.samples)
            if self._unreadable[position]:
                continue
            path, target = self.samples[position]
            try:
                return read_rgb(path), target
            except ValueError as error:
                if self.on_error == "stop":
                    raise ValueError(f"{error} {ADVICE}") from error
                self._unreadable[position] = True
                logger.warning("%s It is skipped from now on.", error)
        raise ValueError(f"None of the {len(self.samples)} images in {self.root} can be read: check the disk.")


def read_rgb(path: Path, *, upright: bool = False) -> Image.Image:
    """Read an image file of any mode as `to_rgb` does.

    Args:
        path: The file.
        upright: Rotate it by its EXIF orientation. Classifiers use images as stored, like timm.

    Raises:
        ValueError: The file is missing, truncated, or not an image with 8 or 16 bits per channel.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(turn_upright(image) if upright else image)
    except BROKEN_IMAGE as error:
        raise ValueError(f"The image {path} cannot be read ({type(error).__name__}: {error}).") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB; transparency is dropped.

    Raises:
        ValueError: Pixels have 32 bits, for which white is undefined.
    """
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode is {image.mode}, 32 bits per pixel; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit grey to 255 instead of scaling it.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


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


def _find_classes(root: Path, expected: Sequence[str] | None) -> list[str]:
    """Return the names of the class folders, sorted or in the order expected."""
    if not root.is_dir():
        hint = (
            f" There is {root.parent / 'classification'}: is this the data root?" if _has_classification(root) else ""
        )
        raise ValueError(
            f"The image folder {root} does not exist, expected ROOT/SPLIT/CLASS/IMAGE, such as "
            f"ROOT/train/cat/1.jpg and ROOT/val/cat/2.jpg.{hint}"
        )
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise ValueError(f"{root} has no class folders, expected {root}/CLASS/IMAGE: move images into them.")
    if expected is None or found == sorted(expected):
        return list(expected or found)
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    raise ValueError(
        f"{root} has {len(found)} classes, expected {len(expected)}: missing {_shorten(missing)}, unexpected "
        f"{_shorten(unexpected)}. Rename the folders, or pass their class names."
    )


def _find_samples(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Return path and class index of every image, by class and then by path."""
    samples: list[tuple[Path, int]] = []
    empty = []
    for target, name in enumerate(classes):
        paths = sorted(_image_paths(root / name))
        samples += [(path, target) for path in paths]
        if not paths:
            empty.append(name)
    if empty:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ValueError(f"{root} has class folders without images ({kinds}): {_shorten(empty)}. Fill or delete them.")
    return samples


def _image_paths(folder: Path) -> Iterator[Path]:
    """Yield image files below a folder; symbolic links are followed, because data sets often use them."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(parent, name)


def _shorten(names: list[str]) -> str:
    """Return names separated by commas, at most ten."""
    if not names:
        return "none"
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
