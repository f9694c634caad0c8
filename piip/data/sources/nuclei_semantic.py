"""Semantic masks of the nuclei: background, interior and border, so that touching nuclei stay apart."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from piip.data.semantic_masks import CLASS_LIST

CLASSES = ("background", "interior", "border")
BORDER_WIDTH = 2  # pixels of a nucleus, from its outline inwards
FOLDER = "semantic"


def write_semantic_nuclei(root: str | Path) -> dict[str, dict[str, int]]:
    """Write `semantic/` beside the COCO files of `convert_nuclei`: the same splits in the layout of ADE20K.

    Args:
        root: Folder with images/, train.json, val.json and test.json.

    Returns:
        Pixels of every class, by split.
    """
    root = Path(root)
    counts: dict[str, dict[str, int]] = {}
    for path in sorted(root.glob("*.json")):
        split, content = path.stem, json.loads(path.read_text(encoding="utf-8"))
        annotations, images = (root / FOLDER / kind / split for kind in ("annotations", "images"))
        for folder in (annotations, images):
            folder.mkdir(parents=True)
        objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        for entry in content["annotations"]:
            objects[entry["image_id"]].append(entry["segmentation"])
        totals = np.zeros(len(CLASSES), int)
        for image in content["images"]:
            labels = semantic_mask(objects[image["id"]], (image["height"], image["width"]))
            totals += np.bincount(labels.ravel(), minlength=len(CLASSES))
            Image.fromarray(labels).save(annotations / image["file_name"])
            _link(root / "images" / image["file_name"], images / image["file_name"])
        counts[split] = dict(zip(CLASSES, totals.tolist(), strict=True))
    (root / FOLDER / CLASS_LIST).write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return counts


def semantic_mask(outlines: list[dict[str, Any]], shape: tuple[int, int]) -> np.ndarray:
    """Return the class of every pixel: 0 background, 1 interior, 2 border; a pixel of two nuclei is border.

    Args:
        outlines: Run lengths of the nuclei, as in COCO files.
        shape: (H, W) in pixels.
    """
    from faster_coco_eval.core import mask as coder

    labels = np.zeros(shape, np.uint8)
    for outline in outlines:
        mask = coder.decode(outline).astype(bool)
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        if not len(rows):
            continue
        # a pixel more on each side, where there is one: what is outside the image is no outline
        box = tuple(slice(max(0, seen[0] - 1), seen[-1] + 2) for seen in (rows, columns))
        inside = mask[box]
        for _ in range(BORDER_WIDTH):
            inside = _eroded(inside)
        classes = np.where(inside, 1, 2 * mask[box]).astype(np.uint8)
        labels[box] = np.where((labels[box] > 0) & mask[box], 2, np.maximum(labels[box], classes))
    return labels


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Return the pixels whose four neighbours are in a mask (H, W), too; those outside the image count as in it."""
    padded = np.pad(mask, 1, mode="edge")
    sides = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.logical_and.reduce([mask, *sides])


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)
