"""Models made fast for inference: the same outputs from packed weights and fused steps."""

from __future__ import annotations

import copy
import ctypes
import platform
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from piip.branches.vit import ViTBranch
from piip.layers.attention import DeformableCrossAttention, sample_around
from piip.layers.interaction import ConvFFN, Injector
from piip.ops import native
from piip.optimize.folding import fold_batch_norms, fold_layer_scales, scaled_linear, token_mlps
from piip.optimize.fused_block import FusedBlock, can_fuse_block, fused_windowed_block
from piip.optimize.fused_levels import fused_levels
from piip.optimize.fused_maps import fused_maps
from piip.optimize.optimized_model import OptimizedModel, compiled
from piip.optimize.packing import PackedConv2d, can_pack, in_place, joins, packed, packed_linear
from piip.structures import Grid


class FusedAttention(nn.Module):
    """Deformable cross-attention with one product for offsets and weights, and the gate folded into the last one.

    Args:
        attention: The layer to stand for.
        gate: Factor of its result, (C,).
        rows: Queries of a batch and source tokens of a batch, for which layouts are chosen.
    """

    def __init__(self, attention: DeformableCrossAttention, gate: Tensor, *, rows: tuple[int, int]) -> None:
        super().__init__()
        queries, sources = rows
        self.num_heads, self.num_points = attention.num_heads, attention.num_points
        self.has_kernel = native.is_available()
        offsets, weights = attention.offsets, attention.weights
        dim = offsets.in_features
        by_axis = offsets.weight.view(-1, 2, dim).transpose(0, 1).flatten(0, 1)  # all x, then all y
        bias_by_axis = offsets.bias.view(-1, 2).t().flatten()
        self.raw = packed_linear(
            torch.cat((by_axis, weights.weight)), torch.cat((bias_by_axis, weights.bias)), rows=queries
        )
        self.value = packed_linear(attention.value.weight, attention.value.bias, rows=sources)
        self.output = packed_linear(*_parameters(scaled_linear(attention.output, gate)), rows=queries)

    def forward(self, query: Tensor, source: Tensor, query_grid: Grid, source_grid: Grid, add: Tensor) -> Tensor:
        """Attend as `DeformableCrossAttention`, times the gate, plus `add` (B, Q, C)."""
        value, raw = self.value(source).unflatten(2, (self.num_heads, -1)), self.raw(query)
        if self.has_kernel:
            sampled = native.sample_raw(value, source_grid, raw, query_grid[1], self.num_points)
            return self.output(sampled, add=add)
        *offsets, logits = raw.unflatten(2, (3, self.num_heads, self.num_points)).unbind(2)
        sampled = sample_around(value, torch.stack(offsets, -1), logits.softmax(-1), query_grid, source_grid)
        return self.output(sampled, add=add)


class FusedFFN(nn.Module):
    """A `ConvFFN` with the gate folded into its last product.

    Args:
        ffn: The network to stand for.
        gate: Factor of its result, (C,).
        input_shape: (B, hidden, H, W) of the inputs of its convolution, for which layouts are chosen.
    """

    def __init__(self, ffn: ConvFFN, gate: Tensor, *, input_shape: Sequence[int]) -> None:
        super().__init__()
        rows = input_shape[0] * input_shape[2] * input_shape[3]
        self.fc1 = packed_linear(ffn.fc1.weight, ffn.fc1.bias, rows=rows)
        self.act = nn.Identity() if joins(ffn.act) else in_place(ffn.act)
        activation = "gelu" if joins(ffn.act) else "none"
        self.conv = PackedConv2d(ffn.conv, input_shape=input_shape, activation=activation)
        self.fc2 = packed_linear(*_parameters(scaled_linear(ffn.fc2, gate)), rows=rows)

    def forward(self, tokens: Tensor, grid: Grid, add: Tensor) -> Tensor:
        """Map tokens (B, N, C) on `grid` as `ConvFFN`, times the gate, plus `add` (B, N, C)."""
        hidden = self.fc1(tokens).transpose(1, 2).unflatten(2, grid)
        hidden = self.act(self.conv(hidden))
        return self.fc2(hidden.flatten(2).transpose(1, 2), add=add)


