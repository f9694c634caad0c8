"""What the models have in common: building from a description, and loading as transformers does it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from piip.build import build_model
from piip.integrations.transformers.config import PiipConfig, PiipVisionConfig, without_pretrained
from piip.serialization.base import PyramidModel


class PiipPreTrainedModel(PreTrainedModel):
    """A model of this library in transformers.

    Args:
        config: Configuration with a description.
        pyramid: The model to use instead of a new one of that description.

    Attributes:
        pyramid: The model of this library.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True

    def __init__(self, config: PiipConfig | PiipVisionConfig, pyramid: PyramidModel | None = None) -> None:
        super().__init__(config)
        self._awaits_values = torch.get_default_device().type == "meta"  # in from_pretrained
        if pyramid is None:
            description = config.description()
            pyramid = build_model(without_pretrained(description) if self._awaits_values else description)
        self.pyramid = pyramid

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed; `gradient_checkpointing_enable` of every model sets it."""
        return self.pyramid.get_backbone().grad_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.pyramid.set_grad_checkpointing(enable)

    def _init_weights(self, module: nn.Module) -> None:
        """Leave networks as they were built; after `from_pretrained`, compute what was not in the file.

        Args:
            module: A part of the model whose tensors are not all initialised; the first one fills those of all.
        """
        if not self._awaits_values:
            return
        self._awaits_values = False
        tensors = dict(chain(self.pyramid.named_parameters(), self.pyramid.named_buffers()))
        absent = [name for name, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]
        if not absent:
            return
        with torch.device("cpu"):
            fresh = build_model(without_pretrained(self.config.description()))
        values = dict(chain(fresh.named_parameters(), fresh.named_buffers()))
        with torch.no_grad():
            for name in absent:
                tensors[name].copy_(values[name])


def wants(given: Any, default: Any) -> bool:
    """Return whether an output is wanted; transformers also passes indices of hidden states.

    Args:
        given: Argument of the call, None if absent.
        default: The configuration's.
    """
    wanted = default if given is None else given
    return wanted is not None and wanted is not False
