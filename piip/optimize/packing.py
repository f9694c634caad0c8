"""Layers with weights laid out once for the processor, for inference on CPU.

PyTorch lays the weights of a product or convolution out anew in every call where oneDNN wants another order than
theirs; these layers keep them in that order. They use the operations that
PyTorch's own compiler emits for frozen models.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import TypeGuard

import torch
from timm.layers import LayerNorm, activations
from torch import Tensor, nn

from piip.ops import native
from piip.ops.native import gemm
from piip.structures import Size

WORTH_A_TRIAL = 2**26  # multiply-adds of a product from which on libraries are compared
ROUNDS, CLEARLY = 4, 0.96  # of that comparison: MKL must be so much faster, since additions come on top


def can_pack(weight: Tensor) -> bool:
    """Return whether oneDNN serves layers with such weights: on CPU, float32 or bfloat16."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class PackedLayerNorm(nn.Module):
    """A layer norm over the last axis by our own kernel.

    Args:
        norm: The layer to stand for.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        weight, bias = (None if item is None else item.detach() for item in (norm.weight, norm.bias))
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.epsilon = norm.eps

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise tokens (..., C)."""
        return native.layer_norm(tokens, self.weight, self.bias, self.epsilon)


class PackedLinear(nn.Module):
    """A linear layer by oneDNN that can add to its result.

    Args:
        weight: (out, in), one that `can_pack`.
        bias: (out,), or None.
        rows: Rows of the inputs to come, for which the layout is chosen; others work too.
        activation: "none", or "relu" or "gelu" of results to which nothing is added.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, rows: int, activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        self.out_features, self.in_features = weight.shape
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, tokens: Tensor, add: Tensor | None = None) -> Tensor:
        """Map tokens (..., in) to (..., out); `add` (..., out) is added before rounding."""
        if add is None:
            return torch.ops.mkldnn._linear_pointwise(tokens, self.weight, self.bias, self.activation, [], "none")
        return torch.ops.mkldnn._linear_pointwise.binary(tokens, add, self.weight, self.bias, "add")


class MKLLinear(nn.Module):
    """The same by MKL, for float32; on Intel processors faster for some shapes.

    Args:
        weight: (out, in), float32.
        bias: (out,), or None.
        rows: Rows of the inputs to come; others are multiplied by the weight as it is.
        activation: "none" or "relu", of results to which nothing is added.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, rows: int, activation: str = "none") -> None:
        super().__init__()
        self.has_relu = activation == "relu"
        self.out_features, self.in_features = weight.shape
        self.rows = rows
        self.plain_weight = weight.detach().contiguous()
        self.weight = torch.ops.mkl._mkl_reorder_linear_weight(self.plain_weight, rows)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, tokens: Tensor, add: Tensor | None = None) -> Tensor:
        """Map tokens (..., in) to (..., out); `add` (..., out) is added."""
        result = torch.ops.mkl._mkl_linear(tokens, self.weight, self.plain_weight, self.bias, self.rows)
        if add is not None:
            return result.add_(add)
        return result.relu_() if self.has_relu else result


def packed_linear(
    weight: Tensor, bias: Tensor | None, *, rows: int, activation: str = "none"
) -> PackedLinear | MKLLinear:
    """Return a linear layer by the library that is faster here; the arguments are those of `PackedLinear`."""
    is_large = rows * weight.numel() >= WORTH_A_TRIAL
    if is_large and weight.dtype == torch.float32 and torch.backends.mkl.is_available():
        kind = _faster_linear(rows, tuple(weight.shape), torch.get_num_threads())
        return kind(weight, bias, rows=rows, activation=activation)
    return PackedLinear(weight, bias, rows=rows, activation=activation)


@functools.cache
def _faster_linear(rows: int, shape: Size, threads: int) -> type[PackedLinear] | type[MKLLinear]:
    """Time both for one shape, in turn; `threads` is there to try again when it changes."""
    weight, tokens = torch.zeros(shape), torch.zeros(rows, shape[1])
    seconds: dict[type[PackedLinear] | type[MKLLinear], list[float]] = {PackedLinear: [], MKLLinear: []}
    layers = {kind: kind(weight, None, rows=rows) for kind in seconds}
    for _ in range(ROUNDS):
        for kind, layer in layers.items():
            start = time.perf_counter()
            layer(tokens)
            seconds[kind].append(time.perf_counter() - start)
    return MKLLinear if min(seconds[MKLLinear]) < CLEARLY * min(seconds[PackedLinear]) else PackedLinear


class PackedConv2d(nn.Module):
    """A convolution, channels last in memory.

    Args:
        conv: Layer with padding of zeros, whose weight `can_pack`.
        input_shape: (B, C, H, W) of the inputs to come, for which the layout is chosen; others work too.
        activation: "none", or "relu" or "gelu" of the results.
    """

    def __init__(self, conv: nn.Conv2d, *, input_shape: Sequence[int], activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        padding: Size = conv.padding  # type: ignore[assignment]  # words are sorted out in `is_plain`
        self.geometry = (padding, conv.stride, conv.dilation, conv.groups)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach(), *self.geometry, list(input_shape)
        )
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        maps = maps.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise(
            maps, self.weight, self.bias, *self.geometry, self.activation, [], "none"
        )


