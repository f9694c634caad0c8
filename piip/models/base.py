"""What all models have that put a head on a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from piip.backbone import PIIPBackbone
from piip.config import ModelConfig
from piip.layers.map_info import MapInfo
from piip.layers.merge import CombinesBranches
from piip.layers.outputs import ExportWrapper, NamedOutputs, Output
from piip.serialization.base import PyramidModel


class ModelWithHead(PyramidModel):
    """A backbone with a head.

    Args:
        backbone: The pyramid.
        config: Description of the model.
    """

    config: ModelConfig
    head: nn.Module

    def __init__(self, backbone: PIIPBackbone, *, config: ModelConfig) -> None:
        first = backbone.branches[0]
        super().__init__(config, mean=first.mean, std=first.std, image_size=backbone.image_sizes[-1])
        self.backbone = backbone

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return the modules of each part; see `ModelParts`."""
        return {**self.backbone.parts(), "head": [self.head]}

    def get_backbone(self) -> PIIPBackbone:
        """Return the pyramid."""
        return self.backbone

    def combining_parts(self) -> list[CombinesBranches]:
        """Return the merges of the backbone."""
        return self.backbone.combining_parts()

    def usage(self) -> str:
        """Return Python code that runs the model on `image`; see `PyramidModel`."""
        return f"print(model((image - mean) / std).shape)  # {self._output_shape()}"

    @property
    def feature_info(self) -> MapInfo:
        """Channels and strides of the backbone's maps; see `PIIPBackbone.feature_info`."""
        return self.backbone.feature_info

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        *,
        branch: int | None = None,
    ) -> Any:
        """Return intermediate maps of images; see `PIIPBackbone.forward_intermediates`."""
        return self.backbone.forward_intermediates(
            image, indices, return_prefix_tokens, norm, stop_early, output_fmt, intermediates_only, branch=branch
        )

    def _output_shape(self) -> str:
        return "(1, ...)"

    def _named_output(self, name: str, meaning: str) -> ExportWrapper:
        stride, min_side = self.backbone.branches[-1].stride, self.backbone.min_side
        return NamedOutputs(self, [Output(name, meaning)], stride=stride, min_side=min_side)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's activations in the backward pass instead of storing them."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are usually excluded from weight decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}
