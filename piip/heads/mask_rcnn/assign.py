"""Assignment of candidate boxes to target boxes, and sampling of candidates for losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from piip.heads.boxes import pairwise_iou

BACKGROUND, NEITHER = -1, -2


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
    candidates: Tensor,
    target_boxes: Tensor,
    *,
    positive: float,
    negative: float,
    min_iou: float,
    allowed: Tensor | None = None,
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
        allowed: False for candidates to leave out, (N,); None allows all.

    Returns:
        For every candidate the index of its true box, -1 for background, -2 for neither, (N,).

    Source: Faster R-CNN (arXiv 1506.01497), section 3.1.2; order and ties as in MMDetection 2.
    """
    if len(target_boxes) and len(candidates):
        overlaps = pairwise_iou(target_boxes, candidates)
        if allowed is not None:
            overlaps = overlaps.masked_fill(~allowed, -1)
        best, owner = overlaps.max(0)
        unmatched = NEITHER + (best < negative).long()  # one more is background
        assigned = torch.where(best >= positive, owner, unmatched)
        most = overlaps.amax(1, keepdim=True)
        taken = (overlaps == most) & (most >= min_iou)
        # the last true box that takes a candidate, counted from 1, and 0 for none
        ranks = torch.arange(1, len(target_boxes) + 1, device=candidates.device, dtype=torch.int32)
        taker = (taken * ranks[:, None]).amax(0).long() - 1
        assigned = torch.where(taker >= 0, taker, assigned)
    else:
        assigned = torch.full((len(candidates),), BACKGROUND, device=candidates.device)
    return assigned if allowed is None else assigned.masked_fill(~allowed, NEITHER)


def draw_samples(assigned: Sequence[Tensor], count: int, positive_fraction: float) -> list[RegionSample]:
    """Draw candidates of every image at random, at most a fraction of them positive.

    All images are counted at once, since the host waits for every count.

    Args:
        assigned: Candidates of every image, (N_i,); see `assign_by_overlap`.
        count: Candidates wanted of an image.
        positive_fraction: Largest share of positives.
    """
    padded = pad_sequence([*assigned], batch_first=True, padding_value=NEITHER)  # (B, N)
    kinds = torch.stack((padded >= 0, padded == BACKGROUND), 1)
    found = kinds.nonzero()[:, 2].split(kinds.sum(2).flatten().tolist())
    samples = []
    for index, of_image in enumerate(assigned):
        positives = _draw(found[2 * index], int(count * positive_fraction))
        negatives = _draw(found[2 * index + 1], count - len(positives))
        samples.append(RegionSample(positives, negatives, of_image[positives]))
    return samples


def _draw(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    order = torch.randperm(len(indices))[:count].to(indices.device)  # drawn on the CPU: the same on every device
    return indices[order].sort().values
