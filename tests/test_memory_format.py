"""Merges and necks hold their weights with channels last, however they come about; files do not know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyramids import image, randomise, tiny_vit
from safetensors.torch import load_file
from torch import Tensor

import piip
from piip.config import InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.device import without_values
from piip.serialization.save import save_model

CONFIGS = {
    "conv": (MergeConfig("conv"), NeckConfig("simple")),
    "slim": (MergeConfig("slim", 24), NeckConfig("interaction", interactions=(0, 1, 2))),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    merge, neck = CONFIGS[request.param]
    return ModelConfig(
        (tiny_vit(32, 2, 64), tiny_vit(16, 2, 128)), InteractionConfig(count=4, num_heads=4), merge, neck
    )


def kernels(model: Any) -> Iterator[Tensor]:
    """Yield the weights of convolutions in merges and necks, of which some layout can be told."""
    for part in (model.merge, model.neck, model.stage_merges):
        for weight in part.parameters():
            if weight.dim() == 4 and weight.shape[1] > 1 and weight.shape[2] > 1:
                yield weight


def are_channels_last(model: Any) -> bool:
    found = [weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels(model)]
    assert found
    return all(found)


def test_weights_of_merge_and_neck_have_channels_last(config: ModelConfig) -> None:
    model = piip.build_backbone(config)
    assert are_channels_last(model)
    with without_values():
        assert are_channels_last(piip.build_backbone(config))


def test_saved_models_come_back_with_the_same_values_and_layout(config: ModelConfig, tmp_path: Path) -> None:
    model: Any = randomise(piip.build_backbone(config))
    save_model(model, tmp_path)
    assert all(value.is_contiguous() for value in load_file(tmp_path / "model.safetensors").values())
    again = piip.from_pretrained(tmp_path)
    assert are_channels_last(again)
    state = again.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    with torch.inference_mode():
        for got, want in zip(again(image()), model(image()), strict=True):
            torch.testing.assert_close(got, want)


def test_maps_of_the_neck_have_channels_last_too(config: ModelConfig) -> None:
    model = randomise(piip.build_backbone(config))
    with torch.inference_mode():
        maps = model(image())
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in maps)
