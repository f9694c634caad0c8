"""A pyramid in front of a language model."""

from __future__ import annotations

from torch import Tensor

from piip.backbone import PIIPBackbone
from piip.config import ModelConfig
from piip.heads.projector import Projector
from piip.layers.outputs import ExportWrapper
from piip.models.base import ModelWithHead


class PIIPVisionTower(ModelWithHead):
    """A pyramid and a projector: image -> tokens for a language model.

    Args:
        backbone: The pyramid, without merge and neck.
        projector: Converts its maps to tokens.
        config: Description of the model.
    """

    title = "Vision tower"
    hub_task = "image-feature-extraction"

    def __init__(self, backbone: PIIPBackbone, projector: Projector, *, config: ModelConfig) -> None:
        super().__init__(backbone, config=config)
        self.head: Projector = projector

    def forward(self, image: Tensor) -> Tensor:
        """Return tokens (B, N, D) of normalised RGB images (B, 3, H, W)."""
        return self.head(self.backbone(image))

    def summary(self) -> str:
        """Return one sentence about the output of the model, for cards."""
        return f"A projector makes tokens of {self.head.width} channels for a language model."

    def _output_shape(self) -> str:
        return f"(1, N, {self.head.width})"

    def export_wrapper(self) -> ExportWrapper:
        """Return the vision tower as one graph with the output "tokens"."""
        return self._named_output("tokens", "tokens for a language model, float32 (B, N, D)")
