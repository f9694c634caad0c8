"""Writing a model directory: weights and `config.json` (Hugging Face layout)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from piip.serialization.description import write_description
from piip.serialization.weights import MAX_SHARD_BYTES, TensorFacts, write_weights

if TYPE_CHECKING:
    from piip.serialization.base import PyramidModel

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def save_model(
    model: PyramidModel,
    directory: str | Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    dtype: str = "f32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights and description so that `load_model` rebuilds the model without the zoo or the network's weights.

    Args:
        model: A model with `config` (a `ModelConfig`) and `pretrained_cfg` (mean, std, input_size).
        directory: Output directory, created if missing; files of the same names are replaced atomically.
        metadata: Additional JSON values of config.json: "classes", "transform", "recipe", "metrics", "steps".
        dtype: "f32" or "bf16" for floating-point weights.
        max_shard_bytes: Maximum size of a weight file before splitting.
        state: The full weights, if the model is sharded; None uses the model's.

    Raises:
        ValueError: The dtype is unknown, the directory is a file, or it cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}.")
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file, expected a directory for the model: choose another name.")
    state = model.state_dict() if state is None else state
    facts = {name: TensorFacts(tuple(value.shape), stored_dtype(value.dtype, dtype)) for name, value in state.items()}
    tensors = ((name, value.detach().to(facts[name].dtype)) for name, value in state.items())
    assert model.config is not None  # `require_config` says so to users
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_weights(directory, facts, tensors, max_shard_bytes=max_shard_bytes)
        write_description(directory, model.config, model.pretrained_cfg, metadata)
    except OSError as error:
        raise ValueError(
            f"The model could not be written to {directory} ({error.strerror or error}); earlier files are intact. "
            "Free disk space or choose another directory."
        ) from error


def stored_dtype(given: torch.dtype, dtype: str) -> torch.dtype:
    """Return the dtype in which a tensor is stored; integers are not changed.

    Args:
        given: The tensor's own.
        dtype: "f32", "bf16", or "keep".
    """
    return DTYPES[dtype] if given.is_floating_point and dtype != "keep" else given
