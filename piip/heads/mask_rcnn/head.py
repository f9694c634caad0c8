"""Mask R-CNN: instances with boxes and masks from the maps of a backbone.

Source: arXiv 1703.06870; rules of the released detectors (`docs/official.md`), which differ from torchvision's in the
position of the background class, anchors, RoIAlign, losses and the pasting of masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.heads.base import DenseHead, LossesAndMetrics, View
from piip.heads.mask_rcnn.anchors import ANCHOR_SCALE
from piip.heads.mask_rcnn.assign import RegionSample, assign_by_overlap, draw_samples
from piip.heads.mask_rcnn.export import InstanceOutputs
from piip.heads.mask_rcnn.fpn import FPN
from piip.heads.mask_rcnn.masks import mask_targets, paste_masks
from piip.heads.mask_rcnn.roi import MAX_DETECTIONS, BoxHead, MaskHead, with_image_index
from piip.heads.mask_rcnn.rpn import KEPT, RegionProposals
from piip.heads.mask_rcnn.tta import merge_instances
from piip.layers.outputs import ExportWrapper
from piip.structures import HeadOutput, ImageInfo, Target

if TYPE_CHECKING:
    from piip.models import PIIPDenseModel

SAMPLES = 512
POSITIVE_FRACTION = 0.25
Samples = Mapping[str, Sequence[RegionSample]]


class MaskRCNNHead(DenseHead):
    """Feature pyramid, region proposals, box head and mask head.

    Args:
        in_channels: Width of the four maps, strides 4 to 32.
        num_classes: Number of classes K.
        channels: Width of the feature pyramid.
        proposal_channels: Hidden width of the region proposals.
        box_features: Hidden width of the box head.
        mask_channels: Hidden width of the mask head.
        anchor_scale: Side of a square anchor in cells of its map.

    Source: arXiv 1703.06870.
    """

    task = "instance"
    title = "Instance segmentation"
    hub_task = "image-segmentation"
    max_detections = MAX_DETECTIONS

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
        self,
        maps: Sequence[Tensor],
        image_infos: Sequence[ImageInfo],
        *,
        rescale: bool = True,
        max_detections: int | None = None,
    ) -> list[HeadOutput]:
        """Return the instances of every image.

        Args:
            maps: Maps of the backbone, strides 4 to 32.
            image_infos: Sizes and padding of the images.
            rescale: Give boxes and masks in pixels of the original image instead of network pixels.
            max_detections: Maximum number of detections per image.

        Returns:
            "boxes" (N, 4) as x1, y1, x2, y2, "scores" (N,), "labels" (N,) from 0, "masks" bool (N, H, W); best first.
        """
        results = self.detect(maps, image_infos, rescale=rescale, max_detections=max_detections)
        for found, image_info in zip(results, image_infos, strict=True):
            shape = image_info.original if rescale else image_info.size
            found["masks"] = paste_masks(found["masks"], found["boxes"], shape)
        return results

    @torch.no_grad()
    def detect(
        self,
        maps: Sequence[Tensor],
        image_infos: Sequence[ImageInfo],
        *,
        rescale: bool = True,
        max_detections: int | None = None,
    ) -> list[HeadOutput]:
        """Return the instances of every image with masks that are still probabilities in cells of their boxes.

        Args:
            maps: See `predict`.
            image_infos: See `predict`.
            rescale: See `predict`.
            max_detections: See `predict`.

        Returns:
            What `predict` returns, but for "masks": float (N, 28, 28) in [0, 1].
        """
        max_detections = self.max_detections if max_detections is None else max_detections
        levels = self.fpn(maps)
        proposals = [boxes for boxes, _ in self.proposals.proposals(self.proposals(levels), image_infos)]
        logits, deltas = self.boxes(levels[:4], with_image_index(proposals))
        counts = [boxes.shape[0] for boxes in proposals]
        results: list[HeadOutput] = []
        parts = zip(proposals, logits.split(counts), deltas.split(counts), image_infos, strict=True)
        for index, (boxes, logit, delta, image_info) in enumerate(parts):
            found, scores, labels = self.boxes.detect(
                boxes, logit, delta, image_info, rescale=rescale, max_detections=max_detections
            )
            in_network = found * found.new_tensor(image_info.scale * 2) if rescale else found
            regions = torch.cat((torch.full_like(in_network[:, :1], index), in_network), 1)
            own = torch.arange(found.shape[0], device=labels.device), labels
            masks = self.masks(levels[:4], regions)[own].float().sigmoid()
            results.append({"boxes": found, "scores": scores, "labels": labels, "masks": masks})
        return results

    def parts(self) -> dict[str, Sequence[nn.Module]]:
        """Return the feature pyramid and the three heads by part; see `DenseHead.parts`."""
        return {"fpn": [self.fpn], "rpn": [self.proposals], "box": [self.boxes], "mask": [self.masks]}

    @torch.no_grad()
    def dry_run(self, maps: Sequence[Tensor], image_info: ImageInfo, *, max_detections: int) -> str:
        """Run the head on as many proposals and detections as it may find; see `DenseHead.dry_run`.

        Decoding and suppression of boxes and the pasting of masks are not run: they multiply no matrices, and their
        share depends on what is found.
        """
        levels = self.fpn(maps)
        anchors = sum(level.scores.shape[1] for level in self.proposals(levels))
        regions = levels[0].new_empty(min(KEPT, anchors), 5)
        # one level, as the levels of regions depend on their values; the cost does not depend on the level
        self.boxes(levels[:1], regions)
        detections = levels[0].new_empty(max_detections, 5)
        self.masks(levels[:1], detections)
        return f"{len(regions):,} proposals and {max_detections:,} detections"

    def predict_views(self, views: Sequence[View], *, max_detections: int) -> HeadOutput:
        """Return the instances of one image from several views of it; see `merge_instances`."""
        return merge_instances(self, views, max_detections=max_detections)

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Target],
        image_infos: Sequence[ImageInfo],
        samples: Samples | None = None,
    ) -> LossesAndMetrics:
        """Return the losses, and the accuracy "acc" of the box head in percent.

        Args:
            maps: Maps of the backbone, strides 4 to 32.
            targets: "boxes" (G, 4) in network pixels, "labels" (G,) from 0, "masks" bool (G, H, W) of every image.
            image_infos: Sizes and padding of the images.
            samples: Samples "rpn" and "rcnn" to use instead of drawing them.
        """
        levels = self.fpn(maps)
        regions = self.proposals(levels)
        losses = self.proposals.losses(regions, targets, image_infos, samples["rpn"] if samples else None)
        candidates = [
            torch.cat((target["boxes"], boxes))  # true boxes are candidates too
            for target, (boxes, _) in zip(targets, self.proposals.proposals(regions, image_infos), strict=True)
        ]
        chosen = samples["rcnn"] if samples else self._sample(candidates, targets)
        losses |= self._region_losses(levels[:4], targets, candidates, chosen)
        return LossesAndMetrics(losses, {"acc": losses.pop("acc")})

    def export_wrapper(self, model: PIIPDenseModel) -> ExportWrapper:
        """Return a model with this head as one graph with boxes, scores, labels and masks of one image."""
        return InstanceOutputs(model, self)

    def summary(self) -> str:
        """Return one sentence about the output of the head, for cards."""
        return f"A Mask R-CNN head detects boxes and masks of {self.num_classes} classes."

    @staticmethod
    def _sample(candidates: Sequence[Tensor], targets: Sequence[Target]) -> list[RegionSample]:
        assigned = []
        for boxes, target in zip(candidates, targets, strict=True):
            count = len(target["boxes"])  # they are the first candidates, each its own
            others = assign_by_overlap(boxes[count:], target["boxes"], positive=0.5, negative=0.5, min_iou=0.5)
            assigned.append(torch.cat((torch.arange(count, device=others.device), others)))
        return draw_samples(assigned, SAMPLES, POSITIVE_FRACTION)

    def _region_losses(
        self,
        levels: Sequence[Tensor],
        targets: Sequence[Target],
        candidates: Sequence[Tensor],
        samples: Sequence[RegionSample],
    ) -> dict[str, Tensor]:
        positives, negatives, labels, target_boxes, masks = [], [], [], [], []
        for target, boxes, sample in zip(targets, candidates, samples, strict=True):
            positives.append(boxes[sample.positives])
            negatives.append(boxes[sample.negatives])
            labels.append(target["labels"][sample.matched])
            target_boxes.append(target["boxes"][sample.matched])
            masks.append(mask_targets(target["masks"][sample.matched], positives[-1]))
        objects, label, wanted = with_image_index(positives), torch.cat(labels), torch.cat(masks)
        regions = torch.cat((objects, with_image_index(negatives)))
        logits, deltas = self.boxes(levels, regions)
        every = F.pad(label, (0, len(regions) - len(objects)), value=self.num_classes)
        losses = self.boxes.losses(logits, deltas, objects[:, 1:], every, torch.cat(target_boxes))
        mask_logits = self.masks(levels, objects).float()
        own = mask_logits[torch.arange(len(objects), device=label.device), label]
        empty = mask_logits.sum() * 0
        losses["loss_mask"] = F.binary_cross_entropy_with_logits(own, wanted) if len(wanted) else empty
        return losses
