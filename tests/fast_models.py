"""Small models of every kind that `optimize_for_inference` treats in its own way."""

from __future__ import annotations

from typing import Any

import torch
from pyramids import randomise, tiny_vit
from torch import nn

import piip
from piip.config import BranchConfig, HeadConfig, InteractionConfig, MergeConfig, ModelConfig, NeckConfig

CLASSES = 96  # enough logits for their rounding errors to even out
STAGES = {"depths": [1, 1, 1, 1], "dims": [16, 24, 32, 48]}
FINE_STAGES = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}


def convnext(image_size: int, **timm_args: Any) -> BranchConfig:
    return BranchConfig("convnext_atto", image_size, timm_args=timm_args)


def vits(count: int, **fields: Any) -> tuple[BranchConfig, ...]:
    """Return the first networks of 64 (coarsest) to 128 pixels, the largest first."""
    sizes = ((32, 2, 64), (24, 2, 96), (16, 2, 128))[-count:]
    return tuple(tiny_vit(*size, depth=2, **fields) for size in sizes)


def of_vits(count: int = 2, interaction: dict[str, Any] | None = None, **fields: Any) -> ModelConfig:
    parts = {name: fields.pop(name) for name in ("merge", "neck", "head") if name in fields}
    return ModelConfig(vits(count, **fields), InteractionConfig(**{"num_heads": 4, **(interaction or {})}), **parts)


WINDOWS = {"prefix_tokens": False, "final_norm": False}
SIMPLE = NeckConfig("simple")
MODELS = {
    "one branch": of_vits(1),
    "two branches": of_vits(2, position_resize="official"),
    "three branches": of_vits(3, merge=MergeConfig("linear", 20)),
    "windows that tile": of_vits(2, window_size=(4, 0), merge=MergeConfig("conv"), neck=SIMPLE, **WINDOWS),
    "windows that do not": of_vits(2, window_size=(3, 0), merge=MergeConfig("slim", 32), neck=SIMPLE, **WINDOWS),
    "windows padded late": of_vits(2, window_size=3, window_padding="after_qkv", **WINDOWS),
    "layer scales": of_vits(2, timm_args={"init_values": 0.5, "reg_tokens": 2}),
    "dense attention": of_vits(2, {"attention": "dense"}, merge=MergeConfig("none")),
    "bare interaction": of_vits(2, {"ffn_ratio": 0.0, "norm": False, "projection": False}),
    "one direction": of_vits(3, {"direction": "to_fine", "num_points": 3}, position_resize="official"),
    "class tokens": of_vits(2, merge=MergeConfig("none"), head=HeadConfig("per_branch", CLASSES, pool="token")),
    "classifier": of_vits(2, head=HeadConfig("pooled", CLASSES)),
    "tower": of_vits(2, merge=MergeConfig("none"), head=HeadConfig("projector", width=24)),
    "neck with layer norm": of_vits(1, merge=MergeConfig("conv", 16), neck=NeckConfig("simple", norm="layer")),
    "convnext": ModelConfig(
        (convnext(64, **STAGES), convnext(128, **FINE_STAGES, conv_mlp=False)),
        InteractionConfig(num_heads=4),
        MergeConfig("slim", 32),
        NeckConfig("interaction", interactions=(0, 1, 2)),
    ),
    "mixed": ModelConfig(
        (convnext(64, **STAGES, conv_mlp=False), tiny_vit(16, 2, 128)), InteractionConfig(count=2, num_heads=4)
    ),
    "convolutions": ModelConfig((BranchConfig("test_resnet", 128),), merge=MergeConfig("none")),
    "beit": ModelConfig(
        (
            BranchConfig("beit_base_patch16_224", 64, timm_args={"embed_dim": 32, "depth": 2, "num_heads": 2}),
            tiny_vit(16, 2, 128, depth=2),
        ),
        InteractionConfig(num_heads=4),
    ),
    "rotary, no prefix": ModelConfig(
        (
            BranchConfig(
                "vit_small_patch16_dinov3",
                64,
                timm_args={"embed_dim": 48, "depth": 2, "num_heads": 2},
                prefix_tokens=False,
            ),
        ),
    ),
    "rotary": ModelConfig(
        (
            BranchConfig("vit_small_patch16_dinov3", 64, timm_args={"embed_dim": 48, "depth": 2, "num_heads": 2}),
            tiny_vit(16, 2, 128, depth=2),
        ),
        InteractionConfig(num_heads=4),
    ),
}


def build(config: ModelConfig) -> nn.Module:
    torch.manual_seed(0)
    model = randomise(piip.build_model(config))
    for name, parameter in model.named_parameters():  # offsets and weights of deformable attention start at zero
        if name.endswith(("offsets.weight", "weights.weight")):
            nn.init.normal_(parameter, std=0.2)
    return model
