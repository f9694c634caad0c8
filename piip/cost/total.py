"""The total cost: all operations that run, from one pass on the meta device."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from piip.cost.counting import NamesParts, OperationCounter, counting_sampling, evaluating
from piip.cost.report import CostReport, PartCost
from piip.structures import Size

Parts = Mapping[str, Sequence[nn.Module]]


@torch.inference_mode(False)  # also where the caller infers: activations are counted as autograd keeps them
def total_cost(model: nn.Module, parts: Parts, image_size: Size) -> CostReport:
    """Count one forward pass of a model for one image, without running it.

    Args:
        model: Any module that maps (1, 3, H, W); its weights may be on any device and are not changed.
        parts: Modules of the model by part, in the order of the forward pass; see `ModelParts.parts`.
        image_size: (H, W) in pixels.

    Returns:
        The report.

    Raises:
        ValueError: The model does not accept such an image.
    """
    counter = OperationCounter()
    state = _meta_state(model)
    kept = _KeptForBackward(counter, state)
    image = torch.empty(1, 3, *image_size, device="meta", dtype=_dtype(model))
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(naming_parts(parts, counter))
        stack.enter_context(counting_sampling(model, counter))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack))
        stack.enter_context(counter)
        torch.func.functional_call(model, state, (image,))
    params = _params(parts)
    names = list(params) + [name for name in counter.macs if name not in params]
    costs = {
        name: PartCost(counter.macs[name], params.get(name, 0), counter.elementwise[name], kept.bytes[name])
        for name in names
    }
    return CostReport(costs, image_size, "total", meaning="what runs")


def _dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of a model's images."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _meta_state(model: nn.Module) -> dict[str, Tensor]:
    """Return substitutes without memory for all parameters and buffers."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[name] = torch.empty_like(parameter, device="meta").requires_grad_(parameter.is_floating_point())
    for name, buffer in model.named_buffers():
        tensors[name] = torch.empty_like(buffer, device="meta")
    return tensors


class _KeptForBackward:
    """Adds up the bytes that autograd saves, each tensor once, by part."""

    def __init__(self, counter: OperationCounter, state: dict[str, Tensor]) -> None:
        self.bytes: defaultdict[str, int] = defaultdict(int)
        self._counter = counter
        # storages are compared by address: holding on to them keeps addresses unique
        self._seen = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in state.values()}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage
            self.bytes[self._counter.current_part] += storage.nbytes()
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        return tensor


def _params(parts: Parts) -> dict[str, int]:
    return {part: sum(p.numel() for module in modules for p in module.parameters()) for part, modules in parts.items()}


@contextlib.contextmanager
def naming_parts(parts: Parts, scope: NamesParts) -> Iterator[None]:
    """Report to a counter or clock which part runs.

    Branches are not called as modules: the backbone calls `embed`, `run_stage` and `finish`, which no hook sees. These
    methods are wrapped while counting.

    Args:
        parts: Modules by part.
        scope: The counter or clock.
    """
    undo: list[Callable[[], Any]] = []
    for part, modules in parts.items():
        for module in modules:
            if part.startswith("branch "):
                undo += [_wrap(module, method, part, scope) for method in ("embed", "run_stage", "finish")]
            else:
                undo += _hook(module, part, scope)
    try:
        yield
    finally:
        for step in undo:
            step()


def _wrap(branch: nn.Module, method: str, part: str, scope: NamesParts) -> Callable[[], Any]:
    original = getattr(branch, method)

    def counted(*args: Any) -> Any:
        with scope.part(part):
            return original(*args)

    branch.__dict__[method] = counted
    return lambda: branch.__dict__.pop(method)


def _hook(module: nn.Module, part: str, scope: NamesParts) -> list[Callable[[], Any]]:
    scopes: list[contextlib.AbstractContextManager[None]] = []

    def enter(*_: Any) -> None:
        scopes.append(scope.part(part))
        scopes[-1].__enter__()

    def leave(*_: Any) -> None:
        scopes.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter).remove, module.register_forward_hook(leave).remove]
