"""The total cost: all operations that run, from one pass on the meta device."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from piip.cost.counting import OTHER, Countable, DryRun, NamesParts, OperationCounter, evaluating
from piip.cost.report import CostReport, PartCost
from piip.structures import Size

Parts = Mapping[str, Sequence[nn.Module]]


@torch.inference_mode(False)  # also where the caller infers: activations are counted as autograd keeps them
def total_cost(model: Countable, image_size: Size) -> CostReport:
    """Count what a model runs for one image, without running it.

    Args:
        model: See `piip.serialization.base.countable`; weights may be on any device and are not changed.
        image_size: (H, W) in pixels.

    Returns:
        The report.

    Raises:
        ValueError: The model does not accept such an image.
    """
    counter = OperationCounter()
    run = DryRun(model, counter)
    state = _meta_state(run)
    kept = _KeptForBackward(counter, state)
    image = torch.empty(1, 3, *image_size, device="meta", dtype=_dtype(run))
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(run))
        stack.enter_context(naming_parts(model.parts, counter))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack))
        stack.enter_context(counter)
        torch.func.functional_call(run, state, (image,))
    params = _params(model)
    costs = {
        name: PartCost(counter.macs[name], params[name], counter.elementwise[name], kept.bytes[name])
        for name in (*model.parts, OTHER)
    }
    meaning = f"what runs; {run.assumptions}" if run.assumptions else "what runs"
    return CostReport(_without_empty(costs), image_size, "total", meaning=meaning)


def _without_empty(costs: Mapping[str, PartCost]) -> dict[str, PartCost]:
    """Return the costs without remainders: of the model if no products run there, of the head if nothing does."""
    return {
        name: cost
        for name, cost in costs.items()
        if (cost.macs or cost.params or name != OTHER) and (cost != PartCost() or ": " not in name)
    }


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


def _params(model: Countable) -> dict[str, int]:
    """Return the parameters of each part, each parameter in the first part that has it."""
    seen: set[nn.Parameter] = set()
    counts = {}
    for part, modules in (*model.parts.items(), (OTHER, [model.module])):
        own = {p for module in modules for p in module.parameters()} - seen
        counts[part], seen = sum(p.numel() for p in own), seen | own
    return counts


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
