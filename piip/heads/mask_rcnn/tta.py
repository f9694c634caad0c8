"""Test-time augmentation of Mask R-CNN: detections of one image from several views.

Proposals of all views are mapped to the image and suppressed once, regardless of their level. Every view refines the
same proposals. The mean of boxes and class probabilities is suppressed as in a single view, and the mean of the mask
probabilities is pasted. All views have equal weight, so a repeated view changes nothing.

Source: MMDetection 2, `aug_test` of its two-stage detectors (`rpn_test_mixin.py`, `roi_heads/test_mixins.py` and
`post_processing/merge_augs.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from piip.heads.base import View
from piip.heads.boxes import class_offset_nms
from piip.heads.mask_rcnn.masks import paste_masks
from piip.heads.mask_rcnn.roi import with_image_index
from piip.heads.mask_rcnn.rpn import KEPT, OVERLAP
from piip.structures import HeadOutput

if TYPE_CHECKING:
    from piip.heads.mask_rcnn.head import MaskRCNNHead


def merge_instances(head: MaskRCNNHead, views: Sequence[View], *, max_detections: int) -> HeadOutput:
    """Return detections of one image from several views.

    Args:
        head: The head.
        views: At least one.
        max_detections: Maximum number of instances.

    Returns:
        "boxes" (N, 4), "scores" (N,), "labels" (N,) and "masks" bool (N, H, W) in pixels of the image, best first.
    """
    levels = [head.fpn(view.maps) for view in views]
    proposals = _merged_proposals(head, levels, views)
    boxes, scores = [], []
    for level, view in zip(levels, views, strict=True):
        regions = view.from_image(proposals)
        logits, deltas = head.boxes(level[:4], with_image_index([regions]))
        boxes.append(view.to_image(head.boxes.coder.decode(regions, deltas.float(), view.image_info.size)))
        scores.append(logits.float().softmax(1)[:, :-1])
    found, score, label = head.boxes.select(torch.stack(boxes).mean(0), torch.stack(scores).mean(0), max_detections)
    masks = []
    for level, view in zip(levels, views, strict=True):
        logits = head.masks(level[:4], with_image_index([view.from_image(found)]))
        own = logits[torch.arange(len(found), device=label.device), label].float().sigmoid()
        masks.append(own.flip(-1) if view.flipped else own)
    pasted = paste_masks(torch.stack(masks).mean(0), found, views[0].image_info.original)
    return {"boxes": found, "scores": score, "labels": label, "masks": pasted}


def _merged_proposals(head: MaskRCNNHead, levels: Sequence[Sequence[Tensor]], views: Sequence[View]) -> Tensor:
    boxes, scores = [], []
    for level, view in zip(levels, views, strict=True):
        box, score = head.proposals.proposals(head.proposals(level), [view.image_info])[0]
        boxes.append(view.to_image(box))
        scores.append(score)
    every, score = torch.cat(boxes), torch.cat(scores)
    return every[class_offset_nms(every, score, torch.zeros_like(score), OVERLAP)[:KEPT]]
