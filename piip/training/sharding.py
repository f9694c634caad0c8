"""Weights, gradients and optimiser states spread over processes (FSDP2), for models that do not fit into one device."""

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

from piip.serialization.load import build_described, load_weights
from piip.serialization.weights import open_weights

LEAST_PARAMETERS = 100_000  # of a layer that is gathered by itself; smaller ones are gathered together
OTHER_FORWARDS = ("predict", "segment")  # of dense models, called instead of forward


def load_sharded(directory: str | Path, mesh: DeviceMesh, *, dtype: str = "f32") -> nn.Module:
    """Load a saved model spread over the processes of a mesh, in evaluation mode.

    No process holds the whole model: it is built without values and spread, then every process reads its rows of every
    tensor from the files. Only models with buffers that no file holds (rotary tables) are built with values first.

    Args:
        directory: Written by `save_pretrained`, `piip train` or `piip convert`; the same files for every process.
        mesh: One dimension of processes.
        dtype: "f32" or "bf16", whatever the files hold.

    Returns:
        The model; `shard` says how it is spread.

    Raises:
        ValueError: A file is missing or damaged, the description cannot be read, or keys or shapes differ.
    """
    model = build_described(directory, dtype=dtype)
    _spread(model, mesh)
    load_weights(model, open_weights(Path(directory)), source=str(directory), device=mesh.device_type, dtype=dtype)
    _average_scalars(model, mesh)
    return model.to(mesh.device_type).eval()


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Spread a model's parameters over the processes of a mesh, in place.

    Large linear layers and convolutions are units of their own, gathered when they run and let go afterwards; whole
    blocks cannot be, because windows run parts of a block. The rest stays gathered for a forward and backward pass:
    small layers, and those whose weights are read from outside (output layers of `nn.MultiheadAttention`, joint
    products whose bias pads windows). Scalars (gates, weights of the merge) cannot be spread: every process has them,
    and their gradients are averaged. On GPUs BatchNorm is synchronised.

    Args:
        model: The model, the same on every process.
        mesh: One dimension of processes.
    """
    _spread(model, mesh)
    _average_scalars(model, mesh)


def _spread(model: nn.Module, mesh: DeviceMesh) -> None:
    """Spread what is no scalar; on the meta device too."""
    model.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other yet
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
    """Average the gradients of parameters that every process has; these stay the same objects from now on."""
    for parameter in model.parameters():
        if parameter.ndim == 0:
            parameter.register_post_accumulate_grad_hook(functools.partial(_average_gradient, group=mesh.get_group()))


def _is_read(name: str, layer: nn.Linear | nn.Conv2d) -> bool:
    """Tell whether a layer's weights are read from outside instead of calling it."""
    joint = name.rpartition(".")[2] == "qkv" and layer.bias is not None
    return joint or isinstance(layer, NonDynamicallyQuantizableLinear)


def _average_gradient(parameter: Tensor, *, group: dist.ProcessGroup) -> None:
    """Average what was added by this backward pass; what was there before is the same on all processes."""
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad, group=group)
    parameter.grad /= group.size()


def is_sharded(model: nn.Module) -> bool:
    """Tell whether `shard` was applied to a model."""
    return isinstance(model, FSDPModule)


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state dict with whole tensors; of a sharded model on process 0 only, called by all of them."""
    if not is_sharded(model):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)  # type: ignore[return-value]


def gradient_norm(model: nn.Module) -> Tensor:
    """Return the norm of all gradients of a model, sharded or not."""
    norms = [nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for part in _alike(model)]
    return torch.linalg.vector_norm(torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]))


def clip_gradients(model: nn.Module, most: float) -> None:
    """Scale all gradients of a model so that their norm is at most a value."""
    norm = gradient_norm(model)
    for part in _alike(model):
        nn.utils.clip_grads_with_norm_(part, most, norm)


def _alike(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters with gradients, those that are spread apart from the others."""
    parts: dict[bool, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.grad is not None:
            parts.setdefault(isinstance(parameter.grad, DTensor), []).append(parameter)
    return list(parts.values())
