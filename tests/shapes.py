"""Small data sets of coloured shapes: instances in COCO format, semantic masks in ADE20K layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("box", "disc")


def draw_shapes(seed: int, shape: tuple[int, int]) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Return a picture and the class and mask of every shape in it."""
    rng = np.random.default_rng(seed)
    height, width = shape
    picture = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
    shapes, taken = [], np.zeros(shape, bool)
    rows, columns = np.mgrid[:height, :width]
    for number in range(4):
        kind, radius = number % 2, int(rng.integers(7, 13))
        y, x = int(rng.integers(radius, height - radius)), int(rng.integers(radius, width - radius))
        far = np.maximum(abs(rows - y), abs(columns - x)) if kind == 0 else np.hypot(rows - y, columns - x)
        mask = (far <= radius) & ~taken
        if mask.sum() < 40:
            continue
        taken |= mask
        picture[mask] = (220, 60, 60) if kind == 0 else (60, 220, 60)
        shapes.append((kind, mask))
    return picture, shapes


def write_coco(root: Path, split: str, count: int, *, seed: int = 0) -> dict[str, Any]:
    """Write `count` pictures below `root/split` and `root/split.json`, polygons and run lengths in turn."""
    from faster_coco_eval.core import mask as coder

    (root / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        shape = (64, 96) if number % 2 else (80, 64)
        picture, shapes = draw_shapes(seed * 1000 + number, shape)
        Image.fromarray(picture).save(root / split / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": shape[0], "width": shape[1]})
        for kind, mask in shapes:
            coded = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
            left, top, width, height = (float(value) for value in coder.toBbox(coded))
            segmentation: Any = {"size": list(coded["size"]), "counts": coded["counts"].decode()}
            if kind == 0 and mask.sum() == width * height:
                right, bottom = left + width, top + height
                segmentation = [[left, top, right, top, right, bottom, left, bottom]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 10 * (kind + 1),
                    "bbox": [left, top, width, height],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": segmentation,
                }
            )
    categories = [{"id": 10 * (index + 1), "name": name} for index, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))
    return content


def write_semantic_masks(root: Path, split: str, count: int, *, seed: int = 0) -> None:
    """Write `count` pictures and maps: 0 unknown ground, 1 box, 2 disc (as ADE20K: 0 is ignored)."""
    for folder in ("images", "annotations"):
        (root / folder / split).mkdir(parents=True)
    (root / "classes.txt").write_text("box\ndisc\n")
    for number in range(1, count + 1):
        picture, shapes = draw_shapes(seed * 1000 + number, (64, 64))
        labels = np.zeros((64, 64), np.uint8)
        for kind, mask in shapes:
            labels[mask] = kind + 1
        Image.fromarray(picture).save(root / "images" / split / f"{number}.jpg", quality=95)
        Image.fromarray(labels).save(root / "annotations" / split / f"{number}.png")


def dense_recipe(root: Path, out: Path, kind: str) -> dict[str, Any]:
    """Return a recipe of a small pyramid for one of the two data sets."""
    branches = [
        {"network": "convnext_atto", "image_size": 32, "timm_args": {"depths": [1, 1, 1, 1], "dims": [16, 24, 32, 48]}},
        {"network": "convnext_atto", "image_size": 64, "timm_args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}},
    ]
    heads = {"coco": "mask_rcnn", "semantic_masks": "upernet"}
    paths = {
        "coco": {"train": "train.json", "val": "val.json", "train_images": "train", "val_images": "val"},
        "semantic_masks": {
            "train": "annotations/train",
            "val": "annotations/val",
            "train_images": "images/train",
            "val_images": "images/val",
        },
    }
    dense: dict[str, Any] = {"crop": 64, "pad_divisor": 32}
    if kind == "semantic_masks":
        dense["reduce_zero_label"] = True
    return {
        "model": {
            "branches": branches,
            "interaction": {"count": 4, "num_heads": 4},
            "merge": {"kind": "slim"},
            "neck": {"kind": "interaction", "interactions": [0, 1, 2]},
            "head": {"kind": heads[kind], "num_classes": 2, "width": 16},
        },
        "data": {"kind": kind, "root": str(root), "batch_size": 2, "workers": 0, "dense": dense, **paths[kind]},
        "optim": {"lr": 2e-3, "rate_outside_branches": 1.0, "clip": 5.0},
        "schedule": {"epochs": 2, "min_lr": 1e-5},
        "run": {"out": str(out), "log_every": 1, "checkpoint_every": 2},
    }
