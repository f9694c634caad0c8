"""Which query answers for which true box: costs, and the assignment of least total cost.

The assignment is our own so that training needs no scipy, whose only use this would be. It gives an optimum, as scipy
does; where several optima exist they may differ.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piip.heads.dino.boxes import generalized_iou, to_pixels, to_relative
from piip.heads.image_info import Target

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
SCORE_COST, DISTANCE_COST, OVERLAP_COST = 2.0, 5.0, 2.0


class Match(NamedTuple):
    """Pairs of queries and true boxes of one image.

    Attributes:
        queries: Indices of queries, (M,).
        truths: Indices of true boxes, (M,).
    """

    queries: Tensor
    truths: Tensor


@torch.no_grad()
def match_costs(logits: Tensor, boxes: Tensor, target: Target, size: tuple[int, int]) -> Tensor:
    """Return what it costs to let a query answer for a true box, (..., Q, G).

    Args:
        logits: Class logits (..., Q, K).
        boxes: Predicted boxes x, y, w, h, relative to the image, (..., Q, 4).
        target: "boxes" (G, 4) in network pixels and "labels" (G,).
        size: (H, W) of the image in network pixels.

    Source: arXiv 2203.03605; focal cost as in MMDetection 2 (`docs/official.md`).
    """
    truths = target["boxes"].float()
    chance = logits.float().sigmoid()[..., target["labels"]]
    background = -(1 - chance + 1e-12).log() * (1 - FOCAL_ALPHA) * chance**FOCAL_GAMMA
    object_ = -(chance + 1e-12).log() * FOCAL_ALPHA * (1 - chance) ** FOCAL_GAMMA
    distance = (boxes.float()[..., None, :] - to_relative(truths, size)).abs().sum(-1)
    overlap = generalized_iou(to_pixels(boxes.float(), size)[..., None, :], truths)
    return SCORE_COST * (object_ - background) + DISTANCE_COST * distance - OVERLAP_COST * overlap


def match(logits: Tensor, boxes: Tensor, target: Target, size: tuple[int, int]) -> list[Match]:
    """Match the queries of one image with its true boxes, for several sets of predictions.

    Every true box gets one query; where there are more of them than queries, every query gets one.

    Args:
        logits: (S, Q, K).
        boxes: (S, Q, 4).
        target: See `match_costs`.
        size: See `match_costs`.

    Returns:
        A match for every set, queries rising.
    """
    device = logits.device
    costs = match_costs(logits, boxes, target, size).nan_to_num()  # a loss that is not finite reports itself
    pairs = [assign(cost) for cost in costs.double().cpu().numpy()]  # one transfer for all sets
    return [Match(torch.as_tensor(rows, device=device), torch.as_tensor(cols, device=device)) for rows, cols in pairs]


def assign(costs: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Solve the linear assignment problem exactly.

    Args:
        costs: Finite, (N, M).

    Returns:
        Rows and their columns, min(N, M) pairs of least total cost, rows rising.

    Source: shortest augmenting paths with potentials (Jonker and Volgenant 1987; Crouse, IEEE TAES 52(4), 2016), begun
        from each row's cheapest column.
    """
    if costs.shape[0] > costs.shape[1]:
        columns, rows = assign(costs.T)
        order = rows.argsort()
        return rows[order], columns[order]
    potentials = costs.min(1) if costs.shape[1] else np.zeros(len(costs))
    solver = _Assignment(costs, potentials)
    for row in solver.start():
        solver.augment(row)
    return np.arange(len(costs)), solver.column_of_row


class _Assignment:
    """A partial assignment with potentials that prove it optimal; rows are at most as many as columns."""

    def __init__(self, costs: NDArray[np.float64], row_potentials: NDArray[np.float64]) -> None:
        num_rows, num_columns = costs.shape
        self.costs = costs
        self.row_potentials = row_potentials
        self.column_potentials = np.zeros(num_columns)
        self.column_of_row = np.full(num_rows, -1)
        self.row_of_column = np.full(num_columns, -1)

    def start(self) -> list[int]:
        """Give every row its cheapest column if that is free; return the other rows."""
        left = []
        for row, cost in enumerate(self.costs):
            column = int(cost.argmin())
            if self.row_of_column[column] < 0:
                self.row_of_column[column], self.column_of_row[row] = row, column
            else:
                left.append(row)
        return left

    def augment(self, row: int) -> None:
        """Find the cheapest way to give one more row a column, moving others."""
        num_columns = self.costs.shape[1]
        distance = np.full(num_columns, np.inf)  # of the cheapest way to each column
        before = np.full(num_columns, -1)  # the row that way comes from
        is_open = np.ones(num_columns, dtype=bool)
        visited, current, reached = [], row, 0.0
        while True:
            way = reached + self.costs[current] - self.row_potentials[current] - self.column_potentials
            shorter = is_open & (way < distance)
            distance[shorter], before[shorter] = way[shorter], current
            column = int(np.where(is_open, distance, np.inf).argmin())
            reached = distance[column]
            if self.row_of_column[column] < 0:
                break
            is_open[column] = False
            current = int(self.row_of_column[column])
            visited.append((current, column))
        self.row_potentials[row] += reached
        for other, taken in visited:
            self.row_potentials[other] += reached - distance[taken]
            self.column_potentials[taken] -= reached - distance[taken]
        while column >= 0:  # back along the way; only `row` had no column
            owner = int(before[column])
            self.row_of_column[column] = owner
            self.column_of_row[owner], column = column, int(self.column_of_row[owner])
