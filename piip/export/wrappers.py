"""What is exported of a model: wrappers that take one tensor and return named tensors.

Nothing in the models knows that they are exported.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from piip.backbone import PIIPBackbone
from piip.heads.classification import PIIPClassifier
from piip.heads.image_info import ImageFrame
from piip.heads.mask_rcnn.head import MaskRCNNHead
from piip.heads.projector import PIIPVisionTower
from piip.heads.upernet import UperNetHead, resize_logits
from piip.models import PIIPDenseModel


@dataclass(frozen=True)
class Output:
    """One tensor that an exported model returns.

    Args:
        name: Its name in the file.
        meaning: What it holds, with its shape and units.
    """

    name: str
    meaning: str


class ExportTarget(nn.Module, ABC):
    """A model as its file will be: `forward` takes normalised RGB images (B, 3, H, W) and returns a tuple of tensors.

    Args:
        backbone: Whose sizes rule.

    Attributes:
        outputs: What `forward` returns, in order.
        takes_one_image: Whether the batch is one image, always; the size is fixed then too.
        stride: Where the size is free, sides are multiples of this, in pixels.
        least_side: Where the size is free, the smallest side in pixels: two patches of every branch.
    """

    outputs: tuple[Output, ...]
    takes_one_image: bool = False

    def __init__(self, backbone: PIIPBackbone) -> None:
        super().__init__()
        self.stride = backbone.branches[-1].stride
        sides = zip(backbone.branches, backbone.ratios, strict=True)
        self.least_side = max(math.ceil(2 * branch.stride / ratio) for branch, ratio in sides)

    @abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of images (B, 3, H, W)."""

    def in_order_of(self, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return outputs of a runtime in the order of other outputs for the same images.

        Args:
            wanted: Outputs in the order to take.
            found: Outputs in any order.
        """
        return list(found)


class FeatureMaps(ExportTarget):
    """Backbone and neck: one output a map.

    Args:
        backbone: The pyramid.
    """

    def __init__(self, backbone: PIIPBackbone) -> None:
        super().__init__(backbone)
        self.backbone = backbone
        shapes = [
            "B, {num_chs:g}, H / {reduction:g}, W / {reduction:g}".format(**info) for info in backbone.feature_info
        ]
        self.outputs = tuple(Output(f"map_{i}", f"feature map, float32 ({shape})") for i, shape in enumerate(shapes))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of images (B, 3, H, W)."""
        return tuple(self.backbone(image))


class WholeOutput(ExportTarget):
    """A model that returns one tensor: a classifier, or a vision tower.

    Args:
        model: The model.
        output: What it returns.
    """

    def __init__(self, model: PIIPClassifier | PIIPVisionTower, output: Output) -> None:
        super().__init__(model.backbone)
        self.model = model
        self.outputs = (output,)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the model's tensor for images (B, 3, H, W)."""
        return (self.model(image),)


class PixelClasses(ExportTarget):
    """A segmentor: logits on the head's grid, and the class of every pixel.

    Args:
        model: The segmentor.
    """

    outputs = (
        Output("logits", "logits of the classes on the head's grid, float32 (B, K, h, w)"),
        Output("labels", "index of the class of every pixel of the input, int64 (B, H, W)"),
    )

    def __init__(self, model: PIIPDenseModel) -> None:
        super().__init__(model.backbone)
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return logits (B, K, h, w) and labels (B, H, W) of images (B, 3, H, W)."""
        logits = self.model.segment(image)
        return logits, resize_logits(logits, image.shape[-2:]).argmax(1)


class Instances(ExportTarget):
    """Mask R-CNN on one image, which it fills: instances in pixels of the input, as many as there are.

    Args:
        model: The detector.
        head: Its head.
        most: Instances kept.
    """

    outputs = (
        Output("boxes", "x1, y1, x2, y2 in pixels of the input, float32 (N, 4), best first"),
        Output("scores", "in [0, 1], float32 (N,)"),
        Output("labels", "indices of classes, int64 (N,)"),
        Output("masks", "probabilities in 28 x 28 cells of each box, object from 0.5 on, float32 (N, 28, 28)"),
    )
    takes_one_image = True

    def __init__(self, model: PIIPDenseModel, head: MaskRCNNHead, most: int) -> None:
        super().__init__(model.backbone)
        self.model = model
        self.head = head
        self.most = most

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (N, 4), scores (N,), labels (N,) and masks (N, 28, 28) of one image (1, 3, H, W)."""
        frame = ImageFrame.make((image.shape[2], image.shape[3]))
        (found,) = self.head.find(self.model.forward_maps(image), [frame], rescale=False, most=self.most)
        return tuple(found[output.name] for output in self.outputs)

    def in_order_of(self, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return found instances so that each stands where its nearest wanted one does: equal scores have no order."""
        boxes, labels = found[0], found[2]
        if len(boxes) != len(wanted[0]) or not len(boxes):
            return list(found)
        far = torch.cdist(wanted[0], boxes, p=1) + 1e6 * (wanted[2][:, None] != labels)
        order = far.argmin(1)
        return [values[order] for values in found]


def export_target(model: nn.Module, *, features_only: bool = False) -> ExportTarget:
    """Return what is exported of a model.

    Args:
        model: A backbone, or a model with one.
        features_only: Backbone and neck alone.

    Raises:
        ValueError: A head that cannot be exported, or something that is no model of this library.
    """
    if isinstance(model, PIIPBackbone):
        return FeatureMaps(model)
    if features_only and isinstance(model, (PIIPClassifier, PIIPDenseModel, PIIPVisionTower)):
        return FeatureMaps(model.backbone)
    if isinstance(model, PIIPClassifier):
        return WholeOutput(model, Output("logits", "logits of the classes, float32 (B, K)"))
    if isinstance(model, PIIPVisionTower):
        return WholeOutput(model, Output("tokens", "tokens for a language model, float32 (B, N, D)"))
    if isinstance(model, PIIPDenseModel) and isinstance(model.head, UperNetHead):
        return PixelClasses(model)
    if isinstance(model, PIIPDenseModel) and isinstance(model.head, MaskRCNNHead):
        limits = model.metadata.get("detections") or [model.detections]
        return Instances(model, model.head, int(limits[-1]))
    if isinstance(model, PIIPDenseModel):
        raise ValueError(
            "DINO detectors cannot be exported, expected a classifier, Mask R-CNN, UperNet, vision tower or backbone; "
            "features_only (--features-only) exports a detector's backbone and neck."
        )
    raise ValueError(f"The model is a {type(model).__name__}, expected one of piip.from_pretrained or create_model.")
