"""Loading model directories: models are built from `config.json`, and weights are loaded tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from piip.build import build_model
from piip.config import ModelConfig
from piip.device import without_values
from piip.serialization.base import PyramidModel
from piip.serialization.description import CONFIG_NAME, pretrained_branches, read_config, read_description
from piip.serialization.hub import find_model
from piip.serialization.mismatch import explain_mismatch
from piip.serialization.save import DTYPES, stored_dtype
from piip.serialization.weights import Progress, StoredTensor, open_weights
from piip.zoo.published import published_facts

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

SHOWN = 3  # names of tensors in a message
Resize = Callable[[str, StoredTensor, tuple[int, ...]], StoredTensor | None]

BACKBONE = "backbone."  # before the names of a whole model's backbone


def from_pretrained(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "f32",
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> PyramidModel:
    """Load a saved model from a directory or from the Hugging Face hub, in evaluation mode.

    Args:
        path_or_hub_id: A directory written by `save_pretrained`, `piip train` or `piip convert`, or "owner/name".
        revision: Branch, tag or commit of the repository; None is the main branch.
        device: Device of the model.
        dtype: "f32" or "bf16", regardless of the file.
        cache_dir: Folder of downloads; None is the hub's default cache.
        token: Token with read access to a private repository; None uses that of HF_TOKEN or `hf auth login`.
        local_files_only: Use only earlier downloads; HF_HUB_OFFLINE=1 does the same for all calls.

    Returns:
        The model, described by its `config`, `pretrained_cfg` and `metadata`.

    Raises:
        ValueError: The model does not exist, the hub is unreachable, or the directory is not a saved model.

    Example:
        >>> model = from_pretrained("runs/landcover/best")
    """
    directory = find_model(
        path_or_hub_id, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    return load_model(directory, device=device, dtype=dtype)


def load_model(directory: str | Path, *, device: str = "cpu", dtype: str = "f32") -> PyramidModel:
    """Rebuild a saved model in evaluation mode; its weights are in memory only once.

    Args:
        directory: Written by `save_model` or `piip convert`.
        device: Device of the model.
        dtype: "f32" or "bf16", regardless of the file.

    Raises:
        ValueError: A file is missing or damaged, the description is unreadable, or keys or shapes differ.
    """
    model = build_saved_model(directory, dtype=dtype)
    load_weights(model, open_weights(Path(directory)), source=str(directory), device=device, dtype=dtype)
    return model.to(device=device).eval()


def build_saved_model(directory: str | Path, *, dtype: str = "f32") -> PyramidModel:
    """Build a saved model from its description, on the meta device unless it has buffers that are not saved.

    Args:
        directory: Written by `save_model` or `piip convert`.
        dtype: "f32" or "bf16".

    Raises:
        ValueError: The dtype is unknown, or the description is missing or unreadable.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}.")
    description = read_description(directory)
    config = read_config(description, source=str(Path(directory) / CONFIG_NAME))
    branches = tuple(dataclasses.replace(branch, pretrained=False) for branch in config.branches)
    model = build_empty(dataclasses.replace(config, branches=branches))
    model.metadata = {name: value for name, value in description.items() if name not in ("library", "model", "input")}
    if started := pretrained_branches(config, model.metadata):
        model.metadata["pretrained_branches"] = started
    if "converted" in model.metadata and "published" not in model.metadata:  # written by version 0.1
        model.metadata["published"] = published_facts(model.metadata)
    return model.to(DTYPES[dtype])


def build_empty(config: ModelConfig) -> PyramidModel:
    """Build a model whose weights are to be loaded: on the meta device unless it has buffers that are not saved.

    Args:
        config: Description of the model.
    """
    with without_values():
        model = build_model(config)
    return build_model(config) if _has_computed_buffers(model) else model


