"""The heavy operations of a forward pass, one by one: what a floor of its time is made of."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from piip.cost.counting import DryRun, OperationCounter, evaluating
from piip.cost.total import naming_parts
from piip.serialization.base import countable

Operation = dict[str, Any]


def list_operations(model: nn.Module, image_size: tuple[int, int]) -> list[Operation]:
    """List matrix products, convolutions and attention that a model runs for one image, without running it.

    Sampling (deformable attention, RoIAlign) is not listed.

    Args:
        model: A model on the meta device or any other; its weights are not used.
        image_size: (H, W) in pixels.

    Returns:
        Dicts with "part", "kind" and "count" (how often), and by kind:

        - "linear": "m" rows, "k" inputs, "n" outputs; products of two computed matrices are listed so too.
        - "attention": "shape" (B, heads, N, dim) of the queries, "keys" their number.
        - "conv": "x" and "w" shapes, "stride", "padding", "groups", "transposed".

    Source: own; the fields are those that a stock kernel needs to be timed alone.
    """
    lister, counted = _Lister(), countable(model)
    run = DryRun(counted, lister)
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(run))
        stack.enter_context(torch.no_grad())
        stack.enter_context(naming_parts(counted.parts, lister))
        state = {
            name: torch.empty_like(tensor, device="meta")
            for name, tensor in (*run.named_parameters(), *run.named_buffers())
        }
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        stack.enter_context(lister)
        stack.enter_context(_WholeAttention(lister))
        image = torch.empty(1, 3, *image_size, device="meta", dtype=dtype)
        torch.func.functional_call(run, state, (image,))
    return [{**dict(fields), "count": count} for fields, count in lister.operations.items()]


class _Lister(OperationCounter):
    """Lists operations beside counting them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[tuple[tuple[str, Any], ...]] = Counter()
        self.is_listing = True

    def note(self, packet: Any, args: tuple[Any, ...]) -> None:
        if self.is_listing:
            self.add(_product(args) if "convolution" not in packet.__name__ else _convolution(args))

    def add(self, fields: Operation) -> None:
        """Add one operation of the current part."""
        self.operations[(("part", self.current_part), *fields.items())] += 1


class _WholeAttention(TorchFunctionMode):
    """Lists attention as one operation; below it falls into two products."""

    def __init__(self, lister: _Lister) -> None:
        super().__init__()
        self._lister = lister

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key = args[:2]
        self._lister.add({"kind": "attention", "shape": tuple(query.shape), "keys": key.shape[2]})
        self._lister.is_listing = False
        try:
            return func(*args, **kwargs)
        finally:
            self._lister.is_listing = True


def _convolution(args: tuple[Any, ...]) -> Operation:
    image, weight, _, stride, padding, _, transposed, _, groups = args[:9]
    geometry = {"stride": tuple(stride), "padding": tuple(padding), "groups": groups, "transposed": transposed}
    return {"kind": "conv", "x": tuple(image.shape), "w": tuple(weight.shape), **geometry}


def _product(args: tuple[Any, ...]) -> Operation:
    left, right = [item for item in args if isinstance(item, Tensor)][-2:]
    return {"kind": "linear", "m": left.numel() // left.shape[-1], "k": left.shape[-1], "n": right.shape[-1]}
