"""InternViT-6B as a timm network: RMSNorm, queries and keys normed over all heads together.

timm norms queries and keys head by head and has no InternViT-6B; with the two layers below it is a plain
`VisionTransformer`, registered under a timm name and handled like any other.

Source: InternVL (arXiv 2312.14238), section 3; layout of the public InternViT-6B release.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import Attention
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from piip.branches.base import IMAGENET_MEAN, IMAGENET_STD

CACHED = 2**17  # elements that are normed in one go: half a megabyte in float32


class RowsRMSNorm(nn.RMSNorm):
    """RMSNorm of (..., C) that takes a few rows at a time where PyTorch has no kernel for it: on CPUs.

    There the stock norm makes five passes over float32 copies of the whole tensor, for 4096 tokens in bfloat16 six
    times what a few cached rows after the other take, with the same result. Compilers and autograd see the stock norm.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the normed tensor, same shape."""
        is_plain = tokens.device.type == "cpu" and tokens.dtype == self.weight.dtype
        if not is_plain or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(tokens)
        rows = tokens.flatten(0, -2)
        normed = torch.empty(rows.shape, dtype=tokens.dtype)
        step = max(1, CACHED // rows.shape[-1])
        for given, made in zip(rows.split(step), normed.split(step), strict=True):
            made.copy_(super().forward(given))
        return normed.view(tokens.shape)


class AllHeadsRMSNorm(RowsRMSNorm):
    """RMSNorm of (B, heads, N, dim) over all heads together."""

    def forward(self, heads: Tensor) -> Tensor:
        """Return the normed tensor, same shape."""
        return _over_heads(super().forward, heads)


class AllHeadsLayerNorm(nn.LayerNorm):
    """LayerNorm of (B, heads, N, dim) over all heads together."""

    def forward(self, heads: Tensor) -> Tensor:
        """Return the normed tensor, same shape."""
        return _over_heads(super().forward, heads)


def _over_heads(norm: Any, heads: Tensor) -> Tensor:
    joined = norm(heads.transpose(1, 2).flatten(2))
    return joined.unflatten(2, (heads.shape[1], heads.shape[3])).transpose(1, 2)


NORMS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "rms": (RowsRMSNorm, AllHeadsRMSNorm),
    "layer": (nn.LayerNorm, AllHeadsLayerNorm),
}

default_cfgs = generate_default_cfgs(
    {
        "intern_vit_6b_patch14_224": {
            "input_size": (3, 224, 224),
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "num_classes": 0,
        }
    }
)


@register_model
def intern_vit_6b_patch14_224(
    pretrained: bool = False, *, norm: str = "rms", qk_norm: bool = True, **kwargs: Any
) -> VisionTransformer:
    """Build an InternViT; timm's registry calls this.

    Args:
        pretrained: Refused: timm hosts no weights, `piip convert --branch` brings them.
        norm: "rms" or "layer", the norm everywhere.
        qk_norm: Norm queries and keys over all heads.
        **kwargs: Arguments of timm's `VisionTransformer`.

    Raises:
        ValueError: An unknown norm.
    """
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}, expected one of {', '.join(NORMS)}.")
    plain, over_heads = NORMS[norm]
    defaults = {
        "patch_size": 14,
        "embed_dim": 3200,
        "depth": 48,
        "num_heads": 25,
        "qkv_bias": False,
        "init_values": 0.1,
        "norm_layer": partial(plain, eps=1e-6),
        "final_norm": False,
    }
    network: VisionTransformer = build_model_with_cfg(
        VisionTransformer, "intern_vit_6b_patch14_224", pretrained, **{**defaults, **kwargs}
    )
    if qk_norm:
        for block in network.blocks:
            attention: Attention = block.attn  # type: ignore[assignment]  # timm's blocks take any attention layer
            attention.q_norm = over_heads(network.embed_dim, eps=1e-6)
            attention.k_norm = over_heads(network.embed_dim, eps=1e-6)
    return network
