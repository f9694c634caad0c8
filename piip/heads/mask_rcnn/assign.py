"""Assignment of candidate boxes to target boxes, and sampling of candidates for losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from piip.heads.boxes import pairwise_iou


class RegionSample(NamedTuple):
    """Candidates sampled for a loss.

    Attributes:
        positives: Indices of candidates with a target box, increasing.
        negatives: Indices of background candidates, increasing.
        matched: Index of the target box of every positive.
    """

    positives: Tensor
    negatives: Tensor
    matched: Tensor


def assign_by_overlap(
    candidates: Tensor, target_boxes: Tensor, *, positive: float, negative: float, min_iou: float
) -> Tensor:
    """Assign true boxes to candidates.

    Every true box also gets all candidates that overlap it most, with an IoU of at least `min_iou`; later true boxes
    take candidates from earlier ones.

    Args:
        candidates: (N, 4).
        target_boxes: (G, 4).
        positive: IoU from which a candidate is a true box's.
        negative: IoU below which it is background.
        min_iou: Minimum IoU of the best candidates of a true box.

    Returns:
        For every candidate the index of its true box, -1 for background, -2 for neither, (N,).

    Source: Faster R-CNN (arXiv 1506.01497), section 3.1.2; order and ties as in MMDetection 2.
    """
    if not len(target_boxes):
        return torch.full((len(candidates),), -1, device=candidates.device)
    overlaps = pairwise_iou(target_boxes, candidates)
    best, owner = overlaps.max(0)
    assigned = torch.full((len(candidates),), -2, device=candidates.device)
    assigned[best < negative] = -1
    assigned = torch.where(best >= positive, owner, assigned)
    for index, row in enumerate(overlaps):
        if len(row) and row.max() >= min_iou:
            assigned[row == row.max()] = index
    return assigned


def draw_sample(assigned: Tensor, count: int, positive_fraction: float) -> RegionSample:
    """Draw candidates at random, at most a fraction of them positive.

    Args:
        assigned: See `assign_by_overlap`.
        count: Candidates wanted.
        positive_fraction: Largest share of positives.
    """
    positives = _draw((assigned >= 0).nonzero().squeeze(1), int(count * positive_fraction))
    negatives = _draw((assigned == -1).nonzero().squeeze(1), count - len(positives))
    return RegionSample(positives, negatives, assigned[positives])


def _draw(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    order = torch.randperm(len(indices))[:count].to(indices.device)  # drawn on the CPU: the same on every device
    return indices[order].sort().values
