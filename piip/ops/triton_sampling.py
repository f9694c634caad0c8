"""Sampling of multi-head deformable attention as two Triton kernels, forward and backward, for GPUs.

Neither a table of neighbours nor resized maps are written to memory: every program reads the four neighbours of the
points of a few queries of one head where they lie, and keeps its sums in float32 registers. Triton is imported with
this file, which `deform_attn` imports only when its provider "triton" is asked for.

Shapes: B images, Q queries, N = H * W cells; a program holds (queries,) positions and (queries, channels) values.

Untimed: no GPU was at hand. The kernels were checked by Triton's interpreter (TRITON_INTERPRET=1); on a GPU `choice`
compares and times them before it takes them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_DIM = 256
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TILE = 1024  # values of one neighbour that a program holds: queries times channels, both powers of two


@triton.jit
def _positions(queries, heads, block_queries: tl.constexpr):
    """Say which queries, image and head a program has: programs are numbered (blocks of queries, images * heads)."""
    query = tl.program_id(0) * block_queries + tl.arange(0, block_queries)
    image = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    return (image * queries + query) * heads + head, query < queries, image, head


INTERPRETED = not isinstance(_positions, triton.JITFunction)  # decided when kernels are made


@triton.jit
def _point(locations, weights, at, present, height, width):
    """Read points as (x, y) in cells, and their weights."""
    x = tl.load(locations + 2 * at, mask=present, other=0.0) * width - 0.5
    y = tl.load(locations + 2 * at + 1, mask=present, other=0.0) * height - 0.5
    return x, y, tl.load(weights + at, mask=present, other=0.0).to(tl.float32)


@triton.jit
def _neighbour(x, y, right: tl.constexpr, below: tl.constexpr, height, width):
    """Return a neighbour of points: its cell, whether it lies on the map, and its shares along x and y."""
    column, row = tl.floor(x) + right, tl.floor(y) + below
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cell = tl.where(inside, row, 0).to(tl.int32) * width + tl.where(inside, column, 0).to(tl.int32)
    x_share = 1 - tl.abs(x - column)
    y_share = 1 - tl.abs(y - row)
    return cell, inside, x_share, y_share


@triton.jit
def _forward(
    value, locations, weights, out, queries, heads, height, width, dim,
    num_points: tl.constexpr, block_queries: tl.constexpr, block_channels: tl.constexpr
):  # fmt: skip
    position, present, image, head = _positions(queries, heads, block_queries)
    channel = tl.arange(0, block_channels)[None, :]
    total = tl.zeros((block_queries, block_channels), tl.float32)
    for point in range(num_points):
        x, y, weight = _point(locations, weights, position * num_points + point, present, height, width)
        for corner in tl.static_range(4):
            cell, inside, x_share, y_share = _neighbour(x, y, corner % 2, corner // 2, height, width)
            at = ((image * height * width + cell) * heads + head) * dim
            read = (inside & present)[:, None] & (channel < dim)
            values = tl.load(value + at[:, None] + channel, mask=read, other=0.0).to(tl.float32)
            total += (weight * x_share * y_share)[:, None] * values
    kept = present[:, None] & (channel < dim)
    tl.store(out + position[:, None] * dim + channel, total.to(out.dtype.element_ty), mask=kept)


@triton.jit
def _backward(
    value, locations, weights, grad, value_grad, location_grad, weight_grad, queries, heads, height, width, dim,
    num_points: tl.constexpr, block_queries: tl.constexpr, block_channels: tl.constexpr
):  # fmt: skip
    """Same programs as forward. Points belong to one program each, cells to many: only their gradients are atomic."""
    position, present, image, head = _positions(queries, heads, block_queries)
    channel = tl.arange(0, block_channels)[None, :]
    kept = present[:, None] & (channel < dim)
    given = tl.load(grad + position[:, None] * dim + channel, mask=kept, other=0.0).to(tl.float32)
    for point in range(num_points):
        x, y, weight = _point(locations, weights, position * num_points + point, present, height, width)
        x_slope, y_slope, read_sum = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
        for corner in tl.static_range(4):
            right, below = corner % 2, corner // 2
            cell, inside, x_share, y_share = _neighbour(x, y, right, below, height, width)
            at = (((image * height * width + cell) * heads + head) * dim)[:, None] + channel
            read = inside[:, None] & kept
            along = tl.sum(given * tl.load(value + at, mask=read, other=0.0).to(tl.float32), 1)
            tl.atomic_add(value_grad + at, (weight * x_share * y_share)[:, None] * given, mask=read)
            read_sum += along * x_share * y_share
            x_slope += along * y_share * (2 * right - 1)
            y_slope += along * x_share * (2 * below - 1)
        at = position * num_points + point
        tl.store(weight_grad + at, read_sum.to(weight_grad.dtype.element_ty), mask=present)
        tl.store(location_grad + 2 * at, x_slope * weight * width, mask=present)
        tl.store(location_grad + 2 * at + 1, y_slope * weight * height, mask=present)


def sample(value: Tensor, grid: tuple[int, int], locations: Tensor, weights: Tensor) -> Tensor:
    """Sample on a GPU; arguments and result of `piip.ops.deformable_attention`.

    Raises:
        ValueError: Tensors elsewhere, number formats the kernels do not know, or heads that are too wide.
    """
    _check(value, locations, weights)
    return _sample(value.contiguous(), locations.contiguous(), weights.contiguous(), *grid)


def _check(value: Tensor, locations: Tensor, weights: Tensor) -> None:
    if value.device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f"Provider 'triton' runs on GPUs, value is on {value.device}: choose 'portable', or set TRITON_INTERPRET=1 "
            "before Triton is imported to try the kernels slowly on the CPU."
        )
    if value.dtype not in DTYPES or weights.dtype != value.dtype or locations.dtype != torch.float32:
        formats = f"{value.dtype}, {weights.dtype} and {locations.dtype}"
        raise ValueError(
            f"Provider 'triton' got value, weights and locations in {formats}; expected value and weights alike in "
            "bfloat16, float16 or float32, locations in float32."
        )
    if value.shape[3] > MAX_DIM:
        raise ValueError(f"Provider 'triton' takes heads of at most {MAX_DIM} channels, got {value.shape[3]}.")


def _launch(value: Tensor, weights: Tensor) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Return how many programs run, and their sizes: points, queries and channels."""
    batch, queries, heads, points = weights.shape
    channels = max(16, triton.next_power_of_2(value.shape[3]))
    rows = TILE // channels
    return (triton.cdiv(queries, rows), batch * heads), (points, rows, channels)


