"""Guess the format of a data set from its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from piip.data.conversion.color_masks import COLOR_TABLE, MASK_FOLDERS
from piip.data.conversion.source import find_images
from piip.data.semantic_masks import CLASS_LIST

LOOKED_AT = 20  # files of a kind; they are of one format
COCO_ELSEWHERE = "export it as COCO there, which needs no conversion"


def guess_format(root: Path) -> str:
    """Return the name of a format.

    Args:
        root: Folder of the data set.

    Raises:
        ValueError: No format or several fit, or the data set needs no conversion or cannot be converted.
    """
    for path in sorted(root.rglob("*.json"))[:LOOKED_AT]:
        found = _of_json(path)
        if found:
            return found
    for path in sorted(root.rglob("*.xml"))[:LOOKED_AT]:
        start = path.read_text(encoding="utf-8", errors="replace")[:100_000]
        if re.search(r"<annotations\b", start):
            return "cvat"
        if re.search(r"<annotation\b", start) and "<size>" in start:
            return "voc"
    if any(_is_yolo(path) for path in sorted(root.rglob("*.txt"))[:LOOKED_AT]):
        return "yolo"
    has_masks = any((root / name).is_dir() for name in MASK_FOLDERS)
    if find_images(root) and (has_masks or any((root / name).is_file() for name in (COLOR_TABLE, CLASS_LIST))):
        return "masks"
    return _by_library(root)


def _of_json(path: Path) -> str:
    """Return the format that a JSON file tells, or ""."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # not JSON, not text, or nested without end
        return ""
    first = content[0] if isinstance(content, list) and content and isinstance(content[0], dict) else {}
    if isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys():
        return "labelme"
    if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
        raise ValueError(f"{path} is a COCO file, which is read as it is: set data.train and data.val in a recipe.")
    if "data" in first and {"annotations", "completions"} & first.keys():
        raise ValueError(f"{path} is a file of Label Studio: {COCO_ELSEWHERE}.")
    is_supervisely = path.name == "meta.json" and isinstance(content, dict) and "classes" in content
    if is_supervisely or (isinstance(content, dict) and {"size", "objects", "tags"} <= content.keys()):
        raise ValueError(f"{path} is a file of a Supervisely project: {COCO_ELSEWHERE}.")
    return ""


def _is_yolo(path: Path) -> bool:
    """Return whether a text file has a class and at least four numbers in its first line."""
    words = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].split()
    numbers = [word for word in words if re.fullmatch(r"-?\d*\.?\d+(?:[eE][-+]?\d+)?", word)]
    return len(words) >= 5 and len(numbers) == len(words)


def _by_library(root: Path) -> str:
    try:
        from datumaro import Environment
    except ModuleNotFoundError:
        found: list[str] = []
    else:
        found = Environment().detect_dataset(str(root))
        found = [name for name in found if name not in ("image_dir", "imagenet", "imagenet_with_subset_dirs")]
    if len(found) == 1:
        return found[0]
    which = f"{', '.join(found)} all fit" if found else "no format fits"
    raise ValueError(f"The format of {root} cannot be guessed ({which}): pass --format masks, yolo, voc, labelme, ...")
