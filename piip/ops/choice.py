"""Which provider is fastest on this GPU: measured once for every kind of call, and cached in the user's cache folder.

A kind is the GPU, the versions of the libraries, the format of the numbers, heads, channels, points and levels, whether
gradients are needed, and the sizes rounded up to powers of two. A provider that fails, or whose result is not that of
`grid_sample`, is passed over with a warning. Nothing is measured while a graph is compiled, exported or captured: there
the cached choice is taken, or `grid_sample`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import statistics
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from piip.ops.native import cache_folder

GPU = "cuda"
PORTABLE = "portable"
WARM_UPS, RUNS = 2, 5
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # relative L2 differences from grid_sample
CHOICES = "providers.json"

Run = Callable[[Tensor, Tensor, Tensor], Tensor]  # value, locations, weights -> result


def choose(candidates: Mapping[str, Run], value: Tensor, locations: Tensor, weights: Tensor) -> str:
    """Return the name of the fastest provider.

    Args:
        candidates: Providers that take the tensors; "portable" is one of them.
        value: Values (B, N, heads, dim).
        locations: Points (B, Q, heads, ..., 2).
        weights: Their weights (B, Q, heads, ...).
    """
    if len(candidates) == 1:
        return next(iter(candidates))
    sizes = (*value.shape, *weights.shape[1:])
    if not all(type(size) is int for size in sizes) or _is_stand_in(value):  # dynamic sizes, tensors without values
        return PORTABLE
    device = value.device.index or 0
    needs_grad = torch.is_grad_enabled() and any(each.requires_grad for each in (value, locations, weights))
    facts = (str(value.dtype), needs_grad, *_rounded(sizes))
    found = cached_choice(device, facts, tuple(candidates))
    if found is not None:
        return found
    if not _may_measure():
        return PORTABLE
    seconds = _measure(candidates, value, locations, weights, needs_grad=needs_grad)
    fastest = min(seconds, key=seconds.__getitem__)
    _keep(_key(device, facts, tuple(candidates)), {"provider": fastest, "seconds": seconds})
    return fastest


def _rounded(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Round batch, cells and queries up to powers of two; heads, channels, levels and points count exactly."""
    batch, cells, heads, dim, queries, _, *points = sizes
    return (*(1 << max(0, size - 1).bit_length() for size in (batch, cells, queries)), heads, dim, *points)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def cached_choice(device: int, facts: tuple[Any, ...], names: tuple[str, ...]) -> str | None:
    """Return what was chosen before for a kind of call, or None.

    Args:
        device: Index of the GPU.
        facts: What else matters.
        names: The candidates.
    """
    row = _choices().get(_key(device, facts, names))
    return row["provider"] if row is not None and row.get("provider") in names else None


def _key(device: int, facts: tuple[Any, ...], names: tuple[str, ...]) -> str:
    return json.dumps([_device_name(device), *_versions(), *names, *facts])


@functools.cache
def _device_name(device: int) -> str:
    return torch.cuda.get_device_name(device)


@functools.cache
def _versions() -> tuple[str, ...]:
    known = []
    for name in ("torch", "triton", "deformops"):
        try:
            known.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            known.append(f"no {name}")
    return tuple(known)


@functools.cache
def _choices() -> dict[str, Any]:
    """Return all choices, read once; a file that cannot be read is as none."""
    try:
        found = json.loads((cache_folder() / CHOICES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if type(found) is dict else {}


def _keep(key: str, row: dict[str, Any]) -> None:
    """Add a choice to the file; without a writable folder it holds for this process."""
    _choices()[key] = row
    path = cache_folder() / CHOICES
    part = path.with_name(f".{CHOICES}.part-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(_choices(), indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)


def _is_stand_in(value: Tensor) -> bool:
    return not torch.compiler.is_compiling() and type(value.detach()) is not Tensor


def _may_measure() -> bool:
    """Return whether calls run now, and not while a graph is compiled or captured."""
    if torch.compiler.is_compiling():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def _measure(
    candidates: Mapping[str, Run], value: Tensor, locations: Tensor, weights: Tensor, *, needs_grad: bool
) -> dict[str, float]:
    """Return the seconds of every provider that works, on copies of the tensors."""
    copies = [each.detach().clone().requires_grad_(needs_grad) for each in (value, locations, weights)]

    def call(run: Run) -> Tensor:
        out = run(*copies)
        if needs_grad:
            torch.autograd.grad(out.sum(), copies)
        return out.detach()

    wanted = call(candidates[PORTABLE]).double()
    limit = LIMITS.get(value.dtype, LIMITS[torch.float32])
    seconds = {}
    for name, run in candidates.items():
        try:
            difference = float((call(run).double() - wanted).norm() / wanted.norm().clamp(min=1e-30))
            if not difference <= limit:
                raise ValueError(f"its result differs from grid_sample's by {difference:.1e}, accepted {limit:.0e}")
            seconds[name] = timed(functools.partial(call, run), value.device)
        except Exception as error:  # of a kernel or its compiler: anything; the others remain
            if name == PORTABLE:
                raise
            warnings.warn(
                f"Deformable attention does not use the provider {name!r}, because "
                f"{' '.join(str(error).split())[:300] or type(error).__name__}.",
                stacklevel=2,
            )
    return seconds


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Return the median seconds of a call on a GPU, by events on its current stream.

    Args:
        call: What to run.
        device: The GPU.
    """
    with torch.cuda.device(device):
        for _ in range(WARM_UPS):
            call()
        seconds = []
        for _ in range(RUNS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
    return statistics.median(seconds)