class PackedConvTranspose2d(nn.Module):
    """A transposed convolution, channels last in memory.

    Args:
        conv: Layer whose weight `can_pack`.
        input_shape: (B, C, H, W) of the inputs to come, for which the layout is chosen; others work too.
    """

    def __init__(self, conv: nn.ConvTranspose2d, *, input_shape: Sequence[int]) -> None:
        super().__init__()
        padding: Size = conv.padding  # type: ignore[assignment]
        self.geometry = (padding, conv.output_padding, conv.stride, conv.dilation, conv.groups)
        self.weight = torch.ops.mkldnn._reorder_convolution_transpose_weight(
            conv.weight.detach(), *self.geometry, list(input_shape)
        )
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        maps = maps.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_transpose_pointwise(
            maps, self.weight, self.bias, *self.geometry, "none", [], ""
        )


class PackedDoubling(nn.Module):
    """A transposed 2x2 convolution of stride 2 as two products, whose rows become rows of the result.

    Args:
        conv: Layer for which `doubles` holds, and `gemm.are_available` for its weight.
    """

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        weight = conv.weight.detach().permute(2, 3, 1, 0).flatten(1, 2)  # (2, 2 * out, in)
        bias = None if conv.bias is None else conv.bias.detach().repeat(2)
        self.lines = [gemm.tiled(line, bias) for line in weight]

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', 2 * H, 2 * W)."""
        batch, _, height, width = maps.shape
        tokens = maps.permute(0, 2, 3, 1)
        result = maps.new_empty(batch * height, 2, width, self.lines[0].out_features)
        for offset, line in enumerate(self.lines):
            gemm.linear(tokens, line, result[:, offset], gap=(width, width))
        return result.view(batch, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


def doubles(conv: nn.ConvTranspose2d) -> bool:
    """Return whether a transposed convolution turns each cell into 2x2 cells of its own."""
    return (conv.kernel_size, conv.stride, conv.dilation) == ((2, 2), (2, 2), (1, 1)) and (
        conv.padding == conv.output_padding == (0, 0) and conv.groups == 1
    )


class InPlaceGELU(nn.Module):
    """GELU that overwrites its input."""

    def forward(self, numbers: Tensor) -> Tensor:
        """Apply the activation."""
        return native.gelu_(numbers) if native.is_available() else torch.ops.aten.gelu_(numbers)


def in_place(activation: nn.Module) -> nn.Module:
    """Return an activation that overwrites its input, or the given one where none is known."""
    if type(activation) is activations.GELU or (type(activation) is nn.GELU and activation.approximate == "none"):
        return InPlaceGELU()
    return nn.ReLU(inplace=True) if type(activation) is nn.ReLU else activation


def joins(activation: nn.Module) -> bool:
    """Return whether an activation is best part of the layer before it: GELU, unless a kernel of ours is faster."""
    return type(in_place(activation)) is InPlaceGELU and not native.is_available()


def packed(layer: nn.Module, input_shape: tuple[int, ...], *, activation: str = "none") -> nn.Module | None:
    """Return the packed form of a layer, or None where there is none.

    Args:
        layer: Any module; its parameters stay as they are.
        input_shape: Shape of its input.
        activation: "none" or "relu", of the results of a linear layer or convolution.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not can_pack(weight):
        return None
    if type(layer) is nn.Linear:
        rows = int(torch.Size(input_shape[:-1]).numel())
        return packed_linear(layer.weight, layer.bias, rows=rows, activation=activation)
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return PackedConv2d(layer, input_shape=input_shape, activation=activation)
    if type(layer) is nn.ConvTranspose2d and layer.groups == 1:
        if doubles(layer) and gemm.are_available(weight):
            return PackedDoubling(layer)
        return PackedConvTranspose2d(layer, input_shape=input_shape)
    return packed_norm(layer) if weight.shape == input_shape[-1:] else None


def is_plain_norm(norm: nn.Module) -> TypeGuard[nn.LayerNorm]:
    """Return whether a module is a layer norm over the last axis, with weights that oneDNN serves."""
    # by type, since other norms of timm's descend from it: of the channels of maps, or in float32
    if type(norm) not in (nn.LayerNorm, LayerNorm) or norm.weight is None or not can_pack(norm.weight):  # type: ignore[arg-type]
        return False
    return len(norm.normalized_shape) == 1  # type: ignore[arg-type]


def packed_norm(norm: nn.Module) -> PackedLayerNorm | None:
    """Return the packed form of a layer norm, or None where there is none."""
    return PackedLayerNorm(norm) if is_plain_norm(norm) and native.is_available() else None
