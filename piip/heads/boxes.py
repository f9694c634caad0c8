"""Boxes: intersection over union, coding relative to other boxes, non-maximum suppression.

Boxes are (x1, y1, x2, y2) in pixels, float32. Conventions: those of MMDetection 2, which the released detectors were
trained with (`docs/official.md`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from piip.ops.compat import is_exporting

MAX_LOG_RATIO = abs(math.log(16 / 1000))
MAX_OFFSET_CANDIDATES = 10_000
LEAST_SIDE = 1e-6  # pixels


def areas(boxes: Tensor) -> Tensor:
    """Return the areas (...,) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of every pair, (N, M), of boxes (N, 4) and (M, 4)."""
    sides = boxes.t()[:, :, None], others.t().contiguous()  # one side after the other: three times as fast on CPUs
    low, high = torch.maximum, torch.minimum
    width, height = ((high(*(of[axis + 2] for of in sides)) - low(*(of[axis] for of in sides))) for axis in (0, 1))
    overlap = width.clamp(min=0) * height.clamp(min=0)
    union = areas(boxes)[:, None] + areas(others) - overlap
    return overlap / union.clamp(min=1e-6)


def clip_boxes(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Clip boxes (..., 4) to an image (H, W)."""
    height, width = shape
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), -1)


class BoxCoder:
    """Deltas of boxes relative to others: shifts in units of their sides, logarithms of the ratios of sides.

    Args:
        stds: Divisors of the deltas (dx, dy, dw, dh).
    """

    def __init__(self, stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        self.stds = tuple(stds)

    def encode(self, sources: Tensor, targets: Tensor) -> Tensor:
        """Return the deltas (N, 4) from boxes to other boxes, both (N, 4); finite for boxes without area too."""
        size, wanted = ((boxes[:, 2:] - boxes[:, :2]).clamp(min=LEAST_SIDE) for boxes in (sources, targets))
        shift = ((targets[:, :2] + targets[:, 2:]) - (sources[:, :2] + sources[:, 2:])) * 0.5 / size
        return torch.cat((shift, (wanted / size).log()), 1) / sources.new_tensor(self.stds)

    def decode(self, sources: Tensor, deltas: Tensor, shape: tuple[int, int]) -> Tensor:
        """Apply deltas to boxes and clip to the image.

        Args:
            sources: (N, 4).
            deltas: (N, 4) or (N, K, 4).
            shape: (H, W) of the image.

        Returns:
            Boxes of the shape of the deltas.
        """
        deltas = deltas * deltas.new_tensor(self.stds)
        if deltas.dim() == 3:
            sources = sources[:, None]
        size = sources[..., 2:] - sources[..., :2]
        centre = (sources[..., :2] + sources[..., 2:]) * 0.5 + size * deltas[..., :2]
        half = size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
        return clip_boxes(torch.cat((centre - half, centre + half), -1), shape)


def class_offset_nms(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Suppress duplicates within each class.

    parity: boxes of a class are shifted apart in float32 instead of being compared class by class, which rounds
    overlaps by about 0.01 pixels; from 10,000 candidates on the shifted boxes are compared class by class.

    Args:
        boxes: (N, 4).
        scores: (N,).
        classes: Integers (N,).
        threshold: IoU above which the lower-scored box is removed.

    Returns:
        Indices of the remaining boxes, highest score first, equal scores in the given order.
    """
    largest = F.pad(boxes.flatten(), (0, 1)).max()  # an additional zero, because there may be no boxes
    shifted = boxes + (classes.to(boxes) * (largest + 1))[:, None]
    # an exported program has one code path for any number of boxes
    if is_exporting() or len(boxes) < MAX_OFFSET_CANDIDATES:
        return nms(shifted, scores, threshold)
    kept = []
    for value in classes.unique():
        indices = (classes == value).nonzero().squeeze(1)
        kept.append(indices[nms(shifted[indices], scores[indices], threshold)])
    every = torch.cat(kept).sort().values
    return every[scores[every].argsort(descending=True, stable=True)]
