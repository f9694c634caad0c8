"""Semantic segmentation in ADE20K layout: a folder of images and a folder of masks with the same names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from piip.data.dense_images import DenseImages
from piip.data.image_folder import BROKEN_IMAGE, NAMES_SHOWN, SUFFIXES
from piip.data.orientation import turn_upright, upright_shape
from piip.structures import IGNORE_INDEX, Target

CLASS_LIST = "classes.txt"


class SemanticMasks(DenseImages):
    """Images with the class of every pixel.

    Args:
        annotations: Folder of 8-bit semantic masks.
        images: Folder of images; `a/b.jpg` belongs to `a/b.png`.
        num_classes: Number of classes if there is no list of names.
        seed: Seed of the run.
        on_error: "stop" or "skip" at an unreadable image.
        expected_classes: Required class names, in this order.

    Raises:
        ValueError: A folder is missing, masks are missing, or classes differ.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        *,
        num_classes: int | None = None,
        seed: int = 0,
        on_error: str = "stop",
        expected_classes: Sequence[str] | None = None,
    ) -> None:
        self.maps, images = Path(annotations), Path(images)
        for folder in (self.maps, images):
            if not folder.is_dir():
                raise ValueError(
                    f"There is no folder {str(folder)!r}, expected a folder of images and one of semantic masks."
                )
        paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES)
        self._files = [(self.maps / path.relative_to(images)).with_suffix(".png") for path in paths]
        missing = [str(path) for path in self._files if not path.is_file()]
        if missing:
            more = f" and {len(missing) - NAMES_SHOWN} more" if len(missing) > NAMES_SHOWN else ""
            raise ValueError(
                f"{len(missing)} of {len(paths)} semantic masks are missing: {', '.join(missing[:NAMES_SHOWN])}{more}."
            )
        numbers = range(num_classes) if num_classes is not None else None
        classes = find_classes(self.maps, expected_classes or numbers)
        if expected_classes is not None and classes != list(expected_classes):
            raise ValueError(
                f"{self.maps} has the classes {', '.join(classes)}, expected {', '.join(expected_classes)}."
            )
        super().__init__(self.maps, [(path, 0) for path in paths], classes, seed=seed, on_error=on_error)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Size (H, W) of every image; (1, 1) if unreadable, which is reported when the image is read."""
        shapes = []
        for path, _ in self.samples:
            try:
                with Image.open(path) as image:
                    shapes.append(upright_shape(image))
            except BROKEN_IMAGE:
                shapes.append((1, 1))
        return shapes

    def read_target(self, index: int, shape: tuple[int, int]) -> Target:
        """Return "labels" (H, W), int64, as stored.

        Raises:
            ValueError: The mask cannot be read, has invalid class indices, or differs from its image in size.
        """
        path = self._files[index]
        try:
            with Image.open(path) as image:
                mode, labels = image.mode, np.array(turn_upright(image))
        except BROKEN_IMAGE as error:
            raise ValueError(f"The semantic mask {path} cannot be read ({type(error).__name__}: {error}).") from error
        if mode not in ("P", "L", "1"):
            raise ValueError(
                f"The semantic mask {path} has the mode {mode}, expected 8-bit class indices (P or L), not colours."
            )
        if labels.shape != shape:
            raise ValueError(f"The semantic mask {path} is {labels.shape}, its image {shape} (height, width).")
        if self.transform is not None:  # it defines how classes are counted
            self._check_values(labels, path, self.transform.config.reduce_zero_label)
        return {"labels": torch.from_numpy(labels.astype(np.int64))}

    def _check_values(self, labels: np.ndarray, path: Path, reduce_zero_label: bool) -> None:
        last = len(self.classes) - (not reduce_zero_label)
        wrong = np.unique(labels[(labels > last) & (labels != IGNORE_INDEX)])
        if len(wrong):
            hint = "" if reduce_zero_label else " If 0 means unknown and classes start at 1, set reduce_zero_label."
            count = int((labels == wrong[0]).sum())
            raise ValueError(
                f"The semantic mask {path} has the value {wrong[0]} ({count} pixels), expected 0 to {last} or "
                f"{IGNORE_INDEX} (unknown) for {len(self.classes)} classes.{hint}"
            )


def find_classes(maps: Path, unlisted: Sequence[object] | None) -> list[str]:
    """Return the class names of a data set: from `classes.txt`, one per line, in the folder or above it.

    Args:
        maps: The folder of semantic masks.
        unlisted: Names to use if there is no list; None requires a list.

    Raises:
        ValueError: There are neither a list nor other names, or the list has empty lines or duplicate names.
    """
    for folder in (maps, *list(maps.resolve().parents)[:2]):
        if (folder / CLASS_LIST).is_file():
            return _read_names(folder / CLASS_LIST)
    if unlisted is None:
        raise ValueError(
            f"The class names of {maps} are unknown: list them in {CLASS_LIST}, one per line, in that folder or above "
            "it, or set model.head.num_classes."
        )
    return [str(name) for name in unlisted]


def _read_names(path: Path) -> list[str]:
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            problem = f"repeats the class {name!r}" if name else "is empty"
            raise ValueError(f"{path} line {number} {problem}, expected one class name per line.")
    return names
