"""Layers with weights laid out once for the processor, for inference on CPU.

PyTorch lays the weights of a product or convolution out anew in every call where oneDNN wants another order than
theirs; these layers keep them in that order. They use the operations that
PyTorch's own compiler emits for frozen models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm
from torch import Tensor, nn

from piip.ops import native

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


class PackedDoubling(nn.Module):
    """A transposed 2x2 convolution of stride 2 as two products, whose rows become rows of the result.

    In bfloat16 this takes about three quarters of the time of oneDNN's transposed convolution.

    Args:
        conv: Layer for which `doubles` holds and whose weight `can_pack`.
        rows_at_once: Rows of one product, so that it is still in the cache when it is moved to its place.
    """

    def __init__(self, conv: nn.ConvTranspose2d, *, rows_at_once: int = 2800) -> None:
        super().__init__()
        self.rows_at_once = rows_at_once
        weight = conv.weight.detach().permute(2, 3, 1, 0).flatten(1, 2)  # (2, 2 * out, in)
        bias = None if conv.bias is None else conv.bias.detach().repeat(2)
        self.line_width = weight.shape[1]
        self.lines = nn.ModuleList([PackedLinear(line, bias, rows=rows_at_once) for line in weight])

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', 2 * H, 2 * W)."""
        batch, channels, height, width = maps.shape
        rows = maps.permute(0, 2, 3, 1).reshape(batch * height, width, channels)
        result = rows.new_empty(batch * height, 2, width, self.line_width)
        step = max(1, self.rows_at_once // width)
        for first in range(0, batch * height, step):
            part = rows[first : first + step]
            for offset, line in enumerate(self.lines):
                result[first : first + step, offset] = line(part)
        return result.view(batch, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


def doubles(conv: nn.ConvTranspose2d) -> bool:
    """Return whether a transposed convolution turns each cell into 2x2 cells of its own."""
    return (conv.kernel_size, conv.stride, conv.dilation) == ((2, 2), (2, 2), (1, 1)) and (
        conv.padding == conv.output_padding == (0, 0) and conv.groups == 1
    )


class PackedLayerNorm(nn.Module):
    """A layer norm over the last axis by our own kernel.

    Args:
        norm: The layer to stand for.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = (None if item is None else item.detach() for item in (norm.weight, norm.bias))
        self.eps = norm.eps

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise tokens (..., C)."""
        return native.layer_norm(tokens, self.weight, self.bias, self.eps)


class InPlaceGELU(nn.Module):
    """GELU that overwrites its input."""

    def forward(self, numbers: Tensor) -> Tensor:
        """Apply the activation."""
        return native.gelu_(numbers) if native.is_available() else torch.ops.aten.gelu_(numbers)


def in_place(activation: nn.Module) -> nn.Module:
    """Return an activation that overwrites its input, or the given one where none is known."""
    if type(activation) is nn.GELU and activation.approximate == "none":
        return InPlaceGELU()
    return nn.ReLU(inplace=True) if type(activation) is nn.ReLU else activation


def packed(layer: nn.Module, input_shape: tuple[int, ...]) -> nn.Module | None:
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
        if doubles(layer) and weight.dtype == torch.bfloat16:
            return PackedDoubling(layer)
        return PackedConvTranspose2d(layer, input_shape=input_shape)
    # by type, since other norms of timm's descend from it: of the channels of maps, or in float32
    is_plain_norm = type(layer) in (nn.LayerNorm, LayerNorm) and layer.normalized_shape == input_shape[-1:]
    if is_plain_norm and native.is_available():
        return PackedLayerNorm(layer)  # type: ignore[arg-type]
    return None
