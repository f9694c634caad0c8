"""Test-time augmentation of detectors without proposals: detections of several views of one image, merged.

The rule is our own: duplicates among the boxes of all views are suppressed within each class. All views count the same,
so twice the same view is as good as one. Mask R-CNN has a rule of its own (`piip.heads.mask_rcnn.tta`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from piip.heads.base import DenseHead, View
from piip.heads.boxes import class_offset_nms
from piip.structures import HeadOutput

SAME_BOX = 0.7  # IoU above which boxes of two views are one object


def merge_boxes(head: DenseHead, views: Sequence[View], *, max_detections: int) -> HeadOutput:
    """Return the detections of a head without NMS of its own, such as DINO, in several views of one image.

    Args:
        head: The head.
        views: At least one.
        max_detections: Maximum number of detections, of the image and of every view.

    Returns:
        "boxes" (N, 4), "scores" (N,) and "labels" (N,) in pixels of the image, best first.
    """
    found = [
        head.predict(view.maps, [view.image_info], rescale=False, max_detections=max_detections)[0] for view in views
    ]
    boxes = torch.cat([view.to_image(each["boxes"]) for view, each in zip(views, found, strict=True)])
    scores, labels = (torch.cat([each[name] for each in found]) for name in ("scores", "labels"))
    kept = class_offset_nms(boxes, scores, labels, SAME_BOX)[:max_detections]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}
