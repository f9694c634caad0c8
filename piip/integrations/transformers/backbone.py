"""A pyramid as a backbone of transformers' detectors and segmentors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from piip.integrations.levels import checked_model
from piip.integrations.transformers.base import PiipPreTrainedModel, wants
from piip.integrations.transformers.config import PiipConfig, described
from piip.serialization.base import PyramidModel


class PiipBackbone(BackboneMixin, PiipPreTrainedModel):
    """A pyramid that returns the maps that its configuration names.

    Args:
        config: Description of the pyramid and names of the maps.
        pyramid: The backbone to use instead of a new one of that description.

    Attributes:
        num_features: Channels of every map, returned or not.

    Raises:
        ValueError: The sizes in the configuration are not those of the pyramid.

    Example:
        >>> backbone = AutoBackbone.from_config(PiipConfig(config, out_indices=[1, 2, 3]))
        >>> maps = backbone(torch.randn(1, 3, 256, 256)).feature_maps
    """

    config_class = PiipConfig
    has_attentions = False

    def __init__(self, config: PiipConfig, pyramid: PyramidModel | None = None) -> None:
        super().__init__(config, pyramid=pyramid)
        channels = self.pyramid.get_backbone().feature_info.channels()
        if channels != config.hidden_sizes:
            raise ValueError(
                f"PiipConfig.hidden_sizes is {config.hidden_sizes}, the pyramid has maps of {channels} channels; "
                "remove the field, or load the weights with the configuration they were saved with."
            )
        self.num_features = channels
        self.post_init()

    @classmethod
    def from_model(cls, model: nn.Module, *, out_indices: list[int] | None = None) -> PiipBackbone:
        """Return the backbone of a model of this library, with its weights, which are not copied.

        Args:
            model: For instance from `piip.from_pretrained`; a head is left out.
            out_indices: Indices of the maps to return, None for all.

        Raises:
            ValueError: It is no model of this library, or has no description.
        """
        backbone = checked_model(model).get_backbone()
        return cls(PiipConfig(described(backbone.config), out_indices=out_indices), pyramid=backbone)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Return the maps of images.

        Args:
            pixel_values: Normalised RGB images, (B, 3, H, W).
            output_hidden_states: Also return all maps of the pyramid, as `hidden_states`.
            output_attentions: Must not be true: interactions have no attention maps.
            return_dict: Return a `BackboneOutput` instead of a tuple; None asks the configuration.
            **kwargs: Unused; models pass what other backbones take.

        Returns:
            `feature_maps`, maps (B, C_i, H_i, W_i) of `out_features`, and `hidden_states`.

        Raises:
            ValueError: Attentions are asked for.
        """
        if output_attentions:
            raise ValueError("output_attentions is True, expected False: a pyramid returns no attentions.")
        maps = self.pyramid(pixel_values)
        hidden = tuple(maps) if wants(output_hidden_states, self.config.output_hidden_states) else None
        output = BackboneOutput(feature_maps=tuple(maps[index] for index in self.out_indices), hidden_states=hidden)
        return output if wants(return_dict, self.config.return_dict) else output.to_tuple()
