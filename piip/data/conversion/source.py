"""What readers of other formats yield: images with objects, class names, and what was left out."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from piip.data.findings import NAMES_SHOWN
from piip.data.image_reading import BROKEN_IMAGE
from piip.data.listing import is_image_file
from piip.data.orientation import upright_shape

# What folders and lists of splits are called, and what they are called here.
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
NO_SPLIT = "all"


@dataclass(frozen=True)
class SourceObject:
    """An object in an image, in pixels.

    Args:
        label: Name of its class.
        box: x1, y1, x2, y2.
        outline: As in COCO files: a list of polygons, run lengths, or None for a box only.
    """

    label: str
    box: tuple[float, float, float, float]
    outline: list[list[float]] | dict[str, Any] | None = None


@dataclass(frozen=True)
class SourceImage:
    """An image with its objects.

    Args:
        path: The file.
        name: Its path in the output, below the folder of its split.
        split: "train", "val", "test", or "all" where the source has no splits.
        shape: (H, W) as shown, after rotation by its orientation tag.
        objects: Its objects.
    """

    path: Path
    name: str
    split: str
    shape: tuple[int, int]
    objects: Sequence[SourceObject]


@dataclass
class LeftOut:
    """Counts of what is not in the output, with the first names.

    Args:
        counts: Number by reason.
        names: First names by reason.
    """

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one thing.

        Args:
            reason: What was left out and why, in the plural.
            name: Where it is.
        """
        self.counts[reason] = self.counts.get(reason, 0) + 1
        first = self.names.setdefault(reason, [])
        if len(first) < NAMES_SHOWN and name not in first:
            first.append(name)

    def lines(self) -> list[str]:
        """Return one line for every reason."""
        return [f"left out: {count} {reason}: {', '.join(self.names[reason])}" for reason, count in self.counts.items()]


@dataclass(frozen=True)
class Source:
    """A data set of another tool.

    Args:
        classes: Class names in order.
        images: Its images; they are read while they are written.
        left_out: Filled while images are read.
        notes: Lines for users on what was assumed.
    """

    classes: Sequence[str]
    images: Iterator[SourceImage]
    left_out: LeftOut
    notes: Sequence[str] = ()


def need(module: str, what: str) -> Any:
    """Import a library of the extra `convert`.

    Args:
        module: Its name.
        what: What needs it, for the message.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ValueError(f'{what} needs {package}: pip install "piip[convert]".') from error


def find_images(root: Path) -> list[Path]:
    """Return the images below a folder, sorted."""
    return sorted(path for path in root.rglob("*") if path.is_file() and is_image_file(path))


def read_shape(path: Path, left_out: LeftOut) -> tuple[int, int] | None:
    """Return the size (H, W) of an image as shown; None, and counted, if it cannot be read.

    Args:
        path: The file.
        left_out: Where it is counted.
    """
    try:
        with Image.open(path) as image:
            return upright_shape(image)
    except BROKEN_IMAGE:
        left_out.add("images that cannot be read", path.name)
        return None


def split_of(path: Path, root: Path) -> str:
    """Return the split that a path names by one of its folders, or "all".

    Args:
        path: A file below the root.
        root: Folder of the data set.
    """
    folders = path.relative_to(root).parts[:-1]
    return next((SPLITS[folder.lower()] for folder in folders if folder.lower() in SPLITS), NO_SPLIT)


def listed_splits(folder: Path) -> dict[str, str]:
    """Return the split of every name in lists such as ImageSets/Main/train.txt; splits are the lists' names.

    Args:
        folder: Folder of the lists; it may be missing.

    Raises:
        ValueError: A name is in two lists.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.txt")):
        split = SPLITS.get(path.stem.lower())
        for name in path.read_text(encoding="utf-8").split() if split else ():
            if found.get(name, split) != split:
                raise ValueError(f"{path} lists {name}, which is in the split {found[name]} too, expected one split.")
            found[name] = str(split)
    return found


def short_name(path: Path, root: Path, dropped: Iterable[str]) -> str:
    """Return a path below its data set without folders that only name splits and kinds of files.

    Args:
        path: A file below the root.
        root: Folder of the data set.
        dropped: Names of folders to drop, in lower case.
    """
    parts = path.relative_to(root).parts
    kept = [part for part in parts[:-1] if part.lower() not in SPLITS and part.lower() not in dropped]
    return "/".join([*kept, parts[-1]])


def count_by(names: Iterable[str], order: Sequence[str]) -> Mapping[str, int]:
    """Count names, with zeros for those that do not occur.

    Args:
        names: Names.
        order: All names in order.
    """
    counts = dict.fromkeys(order, 0)
    for name in names:
        counts[name] += 1
    return counts


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask (H, W) as COCO's compressed run lengths."""
    from faster_coco_eval.core import mask as coder

    coded = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": coded["counts"].decode()}
