"""Norms, activations and sums in one pass over memory. For inference."""

from __future__ import annotations

import torch
from torch import Tensor

from piip.ops.native.compiled import call


def layer_norm(tokens: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
    """Normalise the last axis of tokens (..., C). For inference.

    Args:
        tokens: float32 or bfloat16; statistics are taken in float32.
        weight: (C,) in the dtype of `tokens`, or None.
        bias: In the same form.
        epsilon: Added to the variance.
    """
    tokens = tokens.contiguous()
    result = torch.empty_like(tokens)
    dim = tokens.shape[-1]
    call("layer_norm", tokens, (tokens.numel() // dim, dim), tokens, weight, bias, epsilon, result)
    return result


def gelu_(numbers: Tensor) -> Tensor:
    """Apply GELU in place to a dense tensor. For inference.

    In bfloat16 by a polynomial, whose error of at most 6e-5 is hidden by rounding; else as PyTorch does.
    """
    if numbers.dtype != torch.bfloat16:
        return torch.ops.aten.gelu_(numbers)
    call("gelu", numbers, (numbers.numel(),), numbers)
    return numbers


def add_resized_(large: Tensor, small: Tensor, *, large_scale: float = 1.0, small_scale: float = 1.0) -> Tensor:
    """Overwrite a map with its own multiple plus that of another one, resized bilinearly. For inference.

    Args:
        large: Map (B, C, H, W), channels last in memory.
        small: Map (B, C, H', W') in the same dtype; may be of equal size.
        large_scale: Factor of `large`.
        small_scale: Factor of `small`.
    """
    small = small.contiguous(memory_format=torch.channels_last)
    sizes = (*small.shape[:2], *small.shape[2:], *large.shape[2:])
    call("add_resized", large, sizes, small, small_scale, large_scale, large)
    return large
