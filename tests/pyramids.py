"""Small pyramids for tests."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from packaging.version import Version
from torch import nn

from piip.config import BranchConfig

REGNET = pytest.param(
    "regnetx_002",
    marks=pytest.mark.skipif(
        Version(timm.__version__) < Version("1.0.30"), reason="timm before 1.0.30 builds no RegNets on the meta device"
    ),
)


def tiny_vit(dim: int, heads: int, image_size: int, depth: int = 4, **fields: Any) -> BranchConfig:
    args = {"embed_dim": dim, "num_heads": heads, "depth": depth, **fields.pop("timm_args", {})}
    return BranchConfig("vit_tiny_patch16_224", image_size, timm_args=args, **fields)


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
