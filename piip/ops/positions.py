"""Tensors that depend only on sizes, cached per size to avoid rebuilding and transfers in every call."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")
MOST_KEPT = 128  # a function: sizes seen in multi-scale training must not pile up


def kept(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Cache results by arguments."""
    results: dict[Any, Tensor] = {}

    @wraps(make)
    def get(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        if torch.compiler.is_compiling():  # a compiled or exported graph folds its own constants
            return make(*args, **kwargs)
        key = (args, tuple(kwargs.items()))
        if key in results:
            return results[key]
        with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training later
            made = make(*args, **kwargs)
        if type(made) is Tensor:  # not a stand-in of a tracer
            if len(results) >= MOST_KEPT:
                results.pop(next(iter(results)))
            results[key] = made
        return made

    return get


@kept
def cell_centres(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return the centres of grid cells as (x, y) in (0, 1), row-major, float32, (H * W, 2).

    Args:
        grid: (H, W).
        device: Device of the result.

    Source: own; convention of Deformable DETR (arXiv 2010.04159).
    """
    height, width = grid
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1).view(-1, 2)


@kept
def grid_extent(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return (W, H) of a grid as a float32 tensor, to scale (x, y) coordinates.

    Args:
        grid: (H, W).
        device: Device of the result.
    """
    return torch.tensor((grid[1], grid[0]), dtype=torch.float32, device=device)


@kept
def cell_sides(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return the sides (x, y) of a grid's cells relative to the grid, float32, (2,).

    Args:
        grid: (H, W).
        device: Device of the result.
    """
    return 1 / grid_extent(grid, device)


@kept
def bag_starts(batch: int, grid: tuple[int, int], heads: int, device: torch.device) -> Tensor:
    """Return the table rows of cell (1, 1) and its next three, for every image and head, int64, (B, 1, heads, 1, 4).

    Rows of the table are ordered (image, y, x, head); the four cells likewise.

    Args:
        batch: Number of images B.
        grid: (H, W) of one map, border included.
        heads: Number of heads.
        device: Device of the result.
    """
    height, width = grid
    image = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1) * (height * width * heads)
    head = torch.arange(heads, device=device).view(1, 1, -1, 1, 1)
    right = torch.arange(1, 3, device=device)
    cell = torch.cat((width + right, 2 * width + right))
    return image + head + cell * heads


@kept
def channel_values(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return one float32 value per channel, (C, 1, 1).

    Args:
        values: The values.
        device: Device of the result.
    """
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


@kept
def level_table(grids: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Return height, width and first cell of every level, int64, (levels, 3).

    Args:
        grids: (H, W) of every level.
        device: Device of the result.
    """
    starts = [sum(height * width for height, width in grids[:index]) for index in range(len(grids))]
    rows = [[*grid, start] for grid, start in zip(grids, starts, strict=True)]
    return torch.tensor(rows, dtype=torch.int64, device=device)
