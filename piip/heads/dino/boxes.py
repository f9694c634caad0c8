"""Boxes as transformers predict them: centre and sides (x, y, w, h), relative to the image, and their logits.

All computations are in float32, regardless of the precision of the network.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert

from piip.heads.boxes import areas

REFINEMENT_EPSILON = 1e-3


def inverse_sigmoid(values: Tensor, epsilon: float = REFINEMENT_EPSILON) -> Tensor:
    """Return the logits of values in [0, 1].

    parity: each of x and 1 - x is bounded from below on its own, so the logit of 0 is log(epsilon), where
    `torch.logit` gives log(epsilon / (1 - epsilon)).

    Args:
        values: Of any shape.
        epsilon: Minimum of x and of 1 - x.
    """
    values = values.clamp(0, 1)
    return (values.clamp(min=epsilon) / (1 - values).clamp(min=epsilon)).log()


def image_extent(size: tuple[int, int], like: Tensor) -> Tensor:
    """Return (W, H, W, H) of an image (H, W), on the device of a tensor, float32, (4,)."""
    return torch.tensor((size[1], size[0]) * 2, dtype=torch.float32, device=like.device)


def to_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return relative boxes (..., 4) as x1, y1, x2, y2 in pixels of an image (H, W)."""
    return box_convert(boxes, "cxcywh", "xyxy") * image_extent(size, boxes)


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the generalised intersection over union of boxes with others, element by element.

    Unlike torchvision's it is finite for boxes without area: areas are bounded from below.

    Args:
        boxes: (..., 4) as x1, y1, x2, y2 in pixels.
        others: In the same form; the shapes may broadcast, (N, 1, 4) and (M, 4) give every pair (N, M).

    Returns:
        Values in [-1, 1], (...,).

    Source: arXiv 1902.09630; bounds of MMDetection 2 (`docs/official.md`).
    """
    overlap_sides = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    hull_sides = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    overlap = overlap_sides.clamp(min=0).prod(-1)
    hull = hull_sides.clamp(min=0).prod(-1).clamp(min=1e-6)
    union = (areas(boxes) + areas(others) - overlap).clamp(min=1e-6)
    return overlap / union - (hull - union) / hull
