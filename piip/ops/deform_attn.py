"""Sampling of multi-head deformable attention: one function, several providers.

The operation (Zhu et al., Deformable DETR, arXiv 2010.04159, equation 2, one feature level): every query and head
reads a few points of a value map by bilinear interpolation and sums them with given weights. Points outside
the map read zeros.

Providers are interchangeable and tested against each other, forward and backward:

- `native`: a kernel of our own for CPU, where a C++ compiler is at hand (`piip/ops/native`); the fastest there, forward
  and backward.
- `portable`: `grid_sample`; runs on every device, and its backward is the fastest stock one.
- `gather`: the four neighbours of every point are rows of one table; a weighted `embedding_bag` reads and sums them
  in one pass. The fastest stock forward on CPU.
- `index`: the same rows by plain indexing; only operations that every exporter and compiler knows.
- `triton`: kernels for GPUs (`triton_sampling.py`); untimed, therefore never selected automatically.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.ops import native
from piip.ops.compat import is_exporting
from piip.ops.positions import bag_starts, grid_extent
from piip.structures import Grid


def deformable_attention(
    value: Tensor, grid: Grid, locations: Tensor, weights: Tensor, *, provider: str | None = None
) -> Tensor:
    """Sample values at points and sum them with weights.

    Args:
        value: Values of the map, row-major, (B, H * W, heads, dim); bfloat16, float32 or float64.
        grid: (H, W) of the map.
        locations: Points as (x, y), (B, Q, heads, points, 2), float32 (or float64), normalised so that (0, 0) and
            (1, 1) are the outer corners of the map; may lie outside, where zeros are read.
        weights: Weight of each point, (B, Q, heads, points), in the dtype of `value`; need not sum to 1.
        provider: "native", "portable", "gather", "index" or "triton"; None selects automatically.

    Returns:
        (B, Q, heads * dim) in the dtype of `value`.

    Raises:
        ValueError: Shapes do not match, or the provider is unknown or does not support these tensors.

    Source: arXiv 2010.04159, equation 2; sampling convention of `docs/official.md` (own implementation).
    """
    _check(value, grid, locations, weights)
    if value.dtype == torch.float64:
        locations = locations.double()
    if provider is None:
        provider = _choose(value, locations, weights)
    if provider not in PROVIDERS:
        raise ValueError(f"Provider {provider!r} is unknown, expected one of {', '.join(PROVIDERS)}.")
    return PROVIDERS[provider](value, grid, locations, weights)


def _check(value: Tensor, grid: Grid, locations: Tensor, weights: Tensor) -> None:
    if value.dim() != 4 or value.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"value has shape {tuple(value.shape)}, expected (B, {grid[0] * grid[1]}, heads, dim) for grid {grid}."
        )
    wanted = (*weights.shape, 2)
    if weights.dim() != 4 or tuple(locations.shape) != wanted:
        raise ValueError(
            f"locations has shape {tuple(locations.shape)} and weights {tuple(weights.shape)}, "
            "expected (B, Q, heads, points, 2) and (B, Q, heads, points)."
        )
    if weights.shape[0] != value.shape[0] or weights.shape[2] != value.shape[2]:
        raise ValueError(
            f"weights is for {weights.shape[0]} images and {weights.shape[2]} heads, "
            f"value for {value.shape[0]} and {value.shape[2]}; they must be equal."
        )


def _choose(value: Tensor, locations: Tensor, weights: Tensor) -> str:
    if is_exporting():
        return "index"  # GridSample is miscompiled or slow in several runtimes, bags are unknown to most
    if native.supports(value) and native.is_available():
        return "native"
    differentiated = torch.is_grad_enabled() and (
        value.requires_grad or locations.requires_grad or weights.requires_grad
    )
    return "gather" if value.device.type == "cpu" and not differentiated else "portable"


def _native(value: Tensor, grid: Grid, locations: Tensor, weights: Tensor) -> Tensor:
    if not native.supports(value):
        raise ValueError(
            f"Provider 'native' takes float32 or bfloat16 values on CPU of at most {native.MAX_DIM} channels per head, "
            f"got {value.dtype} on {value.device} with {value.shape[3]}; use provider=None for automatic selection."
        )
    if not native.is_available():
        raise ValueError("Provider 'native' needs a C++ compiler; install g++, or use provider=None.")
    return native.sample(value, *grid, locations.float(), weights.to(value.dtype))


def _portable(value: Tensor, grid: Grid, locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, dim = value.shape
    queries, points = weights.shape[1], weights.shape[3]
    maps = value.permute(0, 2, 3, 1).reshape(batch * heads, dim, *grid).to(locations.dtype)
    points_grid = (2 * locations - 1).transpose(1, 2).reshape(batch * heads, queries, points, 2)
    sampled = F.grid_sample(maps, points_grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    point_weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, points)
    summed = (sampled * point_weights.to(sampled.dtype)).sum(-1)  # (B * heads, dim, Q)
    return summed.view(batch, heads * dim, queries).transpose(1, 2).to(value.dtype)


def _neighbour_rows(grid: Grid, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows into the zero-bordered map and weights of the four neighbours of every point.

    A border of zeros on each side takes the place of masks: coordinates are clamped into it.

    Returns:
        Positions in the bordered map, int64, and weights, both (B, Q, heads, points, 4).
    """
    height, width = grid
    size = grid_extent(grid, locations.device).to(locations.dtype)
    cell = torch.minimum((locations * size - 0.5).clamp(min=-1), size)  # -1 and size lie in the border
    first = torch.minimum(cell.floor(), size - 1)
    x_far, y_far = (cell - first).unbind(-1)
    x_near, y_near = 1 - x_far, 1 - y_far
    x_first, y_first = (first + 1).long().unbind(-1)
    last_start = (height + 1) * (width + 2) - 2
    # the clamp only matters for NaN coordinates: their weights are NaN, but their rows must exist
    corner = (y_first * (width + 2) + x_first).clamp(0, last_start)
    rows = torch.stack((corner, corner + 1, corner + width + 2, corner + width + 3), -1)
    corner_weight = torch.stack((y_near * x_near, y_near * x_far, y_far * x_near, y_far * x_far), -1)
    return rows, corner_weight * weights.unsqueeze(-1).to(corner_weight.dtype)


