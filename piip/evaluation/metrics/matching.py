"""Agreement of detections and targets of one image, as one number for ranking images."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from piip.heads.boxes import pairwise_iou


def box_agreement(found: Mapping[str, Tensor], target: Mapping[str, Tensor], *, overlap: float = 0.5) -> float:
    """Return the harmonic mean of precision and recall of boxes; 1 is perfect, also for images without objects.

    Detections, sorted by score, are matched to the unmatched target box of their class with the highest IoU. This is
    our own rule for ranking images, not average precision.

    Args:
        found: "boxes" (N, 4) and "labels" (N,), best first.
        target: "boxes" (G, 4) and "labels" (G,).
        overlap: Minimum intersection over union of a match.
    """
    count = len(found["labels"]) + len(target["labels"])
    if not count:
        return 1.0
    fits = pairwise_iou(found["boxes"].float(), target["boxes"].float())
    fits = fits * (found["labels"][:, None] == target["labels"])  # (N, G)
    taken = 0
    for place in range(len(fits) if fits.shape[1] else 0):
        best, column = fits[place].max(0)
        if best >= overlap:
            taken += 1
            fits[:, column] = 0
    return 2 * taken / count
