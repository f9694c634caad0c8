"""Activation checkpointing: parts of a model that run again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def call(function: Callable[..., Result], *args: object, recompute: bool) -> Result:
    """Call a function, storing its activations for the backward pass or only its arguments.

    Args:
        function: A module or function without side effects; the same random numbers are drawn again.
        *args: Its arguments.
        recompute: Store only the arguments and run the function again in the backward pass.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)


def lay_out_gradient(maps: Tensor) -> None:
    """Bring the gradient of maps (B, C, H, W) into their memory layout before the layers that made them run again.

    Losses and heads often return gradients that are not channels last. The layers' backward pass would copy such a
    gradient and keep it beside the copy, with all that was recomputed; here the original is gone before that.

    Source: own.
    """
    if maps.requires_grad and maps.is_contiguous(memory_format=torch.channels_last):
        maps.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