def _bordered_table(value: Tensor, grid: Grid) -> Tensor:
    """Return values with a zero border as rows ordered (image, y, x, head), (B * (H + 2) * (W + 2) * heads, dim)."""
    batch, _, heads, dim = value.shape
    bordered = F.pad(value.reshape(batch, *grid, heads * dim), (0, 0, 1, 1, 1, 1))
    return bordered.reshape(-1, dim)


def _table_rows(grid: Grid, rows: Tensor) -> Tensor:
    """Turn positions in one bordered map (B, Q, heads, points, 4) into rows of the whole table (B * Q * heads, -1)."""
    batch, _, heads, points, _ = rows.shape
    starts = bag_starts(batch, (grid[0] + 2) * (grid[1] + 2), heads, rows.device)
    return torch.add(starts, rows, alpha=heads).reshape(-1, points * 4)


def _gather(value: Tensor, grid: Grid, locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries = weights.shape[:2]
    rows, corner_weights = _neighbour_rows(grid, locations, weights)
    table = _bordered_table(value, grid)
    bag_rows = _table_rows(grid, rows)
    bag_weights = corner_weights.to(value.dtype).view_as(bag_rows)
    summed = F.embedding_bag(bag_rows, table, mode="sum", per_sample_weights=bag_weights)
    return summed.view(batch, queries, -1)


def _index(value: Tensor, grid: Grid, locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries = weights.shape[:2]
    rows, corner_weights = _neighbour_rows(grid, locations, weights)
    bag_rows = _table_rows(grid, rows)
    read = _bordered_table(value, grid)[bag_rows]  # (B * Q * heads, points * 4, dim)
    summed = (read * corner_weights.to(value.dtype).view(*bag_rows.shape, 1)).sum(1)
    return summed.view(batch, queries, -1)


def _triton(value: Tensor, grid: Grid, locations: Tensor, weights: Tensor) -> Tensor:
    try:
        from piip.ops.triton_sampling import sample
    except ImportError as error:
        raise ValueError(
            f"Provider 'triton' needs Triton, which cannot be imported ({error}): install the package triton (part of "
            "PyTorch's builds for GPUs on Linux), or choose 'portable'."
        ) from error
    return sample(value, grid, locations, weights)


PROVIDERS: dict[str, Callable[[Tensor, Grid, Tensor, Tensor], Tensor]] = {
    "native": _native,
    "portable": _portable,
    "gather": _gather,
    "index": _index,
    "triton": _triton,
}
