"""How well the instances of one image fit, as one number to rank images by."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from piip.heads.boxes import pairwise_iou


def box_agreement(found: Mapping[str, Tensor], truth: Mapping[str, Tensor], *, overlap: float = 0.5) -> float:
    """Return the harmonic mean of precision and recall of boxes: 1 is perfect, also where there is nothing to find.

    Every instance, the best-scored first, takes the true box of its class that it overlaps most and that is still free.
    Own rule, to rank images; average precision has another purpose and its own program.

    Args:
        found: "boxes" (N, 4) and "labels" (N,), best first.
        truth: "boxes" (G, 4) and "labels" (G,).
        overlap: Least intersection over union of two boxes that are the same.
    """
    count = len(found["labels"]) + len(truth["labels"])
    if not count:
        return 1.0
    fits = pairwise_iou(found["boxes"].float(), truth["boxes"].float())
    fits = fits * (found["labels"][:, None] == truth["labels"])  # (N, G)
    taken = 0
    for place in range(len(fits) if fits.shape[1] else 0):
        best, column = fits[place].max(0)
        if best >= overlap:
            taken += 1
            fits[:, column] = 0
    return 2 * taken / count
