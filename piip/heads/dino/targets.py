"""The true boxes of a batch, all images in one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from piip.heads.dino.boxes import image_extent
from piip.structures import ImageInfo, Target


class TrueBoxes(NamedTuple):
    """The true boxes of all images, image by image: G in total.

    Attributes:
        boxes: x1, y1, x2, y2 in network pixels, float32, (G, 4).
        relative: x, y, w, h relative to the image, float32, (G, 4).
        labels: Classes, int64, (G,).
        images: Index of the image of every box, int64, (G,).
        ranks: Index of every box in its image, int64, (G,).
        extents: (W, H, W, H) of every image in network pixels, float32, (B, 4).
        counts: Number of boxes of every image.
    """

    boxes: Tensor
    relative: Tensor
    labels: Tensor
    images: Tensor
    ranks: Tensor
    extents: Tensor
    counts: tuple[int, ...]

    @staticmethod
    def make(targets: Sequence[Target], image_infos: Sequence[ImageInfo]) -> TrueBoxes:
        """Join the targets of a batch.

        Args:
            targets: "boxes" (G, 4) in network pixels and "labels" (G,) of every image.
            image_infos: Sizes and padding of the images.
        """
        counts = tuple(len(target["labels"]) for target in targets)
        boxes = torch.cat([target["boxes"] for target in targets]).float()
        places = [(image, rank) for image, count in enumerate(counts) for rank in range(count)]
        images, ranks = torch.tensor(places, device=boxes.device).view(-1, 2).long().unbind(1)
        extents = torch.stack([image_extent(image_info.size, boxes) for image_info in image_infos])
        relative = box_convert(boxes / extents[images], "xyxy", "cxcywh")
        labels = torch.cat([target["labels"] for target in targets])
        return TrueBoxes(boxes, relative, labels, images, ranks, extents, counts)
