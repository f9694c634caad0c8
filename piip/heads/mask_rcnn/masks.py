"""Masks of regions and masks of images.

Source: Mask R-CNN (arXiv 1703.06870); sampled at pixel centres as MMDetection 2 does (`docs/official.md`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from piip.heads.boxes import clip_boxes

SIDE = 28
THRESHOLD = 0.5


def mask_targets(masks: Tensor, boxes: Tensor) -> Tensor:
    """Cut the wanted masks of regions out of true masks.

    Args:
        masks: The true mask of every region in network pixels, bool (N, H, W).
        boxes: The regions (N, 4).

    Returns:
        Float zeros and ones (N, 28, 28).
    """
    if not len(boxes):
        return boxes.new_zeros(0, SIDE, SIDE)
    clipped = clip_boxes(boxes, (masks.shape[1], masks.shape[2]))
    regions = torch.cat((torch.arange(len(boxes), device=boxes.device).to(boxes)[:, None], clipped), 1)
    cut = roi_align(masks[:, None].to(boxes.dtype), regions, SIDE, 1.0, 0, aligned=True)
    return (cut[:, 0] >= THRESHOLD).to(boxes.dtype)


def paste_masks(probabilities: Tensor, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sample the masks of boxes at the pixel centres of an image.

    Args:
        probabilities: (N, 28, 28).
        boxes: (N, 4) in pixels of the image.
        shape: (H, W) of the image.

    Returns:
        bool (N, H, W).
    """
    canvas = torch.zeros(len(boxes), *shape, dtype=torch.bool, device=boxes.device)
    for index, box in enumerate(boxes):
        window = _pixels_around(box, shape)
        if window is not None:
            rows, columns = window
            canvas[index, rows, columns] = _sample(probabilities[index], box, rows, columns) >= THRESHOLD
    return canvas


def _pixels_around(box: Tensor, shape: tuple[int, int]) -> tuple[slice, slice] | None:
    """Return the rows and columns that a box can reach, or None for a box outside or without area."""
    left, top, right, bottom = box.tolist()
    if not (right > left and bottom > top):
        return None
    rows = slice(max(0, math.floor(top) - 1), min(shape[0], math.ceil(bottom) + 1))
    columns = slice(max(0, math.floor(left) - 1), min(shape[1], math.ceil(right) + 1))
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def _sample(mask: Tensor, box: Tensor, rows: slice, columns: slice) -> Tensor:
    y = torch.arange(rows.start, rows.stop, device=box.device, dtype=torch.float32) + 0.5
    x = torch.arange(columns.start, columns.stop, device=box.device, dtype=torch.float32) + 0.5
    y = (y - box[1]) / (box[3] - box[1]) * 2 - 1
    x = (x - box[0]) / (box[2] - box[0]) * 2 - 1
    points = torch.stack((x.expand(len(y), len(x)), y[:, None].expand(len(y), len(x))), -1)
    return F.grid_sample(mask[None, None].float(), points[None], align_corners=False)[0, 0]
