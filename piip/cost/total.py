"""The total cost: what really runs, read off one pass on the meta device."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from piip.backbone import PIIPBackbone
from piip.checkpoints.official import OfficialModel
from piip.cost.counting import NamesParts, OperationCounter, counting_sampling, evaluating
from piip.cost.report import CostReport, PartCost
from piip.heads.classification import PIIPClassifier
from piip.heads.projector import PIIPVisionTower
from piip.models import PIIPDenseModel


@torch.inference_mode(False)  # also where the caller infers: activations are counted as autograd keeps them
def total_cost(model: nn.Module, image_size: tuple[int, int]) -> CostReport:
    """Count one forward pass of a model for one image, without running it.

    Args:
        model: Any module that maps (1, 3, H, W); its weights may live anywhere and are not touched.
        image_size: (H, W) in pixels.

    Returns:
        The report; a model that is no pyramid has the single part "model".

    Raises:
        ValueError: The model does not take such an image.
    """
    backbone = find_backbone(model)
    counter = OperationCounter()
    state = _meta_state(model)
    kept = _KeptForBackward(counter, state)
    image = torch.empty(1, 3, *image_size, device="meta", dtype=_dtype(model))
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(naming_parts(model, backbone, counter))
        stack.enter_context(counting_sampling(model, counter))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack))
        stack.enter_context(counter)
        torch.func.functional_call(model, state, (image,))
    params = _params(model, backbone)
    names = list(params) + [name for name in counter.macs if name not in params]
    parts = {
        name: PartCost(counter.macs[name], params.get(name, 0), counter.elementwise[name], kept.bytes[name])
        for name in names
    }
    return CostReport(parts, image_size, "total")


def find_backbone(model: nn.Module) -> PIIPBackbone | None:
    """Return the pyramid inside one of our models, or None."""
    if isinstance(model, OfficialModel):
        return find_backbone(model.model)
    if isinstance(model, PIIPClassifier | PIIPVisionTower | PIIPDenseModel):
        return model.backbone
    return model if isinstance(model, PIIPBackbone) else None


def _dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the images that a model takes."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _meta_state(model: nn.Module) -> dict[str, Tensor]:
    """Return stand-ins for all parameters and buffers that hold no memory."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[name] = torch.empty_like(parameter, device="meta").requires_grad_(parameter.is_floating_point())
    for name, buffer in model.named_buffers():
        tensors[name] = torch.empty_like(buffer, device="meta")
    return tensors


class _KeptForBackward:
    """Adds up the bytes that autograd keeps, each tensor once, by part."""

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


def _modules_by_part(model: nn.Module, backbone: PIIPBackbone | None) -> dict[str, list[nn.Module]]:
    """Return the modules of each part, in the order of the forward pass."""
    if backbone is None:
        return {"model": [model]}
    parts: dict[str, list[nn.Module]] = {f"branch {i}": [branch] for i, branch in enumerate(backbone.branches)}
    if len(backbone.branches) > 1:
        parts["interactions"] = list(backbone.interactions)
    if backbone.merge is not None:
        parts["merge"] = [*backbone.stage_merges.values(), backbone.merge]
    if backbone.neck is not None:
        parts["neck"] = [backbone.neck]
    inner = model.model if isinstance(model, OfficialModel) else model
    if isinstance(inner, PIIPClassifier | PIIPVisionTower):
        parts["head"] = [inner.head]
    return parts


def _params(model: nn.Module, backbone: PIIPBackbone | None) -> dict[str, int]:
    return {
        part: sum(p.numel() for module in modules for p in module.parameters())
        for part, modules in _modules_by_part(model, backbone).items()
    }


@contextlib.contextmanager
def naming_parts(model: nn.Module, backbone: PIIPBackbone | None, scope: NamesParts) -> Iterator[None]:
    """Tell a counter or clock which part runs: "branch 0", ..., "interactions", "merge", "neck", "head".

    Branches are not called but asked to `embed`, `run_stage` and `finish`, which no hook sees: these methods are
    wrapped while counting.
    """
    undo: list[Callable[[], Any]] = []
    for part, modules in _modules_by_part(model, backbone).items():
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