def start_from(model: nn.Module, directory: str | Path, *, resize: Resize) -> str:
    """Load the weights of a saved model: the whole backbone, and the matching parts of the head.

    Args:
        model: The model, changed in place.
        directory: Written by `save_model` or `piip convert`.
        resize: Name, stored tensor and wanted shape -> the tensor resized, or None: for tables of other image sizes.

    Returns:
        One line: what was resized, and what is newly initialised; empty if all tensors were loaded as they are.

    Raises:
        ValueError: The directory is not a saved model, or its backbone differs.
    """
    read_description(directory)
    stored = open_weights(Path(directory))
    if not any(name.startswith(BACKBONE) for name in stored):  # a backbone saved alone
        stored = {BACKBONE + name: tensor for name, tensor in stored.items()}
    state = model.state_dict()
    wanted = {name: tuple(value.shape) for name, value in state.items() if name.startswith(BACKBONE)}
    resized = {
        name: tensor
        for name, shape in wanted.items()
        if name in stored and stored[name].facts.shape != shape and (tensor := resize(name, stored[name], shape))
    }
    stored |= resized
    given = {name: tensor.facts.shape for name, tensor in stored.items() if name.startswith(BACKBONE)}
    problem = explain_mismatch(wanted, given, source=str(directory))
    if problem:
        raise ValueError(problem)
    new = [name for name, value in state.items() if name not in stored or stored[name].facts.shape != value.shape]
    for name in state.keys() - set(new):
        state[name].copy_(stored[name].read())
    parts = [_told(title, names) for title, names in (("resized", [*resized]), ("newly initialised", new)) if names]
    return f"Started from {directory}: {'; '.join(parts)}." if parts else ""


def _told(title: str, names: list[str]) -> str:
    """Return the number of tensors and some of their names."""
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} tensors {title} ({', '.join(names[:SHOWN])}{more})"


def _has_computed_buffers(model: nn.Module) -> bool:
    """Return whether a model has buffers that are not saved, such as rotary tables, and must be computed."""
    return not {name for name, _ in model.named_buffers()} <= {*model.state_dict()}


def load_weights(
    model: nn.Module,
    stored: Mapping[str, StoredTensor],
    *,
    source: str,
    device: str = "cpu",
    dtype: str = "f32",
    progress: Progress | None = None,
) -> None:
    """Load a complete state dict tensor by tensor, converting its dtype.

    For a sharded model, each process reads only its own rows.

    Args:
        model: The model; tensors on the meta device are created on `device`.
        stored: One tensor for every entry of the model's state dict.
        source: Name of the checkpoint in messages.
        device: Device of tensors that the model has on the meta device.
        dtype: Their floating-point format, "f32" or "bf16".
        progress: Called with bytes read and total bytes.

    Raises:
        ValueError: Keys are missing or unexpected, or shapes differ, grouped by branch; nothing is loaded.
    """
    state = model.state_dict()
    given = {name: tensor.facts.shape for name, tensor in stored.items()}
    problem = explain_mismatch({name: tuple(value.shape) for name, value in state.items()}, given, source=source)
    if problem:
        raise ValueError(problem)
    done, total = 0, sum(tensor.facts.nbytes for tensor in stored.values())
    filled = {}
    for name, value in state.items():
        filled[name] = _filled(value, stored[name].read(), device, dtype)
        done += stored[name].facts.nbytes
        if progress is not None:
            progress(done, total)
    model.load_state_dict(filled, assign=True)


def _filled(value: Tensor, read: Tensor, device: str, dtype: str) -> Tensor:
    """Return one of the model's tensors with what was read: itself, or where it has no values yet a new one."""
    if type(value) is not Tensor:
        return _filled_rows(value, read, device, dtype)  # type: ignore[arg-type]  # spread, the only other kind
    if not value.is_meta:
        return value.copy_(read)
    # a copy in the model's memory format, because the file may change while the model is in use
    made = torch.empty_like(value, device=device, dtype=stored_dtype(read.dtype, dtype))
    return made.copy_(read)


def _filled_rows(value: DTensor, read: Tensor, device: str, dtype: str) -> DTensor:
    """Do the same for a tensor sharded over a mesh of one dimension; only this process's part is read."""
    from torch.distributed.tensor import DTensor, Shard  # takes half a second

    (placement,), mesh, held = value.placements, value.device_mesh, value.to_local()
    assert isinstance(placement, Shard)
    length = read.shape[placement.dim]
    start = min(mesh.get_local_rank() * -(-length // mesh.size()), length)
    part = _filled(held, read.narrow(placement.dim, start, held.shape[placement.dim]), device, dtype)
    return DTensor.from_local(part, mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride())
