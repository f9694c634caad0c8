"""Resizing, cropping and flipping images (C, H, W) together with their targets; see `piip.data.collate`."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from piip.data.object_masks import as_masks
from piip.data.transforms.official_resize import resize_like_opencv
from piip.structures import IGNORE_INDEX, Target

MIN_SIDE = 1.0  # pixels; smaller boxes are removed after cropping
ATTEMPTS = 10  # maximum number of crops drawn until no class covers too much


def resize_image(image: Tensor, size: tuple[int, int], rule: str) -> Tensor:
    """Resize an 8-bit image (C, H, W) to (H, W) by a rule of `DenseTransformConfig.resize`."""
    if rule == "official":
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        return torch.from_numpy(np.ascontiguousarray(resize_like_opencv(pixels, size))).permute(2, 0, 1)
    return F.resize(image, list(size), antialias=True) if tuple(image.shape[-2:]) != size else image


def resize_target(target: Mapping[str, Any], shape: tuple[int, int], size: tuple[int, int]) -> Mapping[str, Any]:
    """Resize a target from one image size (H, W) to another; masks and semantic masks by nearest neighbour."""
    if shape == size:
        return target
    resized = dict(target)
    if "boxes" in target:
        factor = torch.tensor([size[1] / shape[1], size[0] / shape[0]] * 2)
        resized["boxes"] = target["boxes"] * factor
    if "masks" in target:
        resized["masks"] = as_masks(target["masks"]).resized(size)
    if "labels" in target and target["labels"].dim() > 1:
        nearest = F.resize(target["labels"].byte()[None], list(size), interpolation=v2.InterpolationMode.NEAREST)
        resized["labels"] = nearest[0].to(target["labels"].dtype)
    return resized


def with_pixels(target: Mapping[str, Any]) -> Target:
    """Return a target whose masks are decoded."""
    return {name: as_masks(values).decode() if name == "masks" else values for name, values in target.items()}


def cropped(
    image: Tensor, target: Mapping[str, Any], size: tuple[int, int], *, max_class_fraction: float = 1.0
) -> tuple[Tensor, Target]:
    """Return a random crop of an image and its target.

    Args:
        image: (C, H, W).
        target: Its target; objects outside the crop are removed.
        size: Height and width of the crop, at most the image's.
        max_class_fraction: Maximum fraction of a crop's labelled pixels that one class of a semantic mask may cover;
            the tenth crop is used in any case.

    Source:
        mmsegmentation's `RandomCrop(cat_max_ratio=...)`, for the limit on a class.
    """
    height, width = min(size[0], image.shape[1]), min(size[1], image.shape[2])
    for _ in range(ATTEMPTS):
        top, left = random.randint(0, image.shape[1] - height), random.randint(0, image.shape[2] - width)
        rows, columns = slice(top, top + height), slice(left, left + width)
        if max_class_fraction == 1 or _largest_fraction(target["labels"][rows, columns]) < max_class_fraction:
            break
    if "boxes" in target:
        return image[:, rows, columns], _cropped_objects(target, rows, columns)
    cut = {name: values[..., rows, columns] if values.dim() > 1 else values for name, values in target.items()}
    return image[:, rows, columns], cut


def _cropped_objects(target: Mapping[str, Any], rows: slice, columns: slice) -> Target:
    """Return the objects that a crop shows."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    boxes = target["boxes"] - torch.tensor([columns.start, rows.start, columns.start, rows.start])
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(1)
    cut: Target = {"boxes": boxes[kept], "labels": target["labels"][kept]}
    if "masks" not in target:
        return cut
    cut["masks"] = as_masks(target["masks"]).decode(rows, columns, kept)
    shown = cut["masks"].flatten(1).any(1)
    return {name: values[shown] for name, values in cut.items()}


def _largest_fraction(labels: Tensor) -> float:
    """Return the fraction of the most frequent class; 1 if there is at most one class."""
    counts = labels[labels != IGNORE_INDEX].unique(return_counts=True)[1]
    return float(counts.max() / counts.sum()) if len(counts) > 1 else 1.0


def flipped(target: Target, side: int, dimension: int) -> Target:
    """Return the target of a flipped image.

    Args:
        target: The target.
        side: Pixels of the flipped dimension.
        dimension: -1 flips left and right, -2 up and down.
    """
    turned = {name: values.flip(dimension) if values.dim() > 1 else values for name, values in target.items()}
    if "boxes" in target:
        low, high = (0, 2) if dimension == -1 else (1, 3)
        boxes = target["boxes"].clone()
        boxes[:, low], boxes[:, high] = side - target["boxes"][:, high], side - target["boxes"][:, low]
        turned["boxes"] = boxes
    return turned