class FusedInjector(nn.Module):
    """An `Injector` without gates of its own: they are folded into its parts.

    Args:
        injector: The injector to stand for, with deformable attention.
        rows: Queries of a batch and source tokens of a batch, for which layouts are chosen.
        ffn_shape: (B, hidden, H, W) of the inputs of the convolution of its ConvFFN, or None without one.
    """

    def __init__(self, injector: Injector, *, rows: tuple[int, int], ffn_shape: Sequence[int] | None) -> None:
        super().__init__()
        self.query_norm = injector.query_norm
        self.source_norm = injector.source_norm
        assert isinstance(injector.attention, DeformableCrossAttention)
        self.attention = FusedAttention(injector.attention, injector.attention_gate, rows=rows)
        self.ffn = None
        if injector.ffn is not None and ffn_shape is not None:
            self.ffn = FusedFFN(injector.ffn, injector.ffn_gate, input_shape=ffn_shape)
            self.ffn_norm = injector.ffn_norm

    def forward(self, query: Tensor, source: Tensor, query_grid: Grid, source_grid: Grid) -> Tensor:
        """Return the updated query tokens; see `Injector.forward`."""
        query = self.attention(self.query_norm(query), self.source_norm(source), query_grid, source_grid, query)
        return query if self.ffn is None else self.ffn(self.ffn_norm(query), query_grid, query)


MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt in malloc.h
HEAP_BYTES = 2**30


def optimize_for_inference(
    model: nn.Module, example_image: Tensor, *, keep_memory: bool = True, runtime: str = "torch"
) -> Callable[[Tensor], Any]:
    """Return a callable with the outputs of a model, made for speed on the device its weights are on.

    On CPU: weights are laid out once for the processor, factors (layer scales, gates, batch norms) are folded into
    them, ReLUs are part of the product before them, position tables are resized once per size, and deformable attention
    runs from bare layer outputs in one kernel, where a C++ compiler is at hand. Elsewhere the model is compiled by
    `torch.compile` and captured as a graph for each size, or left as it is, with a warning, if that fails. The model
    itself stays as it is; weights that need no other layout are shared with it.

    Args:
        model: Any model of piip, of float32 or bfloat16 weights.
        example_image: Normalised RGB images (B, 3, H, W) like those to come, in the dtype and on the device of the
            model. Layouts are chosen for this size; other sizes work too.
        keep_memory: On CPU under Linux, let this process keep memory that it frees (`mallopt`), for all that it runs
            from now on; else the C library hands large results back to the system after every layer and gets them
            back as pages of zeros, a tenth of the time.
        runtime: "torch", or "onnx" or "openvino" to export the model for the example's size and run it there: on the
            CPU, in float32; see `piip.export.runtime.in_runtime`. Small models gain most.

    Returns:
        A callable from images (B, 3, H, W) to what `model` returns in evaluation mode, without gradients.

    Raises:
        ValueError: An example that the model does not take, or a runtime that is not installed.

    Source: own.
    """
    parameter = next(model.parameters())
    if example_image.dtype != parameter.dtype or example_image.device != parameter.device:
        raise ValueError(
            f"The example image is {example_image.dtype} on {example_image.device}, the model {parameter.dtype} on "
            f"{parameter.device}; move one to the other, for example model.to(image.device, image.dtype)."
        )
    fast = _shared_copy(model).eval()
    if runtime != "torch":
        return _exported(fast, example_image, runtime)
    if parameter.device.type != "cpu":
        return compiled(fast, example_image)
    if keep_memory:
        _keep_freed_memory()
    fold_layer_scales(fast)
    fold_batch_norms(fast)
    _overwrite_activations(fast)
    shapes = _input_shapes(fast, example_image)
    for module in fast.modules():
        if isinstance(module, ViTBranch):
            module.cached_positions = {}
            module.windowed_block = fused_windowed_block
    with torch.no_grad():
        _replace(fast, lambda layer: _fused_injector(layer, shapes) or _fused_block(layer, shapes))
        _replace(fast, lambda layer: fused_levels(layer, shapes) or fused_maps(layer, shapes))
        _pack_with_relus(fast, shapes)
        _replace(fast, lambda layer: packed(layer, shapes[layer][0]) if layer in shapes else None)
    return OptimizedModel(fast)


