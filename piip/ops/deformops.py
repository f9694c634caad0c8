"""Deformable attention by the library deformops (MIT, github.com/tue-p8n/deformops), natively of several levels.

On GPUs it runs Triton kernels of its own, elsewhere PyTorch's operations. Written against its version 3.0.1.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from piip.ops.positions import level_table
from piip.structures import Grid

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@functools.cache
def is_installed() -> bool:
    """Return whether the library is there."""
    return importlib.util.find_spec("deformops") is not None


@functools.cache
def _operator() -> Any:
    try:
        from deformops.registry import msda
    except ImportError as error:
        raise ValueError(
            f"Provider 'deformops' needs the library of that name ({error}): pip install \"piip[gpu]\" with Python "
            "3.12 or 3.13, or use provider=None."
        ) from error
    return msda


def supports(value: Tensor) -> bool:
    """Return whether its kernels for GPUs take values (B, N, heads, dim); they may be of any width."""
    return value.dtype in DTYPES and is_installed()


def sample(value: Tensor, grids: Sequence[Grid], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample maps of several levels; arguments and result of `piip.ops.levels_deformable_attention`.

    Raises:
        ValueError: The library is not installed.
    """
    msda = _operator()
    table = level_table(tuple(grids), value.device)
    # two maps away from the map all is zero as well, and kernels may compute positions in 32-bit integers
    near = locations.clamp(-1, 2)
    return msda(value, table[:, :2], table[:, 2], near, weights.to(value.dtype).flatten(3))
