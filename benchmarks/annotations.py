"""How long does it take to open a COCO file of the size of COCO's own, and how much memory do workers share?

    python benchmarks/annotations.py [--images 118000] [--objects 860000] [--points 24]

Draws a file of polygons and empty image files, opens it as training does, and prints processor seconds and memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common.progress import say

from piip.bench.worker import peak_resident_bytes
from piip.data.coco import CocoInstances


def write(root: Path, images: int, objects: int, points: int) -> None:
    """Write the file, and an empty file for every image."""
    generator = np.random.default_rng(0)
    turns = np.linspace(0, 2 * np.pi, points, endpoint=False)
    outline = np.stack((np.cos(turns), np.sin(turns)), 1) / 2 + 0.5
    corners, sides = generator.integers(0, 400, (objects, 2)), generator.integers(5, 70, (objects, 2))
    owners = generator.integers(1, images + 1, objects).tolist()
    annotations: list[dict[str, Any]] = []
    for number, (corner, side) in enumerate(zip(corners, sides, strict=True)):
        polygon = (outline * side + corner).round(2).ravel().tolist()
        box = [*corner.tolist(), *side.tolist()]
        annotations.append(
            {"id": number + 1, "image_id": owners[number], "category_id": 1 + number % 80, "bbox": box}
            | {"area": float(side.prod()), "iscrowd": 0, "segmentation": [polygon]}
        )
    (root / "images").mkdir()
    names = [f"{number:06d}.jpg" for number in range(images)]
    for name in names:
        (root / "images" / name).touch()
    entries = [{"id": i, "file_name": name, "height": 480, "width": 640} for i, name in enumerate(names, start=1)]
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (root / "train.json").write_text(json.dumps(content))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--objects", type=int, default=860_000)
    parser.add_argument("--points", type=int, default=24, help="points of a polygon")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, given.images, given.objects, given.points)
        start = time.process_time()
        data = CocoInstances(root / "train.json", root / "images", train=True)
        seconds = time.process_time() - start
        size = (root / "train.json").stat().st_size
    say(
        f"{given.objects} objects, {size / 1e6:.0f} MB: {len(data)} images opened in {seconds:.1f} s, peak "
        f"{peak_resident_bytes() / 1e9:.1f} GB (with drawing), {data.packed_bytes / 1e6:.0f} MB shared by workers"
    )


if __name__ == "__main__":
    main()
