"""Models on disk: one directory with weights and `config.json` (Hugging Face layout)."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from piip.config import ModelConfig
from piip.serialization.meta_device import without_values
from piip.serialization.mismatch import explain_mismatch
from piip.serialization.weights import (
    MAX_SHARD_BYTES,
    WEIGHTS_NAME,
    Progress,
    StoredTensor,
    TensorFacts,
    open_weights,
    weight_files,
    write_weights,
)

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
BACKBONE = "backbone."  # before the names of a whole model's backbone
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def save_model(
    model: nn.Module,
    directory: str | Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    dtype: str = "f32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights and description so that `load_model` rebuilds the model without the zoo or the network's weights.

    Args:
        model: With `config` (a `ModelConfig`) and `pretrained_cfg` (mean, std, input_size).
        directory: Made where missing; files of the same names are replaced whole, never half.
        metadata: Further JSON values of config.json: "classes", "transform", "recipe", "metrics", "steps".
        dtype: "f32" or "bf16" for floating-point weights.
        max_shard_bytes: Above this the weights go into several files with an index.
        state: The weights, where the model holds only a part of them; None takes the model's.

    Raises:
        ValueError: An unknown dtype, or a file where the directory should be.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}.")
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file, expected a directory to write the model into: choose another name.")
    directory.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if state is None else state
    facts = {name: TensorFacts(tuple(value.shape), stored_dtype(value.dtype, dtype)) for name, value in state.items()}
    tensors = ((name, value.detach().to(facts[name].dtype)) for name, value in state.items())
    write_weights(directory, facts, tensors, max_shard_bytes=max_shard_bytes)
    given: Any = model
    write_description(directory, given.config, given.pretrained_cfg, metadata)


def stored_dtype(given: torch.dtype, dtype: str) -> torch.dtype:
    """Return the number format in which a tensor is stored; integers stay what they are.

    Args:
        given: The tensor's own.
        dtype: "f32", "bf16", or "keep".
    """
    return DTYPES[dtype] if given.is_floating_point and dtype != "keep" else given


def write_description(
    directory: Path, config: ModelConfig, input_facts: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write config.json, whole or not at all.

    Args:
        directory: An existing directory.
        config: What the model is built from.
        input_facts: "mean", "std" and "input_size" of the images.
        metadata: Further JSON values.
    """
    facts = {name: list(input_facts[name]) for name in ("mean", "std", "input_size")}
    description = {"library": "piip", "model": config.to_dict(), "input": facts, **(metadata or {})}
    temporary = directory / (CONFIG_NAME + ".part")
    temporary.write_text(json.dumps(description, indent=2, default=list) + "\n", encoding="utf-8")
    os.replace(temporary, directory / CONFIG_NAME)


def load_model(directory: str | Path, *, device: str = "cpu", dtype: str = "f32") -> nn.Module:
    """Rebuild a saved model in evaluation mode; its weights are in memory once, however many files hold them.

    Args:
        directory: Written by `save_model` or `piip convert`.
        device: Where to put it.
        dtype: "f32" or "bf16", whatever the file holds.

    Raises:
        ValueError: A file is missing or damaged, the description cannot be read, or keys or shapes differ.
    """
    model = build_described(directory, dtype=dtype)
    load_weights(model, open_weights(Path(directory)), source=str(directory), device=device, dtype=dtype)
    return model.to(device=device).eval()


def build_described(directory: str | Path, *, dtype: str = "f32") -> nn.Module:
    """Build the model of a saved one's description: on the meta device, unless it has buffers that no file holds.

    Args:
        directory: Written by `save_model` or `piip convert`.
        dtype: "f32" or "bf16".

    Raises:
        ValueError: An unknown dtype, or a description that is missing or cannot be read.
    """
    from piip.build import build_model

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}.")
    description = read_description(directory)
    config = ModelConfig.from_dict(description["model"])
    branches = tuple(dataclasses.replace(branch, pretrained=False) for branch in config.branches)
    config = dataclasses.replace(config, branches=branches)
    with without_values():
        model = build_model(config)
    if _has_computed_buffers(model):
        model = build_model(config)
    model.metadata = {name: value for name, value in description.items() if name not in ("library", "model", "input")}
    return model.to(DTYPES[dtype])


