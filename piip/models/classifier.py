"""A pyramid with a classification head."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from piip.backbone import PIIPBackbone
from piip.config import ModelConfig
from piip.heads.classification import ClassificationHead
from piip.layers.merge import CombinesBranches
from piip.layers.outputs import ExportWrapper
from piip.models.base import ModelWithHead
from piip.structures import BranchFeatures


class PIIPClassifier(ModelWithHead):
    """A pyramid backbone with a classification head.

    Args:
        backbone: The pyramid.
        head: `PooledHead` or `PerBranchHead`.
        config: Description of the model, for saving.
    """

    title = "Classifier"
    hub_task = "image-classification"

    def __init__(self, backbone: PIIPBackbone, head: ClassificationHead, *, config: ModelConfig) -> None:
        super().__init__(backbone, config=config)
        self.head: ClassificationHead = head

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.config.head.num_classes

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one for another number of classes, like timm's models.

        Args:
            num_classes: Number of classes K.

        Raises:
            ValueError: Fewer than one class.
        """
        head = dataclasses.replace(self.config.head, num_classes=num_classes)
        self.config = dataclasses.replace(self.config, head=head)
        self.head.reset_classes(num_classes)
        for name in ("classes", "metrics"):  # of the classifier before
            self.metadata.pop(name, None)

    def combining_parts(self) -> list[CombinesBranches]:
        """Return the merges and the head."""
        return [*super().combining_parts(), self.head]

    def forward_features(self, image: Tensor) -> list[BranchFeatures]:
        """Return the finished features of every branch for images (B, 3, H, W)."""
        return self.backbone.forward_features(image)

    def forward_head(self, features: list[BranchFeatures]) -> Tensor:
        """Return logits (B, K) of finished features."""
        return self.head(features, self.backbone.forward_maps(features))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K) of normalised RGB images (B, 3, H, W)."""
        return self.forward_head(self.forward_features(image))

    def summary(self) -> str:
        """Return one sentence about the output of the model, for cards."""
        return self.head.summary(self.num_classes)

    def _output_shape(self) -> str:
        return f"(1, {self.num_classes})"

    def export_wrapper(self) -> ExportWrapper:
        """Return the classifier as one graph with the output "logits"."""
        return self._named_output("logits", "logits of the classes, float32 (B, K)")
