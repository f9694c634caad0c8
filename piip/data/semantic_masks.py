"""Semantic segmentation in ADE20K layout: a folder of images and a folder of masks with the same names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from piip.data.dense_images import DenseImages
from piip.data.findings import Findings, Inspection, shorten
from piip.data.image_reading import AS_STORED, BROKEN_IMAGE, ReadOptions, stored_shape
from piip.data.listing import list_images, walk_files
from piip.data.orientation import turn_upright
from piip.data.packed import PackedSamples
from piip.structures import IGNORE_INDEX, Target

CLASS_LIST = "classes.txt"
LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif")  # formats of masks, apart from an explicit suffix


class SemanticMasks(DenseImages):
    """Images with the class of every pixel.

    Args:
        annotations: Folder of 8-bit semantic masks.
        images: Folder of images; `a/b.jpg` belongs to `a/b.png`.
        num_classes: Number of classes if there is no list of names.
        train: Use the next image instead of an unreadable one.
        seed: Seed of the run.
        on_error: "stop" or "skip" at an unreadable image.
        expected_classes: Required class names, in this order.
        image_suffix: End of the images' names that masks do not share, such as "_leftImg8bit.png"; "" is the suffix.
        mask_suffix: End of the masks' names instead, such as "_gtFine_labelIds.png".
        reduce_zero_label: Whether class 0 is ignored and others count from 0; None asks the transform.
        options: How 16-bit and multi-page files are read.

    Raises:
        ValueError: A folder is missing, masks are missing or shared, or classes differ.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        *,
        num_classes: int | None = None,
        train: bool = False,
        seed: int = 0,
        on_error: str = "stop",
        expected_classes: Sequence[str] | None = None,
        image_suffix: str = "",
        mask_suffix: str = ".png",
        reduce_zero_label: bool | None = None,
        options: ReadOptions = AS_STORED,
    ) -> None:
        self.maps, images = Path(annotations), Path(images)
        for folder in (self.maps, images):
            if not folder.is_dir():
                raise ValueError(
                    f"There is no folder {str(folder)!r}, expected a folder of images and one of semantic masks."
                )
        self._reduce_zero_label = reduce_zero_label
        findings = Findings(self.maps)
        self._pixels = np.zeros(IGNORE_INDEX + 1, int)
        pairs = pair_masks(images, self.maps, image_suffix, mask_suffix, on_error=on_error, findings=findings)
        self._files = PackedSamples((mask, 0) for _, mask in pairs)
        numbers = range(num_classes) if num_classes is not None else None
        classes = find_classes(self.maps, expected_classes or numbers)
        if expected_classes is not None and classes != list(expected_classes):
            raise ValueError(
                f"{self.maps} has the classes {shorten(classes)}, expected {shorten(expected_classes)} in this order."
            )
        if len(classes) > IGNORE_INDEX:
            raise ValueError(
                f"{self.maps} has {len(classes)} classes, expected at most {IGNORE_INDEX}: masks have 8 bits, and "
                f"{IGNORE_INDEX} marks pixels to ignore."
            )
        samples = [(path, 0) for path, _ in pairs]
        super().__init__(
            self.maps, samples, classes, findings=findings, seed=seed, on_error=on_error, train=train, options=options
        )

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Size (H, W) of every image; (1, 1) if unreadable, which is reported when the image is read."""
        return [stored_shape(path) for path, _ in self.samples]

    def select(self, chosen: Callable[[Path], bool]) -> list[int]:
        """Keep the images whose path is chosen; see `DenseImages.select`."""
        kept = super().select(chosen)
        self._files = PackedSamples(self._files[index] for index in kept)
        return kept

    def inspect_label(self, index: int) -> Inspection:
        """Return the values of a mask; see `LabelledImages`."""
        labels = self._read_labels(index, stored_shape(self.samples[index][0]))
        return Inspection(counts=np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1))

    def judge(self, inspections: Sequence[Inspection]) -> Findings:
        """Return whether the masks have something to learn, and which classes never occur."""
        findings = Findings(self.maps)
        counts = sum((seen.counts for seen in inspections if seen.counts is not None), np.zeros(IGNORE_INDEX + 1, int))
        self._pixels = counts
        values = set(np.flatnonzero(counts).tolist())
        first = int(self._reduces_zero_label)
        labelled = counts[first : first + len(self.classes)]
        hint = " (0 as well, because of reduce_zero_label)" if first else ""
        if values and not labelled.any():
            findings.problem(
                f"all pixels are to be ignored: the masks have only {shorten(sorted(values))}, and {IGNORE_INDEX} "
                f"marks pixels to ignore{hint}"
            )
        elif values == {0, IGNORE_INDEX} and not first and len(self.classes) > 1:
            findings.problem(
                f"the masks have only the values 0 and {IGNORE_INDEX}, and {IGNORE_INDEX} marks pixels to ignore, so "
                f"that only {self.classes[0]!r} would be learned: save objects as 1, for example with `piip data "
                f"convert {self.maps} OUT --format masks`"
            )
        elif self.train and values:
            for index in np.flatnonzero(labelled == 0).tolist():
                findings.note("classes without a pixel in the masks cannot be learned", self.classes[index])
        return findings

    counted = "pixels"

    def class_counts(self) -> dict[str, int]:
        """Return the number of pixels of each class in the masks that were inspected."""
        first = int(self._reduces_zero_label)
        return {name: int(self._pixels[first + index]) for index, name in enumerate(self.classes)}

    def read_target(self, index: int, shape: tuple[int, int]) -> Target:
        """Return "labels" (H, W), int64, as stored.

        Raises:
            ValueError: The mask cannot be read, has invalid class indices, or differs from its image in size.
        """
        return {"labels": self.read_outlines(index, shape)["labels"].long()}

    def read_outlines(self, index: int, shape: tuple[int, int]) -> dict[str, Any]:
        """Return "labels" (H, W), uint8, as transforms take them."""
        return {"labels": torch.from_numpy(self._read_labels(index, shape).astype(np.uint8))}

    def _read_labels(self, index: int, shape: tuple[int, int]) -> np.ndarray:
        path, _ = self._files[index]
        try:
            with Image.open(path) as image:
                mode, labels = image.mode, np.array(turn_upright(image))
        except BROKEN_IMAGE as error:
            raise ValueError(f"The semantic mask {path} cannot be read ({type(error).__name__}: {error}).") from error
        if mode not in ("P", "L", "1"):
            raise ValueError(
                f"The semantic mask {path} has the mode {mode}, expected 8-bit class indices (P or L), not colours; "
                "convert colours with `piip data convert MASKS OUT --format masks --colors TABLE`."
            )
        if labels.shape != shape:
            raise ValueError(f"The semantic mask {path} is {labels.shape}, its image {shape} (height, width).")
        if self.transform is not None or self._reduce_zero_label is not None:  # else unknown how classes are counted
            self._check_values(labels, path, self._reduces_zero_label)
        return labels

    @property
    def _reduces_zero_label(self) -> bool:
        if self._reduce_zero_label is not None:
            return self._reduce_zero_label
        return self.transform is not None and self.transform.config.reduce_zero_label

    def _check_values(self, labels: np.ndarray, path: Path, reduce_zero_label: bool) -> None:
        last = len(self.classes) - (not reduce_zero_label)
        if labels.max(initial=0) <= last:  # the common case, in one pass
            return
        wrong = np.unique(labels[(labels > last) & (labels != IGNORE_INDEX)])
        if len(wrong):
            hint = "" if reduce_zero_label else " If 0 means unknown and classes start at 1, set reduce_zero_label."
            count = int((labels == wrong[0]).sum())
            raise ValueError(
                f"The semantic mask {path} has the value {wrong[0]} ({count} pixels), expected 0 to {last} or "
                f"{IGNORE_INDEX} (unknown) for {len(self.classes)} classes.{hint}"
            )


def pair_masks(
    images: Path, maps: Path, image_suffix: str, mask_suffix: str, *, on_error: str, findings: Findings
) -> list[tuple[Path, Path]]:
    """Return every image with its semantic mask.

    Args:
        images: Folder of images.
        maps: Folder of semantic masks.
        image_suffix: See `SemanticMasks`.
        mask_suffix: See `SemanticMasks`.
        on_error: "stop" or "skip" where masks are missing.
        findings: Gets notes about images and masks that are left out.

    Raises:
        ValueError: Masks are missing, or two images share one.
    """
    masks = {_key(path.relative_to(maps).as_posix()): path for path in walk_files(maps, findings)}
    pairs: list[tuple[Path, Path]] = []
    missing: list[str] = []
    for path in list_images(images, findings):
        if not path.name.endswith(image_suffix):
            findings.note(f"images do not end in {image_suffix} (data.image_suffix) and are left out", path.name)
            continue
        name = path.relative_to(images).as_posix()
        base = name[: -len(image_suffix)] if image_suffix else str(Path(name).with_suffix(""))
        ends = LOSSLESS if mask_suffix in LOSSLESS else (mask_suffix,)
        keys = [_key(base + end) for end in (mask_suffix, *ends)]
        mask = next((masks[key] for key in keys if key in masks), None)
        if mask is None:
            missing.append(str(maps / (base + mask_suffix)))
        else:
            pairs.append((path, mask))
    if missing and on_error == "stop":
        raise ValueError(
            f"{len(missing)} of {len(missing) + len(pairs)} semantic masks are missing: {shorten(missing)}. If their "
            "names differ from those of the images, set data.image_suffix and data.mask_suffix."
        )
    for name in missing:
        findings.note("semantic masks are missing, their images are left out", name)
    _check_shared(pairs, maps)
    unused = masks.keys() - {_key(mask.relative_to(maps).as_posix()) for _, mask in pairs}
    for name in sorted(name for name in unused if name.endswith(_key(mask_suffix))):
        findings.note("semantic masks belong to no image and are left out", name)
    return pairs


def _key(name: str) -> str:
    """Return a relative path with a lower-case suffix, in composed Unicode."""
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower() if suffix else stem.lower() if stem.startswith(".") else stem


def _check_shared(pairs: Sequence[tuple[Path, Path]], maps: Path) -> None:
    """Raise an error if two images, such as a.jpg and a.png, have the same mask."""
    owners: dict[Path, Path] = {}
    for image, mask in pairs:
        if mask in owners:
            raise ValueError(
                f"{owners[mask]} and {image} share the semantic mask {mask.relative_to(maps)}: remove or rename one."
            )
        owners[mask] = image


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
