"""Pyramids in transformers: `PiipConfig` and `PiipBackbone` for detectors and segmentors, and a LLaVA vision tower.

Importing this package registers them with `AutoConfig`, `AutoBackbone` and `AutoModel`. `config` holds the
descriptions, `base` what both models share (building and loading), `backbone` and `vision_tower` the two models, and
`llava` a LLaVA whose projector is ours.
"""

from __future__ import annotations

from piip.integrations import missing

try:
    import transformers.backbone_utils  # noqa: F401 - the first version that has it is the lowest one supported
except ImportError as error:
    raise ImportError(missing("transformers 5.2 or newer", "piip[transformers]")) from error

from transformers import AutoBackbone, AutoConfig, AutoModel

from piip.integrations.transformers.backbone import PiipBackbone
from piip.integrations.transformers.config import PiipConfig, PiipVisionConfig
from piip.integrations.transformers.llava import PiipLlavaForConditionalGeneration
from piip.integrations.transformers.vision_tower import PiipVisionModel

__all__ = ["PiipBackbone", "PiipConfig", "PiipLlavaForConditionalGeneration", "PiipVisionConfig", "PiipVisionModel"]

for config_class in (PiipConfig, PiipVisionConfig):
    AutoConfig.register(config_class.model_type, config_class)
AutoBackbone.register(PiipConfig, PiipBackbone)
AutoModel.register(PiipVisionConfig, PiipVisionModel)
