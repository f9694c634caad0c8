"""The floor of a model's time: its products, convolutions and attention alone, each at the fastest stock kernel.

What a model needs beyond it is what its code adds: norms, activations, moving data, calling.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F

from piip.cost import list_operations

Run = Callable[[], Any]


def floor_seconds(model: torch.nn.Module, image_size: tuple[int, int], dtype: torch.dtype) -> dict[str, float]:
    """Return seconds by part, for one image.

    Args:
        model: The model whose operations are timed; its weights are not used.
        image_size: (H, W) in pixels.
        dtype: Of the numbers in the timed operations.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    with torch.inference_mode():
        for operation in list_operations(model, image_size):
            seconds[operation["part"]] += operation["count"] * min(map(shortest, _candidates(operation, dtype)))
    return dict(seconds)


def shortest(run: Run, *, warm: int = 2, repeats: int = 5) -> float:
    """Return the shortest time of a callable in seconds, infinite where it cannot run."""
    times = []
    try:
        for round_ in range(warm + repeats):
            start = time.perf_counter()
            run()
            if round_ >= warm:
                times.append(time.perf_counter() - start)
    except (RuntimeError, NotImplementedError):
        return float("inf")
    return min(times)


def _candidates(operation: dict[str, Any], dtype: torch.dtype) -> Iterable[Run]:
    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype)

    if operation["kind"] == "linear":
        rows, weight, bias = (
            rand(operation["m"], operation["k"]),
            rand(operation["n"], operation["k"]),
            rand(operation["n"]),
        )
        yield lambda: F.linear(rows, weight, bias)
        # the same product through oneDNN, which on AMD processors takes about half of MKL's time in float32
        yield lambda: torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    elif operation["kind"] == "attention":
        batch, heads, _, dim = operation["shape"]
        query, key, value = (rand(batch, heads, n, dim) for n in (operation["shape"][2], *(operation["keys"],) * 2))
        yield lambda: F.scaled_dot_product_attention(query, key, value)
        yield lambda: (query @ key.transpose(-2, -1)).softmax(-1) @ value
    else:
        yield from _convolutions(operation, rand(*operation["x"]), rand(*operation["w"]))


def _convolutions(operation: dict[str, Any], maps: torch.Tensor, weight: torch.Tensor) -> Iterable[Run]:
    convolve: Any = F.conv_transpose2d if operation["transposed"] else F.conv2d
    geometry = {name: operation[name] for name in ("stride", "padding", "groups")}
    for layout in (torch.contiguous_format, torch.channels_last):
        laid, kernel = (tensor.contiguous(memory_format=layout) for tensor in (maps, weight))
        yield lambda laid=laid, kernel=kernel: convolve(laid, kernel, None, **geometry)