def start_from(model: nn.Module, directory: str | Path) -> list[str]:
    """Give a model the weights of a saved one: the whole backbone, and what fits of the head.

    Args:
        model: The model to fill, in place.
        directory: Written by `save_model` or `piip convert`.

    Returns:
        Names of the model's tensors that keep their start.

    Raises:
        ValueError: The directory is no saved model, or its backbone is another one.
    """
    read_description(directory)
    stored = open_weights(Path(directory))
    if not any(name.startswith(BACKBONE) for name in stored):  # a backbone saved alone
        stored = {BACKBONE + name: tensor for name, tensor in stored.items()}
    state = model.state_dict()
    wanted = {name: tuple(value.shape) for name, value in state.items() if name.startswith(BACKBONE)}
    given = {name: tensor.facts.shape for name, tensor in stored.items() if name.startswith(BACKBONE)}
    problem = explain_mismatch(wanted, given, source=str(directory))
    if problem:
        raise ValueError(problem)
    new = [name for name, value in state.items() if name not in stored or stored[name].facts.shape != value.shape]
    for name in state.keys() - set(new):
        state[name].copy_(stored[name].read())
    if new:
        logger.info("%d tensors of the head start new: %s does not have them in this shape.", len(new), directory)
    return new


def _has_computed_buffers(model: nn.Module) -> bool:
    """Tell whether a model has buffers that no file holds, such as rotary tables: they must be built with values."""
    return not {name for name, _ in model.named_buffers()} <= {*model.state_dict()}


def read_description(directory: str | Path) -> dict[str, Any]:
    """Return the contents of config.json: "model", "input" and the metadata given to `save_model`.

    Raises:
        ValueError: The directory is no saved model.
    """
    directory = Path(directory)
    if directory.is_file():
        raise ValueError(
            f"{directory} is a file, expected a model directory; `piip convert` makes one of published weights."
        )
    missing = [] if (directory / CONFIG_NAME).is_file() else [CONFIG_NAME]
    missing += [] if weight_files(directory) else [WEIGHTS_NAME]
    if missing:
        inside = [name for name in ("best", "model") if (directory / name / CONFIG_NAME).is_file()]
        hint = f" Models are in {' and '.join(str(directory / name) for name in inside)}." if inside else ""
        raise ValueError(
            f"{directory} has no {' and no '.join(missing)}, expected a model directory such as RUN/model "
            f"written by `piip train`, or one of `piip convert`.{hint}"
        )
    try:
        description = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{directory / CONFIG_NAME} is not JSON: {error}.") from error
    if not isinstance(description, dict) or "model" not in description:
        raise ValueError(f"{directory / CONFIG_NAME} has no 'model' field, expected a file written by piip.")
    return description


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

    Of a model whose parameters are spread over processes each takes its own rows, and reads no others of a file.

    Args:
        model: The model to fill; what it has on the meta device is put on the device.
        stored: One tensor for every entry of the model's state dict.
        source: Named in the message.
        device: Where tensors go that the model has on the meta device.
        dtype: Their floating-point format, "f32" or "bf16".
        progress: Told bytes read and bytes in all.

    Raises:
        ValueError: Missing or unexpected keys or wrong shapes, grouped by branch; nothing is loaded then.
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
    # a copy in the model's memory format: the file may change or go away while the model is in use
    made = torch.empty_like(value, device=device, dtype=stored_dtype(read.dtype, dtype))
    return made.copy_(read)


def _filled_rows(value: DTensor, read: Tensor, device: str, dtype: str) -> DTensor:
    """Do the same for a tensor that is spread over a mesh of one dimension; only this process's part is read."""
    from torch.distributed.tensor import DTensor, Shard  # takes half a second

    (placement,), mesh, held = value.placements, value.device_mesh, value.to_local()
    assert isinstance(placement, Shard)
    length = read.shape[placement.dim]
    start = min(mesh.get_local_rank() * -(-length // mesh.size()), length)
    part = _filled(held, read.narrow(placement.dim, start, held.shape[placement.dim]), device, dtype)
    return DTensor.from_local(part, mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride())
