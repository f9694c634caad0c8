"""Our own kernels for CPU, compiled if a C++ compiler is available.

The C++ files are compiled for the current processor on first use (a few seconds) and cached in the user's cache
directory. Without a compiler the slower stock operations of PyTorch give the same results, and a warning is issued
once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
FLAGS = (
    "-O3 -march=native -std=c++17 -shared -fPIC -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=off".split()
)
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS += ["-mprefer-vector-width=512"]
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
MAX_DIM = 128  # channels per head, of the backward kernel


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None with a warning if they are unavailable."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        warnings.warn(
            "There is no C++ compiler (g++ or clang++), so piip samples features with PyTorch's own operations, which "
            "are several times slower on CPU; install one, for example with `apt install g++`.",
            stacklevel=2,
        )
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        words = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        warnings.warn(
            f"{compiler} could not compile piip's kernels, so piip samples features with PyTorch's own operations, "
            f"which are several times slower on CPU: {words.strip().splitlines()[0] if words.strip() else error}",
            stacklevel=2,
        )
        return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_available() -> bool:
    """Return whether the kernels can be used; compile them on the first call."""
    return library() is not None


def _compiled(compiler: str) -> Path:
    """Return the compiled file for this source, compiler and processor, compiling it if necessary."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    texts = (path.read_text() for path in (*HEADERS, *SOURCES))
    facts = (*texts, compiler, version, *FLAGS, platform.machine(), _processor())
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:20]
    folder = cache_folder()
    target = folder / f"kernels-{name}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # several processes may do this at once
            made = Path(scratch) / target.name
            command = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(target)
    return target


def cache_folder() -> Path:
    """Return this library's folder in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "piip"


def _processor() -> str:
    """Return an identifier of the processor's instruction sets, because a home directory may be shared."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else [platform.processor()]
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), lines[0])


def supports(value: Tensor) -> bool:
    """Return whether the kernels support values (B, H * W, heads, dim): on CPU, float32 or bfloat16, not too wide."""
    return value.device.type == "cpu" and value.dtype in SUFFIXES and 0 < value.shape[3] <= MAX_DIM


def call(name: str, like: Tensor, sizes: tuple[int, ...], *arguments: Tensor | float | None) -> None:
    """Call the kernel `name` for the dtype of `like`; integers are 64 bits wide there, other numbers doubles."""
    kernels = library()
    assert kernels is not None, "callers ask is_available() first"
    numbers = (ctypes.c_int64 * len(sizes))(*sizes)
    plain = [_plain(item) for item in arguments]
    kernels[f"piip_{name}_{SUFFIXES[like.dtype]}"](numbers, *plain, ctypes.c_int(torch.get_num_threads()))


def _plain(item: Tensor | float | None) -> Any:
    if isinstance(item, Tensor):
        return ctypes.c_void_p(item.data_ptr())
    if item is None:
        return None
    return ctypes.c_int64(item) if isinstance(item, int) else ctypes.c_double(item)


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
