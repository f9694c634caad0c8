"""Counting what a forward pass runs, on the meta device: no weights, no arithmetic."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ELEMENTWISE = frozenset(
    "native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm "
    "_fused_rms_norm rsqrt gelu relu relu_ silu silu_ sigmoid sigmoid_ tanh hardswish hardswish_ hardsigmoid "
    "hardtanh hardtanh_ _softmax _safe_softmax exp add add_ sub mul mul_ div div_ sin cos "
    "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d mean sum "
    "upsample_bilinear2d upsample_nearest2d upsample_bicubic2d _upsample_bicubic2d_aa".split()
)
OTHER = "other"  # what runs in no part
# Multiply-adds per result element of operations that read a map between its cells: four neighbours per point. RoIAlign
# reads four points per cell (arXiv 1703.06870, section 3), more or fewer where it adapts to the region (docs/cost.md).
NEIGHBOURS = 4
SAMPLING = {"grid_sampler_2d": NEIGHBOURS, "roi_align": 4 * NEIGHBOURS}


class OperationCounter(TorchDispatchMode):
    """Adds up multiply-adds and elementwise operations, by part.

    Counted as multiply-adds: matrix products, convolutions and attention products, by the shapes that run (padded
    tokens included), and bilinear sampling as 4 * points * channels: per query of deformable attention, per cell of
    RoIAlign. Norms, activations, residual additions, pooling and interpolation count one per result element, apart.

    Attributes:
        macs: Multiply-adds by part.
        elementwise: Elementwise results by part.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs: defaultdict[str, int] = defaultdict(int)
        self.elementwise: defaultdict[str, int] = defaultdict(int)
        self._part = OTHER

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside under `name`."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    @property
    def current_part(self) -> str:
        """Name of the part that runs."""
        return self._part

    def note(self, packet: Any, args: tuple[Any, ...]) -> None:
        """Take note of a matrix product or convolution that was counted; for subclasses."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        out = func(*args, **kwargs)
        if packet in flop_registry:
            self.macs[self._part] += flop_registry[packet](*args, **kwargs, out_val=out) // 2
            self.note(packet, args)
        elif packet.__name__ in SAMPLING:
            # without values deformable attention samples by `grid_sample`, whatever its provider is elsewhere
            self.macs[self._part] += SAMPLING[packet.__name__] * out.numel()
        elif packet.__name__ in ELEMENTWISE:
            first = out[0] if isinstance(out, tuple) else out
            self.elementwise[self._part] += first.numel()
        return out


class NamesParts(Protocol):
    """Something that wants to know which part of a model runs."""

    def part(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Return a context inside which the part runs."""


class Countable(NamedTuple):
    """A model as it is counted.

    Attributes:
        module: The model.
        parts: Modules by part, in the order of the forward pass; parts may contain parts that were named before them.
        dry_run: Runs what costs on an image without values, see `ModelParts.dry_run`.
    """

    module: nn.Module
    parts: Mapping[str, Sequence[nn.Module]]
    dry_run: Callable[[Tensor, NamesParts], str]


class DryRun(nn.Module):
    """A model whose forward pass is its dry run.

    Args:
        model: The model.
        scope: Is told which part runs.

    Attributes:
        assumptions: Result of the dry run, once it ran.
    """

    def __init__(self, model: Countable, scope: NamesParts) -> None:
        super().__init__()
        self.module = model.module
        self.assumptions = ""
        self._run, self._scope = model.dry_run, scope

    def forward(self, image: Tensor) -> None:
        """Run the model on an image (1, 3, H, W)."""
        self.assumptions = self._run(image, self._scope)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every module of it back where it was."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def count_forward(model: nn.Module, image_size: tuple[int, int]) -> int:
    """Return the multiply-adds of one forward pass of a model on the meta device, for one image (3, H, W)."""
    counter = OperationCounter()
    image = torch.empty(1, 3, *image_size, device="meta")
    with torch.no_grad(), evaluating(model), counter:
        model(image)
    return sum(counter.macs.values())
