"""Heads of regions: class, box and mask.

Source: Mask R-CNN (arXiv 1703.06870); rules as released (`docs/official.md`): background is the last class, boxes are
coded per class, RoIAlign is aligned and samples adaptively.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from piip.heads.boxes import BoxCoder, areas, class_offset_nms
from piip.ops.compat import is_exporting
from piip.structures import ImageInfo

FINEST_SIDE = 56  # a region of this side, in pixels, is read from the finest map
LEAST_SCORE = 0.05
OVERLAP = 0.5
MAX_DETECTIONS = 100


def pool_regions(maps: Sequence[Tensor], regions: Tensor, side: int) -> Tensor:
    """Cut regions out of the map of their scale.

    Args:
        maps: Strides 4, 8, 16, 32, or only the finest, (B, C, H_i, W_i).
        regions: (image, x1, y1, x2, y2) of every region, (N, 5).
        side: Cells of the result along a side.

    Returns:
        (N, C, side, side).
    """
    if len(maps) == 1:
        return roi_align(maps[0], regions.to(maps[0].dtype), side, 1 / 4, 0, aligned=True)
    level = (areas(regions[:, 1:]).sqrt() / FINEST_SIDE + 1e-6).log2().floor().clamp(0, len(maps) - 1)
    pooled = maps[0].new_zeros(regions.shape[0], maps[0].shape[1], side, side)
    for index, (feature_map, chosen) in enumerate(zip(maps, _by_level(level, len(maps)), strict=True)):
        scale = 1 / (4 * 2**index)
        part = roi_align(feature_map, regions[chosen].to(feature_map.dtype), side, scale, 0, aligned=True)
        pooled = pooled.index_put((chosen,), part)
    return pooled


def _by_level(level: Tensor, num_levels: int) -> Sequence[Tensor]:
    """Return the indices of the regions of every level, given the level of every region (N,)."""
    levels = range(num_levels)
    if is_exporting():  # a graph has no numbers on the host
        return [(level == index).nonzero().squeeze(1) for index in levels]
    counts = torch.stack([(level == index).sum() for index in levels]).tolist()  # the host waits once
    *chosen, _ = level.argsort(stable=True).split([*counts, len(level) - sum(counts)])  # NaN comes last
    return chosen


def with_image_index(boxes: Sequence[Tensor]) -> Tensor:
    """Join the boxes (N_i, 4) of all images to regions (N, 5) with the image's index in front."""
    return torch.cat([torch.cat((torch.full_like(b[:, :1], i), b), 1) for i, b in enumerate(boxes)])


class BoxHead(nn.Module):
    """Class and box of every region.

    Args:
        in_channels: Width of the maps.
        hidden_features: Width of the two hidden layers.
        num_classes: Number of classes K.
    """

    side = 7

    def __init__(self, in_channels: int, hidden_features: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_channels * self.side**2, hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, hidden_features),
            nn.ReLU(),
        )
        self.scores = nn.Linear(hidden_features, num_classes + 1)
        self.deltas = nn.Linear(hidden_features, 4 * num_classes)
        self.num_classes = num_classes
        self.coder = BoxCoder((0.1, 0.1, 0.2, 0.2))

    def forward(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, K + 1), background last, and deltas (N, K, 4) of regions (N, 5)."""
        hidden = self.hidden(pool_regions(maps, regions, self.side))
        return self.scores(hidden), self.deltas(hidden).unflatten(1, (self.num_classes, 4))

    def detect(
        self,
        boxes: Tensor,
        logits: Tensor,
        deltas: Tensor,
        image_info: ImageInfo,
        *,
        rescale: bool = True,
        max_detections: int = MAX_DETECTIONS,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, 4), scores (N,) and labels (N,) of one image, best first.

        Args:
            boxes: Regions of the image.
            logits: Their logits.
            deltas: Their deltas.
            image_info: The image.
            rescale: Give boxes in pixels of the original image.
            max_detections: Maximum number of detections.
        """
        scores = logits.float().softmax(1)[:, :-1]
        refined = self.coder.decode(boxes, deltas.float(), image_info.size)
        if rescale:
            refined = refined / refined.new_tensor(image_info.scale * 2)
        return self.select(refined, scores, max_detections)

    @staticmethod
    def select(refined: Tensor, scores: Tensor, max_detections: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, 4), scores (N,) and labels (N,) without duplicates, best first.

        Args:
            refined: Box of every region and class, (P, K, 4).
            scores: Their probabilities (P, K).
            max_detections: Maximum number of detections.
        """
        chosen = (scores > LEAST_SCORE).nonzero()
        found, score, label = refined[chosen[:, 0], chosen[:, 1]], scores[chosen[:, 0], chosen[:, 1]], chosen[:, 1]
        kept = class_offset_nms(found, score, label, OVERLAP)[:max_detections]
        return found[kept], score[kept], label[kept]

    def losses(
        self, logits: Tensor, deltas: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return "loss_cls", "loss_bbox" and the accuracy "acc" in percent.

        Args:
            logits: (N, K + 1).
            deltas: (N, K, 4).
            boxes: The sampled regions that have a true box, (P, 4); they are the first of the N.
            labels: Classes of all regions (N,), K for background.
            targets: True boxes (P, 4).
        """
        logits, deltas = logits.float(), deltas.float()
        count = max(len(labels), 1)
        own = torch.arange(len(boxes), device=labels.device), labels[: len(boxes)]
        box_loss = (deltas[own] - self.coder.encode(boxes, targets)).abs().sum() / count
        accuracy = (logits.argmax(1) == labels).float().mean() * 100 if len(labels) else logits.sum() * 0
        class_loss = F.cross_entropy(logits, labels, reduction="sum") / count
        return {"loss_cls": class_loss, "loss_bbox": box_loss, "acc": accuracy.detach()}


class MaskHead(nn.Module):
    """A mask of 28 by 28 cells for every class of every region.

    Args:
        in_channels: Width of the maps.
        hidden_channels: Width of the layers.
        num_classes: Number of classes K.
    """

    side = 14

    def __init__(self, in_channels: int, hidden_channels: int, num_classes: int) -> None:
        super().__init__()
        widths = [in_channels, *[hidden_channels] * 4]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        self.convs = nn.Sequential(*layers)
        self.upsample = nn.ConvTranspose2d(hidden_channels, hidden_channels, 2, stride=2)
        self.logits = nn.Conv2d(hidden_channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Return logits (N, K, 28, 28) of regions (N, 5)."""
        hidden = self.convs(pool_regions(maps, regions, self.side))
        return self.logits(F.relu(self.upsample(hidden)))
