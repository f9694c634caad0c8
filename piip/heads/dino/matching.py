"""Matching of queries and target boxes: costs, and the assignment with the minimum total cost."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from piip.heads.dino.boxes import generalized_iou, to_pixels, to_relative
from piip.structures import Target

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
SCORE_COST, DISTANCE_COST, OVERLAP_COST = 2.0, 5.0, 2.0


class Match(NamedTuple):
    """Pairs of queries and true boxes of one image.

    Attributes:
        queries: Indices of queries, (M,).
        targets: Indices of true boxes, (M,).
    """

    queries: Tensor
    targets: Tensor


@torch.no_grad()
def match_costs(logits: Tensor, boxes: Tensor, target: Target, size: tuple[int, int]) -> Tensor:
    """Return the costs of matching queries with target boxes, (..., Q, G).

    Args:
        logits: Class logits (..., Q, K).
        boxes: Predicted boxes x, y, w, h, relative to the image, (..., Q, 4).
        target: "boxes" (G, 4) in network pixels and "labels" (G,).
        size: (H, W) of the image in network pixels.

    Source: arXiv 2203.03605; focal cost as in MMDetection 2 (`docs/official.md`).
    """
    target_boxes = target["boxes"].float()
    chance = logits.float().sigmoid()[..., target["labels"]]
    background = -(1 - chance + 1e-12).log() * (1 - FOCAL_ALPHA) * chance**FOCAL_GAMMA
    object_ = -(chance + 1e-12).log() * FOCAL_ALPHA * (1 - chance) ** FOCAL_GAMMA
    distance = (boxes.float()[..., None, :] - to_relative(target_boxes, size)).abs().sum(-1)
    overlap = generalized_iou(to_pixels(boxes.float(), size)[..., None, :], target_boxes)
    return SCORE_COST * (object_ - background) + DISTANCE_COST * distance - OVERLAP_COST * overlap


def match(logits: Tensor, boxes: Tensor, target: Target, size: tuple[int, int]) -> list[Match]:
    """Match the queries of one image with its true boxes, for several sets of predictions.

    Every target box gets one query; with more boxes than queries, every query gets one box.

    Args:
        logits: (S, Q, K).
        boxes: (S, Q, 4).
        target: See `match_costs`.
        size: See `match_costs`.

    Returns:
        A match for every set, sorted by query.
    """
    from scipy.optimize import linear_sum_assignment  # in the extra `train`; prediction does not need it

    device = logits.device
    costs = match_costs(logits, boxes, target, size).nan_to_num()  # a non-finite loss is reported elsewhere
    pairs = [linear_sum_assignment(cost) for cost in costs.double().cpu().numpy()]  # one transfer for all sets
    return [Match(torch.as_tensor(rows, device=device), torch.as_tensor(cols, device=device)) for rows, cols in pairs]
