"""Configurations of transformers that hold a description of this library (`ModelConfig`) as JSON values."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from piip.backbone import PIIPBackbone
from piip.build import PyramidWarning, build_backbone
from piip.build.model import head_width
from piip.config import HeadConfig, ModelConfig
from piip.device import without_values

Description = ModelConfig | Mapping[str, Any]


def described(model: Description | None) -> ModelConfig:
    """Return the description that a configuration is made of or holds: as it is, or from its JSON values.

    Raises:
        ValueError: There is none, or the values are none.
    """
    if model is None:
        raise ValueError("The configuration has no model: make it with model=ModelConfig(...), or read a saved one.")
    if isinstance(model, Mapping):
        return ModelConfig.from_dict(model)
    if not dataclasses.is_dataclass(model):
        raise ValueError(f"model is a {type(model).__name__}, expected ModelConfig(...) or its JSON values.")
    return model


def without_pretrained(model: ModelConfig) -> ModelConfig:
    """Return a description whose networks load no weights when they are built."""
    branches = tuple(dataclasses.replace(branch, pretrained=False) for branch in model.branches)
    return dataclasses.replace(model, branches=branches)


def as_json(model: ModelConfig) -> dict[str, Any]:
    """Return a description as it is read from a file again."""
    values: dict[str, Any] = json.loads(json.dumps(model.to_dict(), default=list))
    return values


class PiipConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of `PiipBackbone`: a pyramid, and which of its maps to return.

    Other arguments are fields of every configuration of transformers.

    Args:
        model: Description of the pyramid, `ModelConfig` or its JSON values; a head is left out.
        out_features: Names of the returned maps, from `stage_names`. None, with `out_indices` None: all.
        out_indices: The same by index.
        hidden_sizes: Channels of every map; None asks the description.
        strides: Image pixels per cell of every map; None asks the description.

    Attributes:
        stage_names: "stage1", "stage2", ...: one per map of the pyramid, not per stage of its branches.
        hidden_size: Channels of the last returned map, as models read it that use one map.

    Raises:
        ValueError: The description is wrong, or a name or index is of no map.
    """

    model_type = "piip"

    def __init__(
        self,
        model: Description | None = None,
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
        hidden_sizes: Sequence[int] | None = None,
        strides: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("stage_names", None)  # follow from the number of maps
        super().__init__(**kwargs)
        self.num_channels = 3
        self.model = None
        if model is not None:  # transformers makes empty configurations, to find what differs from the defaults
            description = dataclasses.replace(described(model), head=HeadConfig())
            self.model = as_json(description)
            if hidden_sizes is None or strides is None:
                hidden_sizes, strides = _maps_of(description)
        self.hidden_sizes, self.strides = list(hidden_sizes or ()), list(strides or ())
        self.stage_names = [f"stage{index}" for index in range(1, len(self.hidden_sizes) + 1)]
        if out_features is None and out_indices is None:
            out_features = self.stage_names
        features, indices = (None if given is None else list(given) for given in (out_features, out_indices))
        self.set_output_features_output_indices(out_features=features, out_indices=indices)

    @property
    def hidden_size(self) -> int:
        """Channels of the last returned map."""
        return self.hidden_sizes[self.out_indices[-1]]

    def description(self) -> ModelConfig:
        """Return the description of the pyramid.

        Raises:
            ValueError: There is none.
        """
        return described(self.model)


def _maps_of(description: ModelConfig) -> tuple[list[int], list[float]]:
    """Return channels and strides of a pyramid's maps."""
    info = _built_empty(description).feature_info
    return info.channels(), info.reduction()


def _built_empty(description: ModelConfig) -> PIIPBackbone:
    """Return the backbone of a description, without values."""
    with warnings.catch_warnings(), without_values():
        warnings.simplefilter("ignore", PyramidWarning)  # the model itself warns
        return build_backbone(without_pretrained(description))


class PiipVisionConfig(PreTrainedConfig):
    """Configuration of `PiipVisionModel`: a vision tower with its projector.

    Other arguments are fields of every configuration of transformers.

    Args:
        model: Description with a head of kind "projector", `ModelConfig` or its JSON values.
        hidden_size: Channels of the tokens; None asks the description.
        patch_size: Image pixels per token along one side; None asks the description.

    Attributes:
        image_size: Nominal side of the image in pixels.
        num_image_tokens: Tokens of an image of the nominal size, which the text has as many placeholders for.

    Raises:
        ValueError: The description is wrong, or has another head.
    """

    model_type = "piip_vision"

    def __init__(
        self,
        model: Description | None = None,
        hidden_size: int | None = None,
        patch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_channels = 3
        self.model = None
        self.hidden_size, self.patch_size, self.image_size = hidden_size or 0, patch_size or 0, 0
        if model is None:  # as transformers makes them
            return
        description = described(model)
        if description.head.task != "tokens":
            raise ValueError(
                f"ModelConfig.head is {description.head.kind!r}, expected HeadConfig('projector', width=WIDTH OF THE "
                "LANGUAGE MODEL); for a backbone without tokens, use PiipConfig."
            )
        self.model = as_json(description)
        self.image_size = description.branches[-1].image_size
        self.hidden_size = hidden_size or head_width(description.head)
        self.patch_size = patch_size or _built_empty(description).branches[-1].stages[-1].stride

    @property
    def num_image_tokens(self) -> int:
        """Tokens of an image of the nominal size."""
        return (self.image_size // self.patch_size) ** 2

    def description(self) -> ModelConfig:
        """Return the description of the tower.

        Raises:
            ValueError: There is none.
        """
        return described(self.model)
