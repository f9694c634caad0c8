"""Losses of a set of predictions that is matched with target boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from piip.heads.dino.boxes import generalized_iou, to_pixels, to_relative
from piip.heads.dino.matching import FOCAL_ALPHA, FOCAL_GAMMA, Match
from piip.structures import ImageInfo, Target

DISTANCE_WEIGHT, OVERLAP_WEIGHT = 5.0, 2.0


def set_losses(
    logits: Tensor,
    boxes: Tensor,
    matches: Sequence[Match],
    targets: Sequence[Target],
    image_infos: Sequence[ImageInfo],
    normaliser: Tensor,
) -> dict[str, Tensor]:
    """Return "loss_cls", "loss_bbox" and "loss_iou", weighted: focal, L1 and GIoU.

    Queries without a target box are background in the first loss and ignored in the others.

    Args:
        logits: (B, Q, K).
        boxes: x, y, w, h in [0, 1], relative to the image, (B, Q, 4).
        matches: Pairs of every image.
        targets: "boxes" (G, 4) in network pixels and "labels" (G,) of every image.
        image_infos: Sizes and padding of the images.
        normaliser: Divisor of all sums, at least 1.
    """
    logits, boxes = logits.float(), boxes.float()
    wanted = torch.zeros_like(logits)
    distance, overlap = boxes.sum() * 0, boxes.sum() * 0
    for index, (pairs, target, image_info) in enumerate(zip(matches, targets, image_infos, strict=True)):
        target_boxes = target["boxes"][pairs.targets].float()
        wanted[index, pairs.queries, target["labels"][pairs.targets]] = 1
        found = boxes[index, pairs.queries]
        distance = distance + (found - to_relative(target_boxes, image_info.size)).abs().sum()
        overlap = overlap + (1 - generalized_iou(to_pixels(found, image_info.size), target_boxes)).sum()
    focal = sigmoid_focal_loss(logits, wanted, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="sum")
    return {
        "loss_cls": focal / normaliser,
        "loss_bbox": DISTANCE_WEIGHT * distance / normaliser,
        "loss_iou": OVERLAP_WEIGHT * overlap / normaliser,
    }


def mean_count(count: int, device: torch.device) -> Tensor:
    """Return a count, averaged over the processes that train together, but at least 1.

    All processes must call this equally often, including those without objects.

    Args:
        count: Count of this process.
        device: Device of the result.
    """
    total = torch.tensor(float(count), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total = total / torch.distributed.get_world_size()
    return total.clamp(min=1)
