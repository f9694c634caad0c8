"""Choose the windows of the land-cover data sets and write them to disk.

Shapes: H W size of the photograph, N windows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from piip.data.semantic_masks import CLASS_LIST
from piip.data.sources.landcover_map import (
    CLASSES,
    IGNORE,
    SPLITS,
    WATER,
    SplitPlan,
    Windows,
    cap_class,
    class_counts,
    majority_class,
    merge_classes,
    resample_nearest,
)
from piip.data.sources.landcover_samples import draw_samples

NAMES = tuple(land_class.name for land_class in CLASSES)
JPEG_QUALITY = 95

# Windows of the classification set, by split and class name; of the segmentation set, by split.
Patches = dict[str, dict[str, Windows]]
Tiles = dict[str, Windows]


@dataclass(frozen=True)
class LandcoverPlan:
    """Every number the data sets depend on, besides the seed.

    Args:
        classification: windows of the classification set.
        segmentation: windows of the segmentation set.
        core: side of the central square that decides the class, in pixels.
        min_cover: share of the central square its class must cover.
        train_cap: most training images of a class.
        eval_cap: most validation and most test images of a class.
        max_empty: share of water and ignored pixels above which a tile is dropped.
    """

    classification: SplitPlan
    segmentation: SplitPlan
    core: int = 32
    min_cover: float = 0.6
    train_cap: int = 1200
    eval_cap: int = 200
    max_empty: float = 0.85


@dataclass(frozen=True)
class LandcoverReport:
    """What `landcover` wrote.

    Args:
        out: folder of the data sets.
        images: images of the classification set, by split and class name.
        tiles: tiles of the segmentation set, by split.
        pixels: labelled pixels of the segmentation set, by split and class name.
    """

    out: Path
    images: dict[str, dict[str, int]]
    tiles: dict[str, int]
    pixels: dict[str, dict[str, int]]


def write_datasets(
    photo: NDArray[np.uint8],
    igbp: NDArray[np.uint8],
    out: Path,
    *,
    plan: LandcoverPlan,
    seed: int,
    sources: dict[str, str] | None = None,
) -> LandcoverReport:
    """Cut a photograph and a land-cover map of the same extent into both data sets.

    Args:
        photo: RGB in 0 ... 255, (H, W, 3).
        igbp: IGBP numbers 0 ... 16, (H', W').
        out: folder to write; an older one is replaced once the new one is complete.
        plan: where the windows lie and how many stay.
        seed: decides which windows stay where a class has too many.
        sources: hash of every source file by name, noted in ``report.json``.

    Returns:
        Where the data sets are and how much of each class they hold.
    """
    height, width = photo.shape[:2]
    labels = merge_classes(resample_nearest(igbp, height, width), photo)
    patches = select_patches(labels, plan, seed)
    tiles = select_tiles(labels, plan)
    partial = out.absolute().with_name(f".{out.absolute().name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        _write_patches(photo, patches, plan.classification.size, partial / "classification")
        _write_tiles(photo, labels, tiles, plan.segmentation.size, partial / "segmentation")
        report = summarise(out, labels, patches, tiles, plan)
        _write_json(partial / "classes.json", describe_classes())
        details = describe_run(report, patches, tiles, plan, seed)
        _write_json(partial / "report.json", {"sources": sources or {}, **details})
        sizes = (plan.classification.size, plan.segmentation.size)
        draw_samples(photo, labels, patches, tiles, *sizes).save(partial / "samples.png")
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def select_patches(labels: NDArray[np.uint8], plan: LandcoverPlan, seed: int) -> Patches:
    """Choose the windows of the classification set.

    Args:
        labels: class indices or `IGNORE`, (H, W).
        plan: where the windows lie and how many stay.
        seed: decides which windows stay where a class has too many.

    Returns:
        Windows by split and class name; every class is there, if only with none.
    """
    height, width = labels.shape
    task = plan.classification
    patches: Patches = {}
    for split_index, split in enumerate(SPLITS):
        windows = task.windows(split, height=height, width=width)
        classes = majority_class(
            labels,
            windows,
            size=task.size,
            core=plan.core,
            min_cover=plan.min_cover,
            num_classes=len(CLASSES),
        )
        cap = plan.train_cap if split == "train" else plan.eval_cap
        patches[split] = {
            name: cap_class(
                # One generator per split and class: a change in one leaves the others alone.
                windows[classes == index],
                cap,
                np.random.default_rng([seed, split_index, index]),
            )
            for index, name in enumerate(NAMES)
        }
    return patches


def select_tiles(labels: NDArray[np.uint8], plan: LandcoverPlan) -> Tiles:
    """Choose the windows of the segmentation set: all but those of nearly only water.

    Args:
        labels: class indices or `IGNORE`, (H, W).
        plan: where the windows lie and how empty they may be.

    Returns:
        Windows by split.
    """
    height, width = labels.shape
    task = plan.segmentation
    tiles: Tiles = {}
    for split in SPLITS:
        windows = task.windows(split, height=height, width=width)
        counts = class_counts(labels, windows, size=task.size, num_classes=len(CLASSES))
        land = counts.sum(axis=1) - counts[:, WATER]
        tiles[split] = windows[land >= (1.0 - plan.max_empty) * task.size**2]
    return tiles


def window_name(top: int, left: int) -> str:
    """Return the file name without suffix of a window, its position in the photograph."""
    return f"y{top:04d}_x{left:04d}"


def _write_patches(photo: NDArray[np.uint8], patches: Patches, size: int, folder: Path) -> None:
    """Write the classification set in ImageNet layout."""
    for split, by_class in patches.items():
        for name, windows in track(by_class.items(), description=f"{split} patches"):
            target = folder / split / name
            target.mkdir(parents=True)
            for top, left in windows.tolist():
                _write_jpeg(photo, top, left, size, target)


def _write_tiles(photo: NDArray[np.uint8], labels: NDArray[np.uint8], tiles: Tiles, size: int, folder: Path) -> None:
    """Write the segmentation set: images and semantic masks of the same name, and the names of the classes."""
    for split, windows in tiles.items():
        images, masks = folder / split / "images", folder / split / "labels"
        images.mkdir(parents=True)
        masks.mkdir()
        for top, left in track(windows.tolist(), description=f"{split} tiles"):
            _write_jpeg(photo, top, left, size, images)
            mask = Image.fromarray(labels[top : top + size, left : left + size])
            mask.save(masks / f"{window_name(top, left)}.png")
    (folder / CLASS_LIST).write_text("\n".join(NAMES) + "\n", encoding="utf-8")


def _write_jpeg(photo: NDArray[np.uint8], top: int, left: int, size: int, folder: Path) -> None:
    """Write one window of the photograph, itself a JPEG: PNG would gain little."""
    image = Image.fromarray(photo[top : top + size, left : left + size])
    path = folder / f"{window_name(top, left)}.jpg"
    image.save(path, quality=JPEG_QUALITY, subsampling=0, optimize=True)


def summarise(
    out: Path, labels: NDArray[np.uint8], patches: Patches, tiles: Tiles, plan: LandcoverPlan
) -> LandcoverReport:
    """Count images and labelled pixels per class and split.

    Args:
        out: folder of the data sets.
        labels: class indices or `IGNORE`, (H, W).
        patches: windows of the classification set.
        tiles: windows of the segmentation set.
        plan: for the size of a tile.

    Returns:
        The counts; a pixel in several overlapping tiles counts once per tile.
    """
    size = plan.segmentation.size
    pixels = {}
    for split, windows in tiles.items():
        counts = class_counts(labels, windows, size=size, num_classes=len(CLASSES)).sum(axis=0)
        pixels[split] = dict(zip(NAMES, counts.tolist(), strict=True))
    return LandcoverReport(
        out=out,
        images={split: {n: len(w) for n, w in c.items()} for split, c in patches.items()},
        tiles={split: len(windows) for split, windows in tiles.items()},
        pixels=pixels,
    )


def describe_classes() -> dict[str, object]:
    """Return the content of ``classes.json``: index, name, IGBP numbers, colour of each class."""
    rows = [{"index": index, **asdict(entry)} for index, entry in enumerate(CLASSES)]
    return {"classes": rows, "ignore_index": IGNORE}


def describe_run(
    report: LandcoverReport, patches: Patches, tiles: Tiles, plan: LandcoverPlan, seed: int
) -> dict[str, object]:
    """Return the content of ``report.json``: counts, parameters, and a hash of all positions.

    The hash tells whether two machines chose the same windows, even where their JPEG encoders
    differ; neither the time nor the folder is in it.
    """
    lines = [
        f"{split}/{name}/{window_name(*window)}"
        for split, by_class in patches.items()
        for name, windows in by_class.items()
        for window in windows.tolist()
    ]
    lines += [f"{s}/{window_name(*window)}" for s, w in tiles.items() for window in w.tolist()]
    return {
        "images": report.images,
        "tiles": report.tiles,
        "pixels": report.pixels,
        "windows_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "seed": seed,
        "plan": asdict(plan),
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    """Write a small JSON file for people and programs."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
