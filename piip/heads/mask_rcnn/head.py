"""Mask R-CNN: instances with boxes and masks from the maps of a backbone.

Source: arXiv 1703.06870; rules of the released detectors (`docs/official.md`), which differ from torchvision's in the
position of the background class, anchors, RoIAlign, losses and the pasting of masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.heads.image_info import ImageFrame, Prediction, Target
from piip.heads.mask_rcnn.anchors import ANCHOR_SCALE
from piip.heads.mask_rcnn.assign import Sample, assign_by_overlap, draw_sample
from piip.heads.mask_rcnn.fpn import FPN
from piip.heads.mask_rcnn.masks import mask_targets, paste_masks
from piip.heads.mask_rcnn.roi import DETECTIONS, BoxHead, MaskHead, with_image_index
from piip.heads.mask_rcnn.rpn import RegionProposals

SAMPLES = 512
POSITIVE_FRACTION = 0.25
Draws = Mapping[str, Sequence[Sample]]


class MaskRCNNHead(nn.Module):
    """Feature pyramid, region proposals, box head and mask head.

    Args:
        in_channels: Width of the four maps, strides 4 to 32.
        num_classes: Number of classes K.
        channels: Width of the feature pyramid.
        proposal_channels: Hidden width of the region proposals.
        box_features: Hidden width of the box head.
        mask_channels: Hidden width of the mask head.
        anchor_scale: Side of a square anchor in cells of its map.

    Attributes:
        detections: Detections kept an image.
    """

    detections = DETECTIONS

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 256,
        proposal_channels: int = 256,
        box_features: int = 1024,
        mask_channels: int = 256,
        anchor_scale: float = ANCHOR_SCALE,
    ) -> None:
        super().__init__()
        self.fpn = FPN(in_channels, channels)
        self.proposals = RegionProposals(channels, proposal_channels, anchor_scale=anchor_scale)
        self.boxes = BoxHead(channels, box_features, num_classes)
        self.masks = MaskHead(channels, mask_channels, num_classes)
        self.num_classes = num_classes

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the five maps (B, C, H_i, W_i) of the feature pyramid, strides 4 to 64."""
        return self.fpn(maps)

    @torch.no_grad()
    def predict(
        self, maps: Sequence[Tensor], frames: Sequence[ImageFrame], *, rescale: bool = True, most: int = DETECTIONS
    ) -> list[Prediction]:
        """Return the instances of every image.

        Args:
            maps: Maps of the backbone, strides 4 to 32.
            frames: The images.
            rescale: Give boxes and masks in pixels of the original image instead of network pixels.
            most: Detections kept an image.

        Returns:
            "boxes" (N, 4) as x1, y1, x2, y2, "scores" (N,), "labels" (N,) from 0, "masks" bool (N, H, W); best first.
        """
        results = self.find(maps, frames, rescale=rescale, most=most)
        for found, frame in zip(results, frames, strict=True):
            shape = frame.original if rescale else frame.size
            found["masks"] = paste_masks(found["masks"], found["boxes"], shape)
        return results

    @torch.no_grad()
    def find(
        self, maps: Sequence[Tensor], frames: Sequence[ImageFrame], *, rescale: bool = True, most: int = DETECTIONS
    ) -> list[Prediction]:
        """Return the instances of every image with masks that are still probabilities in cells of their boxes.

        Args:
            maps: See `predict`.
            frames: See `predict`.
            rescale: See `predict`.
            most: See `predict`.

        Returns:
            What `predict` returns, but for "masks": float (N, 28, 28) in [0, 1].
        """
        levels = self.fpn(maps)
        proposals = [boxes for boxes, _ in self.proposals.proposals(self.proposals(levels), frames)]
        logits, deltas = self.boxes(levels[:4], with_image_index(proposals))
        counts = [boxes.shape[0] for boxes in proposals]
        results: list[Prediction] = []
        parts = zip(proposals, logits.split(counts), deltas.split(counts), frames, strict=True)
        for index, (boxes, logit, delta, frame) in enumerate(parts):
            found, scores, labels = self.boxes.detect(boxes, logit, delta, frame, rescale=rescale, most=most)
            in_network = found * found.new_tensor(frame.scale * 2) if rescale else found
            regions = torch.cat((torch.full_like(in_network[:, :1], index), in_network), 1)
            own = torch.arange(found.shape[0], device=labels.device), labels
            masks = self.masks(levels[:4], regions)[own].float().sigmoid()
            results.append({"boxes": found, "scores": scores, "labels": labels, "masks": masks})
        return results

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Target],
        frames: Sequence[ImageFrame],
        draws: Draws | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses; the total is the sum of those whose names begin with "loss".

        Args:
            maps: Maps of the backbone, strides 4 to 32.
            targets: "boxes" (G, 4) in network pixels, "labels" (G,) from 0, "masks" bool (G, H, W) of every image.
            frames: The images.
            draws: Samples "rpn" and "rcnn" to use instead of drawing them.
        """
        levels = self.fpn(maps)
        regions = self.proposals(levels)
        losses = self.proposals.losses(regions, targets, frames, draws["rpn"] if draws else None)
        candidates = [
            torch.cat((target["boxes"], boxes))  # true boxes are candidates too
            for target, (boxes, _) in zip(targets, self.proposals.proposals(regions, frames), strict=True)
        ]
        samples = (
            draws["rcnn"]
            if draws
            else [self._sample(boxes, target["boxes"]) for boxes, target in zip(candidates, targets, strict=True)]
        )
        return losses | self._region_losses(levels[:4], targets, candidates, samples)

    def _sample(self, candidates: Tensor, truths: Tensor) -> Sample:
        count = len(truths)
        assigned = assign_by_overlap(candidates[count:], truths, positive=0.5, negative=0.5, least=0.5)
        own = torch.arange(count, device=assigned.device)
        return draw_sample(torch.cat((own, assigned)), SAMPLES, POSITIVE_FRACTION)

    def _region_losses(
        self,
        levels: Sequence[Tensor],
        targets: Sequence[Target],
        candidates: Sequence[Tensor],
        samples: Sequence[Sample],
    ) -> dict[str, Tensor]:
        chosen, labels, truths, masks, positives = [], [], [], [], []
        for target, boxes, sample in zip(targets, candidates, samples, strict=True):
            chosen.append(torch.cat((boxes[sample.positives], boxes[sample.negatives])))
            background = target["labels"].new_full((len(sample.negatives),), self.num_classes)
            labels.append(torch.cat((target["labels"][sample.matched], background)))
            truths.append(target["boxes"][sample.matched])
            positives.append(boxes[sample.positives])
            masks.append(mask_targets(target["masks"][sample.matched], boxes[sample.positives]))
        logits, deltas = self.boxes(levels, with_image_index(chosen))
        every = torch.cat(labels)
        losses = self.boxes.losses(logits, deltas, torch.cat(chosen), every, torch.cat(truths))
        mask_logits = self.masks(levels, with_image_index(positives)).float()
        own = mask_logits[torch.arange(len(mask_logits), device=every.device), every[every < self.num_classes]]
        wanted = torch.cat(masks)
        empty = mask_logits.sum() * 0
        losses["loss_mask"] = F.binary_cross_entropy_with_logits(own, wanted) if len(wanted) else empty
        return losses
