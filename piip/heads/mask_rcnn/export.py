"""Mask R-CNN as one graph with named outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from piip.layers.outputs import ExportWrapper, Output
from piip.structures import ImageInfo

if TYPE_CHECKING:
    from piip.heads.mask_rcnn.head import MaskRCNNHead
    from piip.models import PIIPDenseModel


class InstanceOutputs(ExportWrapper):
    """Mask R-CNN on one image without padding: instances in pixels of the input, as many as there are.

    The maximum number of instances is the model's `detection_limit`.

    Args:
        model: The detector.
        head: Its head.
    """

    outputs = (
        Output("boxes", "x1, y1, x2, y2 in pixels of the input, float32 (N, 4), best first"),
        Output("scores", "in [0, 1], float32 (N,)"),
        Output("labels", "indices of classes, int64 (N,)"),
        Output("masks", "probabilities in 28 x 28 cells of each box, object from 0.5 on, float32 (N, 28, 28)"),
    )
    fixed_batch = "Mask R-CNN is exported for one image of a fixed size"
    min_torch = (2, 14)  # 2.9 was tried and fails, those in between were not tried

    def __init__(self, model: PIIPDenseModel, head: MaskRCNNHead) -> None:
        super().__init__(stride=model.backbone.branches[-1].stride, min_side=model.backbone.min_side)
        self.model = model
        self.head = head
        self.max_detections = model.detection_limit

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (N, 4), scores (N,), labels (N,) and masks (N, 28, 28) of one image (1, 3, H, W)."""
        image_info = ImageInfo.make((image.shape[2], image.shape[3]))
        maps = self.model.forward_maps(image)
        (found,) = self.head.detect(maps, [image_info], rescale=False, max_detections=self.max_detections)
        return tuple(found[output.name] for output in self.outputs)

    def in_order_of(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return found instances in the order of their nearest expected ones: equal scores have no order."""
        boxes, labels = found[0], found[2]
        if len(boxes) != len(expected[0]) or not len(boxes):
            return list(found)
        distance = torch.cdist(expected[0], boxes, p=1) + 1e6 * (expected[2][:, None] != labels)
        order = distance.argmin(1)
        return [values[order] for values in found]
