"""LLaVA over a pyramid, with the projector of the official multimodal models."""

from __future__ import annotations

from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from piip.integrations.transformers.config import PiipVisionConfig


class PiipLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """transformers' LLaVA whose vision tower projects its tokens itself.

    LLaVA's own projector is two linear layers on one map. The official models have one projection per branch, of
    another layout, whose results are added: it is part of the tower (`piip.models.PIIPVisionTower`), and nothing
    follows it.

    Args:
        config: With a `PiipVisionConfig`, `vision_feature_layer=-1` and `vision_feature_select_strategy="full"`.

    Raises:
        ValueError: The configuration is for another tower, or the tower's tokens have not the language model's width.
    """

    def __init__(self, config: LlavaConfig) -> None:
        _check(config)
        super().__init__(config)
        self.model.multi_modal_projector = nn.Identity()


def _check(config: LlavaConfig) -> None:
    """Raise a ValueError unless tokens of the tower can enter the language model as they are."""
    vision, width = config.vision_config, config.text_config.hidden_size
    if vision.model_type != PiipVisionConfig.model_type:
        raise ValueError(f"vision_config is of {vision.model_type!r}, expected a PiipVisionConfig.")
    if (config.vision_feature_layer, config.vision_feature_select_strategy) != (-1, "full"):
        raise ValueError(
            f"vision_feature_layer is {config.vision_feature_layer} and vision_feature_select_strategy "
            f"{config.vision_feature_select_strategy!r}, expected -1 and 'full': the tower has one layer of tokens and "
            "no class token."
        )
    if vision.hidden_size != width:
        raise ValueError(
            f"The tower's tokens have {vision.hidden_size} channels and the language model {width}: set "
            f"HeadConfig('projector', width={width})."
        )
