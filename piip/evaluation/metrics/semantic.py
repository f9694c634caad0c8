"""Mean intersection over union (mIoU), over a whole data set.

Source: the evaluator of the authors' segmentation code: totals over all images, the mean over classes that occur.
"""

from __future__ import annotations

import torch
from torch import Tensor

from piip.structures import IGNORE_INDEX


class SemanticMetric:
    """Confusion matrix and mIoU.

    Args:
        num_classes: Number of classes K.

    Attributes:
        counts: int64 (K, K), target classes in rows.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def add(self, predicted: Tensor, target: Tensor) -> None:
        """Count one image; pixels that are 255 in the target are ignored.

        Args:
            predicted: Classes (H, W).
            target: Classes (H, W).
        """
        known = target != IGNORE_INDEX
        pairs = target[known] * self.num_classes + predicted[known]
        self.counts += torch.bincount(pairs.cpu(), minlength=self.num_classes**2).view_as(self.counts)

    def scores(self) -> dict[str, float]:
        """Return "miou", "aacc" (all pixels) and "macc" (mean of the classes), in [0, 1]."""
        right, target = self.counts.diagonal().double(), self.counts.sum(1).double()
        total = target.sum().clamp(min=1)
        return {
            "miou": float(self.class_iou().nanmean()),
            "aacc": float(right.sum() / total),
            "macc": float((right / target).nanmean()),
        }

    def class_scores(self) -> list[dict[str, float | int | None]]:
        """Return for every class "iou", "accuracy" (recall), "precision" and "pixels" in the target; None for 0 / 0."""
        right = self.counts.diagonal().double()
        columns = [self.class_iou(), right / self.counts.sum(1), right / self.counts.sum(0)]
        return [
            {"iou": iou, "accuracy": accuracy, "precision": precision, "pixels": pixels}
            for iou, accuracy, precision, pixels in zip(
                *([None if value != value else value for value in column.tolist()] for column in columns),  # NaN
                self.counts.sum(1).tolist(),
                strict=True,
            )
        ]

    def class_iou(self) -> Tensor:
        """Return the intersection over union of every class (K,), NaN if neither target nor prediction has it."""
        right = self.counts.diagonal().double()
        return right / (self.counts.sum(0) + self.counts.sum(1) - right)
