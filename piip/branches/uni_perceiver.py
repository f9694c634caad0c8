"""Uni-Perceiver as a timm network: a ViT with a norm behind the embeddings and LayerNorms of eps 1e-5.

For images its encoder is a plain pre-norm `VisionTransformer`. Its table of positions in time adds row 0 to every
patch, which is the same as adding it to the bias of the patch convolution: that is where weights are converted to.

Source: Uni-Perceiver (arXiv 2112.01522); layout of the public release as used by the authors of PIIP.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from piip.branches.base import IMAGENET_MEAN, IMAGENET_STD

_CFG = {
    "input_size": (3, 224, 224),
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "num_classes": 0,
}
default_cfgs = generate_default_cfgs({"uni_perceiver_base_patch16_224": _CFG, "uni_perceiver_large_patch16_224": _CFG})


class BiasedPatchEmbed(PatchEmbed):
    """timm's patch embedding with a bias, which timm leaves out in front of a norm."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "bias": True})


def _build(name: str, pretrained: bool, args: dict[str, Any]) -> VisionTransformer:
    defaults = {
        "patch_size": 16,
        "pre_norm": True,
        "class_token": False,
        "global_pool": "avg",
        "init_values": 1e-6,  # zero in the release, which timm takes for no layer scale
        "norm_layer": partial(nn.LayerNorm, eps=1e-5),
        "embed_layer": BiasedPatchEmbed,
        "final_norm": False,
    }
    network: VisionTransformer = build_model_with_cfg(VisionTransformer, name, pretrained, **{**defaults, **args})
    return network


@register_model
def uni_perceiver_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build Uni-Perceiver base; timm's registry calls this.

    Args:
        pretrained: Refused: timm hosts no weights, `piip convert --branch` brings them.
        **kwargs: Arguments of timm's `VisionTransformer`.
    """
    args = {"embed_dim": 768, "depth": 12, "num_heads": 12, **kwargs}
    return _build("uni_perceiver_base_patch16_224", pretrained, args)


@register_model
def uni_perceiver_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build Uni-Perceiver large; timm's registry calls this.

    Args:
        pretrained: Refused: timm hosts no weights, `piip convert --branch` brings them.
        **kwargs: Arguments of timm's `VisionTransformer`.
    """
    args = {"embed_dim": 1024, "depth": 24, "num_heads": 16, **kwargs}
    return _build("uni_perceiver_large_patch16_224", pretrained, args)