@torch.library.custom_op("piip::triton_sample", mutates_args=())
def _sample(value: Tensor, locations: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
    """Run the forward kernel."""
    programs, sizes = _launch(value, weights)
    batch, queries, heads, _ = weights.shape
    out = value.new_empty(batch, queries, heads * value.shape[3])
    numbers = (queries, heads, height, width, value.shape[3])
    with torch.cuda.device_of(value):  # kernels start on the current GPU
        _forward[programs](value, locations, weights, out, *numbers, *sizes)
    return out


@_sample.register_fake
def _sample_shape(value: Tensor, locations: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
    batch, queries, heads, _ = weights.shape
    return value.new_empty(batch, queries, heads * value.shape[3])


@torch.library.custom_op("piip::triton_sample_backward", mutates_args=())
def _sample_backward(
    value: Tensor, locations: Tensor, weights: Tensor, grad: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backward kernel; gradients of value, locations and weights."""
    programs, sizes = _launch(value, weights)
    value_grad = torch.zeros_like(value, dtype=torch.float32)  # sums of many small parts
    location_grad, weight_grad = torch.empty_like(locations), torch.empty_like(weights)
    numbers = (*weights.shape[1:3], height, width, value.shape[3])
    grads = (grad.contiguous(), value_grad, location_grad, weight_grad)
    with torch.cuda.device_of(value):
        _backward[programs](value, locations, weights, *grads, *numbers, *sizes)
    return value_grad.to(value.dtype, copy=True), location_grad, weight_grad


@_sample_backward.register_fake
def _sample_backward_shape(
    value: Tensor, locations: Tensor, weights: Tensor, grad: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(locations), torch.empty_like(weights)


def _keep(ctx: Any, inputs: Any, output: Tensor) -> None:
    *tensors, ctx.height, ctx.width = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _sample_backward(*ctx.saved_tensors, grad, ctx.height, ctx.width)
    return *grads, None, None


_sample.register_autograd(_differentiate, setup_context=_keep)
