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
- `triton`: kernels of our own for GPUs (`triton_sampling.py`).
- `deformops`: the library of that name (extra `gpu`); of several levels in one pass.

On GPUs `choice` measures which of `triton`, `deformops` and `portable` is fastest, once for every kind of call.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.ops import choice, deformops, native
from piip.ops.compat import is_exporting
from piip.ops.positions import bag_starts, grid_extent
from piip.structures import Grid

TRITON_DTYPES, TRITON_MAX_DIM = (torch.bfloat16, torch.float16, torch.float32), 256  # of `triton_sampling`


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
        provider: "native", "portable", "gather", "index", "triton" or "deformops"; None selects automatically.

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
        provider = _choose(value, grid, locations, weights)
    if provider not in PROVIDERS:
        raise ValueError(f"Provider {provider!r} is unknown, expected one of {', '.join(PROVIDERS)}.")
    return PROVIDERS[provider](value, grid, locations, weights)


def levels_deformable_attention(value: Tensor, grids: Sequence[Grid], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample the maps of several levels at points and sum them with weights.

    Args:
        value: Values of all levels, one after another, (B, N, heads, dim); see `deformable_attention`.
        grids: (H, W) of every level; N is the sum of H * W.
        locations: Points as (x, y), relative to the level, (B, Q, heads, levels, points, 2).
        weights: Weight of each point, (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * dim) in the dtype of `value`.

    Source: arXiv 2010.04159, equation 3.
    """
    if value.device.type == choice.GPU and not is_exporting():
        if value.dtype == torch.float64:
            locations = locations.double()
        runs: dict[str, choice.Run] = {
            name: functools.partial(_sum_of_levels, grids=grids, provider=name) for name in _on_gpu(value)
        }
        if deformops.supports(value):
            runs["deformops"] = lambda *tensors: deformops.sample(tensors[0], grids, *tensors[1:])
        return runs[choice.choose(runs, value, locations, weights)](value, locations, weights)
    if native.supports(value) and not is_exporting() and native.is_available():
        sides = [side for grid in grids for side in grid]
        return native.sample_maps(value, sides, locations.float(), weights.to(value.dtype))
    return _sum_of_levels(value, locations, weights, grids=grids)


def _sum_of_levels(
    value: Tensor, locations: Tensor, weights: Tensor, *, grids: Sequence[Grid], provider: str | None = None
) -> Tensor:
    sizes = [height * width for height, width in grids]
    levels = zip(value.split(sizes, 1), grids, locations.unbind(3), weights.unbind(3), strict=True)
    results = [deformable_attention(*level, provider=provider) for level in levels]
    return sum(results[1:], results[0])


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


def _choose(value: Tensor, grid: Grid, locations: Tensor, weights: Tensor) -> str:
    if is_exporting():
        return "index"  # GridSample is miscompiled or slow in several runtimes, bags are unknown to most
    if value.device.type == choice.GPU:
        names = _on_gpu(value) + (["deformops"] if deformops.supports(value) else [])
        runs: dict[str, choice.Run] = {
            name: lambda *tensors, run=PROVIDERS[name]: run(tensors[0], grid, *tensors[1:]) for name in names
        }
        return choice.choose(runs, value, locations, weights)
    if native.supports(value) and native.is_available():
        return "native"
    differentiated = torch.is_grad_enabled() and (
        value.requires_grad or locations.requires_grad or weights.requires_grad
    )
    return "gather" if value.device.type == "cpu" and not differentiated else "portable"


def _on_gpu(value: Tensor) -> list[str]:
    """Return the providers of our own that take values on a GPU."""
    has_triton = value.dtype in TRITON_DTYPES and value.shape[3] <= TRITON_MAX_DIM and _triton_is_installed()
    return ["portable", *(["triton"] if has_triton else [])]


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


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
    in_square = torch.rsub(locations, -1, alpha=-2)  # 2 * locations - 1, in one operation
    points_grid = in_square.transpose(1, 2).reshape(batch * heads, queries, points, 2)
    sampled = F.grid_sample(maps, points_grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    point_weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, points)
    summed = (sampled * point_weights.to(sampled.dtype)).sum(-1)  # (B * heads, dim, Q)
    return summed.view(batch, heads * dim, queries).transpose(1, 2).to(value.dtype)


def _neighbour_rows(grid: Grid, heads: int, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of the table of values and weights of the four neighbours of every point.

    The border of zeros takes the place of masks: coordinates are clamped into it, where their neighbours are all zeros.

    Returns:
        Rows of `_bordered_table`, int64, and weights, both (B * Q * heads, points * 4).
    """
    height, width = grid
    size = grid_extent(grid, locations.device).to(locations.dtype)
    cell = torch.minimum((locations * size - 0.5).clamp(min=-1), size)  # -1 and size lie in the border
    first = cell.floor()
    far = cell - first
    x_first, y_first = first.unbind(-1)
    # whole numbers, exact in floats; the clamp only matters for NaN: weights are NaN then, but rows must exist
    origin, largest = width + 4, height * (width + 3) + width
    corner = torch.add(x_first, y_first, alpha=width + 3).long().clamp(-origin, largest)
    starts = bag_starts(weights.shape[0], (height + 3, width + 3), heads, locations.device)
    rows = torch.add(starts, corner.unsqueeze(-1), alpha=heads)  # (B, Q, heads, points, 4)
    x_shares, y_shares = torch.stack((1 - far, far), -1).unbind(-2)  # (B, Q, heads, points, 2)
    shares = y_shares.unsqueeze(-1) * x_shares.unsqueeze(-2) * weights[..., None, None].to(far.dtype)
    bags = (-1, 4 * weights.shape[3])
    return rows.view(bags), shares.view(bags)


def _bordered_table(value: Tensor, grid: Grid) -> Tensor:
    """Return values with a border of zeros, one before and two behind, as rows ordered (image, y, x, head).

    Returns:
        (B * (H + 3) * (W + 3) * heads, dim).
    """
    batch, _, heads, dim = value.shape
    bordered = F.pad(value.reshape(batch, *grid, heads * dim), (0, 0, 1, 2, 1, 2))
    return bordered.reshape(-1, dim)


def _gather(value: Tensor, grid: Grid, locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads, _ = weights.shape
    rows, shares = _neighbour_rows(grid, heads, locations, weights)
    table = _bordered_table(value, grid)
    summed = F.embedding_bag(rows, table, mode="sum", per_sample_weights=shares.to(value.dtype))
    return summed.view(batch, queries, -1)


def _index(value: Tensor, grid: Grid, locations: Tensor, weights: Tensor) -> Tensor:
    batch, queries, heads, _ = weights.shape
    rows, shares = _neighbour_rows(grid, heads, locations, weights)
    read = _bordered_table(value, grid)[rows]  # (B * Q * heads, points * 4, dim)
    summed = (read * shares.to(value.dtype).unsqueeze(-1)).sum(1)
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


def _deformops(value: Tensor, grid: Grid, locations: Tensor, weights: Tensor) -> Tensor:
    return deformops.sample(value, [grid], locations.unsqueeze(3), weights.unsqueeze(3))


PROVIDERS: dict[str, Callable[[Tensor, Grid, Tensor, Tensor], Tensor]] = {
    "native": _native,
    "portable": _portable,
    "gather": _gather,
    "index": _index,
    "triton": _triton,
    "deformops": _deformops,
}
