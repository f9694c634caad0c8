"""What was published about pyramids of the same shape.

Shape is what this knows: how the resolutions and the sizes of networks change from branch to branch. A published
pyramid counts by its saving: the multiply-adds of a single network of its box AP, divided by its own. The former are
read off the line through the published single networks (log of multiply-adds over AP).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from piip.zoo.published import PublishedModel, published_models

TABLE = "DeiT-based Models (Mask-RCNN, 1x Schedule)"
METRIC = "Box mAP"
MILLIONS = {"T": 5.7, "S": 22.0, "B": 86.0, "L": 304.0}  # parameters of the ViTs of that table, by letter
SIZE_WEIGHT = 0.5  # a network four times as large counts like a resolution twice as high
Shape = tuple[tuple[float, float], ...]  # of every branch: log2 of resolution and of parameters, relative to the last


@dataclass(frozen=True)
class Evidence:
    """The published pyramid that a candidate is most like.

    Attributes:
        name: Its name here.
        accuracy: Its published box AP on COCO, in percent.
        saving: Multiply-adds of a single network of that AP, divided by its own.
        distance: How far its shape is from the candidate's, in doublings of resolution.
    """

    name: str
    accuracy: float
    saving: float
    distance: float

    @property
    def support(self) -> float:
        """The saving, discounted by distance: what candidates are ordered by."""
        return self.saving * math.exp(-self.distance)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**vars(self), "support": self.support}


def shape(resolutions: Sequence[float], params: Sequence[float]) -> Shape:
    """Return the shape of a pyramid.

    Args:
        resolutions: Side of each branch's image in pixels.
        params: Parameters of each branch's network.
    """
    rows = zip(resolutions, params, strict=True)
    return tuple((math.log2(side / resolutions[-1]), math.log2(count / params[-1])) for side, count in rows)


def nearest(candidate: Shape) -> Evidence:
    """Return the published pyramid nearest to a shape; of equally near ones, that with the largest saving.

    Args:
        candidate: From `shape`. Branches are compared from the finest on; one that the other lacks counts as one
            doubling.
    """
    found = [Evidence(name, ap, saving, _distance(candidate, other)) for name, ap, saving, other in _pyramids()]
    return min(found, key=lambda item: (item.distance, -item.saving))


def _distance(first: Shape, second: Shape) -> float:
    pairs = list(zip(reversed(first), reversed(second), strict=False))
    squares = [(a[0] - b[0]) ** 2 + (SIZE_WEIGHT * (a[1] - b[1])) ** 2 for a, b in pairs]
    return math.sqrt(sum(squares)) + abs(len(first) - len(second))


@functools.cache
def _pyramids() -> tuple[tuple[str, float, float, Shape], ...]:
    """Return name, AP, saving and shape of every published pyramid of the table."""
    rows = [model for model in published_models() if model.tables and model.tables[0].table == TABLE]
    singles = sorted((_accuracy(row), _macs(row)) for row in rows if not _letters(row))
    found = []
    for row in rows:
        letters = _letters(row)
        if letters and set(letters) <= MILLIONS.keys():
            sides = [float(side) for side in row.tables[0].row["Resolution"].split("/")]
            own = shape(sides[::-1], [MILLIONS[letter] for letter in letters[::-1]])
            found.append((row.name, _accuracy(row), _single_macs(_accuracy(row), singles) / _macs(row), own))
    return tuple(found)


def _letters(row: PublishedModel) -> str:
    """Return the letters of a pyramid's networks, the smallest first; "" for a single network."""
    backbone = row.tables[0].row["Backbone"]
    return backbone.removeprefix("PIIP-") if backbone.startswith("PIIP-") else ""


def _accuracy(row: PublishedModel) -> float:
    return float(row.results[METRIC])


def _macs(row: PublishedModel) -> float:
    return float(row.flops.removesuffix("G"))  # the authors count a multiply-add as one


def _single_macs(accuracy: float, singles: Sequence[tuple[float, float]]) -> float:
    """Return the multiply-adds of a single network of an accuracy, on the line through the two nearest ones."""
    place = next((i for i, (known, _) in enumerate(singles) if known > accuracy), len(singles) - 1)
    (low, low_macs), (high, high_macs) = singles[max(place, 1) - 1], singles[max(place, 1)]
    share = (accuracy - low) / (high - low)
    return math.exp(math.log(low_macs) + share * math.log(high_macs / low_macs))
