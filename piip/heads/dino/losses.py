"""Losses of a set of predictions whose pairs with true boxes are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from piip.heads.dino.boxes import generalized_iou, to_pixels, to_relative
from piip.heads.dino.matching import FOCAL_ALPHA, FOCAL_GAMMA, Match
from piip.heads.image_info import ImageFrame, Target

DISTANCE_WEIGHT, OVERLAP_WEIGHT = 5.0, 2.0


def set_losses(
    logits: Tensor,
    boxes: Tensor,
    matches: Sequence[Match],
    targets: Sequence[Target],
    frames: Sequence[ImageFrame],
    normaliser: Tensor,
) -> dict[str, Tensor]:
    """Return "loss_cls", "loss_bbox" and "loss_iou", weighted: focal, L1 and generalised overlap.

    Queries without a true box are background for the first, and nothing for the others.

    Args:
        logits: (B, Q, K).
        boxes: x, y, w, h in [0, 1], relative to the image, (B, Q, 4).
        matches: Pairs of every image.
        targets: "boxes" (G, 4) in network pixels and "labels" (G,) of every image.
        frames: The images.
        normaliser: What all sums are divided by, at least 1.
    """
    logits, boxes = logits.float(), boxes.float()
    wanted = torch.zeros_like(logits)
    distance, overlap = boxes.sum() * 0, boxes.sum() * 0
    for index, (pairs, target, frame) in enumerate(zip(matches, targets, frames, strict=True)):
        truths = target["boxes"][pairs.truths].float()
        wanted[index, pairs.queries, target["labels"][pairs.truths]] = 1
        found = boxes[index, pairs.queries]
        distance = distance + (found - to_relative(truths, frame.size)).abs().sum()
        overlap = overlap + (1 - generalized_iou(to_pixels(found, frame.size), truths)).sum()
    focal = sigmoid_focal_loss(logits, wanted, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="sum")
    return {
        "loss_cls": focal / normaliser,
        "loss_bbox": DISTANCE_WEIGHT * distance / normaliser,
        "loss_iou": OVERLAP_WEIGHT * overlap / normaliser,
    }


def mean_count(count: int, device: torch.device) -> Tensor:
    """Return a count, averaged over the processes that train together, but at least 1.

    All processes must call this equally often, those without objects too.

    Args:
        count: Of this process.
        device: Where the result lives.
    """
    total = torch.tensor(float(count), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total = total / torch.distributed.get_world_size()
    return total.clamp(min=1)
