"""Parts that work on maps, for inference on CPU in fewer steps than they are made of: ConvNeXt blocks and merges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d, Mlp
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from piip.layers.merge import BranchMerge
from piip.ops import native
from piip.optimize.folding import scaled_linear
from piip.optimize.fused_block import PackedMLP
from piip.optimize.packing import PackedConv2d, PackedLayerNorm, can_pack
from piip.structures import BranchFeatures


class FusedConvNeXtBlock(nn.Module):
    """A ConvNeXt block of timm whose sum is part of its last product.

    Args:
        block: The block to stand for.
        input_shape: (B, C, H, W) of the inputs to come, for which layouts are chosen; others work too.
    """

    def __init__(self, block: ConvNeXtBlock, *, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        batch, _, height, width = input_shape
        self.conv = PackedConv2d(block.conv_dw, input_shape=input_shape)
        mlp = _of_rows(block.mlp)
        if block.gamma is not None:
            mlp.fc2 = scaled_linear(mlp.fc2, block.gamma)
        self.mlp = PackedMLP(_of_rows(block.norm), mlp, rows=batch * height * width)

    def forward(self, maps: Tensor) -> Tensor:
        """Run the block on maps (B, C, H, W)."""
        mixed, shortcut = (item.permute(0, 2, 3, 1) for item in (self.conv(maps), maps))
        return self.mlp(mixed, shortcut.contiguous()).permute(0, 3, 1, 2)


class PackedLayerNorm2d(PackedLayerNorm):
    """A layer norm over the channels of maps by our own kernel."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise maps (B, C, H, W)."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FusedMerge(nn.Module):
    """A `BranchMerge` that never stores resized maps.

    Args:
        merge: The merge to stand for.
    """

    def __init__(self, merge: BranchMerge) -> None:
        super().__init__()
        self.projections = merge.projections
        self.scales = [scale.item() for scale in merge.scales]

    def forward(self, features: Sequence[BranchFeatures]) -> Tensor:
        """Return the merged map (B, C, H, W) on the last branch's grid."""
        *others, merged = [
            projection(branch.as_map()) for branch, projection in zip(features, self.projections, strict=True)
        ]
        merged = merged.contiguous(memory_format=torch.channels_last)
        for index, projected in enumerate(others):
            own_scale = 1.0 if index else self.scales[-1]
            native.add_resized_(merged, projected, large_scale=own_scale, small_scale=self.scales[index])
        return merged


def fused_maps(layer: nn.Module, shapes: dict[nn.Module, list[tuple[int, ...]]]) -> nn.Module | None:
    """Return the fused form of a ConvNeXt block or a merge, or None where there is none.

    Args:
        layer: Any module.
        shapes: Of the tensors that modules are called with.
    """
    if isinstance(layer, ConvNeXtBlock) and layer in shapes and _is_plain(layer):
        return FusedConvNeXtBlock(layer, input_shape=shapes[layer][0])
    if isinstance(layer, BranchMerge) and len(layer.scales) > 1 and can_pack(layer.scales[0]):
        return FusedMerge(layer) if native.is_available() else None
    if type(layer) is LayerNorm2d and can_pack(layer.weight):
        return PackedLayerNorm2d(layer) if native.is_available() else None
    return None


def _of_rows(layer: nn.Module) -> Any:
    """Return a layer of maps as one of rows of channels: norms, 1x1 convolutions and networks of them."""
    if isinstance(layer, LayerNorm2d):
        rows = nn.LayerNorm(layer.normalized_shape, layer.eps, device="meta")
        rows.weight, rows.bias = layer.weight, layer.bias  # LayerNorm2d has both
        return rows
    if isinstance(layer, nn.Conv2d):
        linear = nn.Linear(layer.in_channels, layer.out_channels, bias=layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(layer.weight.flatten(1), requires_grad=False)
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
        return linear
    for name, child in layer.named_children():
        setattr(layer, name, _of_rows(child))
    return layer


def _is_plain(block: ConvNeXtBlock) -> bool:
    if type(block.mlp) is not Mlp or type(block.conv_dw) is not nn.Conv2d:
        return False
    layers = (block.mlp.fc1, block.mlp.fc2)
    return (
        all(type(layer) in (nn.Linear, nn.Conv2d) and can_pack(layer.weight) for layer in layers)
        and all(type(step) is nn.Identity for step in (block.shortcut, block.mlp.norm))
        and not isinstance(block.conv_dw.padding, str)
        and block.conv_dw.padding_mode == "zeros"
    )
