"""Sampling around the queries of deformable attention, one map or several, with gradients and without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from piip.ops.native.compiled import SUFFIXES, call

MAX_DIM = 128  # channels per head, of the backward kernel


def supports(value: Tensor) -> bool:
    """Return whether the kernels support values (B, H * W, heads, dim): on CPU, float32 or bfloat16, not too wide."""
    return value.device.type == "cpu" and value.dtype in SUFFIXES and 0 < value.shape[3] <= MAX_DIM


def _sizes(value: Tensor, height: int, width: int, queries: int, points: int) -> tuple[int, ...]:
    batch, _, heads, dim = value.shape
    return (batch, queries, heads, points, dim, height, width)


@torch.library.custom_op("piip::native_sample", mutates_args=(), device_types="cpu")
def sample(value: Tensor, height: int, width: int, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample; see `piip.ops.deformable_attention`. Differentiable."""
    batch, queries, heads, points = weights.shape
    result = value.new_empty(batch, queries, heads * value.shape[3])
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    call("sample", value, _sizes(value, height, width, queries, points), value, locations, weights, result)
    return result


@sample.register_fake
def _(value: Tensor, height: int, width: int, locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], weights.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("piip::native_sample_backward", mutates_args=(), device_types="cpu")
def sample_backward(
    gradient: Tensor, value: Tensor, height: int, width: int, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and weights, given that of the result of `sample`."""
    tensors = [tensor.contiguous() for tensor in (gradient, value, locations, weights)]
    to_value, to_locations = (torch.empty_like(tensor) for tensor in tensors[1:3])
    to_weights = torch.empty_like(tensors[3], dtype=torch.float32)
    sizes = _sizes(value, height, width, *weights.shape[1::2])
    call("sample_backward", value, sizes, *tensors, to_value, to_locations, to_weights)
    return to_value, to_locations, to_weights.to(weights.dtype)


@sample_backward.register_fake
def _(
    gradient: Tensor, value: Tensor, height: int, width: int, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(value, memory_format=torch.contiguous_format),
        torch.empty_like(locations, memory_format=torch.contiguous_format),
        torch.empty_like(weights, memory_format=torch.contiguous_format),
    )


def _keep(ctx, inputs: tuple[Tensor, int, int, Tensor, Tensor], output: Tensor) -> None:  # type: ignore[no-untyped-def]
    value, ctx.height, ctx.width, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    value, locations, weights = ctx.saved_tensors
    to_value, to_locations, to_weights = sample_backward(
        gradient.to(value.dtype), value, ctx.height, ctx.width, locations, weights
    )
    return to_value, None, None, to_locations, to_weights


sample.register_autograd(_differentiate, setup_context=_keep)


@torch.library.custom_op("piip::native_sample_maps", mutates_args=(), device_types="cpu")
def sample_maps(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample several maps and add the results; see `piip.ops.levels_deformable_attention`. Differentiable."""
    parts = [sample(*part) for part in _by_map(value, sides, locations, weights)]
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


@sample_maps.register_fake
def _(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], weights.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("piip::native_sample_maps_backward", mutates_args=(), device_types="cpu")
def sample_maps_backward(
    gradient: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and weights, given that of the result of `sample_maps`."""
    parts = [sample_backward(gradient, *part) for part in _by_map(value, sides, locations, weights)]
    to_values, to_locations, to_weights = zip(*parts, strict=True)
    return torch.cat(to_values, 1), torch.stack(to_locations, 3), torch.stack(to_weights, 3)


@sample_maps_backward.register_fake
def _(
    gradient: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    empty = [torch.empty_like(item, memory_format=torch.contiguous_format) for item in (value, locations, weights)]
    return empty[0], empty[1], empty[2]


def _by_map(
    value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> Iterator[tuple[Tensor, int, int, Tensor, Tensor]]:
    """Return the arguments of `sample` for each of several maps."""
    grids = list(zip(sides[::2], sides[1::2], strict=True))
    values = value.split([height * width for height, width in grids], 1)
    for part, grid, places, shares in zip(values, grids, locations.unbind(3), weights.unbind(3), strict=True):
        yield part, *grid, places, shares


def _keep_maps(ctx, inputs: tuple[Tensor, Sequence[int], Tensor, Tensor], output: Tensor) -> None:  # type: ignore[no-untyped-def]
    value, ctx.sides, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate_maps(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    value, locations, weights = ctx.saved_tensors
    to_value, to_locations, to_weights = sample_maps_backward(
        gradient.to(value.dtype), value, ctx.sides, locations, weights
    )
    return to_value, None, to_locations, to_weights


sample_maps.register_autograd(_differentiate_maps, setup_context=_keep_maps)


def sample_raw(value: Tensor, grid: tuple[int, int], raw: Tensor, query_width: int, points: int) -> Tensor:
    """Sample around the cells of a grid, from the bare outputs of the offset and weight layers. For inference.

    Args:
        value: Values of the map, (B, H * W, heads, dim).
        grid: (H, W) of the map.
        raw: Offsets x, offsets y (in cells of the map) and logits, (B, Q, 3 * heads * points), in this order, in the
            dtype of `value`.
        query_width: Columns of the grid that the queries lie on.
        points: Points per head.

    Returns:
        (B, Q, heads * dim).
    """
    value, raw = value.contiguous(), raw.contiguous()
    result = value.new_empty(*raw.shape[:2], value.shape[2] * value.shape[3])
    call("sample_raw", value, _sizes(value, *grid, raw.shape[1], points), value, raw, query_width, result)
    return result


@torch.library.custom_op("piip::native_sample_levels", mutates_args=(), device_types="cpu")
def sample_levels(value: Tensor, sides: Sequence[int], offsets: Tensor, logits: Tensor, references: Tensor) -> Tensor:
    """Sample several levels, from the bare outputs of the offset and weight layers. For inference.

    Args:
        value: Values of the levels, one after another, (B, N, heads, dim).
        sides: H and W of every level, in turn.
        offsets: As (x, y), (B, Q, heads * levels * points * 2), in cells around points, in parts of half the sides of
            boxes, as many as there are points.
        logits: Of the weights, which sum to 1 over all levels, (B, Q, heads * levels * points).
        references: Relative to the levels, points (B, Q, levels, 2) or boxes x, y, w, h (B, Q, levels, 4), float32.

    Returns:
        (B, Q, heads * dim).
    """
    batch, _, heads, dim = value.shape
    queries, levels = offsets.shape[1], len(sides) // 2
    value, references = value.contiguous(), references.contiguous()
    offsets, logits = (rows if _has_even_rows(rows) else rows.contiguous() for rows in (offsets, logits))
    result = value.new_empty(batch, queries, heads * dim)
    points = logits.shape[2] // (heads * levels)
    steps = (offsets.stride(1), logits.stride(1), references.shape[3])
    call(
        "sample_levels",
        value,
        (batch, queries, heads, points, dim, levels, *steps, *sides),
        value,
        offsets,
        logits,
        references,
        result,
    )
    return result


@sample_levels.register_fake
def _(value: Tensor, sides: Sequence[int], offsets: Tensor, logits: Tensor, references: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])


def _has_even_rows(rows: Tensor) -> bool:
    """Return whether rows (B, Q, n) are dense and one step apart, as the parts of longer dense rows are."""
    return rows.stride(2) == 1 and (rows.shape[0] == 1 or rows.stride(0) == rows.shape[1] * rows.stride(1))
