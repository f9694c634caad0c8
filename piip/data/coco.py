"""Instances in COCO format: one JSON file with images, annotations and categories, and a folder of images."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from piip.data.coco_file import Content, check_coco
from piip.data.coco_match import (
    correct_sizes,
    ids_of_classes,
    is_inside,
    is_quarter_turned,
    match_classes,
    present_images,
)
from piip.data.coco_rows import compact, restored
from piip.data.dense_images import DenseImages
from piip.data.findings import Findings, Inspection, shorten
from piip.data.image_reading import AS_STORED, ReadOptions, stored_shape
from piip.data.object_masks import ObjectMasks
from piip.data.packed import PackedList, without_collector
from piip.structures import Target

logger = logging.getLogger("piip")

MIN_SIDE = 1.0  # pixels; smaller boxes are not trained on
BRUSH = "CVAT exports single objects drawn with the brush with iscrowd 1: set it to 0 in the file to train on them."
KEEP_EMPTY = "Use data.keep_empty true to train on them as images without objects."


class CocoInstances(DenseImages):
    """Images with boxes, classes and masks.

    Crowd annotations are not targets (evaluation uses them). Boxes are clipped to their image; those with a side below
    one pixel after clipping are not targets. What is left out is logged once.

    Args:
        annotations: The JSON file.
        images: Folder of the images in the file.
        train: Leave out images without objects, and use the next image instead of an unreadable one.
        seed: Seed of the run.
        on_error: "stop" or "skip" at a missing or unreadable image.
        expected_classes: Class names in the order of their indices; categories are matched to them by name.
        keep_empty: In training, keep images without objects.
        options: How 16-bit and multi-page files are read.

    Attributes:
        category_ids: Id in the file of every class; classes that the file lacks get unused ids.
        findings: What was found in the file.

    Raises:
        ValueError: The file is missing or not a usable COCO file, images are missing, or objects have other classes.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        *,
        train: bool = False,
        seed: int = 0,
        on_error: str = "stop",
        expected_classes: Sequence[str] | None = None,
        keep_empty: bool = False,
        options: ReadOptions = AS_STORED,
    ) -> None:
        self.file = Path(annotations)
        with without_collector():
            self._open(Path(images), train, seed, on_error, expected_classes, keep_empty, options)

    def _open(
        self,
        folder: Path,
        train: bool,
        seed: int,
        on_error: str,
        expected_classes: Sequence[str] | None,
        keep_empty: bool,
        options: ReadOptions,
    ) -> None:
        content, findings = check_coco(self.file)
        classes, self._class_of = match_classes(content, expected_classes, findings)
        findings.raise_problems()
        self.category_ids = ids_of_classes(self._class_of, len(classes))
        entries = present_images(content["images"], folder, on_error, findings)
        by_image = _by_image(content["annotations"])
        correct_sizes(entries, by_image, findings)
        findings.raise_problems()
        chosen = entries
        if train:
            usable = {image["id"] for _, image in entries if _is_usable(by_image[image["id"]], image, findings)}
            chosen = entries if keep_empty else [entry for entry in entries if entry[1]["id"] in usable]
            _note_left_out(content["annotations"], entries, usable, keep_empty, findings)
        samples = [(path, image["id"]) for path, image in chosen]
        super().__init__(
            self.file, samples, classes, findings=findings, seed=seed, on_error=on_error, train=train, options=options
        )
        self._sizes = np.array([(image["height"], image["width"]) for _, image in chosen], np.int64)
        self._objects = PackedList([compact(row) for row in by_image[image["id"]]] for _, image in chosen)

    @property
    def has_objects(self) -> bool:
        """Whether there is anything to find: objects that are not crowds."""
        return any(not row["iscrowd"] for index in range(len(self._objects)) for row in self._rows(index))

    def _rows(self, index: int) -> list[Content]:
        """Return the annotations of an image, crowds as well."""
        return [restored(row) for row in self._objects[index]]

    def select(self, chosen: Callable[[Path], bool]) -> list[int]:
        """Keep the images whose path is chosen; see `DenseImages.select`."""
        kept = super().select(chosen)
        self._sizes = self._sizes[kept]
        self._objects = PackedList(self._objects[index] for index in kept)
        return kept

    def inspect_label(self, index: int) -> Inspection:
        """Return whether an image has the size of the file; see `LabelledImages`."""
        shape = stored_shape(self.samples[index][0])
        if shape != self.stated_size(index):
            self._check_size(index, shape)
        return Inspection()

    def class_counts(self) -> dict[str, int]:
        """Return the number of objects of each class that are trained on: without crowds and boxes outside."""
        labels: Counter[int] = Counter()
        for index in range(len(self)):
            height, width = self.stated_size(index)
            for row in self._rows(index):
                if not row["iscrowd"] and clipped_box(row["bbox"], {"height": height, "width": width}) is not None:
                    labels[self._class_of[row["category_id"]]] += 1
        return {name: labels[index] for index, name in enumerate(self.classes)}

    def label_facts(self) -> dict[str, Any]:
        """Return the classes and their ids in the file."""
        return {"classes": self.classes, "category_ids": self.category_ids}

    @property
    def packed_bytes(self) -> int:
        """Memory of the annotations, which worker processes share."""
        return self._objects.nbytes

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Size (H, W) of every image according to the file."""
        return [self.stated_size(index) for index in range(len(self))]

    def stated_size(self, index: int) -> tuple[int, int]:
        """Return the size (H, W) of an image according to the file."""
        height, width = self._sizes[index].tolist()
        return height, width

    @property
    def image_ids(self) -> list[int]:
        """Id of every image in the file."""
        return [image_id for _, image_id in self.samples]

    def read_target(self, index: int, shape: tuple[int, int]) -> Target:
        """Return "boxes", "labels" and "masks" of an image.

        Raises:
            ValueError: The image size differs from the file, or an outline is damaged.
        """
        target = self.read_outlines(index, shape)
        return {**target, "masks": target["masks"].decode()}

    def read_outlines(self, index: int, shape: tuple[int, int]) -> dict[str, Any]:
        """Return "boxes", "labels" and "masks" of an image, which are `ObjectMasks` and not decoded yet."""
        if shape != self.stated_size(index):
            self._check_size(index, shape)
        image = {"height": shape[0], "width": shape[1]}
        rows = [(row, clipped_box(row["bbox"], image)) for row in self._rows(index) if not row["iscrowd"]]
        objects = [(row, box) for row, box in rows if box is not None]
        boxes = torch.tensor([box for _, box in objects], dtype=torch.float32).view(-1, 4)
        labels = torch.tensor([self._class_of[row["category_id"]] for row, _ in objects], dtype=torch.int64)
        outlines = [(row["segmentation"], box) for row, box in objects]
        names = [f"{self.file}: the outline of annotation {row['own_id']}" for row, _ in objects]
        return {"boxes": boxes, "labels": labels, "masks": ObjectMasks(outlines, shape, names)}

    def _check_size(self, index: int, shape: tuple[int, int]) -> None:
        """Accept the size of an image whose sides the file has swapped.

        Raises:
            ValueError: The sizes differ in another way, or the annotations belong to the image before rotation.
        """
        (path, _), stated, hint = self.samples[index], self.stated_size(index), ""
        if shape == stated[::-1]:
            image = {"height": shape[0], "width": shape[1]}
            if not is_quarter_turned(path) and all(is_inside(row["bbox"], image) for row in self._rows(index)):
                logger.warning("%s has height and width of %s swapped.", self.file, path.name)
                return
            hint = " Its annotations ignore the EXIF orientation: save it without the tag."
        raise ValueError(
            f"The image {path} is {shape[0]}x{shape[1]} (height x width, after rotation), but {self.file} has "
            f"{stated[0]}x{stated[1]}.{hint}"
        )

    def ground_truth(self, image_ids: Collection[int] | None = None) -> Content:
        """Return the objects and crowds of images as a COCO file's content, with category ids 1 + class index.

        Annotations are numbered from 1: the programs that count take an object with the id 0 for a missing one.

        Args:
            image_ids: The images; None for all.
        """
        chosen = None if image_ids is None else set(image_ids)
        images: list[Content] = []
        annotations: list[Content] = []
        for index, (path, image_id) in enumerate(self.samples):
            if chosen is not None and image_id not in chosen:
                continue
            height, width = self.stated_size(index)
            images.append({"id": image_id, "file_name": path.name, "height": height, "width": width})
            for row in self._rows(index):
                label = 1 + self._class_of[row["category_id"]]
                annotations.append({**row, "id": len(annotations) + 1, "category_id": label})
        categories = [{"id": index, "name": name} for index, name in enumerate(self.classes, start=1)]
        return {"images": images, "annotations": annotations, "categories": categories}

    @property
    def label_ids(self) -> list[int]:
        """Id of every class in `ground_truth`."""
        return list(range(1, len(self.classes) + 1))


def clipped_box(box: Sequence[float], image: Mapping[str, Any]) -> list[float] | None:
    """Return a box as x1, y1, x2, y2 inside its image, None if a side is shorter than a pixel.

    Args:
        box: x, y, width, height.
        image: "height" and "width".
    """
    left, top, width, height = box
    right, bottom = min(left + width, image["width"]), min(top + height, image["height"])
    left, top = max(left, 0), max(top, 0)
    if right - left < MIN_SIDE or bottom - top < MIN_SIDE:
        return None
    return [float(left), float(top), float(right), float(bottom)]


def _is_usable(rows: Sequence[Content], image: Content, findings: Findings) -> bool:
    """Return whether an image has an object to train on, and note the others."""
    count = 0
    fits = "has_outside" not in image  # the common case, without a call for each of a million boxes
    for row in rows:
        if row["iscrowd"]:
            continue
        left, top, width, height = row["bbox"]
        is_whole = fits and left >= 0 and top >= 0 and width >= MIN_SIDE and height >= MIN_SIDE
        if is_whole or clipped_box(row["bbox"], image) is not None:
            count += 1
        else:
            what = "annotations without box area inside their image are left out"
            findings.note(what, f"id {row['own_id']}")
    return count > 0


def _note_left_out(
    annotations: Sequence[Content],
    entries: Sequence[tuple[Path, Content]],
    usable: Collection[int],
    keep_empty: bool,
    findings: Findings,
) -> None:
    """Note crowds and images that are not trained on.

    Raises:
        ValueError: Nothing is left to train on.
    """
    crowds = sum(row["iscrowd"] for row in annotations)
    some_crowds = f"{crowds} of {len(annotations)} annotations are crowds (iscrowd 1)"
    hint = f" {BRUSH}" if 2 * crowds > len(annotations) else ""
    if not usable:
        raise ValueError(
            f"{findings.source} has no usable images: none of {len(entries)} has an object"
            f"{f'; {some_crowds}, which are not trained on' if crowds else ''}.{hint} "
            f"{' '.join(findings.notes())}".rstrip()
        )
    if crowds:
        findings.say(f"{some_crowds} and are left out in training.{hint}")
    if len(usable) < len(entries) and not keep_empty:
        names = shorten(image["file_name"] for _, image in entries if image["id"] not in usable)
        findings.say(
            f"{len(entries) - len(usable)} of {len(entries)} images have no objects and are left out: {names}. "
            f"{KEEP_EMPTY}"
        )


def _by_image(annotations: Sequence[Content]) -> defaultdict[int, list[Content]]:
    grouped: defaultdict[int, list[Content]] = defaultdict(list)
    for row in annotations:
        grouped[row["image_id"]].append(row)
    return grouped
