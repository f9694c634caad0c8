"""Small pyramids for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import timm
import torch
from packaging.version import Version
from torch import nn

from piip.config import BranchConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig
from piip.zoo import model_config

REGNET = pytest.param(
    "regnetx_002",
    marks=pytest.mark.skipif(
        Version(timm.__version__) < Version("1.0.30"), reason="timm before 1.0.30 builds no RegNets on the meta device"
    ),
)


def tiny_vit(dim: int, heads: int, image_size: int, depth: int = 4, **fields: Any) -> BranchConfig:
    args = {"embed_dim": dim, "num_heads": heads, "depth": depth, **fields.pop("timm_args", {})}
    return BranchConfig("vit_tiny_patch16_224", image_size, timm_args=args, **fields)


def tiny_pyramid(count: int = 2, *, neck: str = "simple", merge: str | None = None, patch: int = 16) -> ModelConfig:
    """Describe `count` ViTs of two blocks, with four levels by default; the strides are those of the patch."""
    merge = merge or ("linear" if count > 1 else "none")
    branches = tuple(
        tiny_vit(width, 2, 2 * patch * 2**index, depth=2, timm_args={"patch_size": patch})
        for index, width in enumerate((32, 24, 16)[:count])
    )
    interaction = InteractionConfig(num_heads=2)
    return ModelConfig(branches, interaction, merge=MergeConfig(merge), neck=NeckConfig(neck))


def small_model(name: str) -> ModelConfig:
    """Return a named model with networks of few blocks and channels, at about 1/7 of the resolutions."""
    config = model_config(name)
    branches = []
    for index, branch in enumerate(config.branches):
        width = 96 - 24 * index
        sizes: dict[str, Any] = {"depth": 2, "embed_dim": width, "num_heads": width // 12}
        if branch.network.startswith("convnext"):
            sizes = {"depths": [1, 1, 1, 1], "dims": [width // 8, width // 4, width // 2, width]}
        patch = 14 if "patch14" in branch.network else 16
        side = branch.image_size // 224 * 2 * patch
        branches.append(dataclasses.replace(branch, image_size=side, timm_args=sizes))
    return dataclasses.replace(config, branches=tuple(branches), allow_direct=True)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value that matters, gates included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                continue
            centre = 1.0 if name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def image(height: int = 128, width: int = 128, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
