"""Factors behind layers (layer scales, batch norms) folded into their weights, for inference."""

from __future__ import annotations

from itertools import pairwise

import torch
from timm.layers import Attention, LayerScale, Mlp
from timm.models.convnext import ConvNeXtBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def scaled_linear(layer: nn.Linear, scale: Tensor) -> nn.Linear:
    """Return a linear layer whose result is `scale` (out,) times that of `layer`."""
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)  # round once
    scale = scale.to(dtype)
    bias = None if layer.bias is None else layer.bias.to(dtype) * scale
    with torch.device("meta"):
        folded = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None)
    weight = layer.weight.to(dtype) * scale[:, None]
    folded.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    if bias is not None:
        folded.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
    return folded


@torch.no_grad()
def fold_layer_scales(model: nn.Module) -> None:
    """Fold the layer scales of timm's plain ViT and ConvNeXt blocks into the linear layers before them, in place."""
    for block in model.modules():
        if type(block) is Block:
            _fold_block(block)
        if type(block) is ConvNeXtBlock and block.gamma is not None and _scale_mlp(block.mlp, block.gamma):
            block.gamma = None


def _fold_block(block: Block) -> None:
    if type(block.attn) is Attention and type(block.ls1) is LayerScale:
        block.attn.proj = scaled_linear(block.attn.proj, block.ls1.gamma)
        block.ls1 = nn.Identity()
    if type(block.ls2) is LayerScale and _scale_mlp(block.mlp, block.ls2.gamma):
        block.ls2 = nn.Identity()


def _scale_mlp(mlp: nn.Module, scale: Tensor) -> bool:
    """Fold a factor into a two-layer network in place; False where that is of another kind, as with convolutions."""
    if type(mlp) is not Mlp or not isinstance(mlp.fc2, nn.Linear):
        return False
    mlp.fc2 = scaled_linear(mlp.fc2, scale)
    return True


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> None:
    """Fold batch norms of a model in evaluation mode into the convolutions before them in a sequence, in place.

    Only in float32: elsewhere folded weights would be rounded more often.
    """
    for sequence in list(model.modules()):
        if isinstance(sequence, nn.Sequential):
            for index, (conv, norm) in enumerate(pairwise(sequence)):
                if (
                    type(conv) is nn.Conv2d
                    and type(norm) is nn.BatchNorm2d
                    and norm.running_mean is not None
                    and conv.weight.dtype == torch.float32
                ):
                    sequence[index], sequence[index + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


def token_mlps(model: nn.Module) -> list[Mlp]:
    """Return timm's two-layer networks of a model: an activation `act` between two linear layers."""
    return [module for module in model.modules() if type(module) is Mlp]
