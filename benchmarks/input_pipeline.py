"""How many images per second does one loading process prepare, beside torchvision's reference transforms?

    python benchmarks/input_pipeline.py [--images 24] [--rounds 5] [--size 480 640]

Drawn JPEGs with 10 to 50 objects, read from disk, in one process and one thread, as in each worker of a data loader.
Both sides read the same files, resize to a random shorter side from 400 to 560, crop 384 x 384, flip every second image
and normalise. torchvision's side is its reference recipe for detection (v2 transforms on tv_tensors, masks decoded by
pycocotools) and segmentation. Rounds alternate; medians count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.progress import say
from PIL import Image, ImageDraw
from pycocotools import mask as coder
from torchvision import tv_tensors
from torchvision.transforms import v2

from piip.data.coco import CocoInstances
from piip.data.collate import DenseTransform
from piip.data.semantic_masks import SemanticMasks
from piip.data.transforms.dense import DenseTransformConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHORT_SIDES, CROP, CLASSES = tuple(range(400, 561, 32)), 384, 10
Prepare = Callable[[int], Any]


def draw(root: Path, count: int, size: tuple[int, int]) -> None:
    """Write images, objects as polygons, and semantic masks."""
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    images, annotations = [], []
    for number in range(count):
        noise = generator.integers(0, 255, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
        picture, mask = Image.fromarray(noise).resize(size[::-1]), Image.new("L", size[::-1])
        for _ in range(int(generator.integers(10, 51))):
            middle, radius = generator.uniform(20, (size[1] - 20, size[0] - 20)), generator.uniform(8, 60)
            turns = np.sort(generator.uniform(0, 2 * np.pi, 20))
            points = (middle + radius * np.stack((np.cos(turns), np.sin(turns)), 1)).clip(0, (size[1], size[0]))
            kind = int(generator.integers(CLASSES))
            polygon = points.round(2).ravel().tolist()
            ImageDraw.Draw(picture).polygon(polygon, fill=tuple(generator.integers(0, 255, 3).tolist()))
            ImageDraw.Draw(mask).polygon(polygon, fill=kind)
            (left, top), (right, bottom) = points.min(0), points.max(0)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": kind, "iscrowd": 0}
                | {"bbox": [left, top, right - left, bottom - top], "segmentation": [polygon]}
            )
        picture.save(root / "images" / f"{number}.jpg", quality=90)
        mask.save(root / "masks" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": size[0], "width": size[1]})
    categories = [{"id": kind, "name": f"class {kind}"} for kind in range(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "objects.json").write_text(json.dumps(content))


def ours(root: Path) -> dict[str, Prepare]:
    """Return our pipelines by task."""
    config = DenseTransformConfig(train_short_sides=SHORT_SIDES, crop=CROP, mean=MEAN, std=STD)
    objects = CocoInstances(root / "objects.json", root / "images", train=True)
    masks = SemanticMasks(root / "masks", root / "images", num_classes=CLASSES, train=True)
    objects.transform = masks.transform = DenseTransform(config, train=True)
    return {"detection": objects.__getitem__, "segmentation": masks.__getitem__}


def torchvisions(root: Path) -> dict[str, Prepare]:
    """Return pipelines of torchvision's reference transforms by task."""
    content = json.loads((root / "objects.json").read_text())
    common = [v2.RandomShortestSize(list(SHORT_SIDES)), v2.RandomCrop(CROP, pad_if_needed=True)]
    common += [v2.RandomHorizontalFlip(0.5), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    common.insert(0, v2.ToImage())
    detection = v2.Compose([*common, v2.SanitizeBoundingBoxes(), v2.ToPureTensor()])
    segmentation = v2.Compose([*common, v2.ToPureTensor()])
    rows: list[list[dict[str, Any]]] = [[] for _ in content["images"]]
    for row in content["annotations"]:
        rows[row["image_id"]].append(row)

    def detect(index: int) -> Any:
        image = Image.open(root / "images" / f"{index}.jpg").convert("RGB")
        size = (image.height, image.width)
        parts = [coder.decode(coder.frPyObjects(row["segmentation"], *size)) for row in rows[index]]
        boxes = torch.tensor([row["bbox"] for row in rows[index]])
        boxes[:, 2:] += boxes[:, :2]
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "masks": tv_tensors.Mask(torch.stack([torch.as_tensor(part).any(2) for part in parts])),
            "labels": torch.tensor([row["category_id"] for row in rows[index]]),
        }
        return detection(image, target)

    def segment(index: int) -> Any:
        image = Image.open(root / "images" / f"{index}.jpg").convert("RGB")
        mask = tv_tensors.Mask(v2.functional.pil_to_tensor(Image.open(root / "masks" / f"{index}.png")))
        return segmentation(image, mask)

    return {"detection": detect, "segmentation": segment}


def seconds(prepare: Prepare, count: int) -> float:
    """Return the time of one pass over the images."""
    start = time.perf_counter()
    for index in range(count):
        prepare(index)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw(root, given.images, tuple(given.size))
        pipelines = {"piip": ours(root), "torchvision": torchvisions(root)}
        for task in ("detection", "segmentation"):
            taken: dict[str, list[float]] = {name: [] for name in pipelines}
            for number in range(given.rounds + 1):
                for name, of_task in pipelines.items():
                    passed = seconds(of_task[task], given.images)
                    taken[name] += [passed] if number else []  # the first round reads the files
            rates = {name: given.images / statistics.median(values) for name, values in taken.items()}
            say(f"{task}: " + ", ".join(f"{name} {rate:.1f} images/s" for name, rate in rates.items()))


if __name__ == "__main__":
    main()
