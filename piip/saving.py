"""Models on disk: one directory with `model.safetensors` and `config.json` (Hugging Face layout)."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from piip.checkpoints.report import explain_mismatch
from piip.config import ModelConfig

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def save_model(
    model: nn.Module, directory: str | Path, metadata: Mapping[str, Any] | None = None, *, dtype: str = "f32"
) -> None:
    """Write weights and description so that `load_model` rebuilds the model without the zoo or the network's weights.

    Args:
        model: With `config` (a `ModelConfig`) and `pretrained_cfg` (mean, std, input_size).
        directory: Made where missing; files of the same names are replaced whole, never half.
        metadata: Further JSON values of config.json: "classes", "transform", "recipe", "metrics", "steps".
        dtype: "f32" or "bf16" for floating-point weights.

    Raises:
        ValueError: An unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: _stored(value, DTYPES[dtype]) for name, value in model.state_dict().items()}
    temporary = directory / (WEIGHTS_NAME + ".part")
    save_file(state, temporary, metadata={"format": "pt"})
    os.replace(temporary, directory / WEIGHTS_NAME)
    config: Any = model.config
    description = {"library": "piip", "model": config.to_dict(), "input": _input_facts(model), **(metadata or {})}
    temporary = directory / (CONFIG_NAME + ".part")
    temporary.write_text(json.dumps(description, indent=2, default=list) + "\n", encoding="utf-8")
    os.replace(temporary, directory / CONFIG_NAME)


def load_model(directory: str | Path, *, device: str = "cpu", dtype: str = "f32") -> nn.Module:
    """Rebuild a saved model in evaluation mode.

    Args:
        directory: Written by `save_model`.
        device: Where to put it.
        dtype: "f32" or "bf16", whatever the file holds.

    Raises:
        ValueError: A file is missing or damaged, the description cannot be read, or keys or shapes differ.
    """
    from piip.build import build_model

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}.")
    description = read_description(directory)
    config = ModelConfig.from_dict(description["model"])
    branches = tuple(dataclasses.replace(branch, pretrained=False) for branch in config.branches)
    model = build_model(dataclasses.replace(config, branches=branches))
    weights = Path(directory) / WEIGHTS_NAME
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged or no safetensors file ({error}): copy or export it again.") from error
    load_weights(model, state, source=str(directory))
    model.metadata = {name: value for name, value in description.items() if name not in ("library", "model", "input")}
    return model.to(device=device, dtype=DTYPES[dtype]).eval()


def read_description(directory: str | Path) -> dict[str, Any]:
    """Return the contents of config.json: "model", "input" and the metadata given to `save_model`.

    Raises:
        ValueError: The directory is no saved model.
    """
    directory = Path(directory)
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (directory / name).is_file()]
    if missing:
        inside = [name for name in ("best", "model") if (directory / name / CONFIG_NAME).is_file()]
        hint = f" Models are in {' and '.join(str(directory / name) for name in inside)}." if inside else ""
        raise ValueError(
            f"{directory} has no {' and no '.join(missing)}, expected a model directory such as RUN/model "
            f"written by `piip train`.{hint}"
        )
    try:
        description = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{directory / CONFIG_NAME} is not JSON: {error}.") from error
    if not isinstance(description, dict) or "model" not in description:
        raise ValueError(f"{directory / CONFIG_NAME} has no 'model' field, expected a file written by piip.")
    return description


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a complete state dict, converting its dtype.

    Args:
        model: The model to fill.
        state: One tensor for every entry of the model's state dict.
        source: Named in the message.

    Raises:
        ValueError: Missing or unexpected keys or wrong shapes, grouped by branch.
    """
    problem = explain_mismatch(_shapes(model.state_dict()), _shapes(state), source=source)
    if problem:
        raise ValueError(problem)
    model.load_state_dict(state)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().cpu()
    return (value.to(dtype) if value.is_floating_point() else value).contiguous().clone()


def _input_facts(model: nn.Module) -> dict[str, Any]:
    facts: Any = model.pretrained_cfg
    return {name: list(facts[name]) for name in ("mean", "std", "input_size")}