def _exported(model: nn.Module, example_image: Tensor, runtime: str) -> OptimizedModel:
    """Export a model for the size of the example, and run it once."""
    from piip.export.runtime import in_runtime

    fast = OptimizedModel(in_runtime(model, runtime))  # type: ignore[arg-type]  # of any other module it says so
    fast(example_image)
    return fast


def _keep_freed_memory() -> None:
    """Let the GNU C library take all memory from its heap and keep what is freed there; no-op with other libraries."""
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for parameter in (MMAP_THRESHOLD, TRIM_THRESHOLD):
        library.mallopt(parameter, HEAP_BYTES)


def _shared_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the modules that shares the values of parameters and buffers."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo.update({id(buffer): buffer.detach() for buffer in model.buffers()})
    return copy.deepcopy(model, memo)


def _input_shapes(model: nn.Module, image: Tensor) -> dict[nn.Module, list[tuple[int, ...]]]:
    """Run the model once and return the shapes of the tensors that each module was called with, the last time."""
    shapes: dict[nn.Module, list[tuple[int, ...]]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if tensors := [tuple(item.shape) for item in inputs if isinstance(item, Tensor)]:
            shapes[module] = tensors

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return shapes


def _fused_injector(layer: nn.Module, shapes: dict[nn.Module, list[tuple[int, ...]]]) -> nn.Module | None:
    if not isinstance(layer, Injector) or layer not in shapes or not can_pack(layer.attention_gate):
        return None
    if not isinstance(layer.attention, DeformableCrossAttention):
        return None
    queries, sources = (shape[0] * shape[1] for shape in shapes[layer])
    ffn_shape = None if layer.ffn is None else shapes[layer.ffn.conv][0]
    return FusedInjector(layer, rows=(queries, sources), ffn_shape=ffn_shape)


def _fused_block(layer: nn.Module, shapes: dict[nn.Module, list[tuple[int, ...]]]) -> nn.Module | None:
    if not can_fuse_block(layer) or layer.mlp not in shapes:  # blocks in padded windows are not called themselves
        return None
    batch, tokens, _ = shapes[layer.mlp][0]
    return FusedBlock(layer, rows=batch * tokens)


def _replace(module: nn.Module, substitute: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace modules inside `module` by their substitutes, in place; what is replaced is not looked into."""
    for name, child in list(module.named_children()):
        new = substitute(child)
        if new is None:
            _replace(child, substitute)
        else:
            setattr(module, name, new)


def _pack_with_relus(model: nn.Module, shapes: dict[nn.Module, list[tuple[int, ...]]]) -> None:
    """Pack linear layers and convolutions together with the ReLUs after them in sequences, in place."""
    for sequence in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        steps = [index for index, step in enumerate(sequence) if type(step) is not nn.Identity]
        for first, second in pairwise(steps):
            layer = sequence[first]
            if layer in shapes and type(layer) in (nn.Linear, nn.Conv2d) and type(sequence[second]) is nn.ReLU:
                made = packed(layer, shapes[layer][0], activation="relu")
                if made is not None:
                    sequence[first], sequence[second] = made, nn.Identity()


def _overwrite_activations(model: nn.Module) -> None:
    """Let activations overwrite what the layer before them made, where nothing else reads it, in place."""
    for mlp in token_mlps(model):
        mlp.act = in_place(mlp.act)
    for sequence in model.modules():
        if isinstance(sequence, nn.Sequential):
            for index, (layer, following) in enumerate(pairwise(sequence), start=1):
                if type(layer) in (nn.Conv2d, nn.ConvTranspose2d, nn.GroupNorm, nn.BatchNorm2d, nn.Linear):
                    sequence[index] = in_place(following)


def _parameters(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return layer.weight, layer.bias
