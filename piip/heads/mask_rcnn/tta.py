"""Instances of one picture from several views of it: other sizes, and flipped left to right.

Source of the rule for Mask R-CNN: MMDetection 2, `aug_test` of its two-stage detectors (`rpn_test_mixin.py`,
`roi_heads/test_mixins.py` and `post_processing/merge_augs.py`). Proposals of all views are mapped to the picture and
suppressed once, whatever their level; every view refines the same proposals, and the mean of boxes and class
probabilities is suppressed as in a single view; the mean of the mask probabilities is pasted. For detectors without
proposals the rule is our own: duplicates among the boxes of all views are suppressed within each class.

All views count the same, so twice the same view is as good as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from piip.heads.boxes import class_offset_nms
from piip.heads.image_info import ImageFrame, Prediction
from piip.heads.mask_rcnn.head import MaskRCNNHead
from piip.heads.mask_rcnn.masks import paste_masks
from piip.heads.mask_rcnn.roi import with_image_index
from piip.heads.mask_rcnn.rpn import KEPT, OVERLAP

SAME_BOX = 0.7  # overlap above which boxes of two views are one object, for detectors without suppression


class View(NamedTuple):
    """One way to look at a picture.

    Attributes:
        maps: Maps of the backbone, (1, C_i, H_i, W_i).
        frame: What the view was made of; `frame.original` is the picture.
        flipped: Whether it was flipped left to right.
    """

    maps: Sequence[Tensor]
    frame: ImageFrame
    flipped: bool

    def to_picture(self, boxes: Tensor) -> Tensor:
        """Return boxes (..., 4) of the view in pixels of the picture."""
        turned = mirror(boxes, self.frame.size[1]) if self.flipped else boxes
        return turned / turned.new_tensor(self.frame.scale * 2)

    def from_picture(self, boxes: Tensor) -> Tensor:
        """Return boxes (..., 4) of the picture in pixels of the view."""
        scaled = boxes * boxes.new_tensor(self.frame.scale * 2)
        return mirror(scaled, self.frame.size[1]) if self.flipped else scaled


class BoxFinder(Protocol):
    """A head that finds boxes without suppressing duplicates."""

    def predict(
        self, maps: Sequence[Tensor], frames: Sequence[ImageFrame], *, rescale: bool = True, most: int | None = None
    ) -> list[Prediction]:
        """Return "boxes" (N, 4), "scores" (N,) and "labels" (N,) of every image."""
        ...


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Flip boxes (..., 4) left to right in an image of a width."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack((width - right, top, width - left, bottom), -1)


def mask_rcnn_views(head: MaskRCNNHead, views: Sequence[View], *, most: int) -> Prediction:
    """Return the instances that Mask R-CNN finds in views of one picture.

    Args:
        head: The head.
        views: At least one.
        most: Detections kept.

    Returns:
        "boxes" (N, 4), "scores" (N,), "labels" (N,) and "masks" bool (N, H, W) in pixels of the picture, best first.
    """
    levels = [head.fpn(view.maps) for view in views]
    proposals = _merged_proposals(head, levels, views)
    boxes, scores = [], []
    for level, view in zip(levels, views, strict=True):
        regions = view.from_picture(proposals)
        logits, deltas = head.boxes(level[:4], with_image_index([regions]))
        boxes.append(view.to_picture(head.boxes.coder.decode(regions, deltas.float(), view.frame.size)))
        scores.append(logits.float().softmax(1)[:, :-1])
    found, score, label = head.boxes.select(torch.stack(boxes).mean(0), torch.stack(scores).mean(0), most)
    masks = []
    for level, view in zip(levels, views, strict=True):
        logits = head.masks(level[:4], with_image_index([view.from_picture(found)]))
        own = logits[torch.arange(len(found), device=label.device), label].float().sigmoid()
        masks.append(own.flip(-1) if view.flipped else own)
    pasted = paste_masks(torch.stack(masks).mean(0), found, views[0].frame.original)
    return {"boxes": found, "scores": score, "labels": label, "masks": pasted}


def _merged_proposals(head: MaskRCNNHead, levels: Sequence[Sequence[Tensor]], views: Sequence[View]) -> Tensor:
    boxes, scores = [], []
    for level, view in zip(levels, views, strict=True):
        box, score = head.proposals.proposals(head.proposals(level), [view.frame])[0]
        boxes.append(view.to_picture(box))
        scores.append(score)
    every, score = torch.cat(boxes), torch.cat(scores)
    return every[class_offset_nms(every, score, torch.zeros_like(score), OVERLAP)[:KEPT]]


def box_views(head: BoxFinder, views: Sequence[View], *, most: int) -> Prediction:
    """Return the objects that a detector without suppression of its own, such as DINO, finds in views of one picture.

    Args:
        head: The head.
        views: At least one.
        most: Detections kept, and those looked at in every view.

    Returns:
        "boxes" (N, 4), "scores" (N,) and "labels" (N,) in pixels of the picture, best first.
    """
    found = [head.predict(view.maps, [view.frame], rescale=False, most=most)[0] for view in views]
    boxes = torch.cat([view.to_picture(each["boxes"]) for view, each in zip(views, found, strict=True)])
    scores, labels = (torch.cat([each[name] for each in found]) for name in ("scores", "labels"))
    kept = class_offset_nms(boxes, scores, labels, SAME_BOX)[:most]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}
