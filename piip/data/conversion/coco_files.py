"""Write images with objects as COCO files: images/SPLIT/NAME and SPLIT.json."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piip.data.annotations import check_outline, outline_area
from piip.data.conversion.source import LeftOut, Source, SourceImage, SourceObject, count_by


def write_coco(source: Source, out: Path, *, link: bool = False) -> dict[str, Any]:
    """Write a data set and return its counts: "splits", by name "images" and "objects", and "classes".

    Args:
        source: The data set.
        out: An empty folder.
        link: Link to the images instead of copying them.

    Raises:
        ValueError: Two images have the same name, or there are none.
    """
    content: defaultdict[str, dict[str, list[Any]]] = defaultdict(lambda: {"images": [], "annotations": []})
    numbers = {name: number for number, name in enumerate(source.classes, start=1)}
    used: dict[str, Path] = {}
    for image in source.images:
        name = f"{image.split}/{image.name}"
        if name in used:
            raise ValueError(f"{used[name]} and {image.path} are both {name} in the output: rename one of them.")
        used[name] = image.path
        place_image(image.path, out / "images" / name, link=link)
        _add(content[image.split], image, name, source.left_out, numbers)
    if not used:
        raise ValueError("There are no images to convert, expected files with annotations and the images beside them.")
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    for split, parts in content.items():
        text = json.dumps({**parts, "categories": categories})
        (out / f"{split}.json").write_text(text, encoding="utf-8")
    found = [entry["category_id"] - 1 for parts in content.values() for entry in parts["annotations"]]
    return {
        "splits": {
            split: {"images": len(parts["images"]), "objects": len(parts["annotations"])}
            for split, parts in sorted(content.items())
        },
        "classes": count_by((source.classes[number] for number in found), source.classes),
    }


def place_image(path: Path, target: Path, *, link: bool) -> None:
    """Copy an image, or link to it.

    Args:
        path: The file.
        target: Where it goes.
        link: Link to it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        os.symlink(path.resolve(), target)
    else:
        shutil.copyfile(path, target)


def _add(
    parts: dict[str, list[Any]], image: SourceImage, name: str, left_out: LeftOut, categories: Mapping[str, int]
) -> None:
    number = len(parts["images"]) + 1
    height, width = image.shape
    parts["images"].append({"id": number, "file_name": name, "height": height, "width": width})
    for each in image.objects:
        problem = _problem(each, image.shape)
        if problem:
            left_out.add(problem, image.path.name)
            continue
        left, top, right, bottom = each.box
        entry = {
            "id": len(parts["annotations"]) + 1,
            "image_id": number,
            "category_id": categories[each.label],
            "bbox": [left, top, right - left, bottom - top],
            "area": _area(each),
            "iscrowd": 0,
        }
        parts["annotations"].append(entry if each.outline is None else {**entry, "segmentation": each.outline})


def _problem(each: SourceObject, shape: tuple[int, int]) -> str:
    """Return why our reader would refuse or leave out an object, or ""."""
    left, top, right, bottom = each.box
    if min(right, shape[1]) - max(left, 0) < 1 or min(bottom, shape[0]) - max(top, 0) < 1:
        return "objects of less than a pixel inside their image"
    outline = check_outline(each.outline, *shape)
    if outline.is_degenerate:
        return "objects whose outline has fewer than three different points"
    return f"objects whose outline {outline.problem}" if outline.problem else ""


def _area(each: SourceObject) -> float:
    left, top, right, bottom = each.box
    return outline_area(each.outline or None, (left, top, right - left, bottom - top))
