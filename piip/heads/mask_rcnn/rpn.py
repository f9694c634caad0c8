"""Region proposals: where objects might be, on every level.

Source: Faster R-CNN (arXiv 1506.01497); rules as released (`docs/official.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.heads.boxes import BoxCoder, class_offset_nms
from piip.heads.mask_rcnn.anchors import ANCHOR_SCALE, RATIOS, anchors_inside, grid_anchors
from piip.heads.mask_rcnn.assign import RegionSample, assign_by_overlap, draw_samples
from piip.structures import ImageInfo, Target

STRIDES = (4, 8, 16, 32, 64)
KEPT_BY_LEVEL = {False: 1000, True: 2000}  # in training twice as many
KEPT = 1000
OVERLAP = 0.7
SAMPLES = 256


class RegionLevel(NamedTuple):
    """What the network says of one level.

    Attributes:
        scores: Logits (B, N).
        deltas: (B, N, 4).
        anchors: (N, 4).
        grid: (H, W) of the map.
    """

    scores: Tensor
    deltas: Tensor
    anchors: Tensor
    grid: tuple[int, int]


class RegionProposals(nn.Module):
    """Scores and boxes of three anchors per cell.

    Args:
        in_channels: Width of the maps.
        hidden_channels: Width of the shared layer.
        anchor_scale: Side of a square anchor in cells of its map.
    """

    def __init__(self, in_channels: int, hidden_channels: int, *, anchor_scale: float = ANCHOR_SCALE) -> None:
        super().__init__()
        self.anchor_scale = anchor_scale
        self.conv = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.scores = nn.Conv2d(hidden_channels, len(RATIOS), 1)
        self.deltas = nn.Conv2d(hidden_channels, 4 * len(RATIOS), 1)
        self.coder = BoxCoder()

    def forward(self, maps: Sequence[Tensor]) -> list[RegionLevel]:
        """Return scores, deltas and anchors of every map (B, C, H_i, W_i)."""
        levels = []
        for feature_map, stride in zip(maps, STRIDES, strict=True):
            hidden = F.relu(self.conv(feature_map))
            scores = self.scores(hidden).permute(0, 2, 3, 1).flatten(1)
            deltas = self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(hidden), -1, 4)
            grid = (feature_map.shape[2], feature_map.shape[3])
            anchors = grid_anchors(stride, grid, scores.device, self.anchor_scale)
            levels.append(RegionLevel(scores, deltas, anchors, grid))
        return levels

    @torch.no_grad()
    def proposals(self, levels: Sequence[RegionLevel], image_infos: Sequence[ImageInfo]) -> list[tuple[Tensor, Tensor]]:
        """Return the best boxes of every image (N, 4) with their scores (N,), best first."""
        results = []
        for index, image_info in enumerate(image_infos):
            best = [self._best(level, index) for level in levels]
            score, delta, anchor = (torch.cat(parts) for parts in zip(*best, strict=True))
            number = torch.cat([torch.full_like(part[0], i) for i, part in enumerate(best)])
            boxes = self.coder.decode(anchor, delta, image_info.size)
            real = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1).nonzero().squeeze(1)
            boxes, score, number = boxes[real], score[real], number[real]
            chosen = class_offset_nms(boxes, score, number, OVERLAP)[:KEPT]
            results.append((boxes[chosen], score[chosen]))
        return results

    def _best(self, level: RegionLevel, index: int) -> tuple[Tensor, Tensor, Tensor]:
        score, delta = level.scores[index].float().sigmoid(), level.deltas[index].float()
        limit = KEPT_BY_LEVEL[self.training]
        if len(score) <= limit:
            return score, delta, level.anchors
        ranked, order = score.sort(descending=True)
        return ranked[:limit], delta[order[:limit]], level.anchors[order[:limit]]

    def losses(
        self,
        levels: Sequence[RegionLevel],
        targets: Sequence[Target],
        image_infos: Sequence[ImageInfo],
        samples: Sequence[RegionSample] | None = None,
    ) -> dict[str, Tensor]:
        """Return "loss_rpn_cls" and "loss_rpn_bbox".

        Args:
            levels: What the network says.
            targets: "boxes" (G, 4) of every image.
            image_infos: Sizes and padding of the images.
            samples: Anchors to use instead of drawing them.
        """
        anchors = torch.cat([level.anchors for level in levels])
        scores = torch.cat([level.scores.float() for level in levels], 1)
        deltas = torch.cat([level.deltas.float() for level in levels], 1)
        if samples is None:
            samples = self._sample(levels, anchors, targets, image_infos)
        total = sum(max(len(sample.positives), 1) + max(len(sample.negatives), 1) for sample in samples)
        positives, negatives = (
            torch.cat([indices + image * len(anchors) for image, indices in enumerate(parts)])
            for parts in ([sample.positives for sample in samples], [sample.negatives for sample in samples])
        )
        logits = scores.flatten()[torch.cat((positives, negatives))]
        wanted = torch.cat((torch.ones_like(positives), torch.zeros_like(negatives))).to(logits)
        target_boxes = torch.cat(
            [target["boxes"][sample.matched] for sample, target in zip(samples, targets, strict=True)]
        )
        encoded = self.coder.encode(anchors[positives % len(anchors)], target_boxes)
        return {
            "loss_rpn_cls": F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / total,
            "loss_rpn_bbox": (deltas.flatten(0, 1)[positives] - encoded).abs().sum() / total,
        }

    def _sample(
        self,
        levels: Sequence[RegionLevel],
        anchors: Tensor,
        targets: Sequence[Target],
        image_infos: Sequence[ImageInfo],
    ) -> list[RegionSample]:
        grids = tuple(level.grid for level in levels)
        assigned = [
            assign_by_overlap(
                anchors,
                target["boxes"],
                positive=0.7,
                negative=0.3,
                min_iou=0.3,
                allowed=anchors_inside(STRIDES, grids, image_info.padded, anchors.device),
            )
            for target, image_info in zip(targets, image_infos, strict=True)
        ]
        return draw_samples(assigned, SAMPLES, 0.5)
