"""Products of bfloat16 tokens with fixed weights, for inference: the norm before and what follows are part of them.

See `gemm.cpp`. They run where the processor multiplies bfloat16 numbers itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.ops.native import compiled

SIDE, DEPTH, BLOCK = 16, 32, 32  # of tiles, as in gemm.cpp


LARGE = 2**24  # numbers of a result that is written past the caches
MAX_TOKENS = 4096  # of attention: with these, what a thread works on stays in its cache


class Layer(NamedTuple):
    """A linear layer for the kernels; see `tiled`."""

    weight: Tensor
    bias: Tensor
    in_features: int
    out_features: int


class Norm(NamedTuple):
    """A layer norm over channels (C,)."""

    weight: Tensor | None
    bias: Tensor | None
    epsilon: float


def level() -> int:
    """Return 2 where the processor has units for matrix products, 1 where it has only dot products, else 0."""
    kernels = compiled.library()
    return kernels.piip_products() if kernels else 0


def are_available(weight: Tensor) -> bool:
    """Return whether layers of such a weight can run: on CPU, bfloat16, with a compiler and a processor that can."""
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and level() > 0


def tiled(weight: Tensor, bias: Tensor | None) -> Layer:
    """Lay out a linear layer once for the kernels, padded with zeros to whole tiles.

    Args:
        weight: (out, in), bfloat16.
        bias: (out,), or None.
    """
    outs, ins = weight.shape
    extra = -outs % BLOCK
    whole = F.pad(weight.detach(), (0, -ins % DEPTH, 0, extra))
    tiles = whole.view(whole.shape[0] // SIDE, SIDE, -1, DEPTH // 2, 2).permute(0, 2, 3, 1, 4).contiguous()
    bias = weight.new_zeros(outs) if bias is None else bias.detach()
    return Layer(tiles, F.pad(bias, (0, extra)), ins, outs)


def linear(tokens: Tensor, layer: Layer, result: Tensor, *, gap: tuple[int, int] = (1, 0)) -> None:
    """Write layer(tokens) to `result`.

    Args:
        tokens: (..., in), bfloat16.
        layer: The layer.
        result: Begin of the place for rows of (out,).
        gap: (span, rows): after every `span` rows of the result so many are left out.
    """
    tokens = tokens.contiguous()
    rows = tokens.numel() // layer.in_features
    is_large = rows * layer.out_features > LARGE
    sizes = (rows, layer.in_features, layer.out_features, *gap, int(is_large))
    compiled.call("linear", tokens, sizes, tokens, layer.weight, layer.bias, result)


def network(tokens: Tensor, norm: Norm, first: Layer, second: Layer) -> Tensor:
    """Return tokens + second(gelu(first(norm(tokens)))); hidden activations never leave the cache.

    Args:
        tokens: (..., C), bfloat16.
        norm: Norm that goes before.
        first: Layer from C to hidden channels.
        second: Layer back.
    """
    tokens = tokens.contiguous()
    result = torch.empty_like(tokens)
    rows = tokens.numel() // first.in_features
    sizes = (rows, first.in_features, first.out_features)
    layers = (first.weight, first.bias, second.weight, second.bias)
    compiled.call("network", tokens, sizes, tokens, *norm, *layers, result)
    return result


def can_attend(qkv: Tensor, heads: int) -> bool:
    """Return whether `attend` takes such products (B, N, 3 * C)."""
    dim = qkv.shape[2] // heads // 3
    return are_available(qkv) and qkv.shape[1] <= MAX_TOKENS and dim % DEPTH == 0 and dim * heads * 3 == qkv.shape[2]


def attend(qkv: Tensor, heads: int, scale: float) -> Tensor:
    """Run self-attention of short sequences, all of whose scores a thread can hold: windows.

    Args:
        qkv: Queries, keys and values (B, N, 3 * heads * dim), ones that `can_attend`.
        heads: Heads.
        scale: Factor of the scores.

    Returns:
        (B, N, heads * dim).
    """
    qkv = qkv.contiguous()
    batch, tokens, width = qkv.shape
    result = qkv.new_empty(batch, tokens, width // 3)
    compiled.call("attend", qkv, (batch, tokens, heads, width // heads // 3), qkv, scale, result)
    return result
