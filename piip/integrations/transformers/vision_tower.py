"""A vision tower of this library as a vision model of transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from piip.integrations.levels import checked_model
from piip.integrations.transformers.base import PiipPreTrainedModel, wants
from piip.integrations.transformers.config import PiipVisionConfig, described
from piip.serialization.base import PyramidModel


class PiipVisionModel(PiipPreTrainedModel):
    """A pyramid and its projector: images -> tokens of a language model's width.

    Args:
        config: Description of the tower.
        pyramid: The tower to use instead of a new one of that description.
    """

    config_class = PiipVisionConfig

    def __init__(self, config: PiipVisionConfig, pyramid: PyramidModel | None = None) -> None:
        super().__init__(config, pyramid)
        self.post_init()

    @classmethod
    def from_model(cls, tower: nn.Module) -> PiipVisionModel:
        """Return a tower of this library, with its weights, which are not copied.

        Args:
            tower: For instance from `piip.from_pretrained`, after `piip convert` of an official model.

        Raises:
            ValueError: It is no model of this library, or has another head.
        """
        model = checked_model(tower)
        return cls(PiipVisionConfig(described(model.config)), pyramid=model)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Return the tokens of images.

        Args:
            pixel_values: Normalised RGB images, (B, 3, H, W).
            output_hidden_states: Unused: there is one layer of tokens, returned always.
            return_dict: Return a `BaseModelOutputWithPooling` instead of a tuple; None asks the configuration.
            **kwargs: Unused; models pass what other vision models take.

        Returns:
            `last_hidden_state`, tokens (B, N, D), and `hidden_states`, a tuple of it.
        """
        tokens = self.pyramid(pixel_values)
        output = BaseModelOutputWithPooling(last_hidden_state=tokens, hidden_states=(tokens,))
        return output if wants(return_dict, self.config.return_dict) else output.to_tuple()
