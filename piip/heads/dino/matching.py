"""Matching of queries and target boxes: costs, and the assignment with the minimum total cost.

S sets of predictions are treated at once: the selected cells and every decoder layer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from piip.heads.dino.boxes import generalized_iou
from piip.heads.dino.targets import TrueBoxes

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
SCORE_COST, DISTANCE_COST, OVERLAP_COST = 2.0, 5.0, 2.0


class Match(NamedTuple):
    """Pairs of queries and true boxes of a batch, M for every set of predictions.

    Attributes:
        queries: Indices of queries in their image, int64, (S, M).
        targets: Indices of true boxes in the batch, int64, (S, M).
    """

    queries: Tensor
    targets: Tensor


@torch.no_grad()
def match_costs(logits: Tensor, boxes: Tensor, truth: TrueBoxes) -> Tensor:
    """Return the costs of matching queries with the true boxes of their image, (S, B, Q, G).

    Images with fewer true boxes than others have columns without meaning at the end.

    Args:
        logits: Class logits (S, B, Q, K).
        boxes: Predicted boxes x, y, w, h, relative to the image, (S, B, Q, 4).
        truth: True boxes of the batch; G is their largest number in an image.

    Source: arXiv 2203.03605; focal cost as in MMDetection 2 (`docs/official.md`).
    """
    counts = list(truth.counts)
    labels, pixels, relative = (
        pad_sequence(values.split(counts), batch_first=True)[:, None]  # (B, 1, G) or (B, 1, G, 4)
        for values in (truth.labels, truth.boxes, truth.relative)
    )
    chance = logits.float().sigmoid().gather(-1, labels.expand(*logits.shape[:-1], -1))
    background = -(1 - chance + 1e-12).log() * (1 - FOCAL_ALPHA) * chance**FOCAL_GAMMA
    object_ = -(chance + 1e-12).log() * FOCAL_ALPHA * (1 - chance) ** FOCAL_GAMMA
    distance = (boxes.float()[..., None, :] - relative).abs().sum(-1)
    found = box_convert(boxes.float(), "cxcywh", "xyxy") * truth.extents[:, None]
    overlap = generalized_iou(found[..., None, :], pixels)
    return SCORE_COST * (object_ - background) + DISTANCE_COST * distance - OVERLAP_COST * overlap


def match(logits: Tensor, boxes: Tensor, truth: TrueBoxes) -> Match:
    """Match queries with the true boxes of their image, for several sets of predictions.

    Every true box gets one query; with more boxes than queries, every query gets one box. The host waits once.

    Args:
        logits: (S, B, Q, K).
        boxes: (S, B, Q, 4).
        truth: True boxes of the batch.

    Returns:
        The pairs, image by image and sorted by query.
    """
    from scipy.optimize import linear_sum_assignment  # in the extra `train`; prediction does not need it

    costs = match_costs(logits, boxes, truth).nan_to_num()  # a non-finite loss is reported elsewhere
    starts = np.cumsum([0, *truth.counts])
    rows = [
        np.concatenate(
            [
                np.stack(linear_sum_assignment(cost[:, :count])) + np.array([[0], [start]])
                for cost, count, start in zip(of_set, truth.counts, starts[:-1], strict=True)
            ],
            1,
        )
        for of_set in costs.cpu().double().numpy()  # one transfer for all sets and images
    ]
    return Match(*torch.as_tensor(np.stack(rows, 1), device=logits.device))
