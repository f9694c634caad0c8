"""Instances in COCO format: one JSON file with images, annotations and categories, and a folder of images."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from piip.data.annotations import check_box, check_image, decode_mask, outline_problem
from piip.data.dense_images import DenseImages
from piip.data.image_folder import NAMES_SHOWN
from piip.structures import Target

logger = logging.getLogger(__name__)
Entry = Mapping[str, Any]


class CocoInstances(DenseImages):
    """Images with boxes, classes and masks.

    Crowd annotations are left out (evaluation reads them from the file). Boxes are clipped to their image; boxes with a
    side below one pixel after clipping are dropped with one warning.

    Args:
        annotations: The JSON file.
        images: Folder of the images in the file.
        train: Leave out images without objects.
        seed: Seed of the run.
        on_error: "stop" or "skip" at an unreadable image.
        expected_classes: Required class names, in this order.

    Raises:
        ValueError: The file is missing or not a COCO file, ids are duplicate or unknown, images are missing, or
            classes differ.
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
    ) -> None:
        self.file = Path(annotations)
        content = read_coco(self.file)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        classes = [str(category["name"]) for category in categories]
        if expected_classes is not None and classes != list(expected_classes):
            raise ValueError(
                f"{self.file} has the classes {', '.join(classes)}, expected {', '.join(expected_classes)}."
            )
        self.category_ids = [int(category["id"]) for category in categories]
        self._class_of = {category: index for index, category in enumerate(self.category_ids)}
        self._objects = _objects_by_image(content, self.file)
        chosen = [image for image in content["images"] if self._objects[image["id"]] or not train]
        samples = [(Path(images) / image["file_name"], int(image["id"])) for image in chosen]
        _check_present(samples, self.file)
        super().__init__(self.file, samples, classes, seed=seed, on_error=on_error)
        self._shapes = [(int(image["height"]), int(image["width"])) for image in chosen]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Size (H, W) of every image according to the file."""
        return self._shapes

    @property
    def image_ids(self) -> list[int]:
        """Id of every image in the file."""
        return [image_id for _, image_id in self.samples]

    def read_target(self, index: int, shape: tuple[int, int]) -> Target:
        """Return "boxes", "labels" and "masks" of an image.

        Raises:
            ValueError: The image size differs from the file.
        """
        path, image_id = self.samples[index]
        if shape != self._shapes[index]:
            turned = shape == self._shapes[index][::-1]
            hint = " Its annotations ignore the EXIF orientation: save it without the tag." if turned else ""
            raise ValueError(
                f"The image {path} is {shape[0]}x{shape[1]} (height x width, after rotation), but {self.file} has "
                f"{self._shapes[index][0]}x{self._shapes[index][1]}.{hint}"
            )
        objects = self._objects[image_id]
        boxes = torch.tensor([entry["clipped"] for entry in objects], dtype=torch.float32).view(-1, 4)
        labels = torch.tensor([self._class_of[entry["category_id"]] for entry in objects], dtype=torch.int64)
        masks = np.zeros((len(objects), *shape), bool)
        for mask, entry in zip(masks, objects, strict=True):
            try:
                mask[:] = decode_mask(entry.get("segmentation"), entry["clipped"], shape)
            except ValueError as error:
                raise ValueError(
                    f"{self.file}: the outline of annotation {entry['id']} is damaged: {error}."
                ) from error
        return {"boxes": boxes, "labels": labels, "masks": torch.from_numpy(masks)}


def read_coco(path: Path) -> dict[str, Any]:
    """Read and check a COCO file.

    Raises:
        ValueError: The file is missing or not JSON, lacks a section or field, or has duplicate or unknown ids, or
            invalid sizes, boxes or outlines.
    """
    if not path.is_file():
        raise ValueError(f"There is no annotation file {str(path)!r}, expected a COCO JSON file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}.") from error
    sections = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name")}
    sections["annotations"] = ("id", "image_id", "category_id", "bbox")
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected the sections {', '.join(sections)}.")
    for section, fields in sections.items():
        if not isinstance(content.get(section), list):
            raise ValueError(f"{path} has no list {section!r}, expected images, annotations and categories.")
        for place, entry in enumerate(content[section]):
            missing = [name for name in fields if not isinstance(entry, dict) or name not in entry]
            if missing:
                raise ValueError(f"{path}: {section}[{place}] has no field {missing[0]!r}.")
            if not isinstance(entry["id"], int):
                raise ValueError(f"{path}: {section}[{place}] has the id {entry['id']!r}, expected an integer.")
        doubled = [key for key, count in Counter(entry["id"] for entry in content[section]).items() if count > 1]
        if doubled:
            raise ValueError(f"{path}: the id {doubled[0]} occurs more than once in {section}.")
    for place, image in enumerate(content["images"]):
        check_image(image, f"{path}: images[{place}] (id {image['id']}, {image['file_name']})")
    _check_references(content, path)
    _check_annotations(content, path)
    return content


def _check_references(content: Mapping[str, Any], path: Path) -> None:
    known = {
        "image_id": {image["id"] for image in content["images"]},
        "category_id": {category["id"] for category in content["categories"]},
    }
    for place, entry in enumerate(content["annotations"]):
        for field, ids in known.items():
            if entry[field] not in ids:
                raise ValueError(
                    f"{path}: annotations[{place}] (id {entry['id']}) has an unknown {field} {entry[field]!r}."
                )


def _check_annotations(content: Mapping[str, Any], path: Path) -> None:
    images = {image["id"]: image for image in content["images"]}
    for place, entry in enumerate(content["annotations"]):
        image = images[entry["image_id"]]
        where = f"{path}: annotations[{place}] (id {entry['id']}, on {image['file_name']})"
        check_box(entry["bbox"], where)
        problem = outline_problem(entry.get("segmentation"), (int(image["height"]), int(image["width"])))
        if problem:
            raise ValueError(f"{where} has a segmentation that {problem}.")


def _objects_by_image(content: Mapping[str, Any], path: Path) -> dict[int, list[dict[str, Any]]]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    objects: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    dropped = []
    for entry in content["annotations"]:
        if entry.get("iscrowd"):
            continue
        left, top, width, height = (float(number) for number in entry["bbox"])
        limit = sizes[entry["image_id"]]
        clipped = [max(left, 0.0), max(top, 0.0), min(left + width, limit[0]), min(top + height, limit[1])]
        if clipped[2] - clipped[0] < 1 or clipped[3] - clipped[1] < 1:
            dropped.append(str(entry["id"]))
            continue
        objects[entry["image_id"]].append({**entry, "clipped": clipped})
    if dropped:
        logger.warning(
            "%s: %d annotations without box area inside their image are left out: ids %s%s.",
            path,
            len(dropped),
            ", ".join(dropped[:NAMES_SHOWN]),
            ", ..." if len(dropped) > NAMES_SHOWN else "",
        )
    return objects


def _check_present(samples: Sequence[tuple[Path, int]], path: Path) -> None:
    missing = [str(image) for image, _ in samples if not image.is_file()]
    if missing:
        more = f" and {len(missing) - NAMES_SHOWN} more" if len(missing) > NAMES_SHOWN else ""
        raise ValueError(
            f"{len(missing)} of {len(samples)} images in {path} are missing: {', '.join(missing[:NAMES_SHOWN])}{more}."
        )
