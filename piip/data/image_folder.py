"""Images in ImageNet layout (one folder per class), with augmentation as a function of seed, epoch and index."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from piip.data.findings import Findings, shorten
from piip.data.image_reading import AS_STORED, ReadOptions
from piip.data.labelled_images import LabelledImages, seeded
from piip.data.listing import list_images


class ImageFolder(LabelledImages):
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

    counted = "images"
    is_upright = False  # as stored, like timm and torchvision

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
        self.root, self.findings = Path(root), Findings(root)  # for find_samples
        classes, samples = self.find_samples(expected_classes)
        super().__init__(
            self.root,
            samples,
            classes,
            findings=self.findings,
            seed=seed,
            on_error=on_error,
            train=train,
            options=options,
        )
        self.transform = transform
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}

    def find_samples(self, expected_classes: Sequence[str] | None) -> tuple[list[str], list[tuple[Path, int]]]:
        """Return the class names, and path and class index of every image; override it for another layout.

        Args:
            expected_classes: Class names in the order of their indices; None sorts those found.

        Raises:
            ValueError: The folder or its images are missing, or classes differ.
        """
        classes = _find_classes(self.root, expected_classes, self.findings)
        return classes, _find_samples(self.root, classes, self.findings, expected_classes)

    def read_target(self, index: int, shape: tuple[int, int]) -> dict[str, Any]:
        """Return "class", the name of the class of an image of any size."""
        return {"class": self.classes[self.samples[index][1]]}

    def class_counts(self) -> dict[str, int]:
        """Return the number of images of each class."""
        labels = Counter(label for _, label in self.samples)
        return {name: labels[index] for index, name in enumerate(self.classes)}

    def fingerprint(self) -> str:
        """Return a short hash of all paths below the root, in order, not of the file contents."""
        start = len(str(self.root)) + 1
        names = "\n".join(str(path)[start:] for path, _ in self.samples)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]

    def __getitem__(self, index: int) -> tuple[Any, int] | None:
        """Return a transformed image and its class index, None if the file is unreadable and left out.

        Raises:
            IndexError: The index is outside the data set.
            ValueError: The file is unreadable and `on_error` is "stop", or no file is readable.
        """

        def read(position: int) -> tuple[Image.Image, int]:
            return self.read_image(position), self.samples[position][1]

        found = self.read_first(index, read)
        if found is None or self.transform is None:
            return found
        image, target = found
        with seeded(self.seed, self.epoch, index):
            return self.transform(image), target


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
