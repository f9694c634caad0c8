"""Sharding of weights, gradients and optimiser states (FSDP2), for models that do not fit into one device."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from piip.ops.compat import require_torch
from piip.serialization.load import build_saved_model, load_weights
from piip.serialization.weights import open_weights

LEAST_PARAMETERS = 100_000  # minimum of a layer that is gathered separately; smaller ones are gathered together
OTHER_FORWARDS = ("predict", "segment")  # methods of dense models that are called instead of forward


def load_sharded(directory: str | Path, mesh: DeviceMesh, *, dtype: str = "f32") -> nn.Module:
    """Load a saved model sharded over the processes of a mesh, in evaluation mode.

    No process holds the whole model. It is built without allocating weights and sharded; then every process reads its
    rows of every tensor. Only models with buffers that are not saved (rotary tables) are first built with weights.

    Args:
        directory: Written by `save_pretrained`, `piip train` or `piip convert`; the same files for every process.
        mesh: Device mesh with one dimension.
        dtype: "f32" or "bf16", regardless of the files.

    Returns:
        The model, sharded as by `shard`.

    Raises:
        ValueError: A file is missing or damaged, the description is unreadable, or keys or shapes differ.
    """
    model = build_saved_model(directory, dtype=dtype)
    _spread(model, mesh)
    load_weights(model, open_weights(Path(directory)), source=str(directory), device=mesh.device_type, dtype=dtype)
    _average_scalars(model, mesh)
    return model.to(mesh.device_type).eval()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model's parameters over the processes of a mesh, in place.

    Large linear layers and convolutions are separate units, gathered when they run and freed afterwards. Whole blocks
    cannot be units, because windows run parts of a block. The rest stays gathered for a forward and backward pass:
    small layers, and layers whose weights are read directly (output layers of `nn.MultiheadAttention`, qkv layers whose
    bias pads windows). Scalars (gates, weights of the merge) cannot be sharded: they are replicated, and their
    gradients are averaged. On GPUs BatchNorm is synchronised.

    Args:
        model: The model, identical on every process.
        mesh: Device mesh with one dimension.
    """
    _spread(model, mesh)
    _average_scalars(model, mesh)


def _spread(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard all parameters except scalars, on any device including meta."""
    require_torch((2, 7), "Sharding (run.strategy fsdp2)")
    model.to(memory_format=torch.contiguous_format)  # FSDP2 supports no other yet
    if mesh.device_type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear | nn.Conv2d) or _is_read(name, layer):
            continue
        if sum(parameter.numel() for parameter in layer.parameters()) >= LEAST_PARAMETERS:
            fully_shard(layer, mesh=mesh)
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    for name in OTHER_FORWARDS:
        if callable(getattr(model, name, None)):
            register_fsdp_forward_method(model, name)


def _average_scalars(model: nn.Module, mesh: DeviceMesh) -> None:
    """Average the gradients of replicated parameters, which must remain the same objects from now on."""
    for parameter in model.parameters():
        if parameter.ndim == 0 and parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(functools.partial(_average_gradient, group=mesh.get_group()))


def _is_read(name: str, layer: nn.Linear | nn.Conv2d) -> bool:
    """Return whether the weights of a layer are read without calling the layer."""
    joint = name.rpartition(".")[2] == "qkv" and layer.bias is not None
    return joint or isinstance(layer, NonDynamicallyQuantizableLinear)


def _average_gradient(parameter: Tensor, *, group: dist.ProcessGroup) -> None:
    """Average the gradient; parts from earlier backward passes are equal on all processes."""
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad, group=group)
    parameter.grad /= group.size()


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard` was applied to a model."""
    return isinstance(model, FSDPModule)


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict with full tensors; for a sharded model only on process 0, but all processes must call it."""
    if not is_sharded(model):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)  # type: ignore[return-value]


def gradient_norm(model: nn.Module) -> Tensor:
    """Return the norm of all gradients of a model, sharded or not."""
    norms = [nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in _alike(model)]
    return torch.linalg.vector_norm(torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]))


def clip_gradients(model: nn.Module, max_norm: float) -> None:
    """Scale all gradients of a model so that their norm is at most `max_norm`."""
    norm = gradient_norm(model)
    for part in _alike(model):
        nn.utils.clip_grads_with_norm_(part, max_norm, norm)


def _alike(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters with gradients, sharded and replicated ones in separate lists."""
    parts: dict[bool, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.grad is not None:
            parts.setdefault(isinstance(parameter.grad, DTensor), []).append(parameter)
    return list(parts.values())
