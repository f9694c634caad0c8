"""Semantic segmentation in ADE20K layout: a folder of images and a folder of index PNGs of the same names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from piip.data.dense_images import DenseImages
from piip.data.image_folder import BROKEN_IMAGE, NAMES_SHOWN, SUFFIXES
from piip.data.orientation import turn_upright, upright_shape
from piip.data.transforms.geometry import IGNORED
from piip.heads.image_info import Target

CLASS_LIST = "classes.txt"


class IndexMaps(DenseImages):
    """Images with the class of every pixel.

    Args:
        annotations: Folder of 8-bit index PNGs.
        images: Folder of images; `a/b.jpg` belongs to `a/b.png`.
        num_classes: Number of classes where no list names them.
        seed: Seed of the run.
        on_error: "stop" or "skip" at an unreadable image.
        expected_classes: Class names the list must have, in this order.

    Raises:
        ValueError: A folder is missing, images lack their map, or classes differ.
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
                    f"There is no folder {str(folder)!r}, expected images and index PNGs beside each other."
                )
        paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES)
        self._files = [(self.maps / path.relative_to(images)).with_suffix(".png") for path in paths]
        missing = [str(path) for path in self._files if not path.is_file()]
        if missing:
            more = f" and {len(missing) - NAMES_SHOWN} more" if len(missing) > NAMES_SHOWN else ""
            raise ValueError(
                f"{len(missing)} of {len(paths)} index maps are missing: {', '.join(missing[:NAMES_SHOWN])}{more}."
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
        """Size (H, W) of every image; (1, 1) of an unreadable one, which is named when it is read."""
        shapes = []
        for path, _ in self.samples:
            try:
                with Image.open(path) as picture:
                    shapes.append(upright_shape(picture))
            except BROKEN_IMAGE:
                shapes.append((1, 1))
        return shapes

    def read_truth(self, index: int, shape: tuple[int, int]) -> Target:
        """Return "labels" (H, W), int64, as stored.

        Raises:
            ValueError: The map cannot be read, is no index map, has another size than its image or classes that there
                are not.
        """
        path = self._files[index]
        try:
            with Image.open(path) as picture:
                mode, labels = picture.mode, np.array(turn_upright(picture))
        except BROKEN_IMAGE as error:
            raise ValueError(f"The index map {path} cannot be read ({type(error).__name__}: {error}).") from error
        if mode not in ("P", "L", "1"):
            raise ValueError(
                f"The index map {path} has the mode {mode}, expected 8-bit indices (P or L): the class of a pixel, not "
                "its colour."
            )
        if labels.shape != shape:
            raise ValueError(f"The index map {path} is {labels.shape}, its image {shape} (height, width).")
        if self.transform is not None:  # it tells how classes are counted
            self._check_values(labels, path, self.transform.config.reduce_zero_label)
        return {"labels": torch.from_numpy(labels.astype(np.int64))}

    def _check_values(self, labels: np.ndarray, path: Path, reduce_zero_label: bool) -> None:
        last = len(self.classes) - (not reduce_zero_label)
        wrong = np.unique(labels[(labels > last) & (labels != IGNORED)])
        if len(wrong):
            hint = "" if reduce_zero_label else " Where 0 is unknown and classes count from 1, set reduce_zero_label."
            raise ValueError(
                f"The index map {path} has the value {wrong[0]} ({int((labels == wrong[0]).sum())} pixels), expected 0 "
                f"to {last} or {IGNORED} (unknown) for {len(self.classes)} classes.{hint}"
            )


def find_classes(maps: Path, unlisted: Sequence[object] | None) -> list[str]:
    """Return the class names of a data set: from `classes.txt`, one a line, in the folder or above it.

    Args:
        maps: The folder of index maps.
        unlisted: Names where there is no list; None asks for one.

    Raises:
        ValueError: There is no list and no other names, or the list has empty lines or doubled names.
    """
    for folder in (maps, *list(maps.resolve().parents)[:2]):
        if (folder / CLASS_LIST).is_file():
            return _read_names(folder / CLASS_LIST)
    if unlisted is None:
        raise ValueError(
            f"Nothing names the classes of {maps}: write them into {CLASS_LIST}, one a line, in that folder or above "
            "it, or set model.head.num_classes."
        )
    return [str(name) for name in unlisted]


def _read_names(path: Path) -> list[str]:
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            problem = f"doubles the class {name!r}" if name else "is empty"
            raise ValueError(f"{path} line {number} {problem}, expected one class name a line.")
    return names
