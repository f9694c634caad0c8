"""Anchor boxes of the region proposal network."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from piip.ops.positions import kept

ANCHOR_SCALE = 8.0  # side of a square anchor in cells, in the released models
RATIOS = (0.5, 1.0, 2.0)  # height / width


def base_anchors(stride: int, device: torch.device, scale: float = ANCHOR_SCALE) -> Tensor:
    """Return the anchors (A, 4) of the first cell, centred on the origin; sides are not rounded."""
    side = scale * stride
    sides = [(side / math.sqrt(ratio), side * math.sqrt(ratio)) for ratio in RATIOS]
    return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides], dtype=torch.float32, device=device)


@kept
def grid_anchors(stride: int, grid: tuple[int, int], device: torch.device, scale: float = ANCHOR_SCALE) -> Tensor:
    """Return the anchors (H * W * A, 4) of a map, row-major, ratios fastest; centres lie at multiples of the stride.

    Args:
        stride: Pixels per cell.
        grid: (H, W) of the map.
        device: Device of the result.
        scale: Side of a square anchor in cells.
    """
    y = torch.arange(grid[0], device=device, dtype=torch.float32)[:, None].expand(grid) * stride
    x = torch.arange(grid[1], device=device, dtype=torch.float32).expand(grid) * stride
    shifts = torch.stack((x, y, x, y), -1).reshape(-1, 1, 4)
    return (shifts + base_anchors(stride, device, scale)).reshape(-1, 4)


@kept
def anchors_inside(
    strides: tuple[int, ...], grids: tuple[tuple[int, int], ...], padded: tuple[int, int], device: torch.device
) -> Tensor:
    """Return which anchors of all maps are inside the padded image, not in the rest of the batch, bool (N,).

    Args:
        strides: Pixels per cell of every map.
        grids: (H, W) of every map.
        padded: (H, W) of the image with its own padding.
        device: Device of the result.
    """
    flags = []
    for stride, grid in zip(strides, grids, strict=True):
        inside = torch.zeros(grid, dtype=torch.bool)
        inside[: math.ceil(padded[0] / stride), : math.ceil(padded[1] / stride)] = True
        flags.append(inside.reshape(-1, 1).expand(-1, len(RATIOS)).reshape(-1))
    return torch.cat(flags).to(device)
