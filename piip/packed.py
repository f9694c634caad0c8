"""Layers with weights laid out once for the processor, for inference on CPU.

PyTorch lays the weights of a product or convolution out anew in every call where oneDNN wants another order than theirs;
these layers keep them in that order. They use the operations that PyTorch's own compiler emits for frozen models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Pair = tuple[int, int]


def can_pack(weight: Tensor) -> bool:
    """Return whether oneDNN serves layers with such weights: on CPU, float32 or bfloat16."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class PackedLinear(nn.Module):
    """A linear layer that can add to its result.

    Args:
        weight: (out, in), one that `can_pack`.
        bias: (out,), or None.
        rows: Rows of the inputs to come, for which the layout is chosen; others work too.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, rows: int) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
        self.bias = None if bias is None else bias.detach()

    def forward(self, tokens: Tensor, add: Tensor | None = None) -> Tensor:
        """Map tokens (..., in) to (..., out); `add` (..., out) is added before rounding."""
        if add is None:
            return torch.ops.mkldnn._linear_pointwise(tokens, self.weight, self.bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(tokens, add, self.weight, self.bias, "add")


class PackedConv2d(nn.Module):
    """A convolution, channels last in memory.

    Args:
        conv: Layer with padding of zeros, whose weight `can_pack`.
        input_shape: (B, C, H, W) of the inputs to come, for which the layout is chosen; others work too.
    """

    def __init__(self, conv: nn.Conv2d, *, input_shape: Sequence[int]) -> None:
        super().__init__()
        padding: Pair = conv.padding  # type: ignore[assignment]  # words are sorted out in `is_plain`
        self.geometry = (padding, conv.stride, conv.dilation, conv.groups)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach(), *self.geometry, list(input_shape)
        )
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        maps = maps.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise(maps, self.weight, self.bias, *self.geometry, "none", [], "")


class PackedConvTranspose2d(nn.Module):
    """A transposed convolution, channels last in memory.

    Args:
        conv: Layer whose weight `can_pack`.
        input_shape: (B, C, H, W) of the inputs to come, for which the layout is chosen; others work too.
    """

    def __init__(self, conv: nn.ConvTranspose2d, *, input_shape: Sequence[int]) -> None:
        super().__init__()
        padding: Pair = conv.padding  # type: ignore[assignment]
        self.geometry = (padding, conv.output_padding, conv.stride, conv.dilation, conv.groups)
        self.weight = torch.ops.mkldnn._reorder_convolution_transpose_weight(
            conv.weight.detach(), *self.geometry, list(input_shape)
        )
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        maps = maps.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_transpose_pointwise(
            maps, self.weight, self.bias, *self.geometry, "none", [], ""
        )


def packed(layer: nn.Module, input_shape: Sequence[int]) -> nn.Module | None:
    """Return the packed form of a layer, or None where there is none.

    Args:
        layer: Any module; its parameters stay as they are.
        input_shape: Shape of its input.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not can_pack(weight):
        return None
    if type(layer) is nn.Linear:
        rows = int(torch.Size(input_shape[:-1]).numel())
        return PackedLinear(layer.weight, layer.bias, rows=rows)
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return PackedConv2d(layer, input_shape=input_shape)
    if type(layer) is nn.ConvTranspose2d and layer.groups == 1:
        return PackedConvTranspose2d(layer, input_shape=input_shape)
    return None
