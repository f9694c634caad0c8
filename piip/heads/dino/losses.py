"""Losses of sets of predictions that are matched with target boxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert, sigmoid_focal_loss

from piip.heads.dino.boxes import generalized_iou
from piip.heads.dino.matching import FOCAL_ALPHA, FOCAL_GAMMA, Match
from piip.heads.dino.targets import TrueBoxes

DISTANCE_WEIGHT, OVERLAP_WEIGHT = 5.0, 2.0


def set_losses(logits: Tensor, boxes: Tensor, pairs: Match, truth: TrueBoxes, normaliser: Tensor) -> dict[str, Tensor]:
    """Return "loss_cls", "loss_bbox" and "loss_iou" of every set, (S,), weighted: focal, L1 and GIoU.

    Queries without a target box are background in the first loss and ignored in the others.

    Args:
        logits: (S, B, Q, K).
        boxes: x, y, w, h in [0, 1], relative to the image, (S, B, Q, 4).
        pairs: Pairs of every set.
        truth: True boxes of the batch.
        normaliser: Divisor of all sums, at least 1.
    """
    logits, boxes = logits.float(), boxes.float()
    images = truth.images[pairs.targets]
    places = torch.arange(len(logits), device=logits.device)[:, None], images, pairs.queries
    wanted = torch.zeros_like(logits)
    wanted[(*places, truth.labels[pairs.targets])] = 1
    found = boxes[places]  # (S, M, 4)
    pixels = box_convert(found, "cxcywh", "xyxy") * truth.extents[images]
    distance = (found - truth.relative[pairs.targets]).abs().sum((1, 2))
    overlap = (1 - generalized_iou(pixels, truth.boxes[pairs.targets])).sum(1)
    focal = sigmoid_focal_loss(logits, wanted, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA).sum((1, 2, 3))
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
