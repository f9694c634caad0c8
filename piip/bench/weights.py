"""Models with random weights, made directly in their dtype: no tensor exists twice."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from piip.config import ModelConfig
from piip.serialization.base import PyramidModel
from piip.serialization.load import build_empty, load_weights
from piip.serialization.save import DTYPES
from piip.serialization.weights import Progress, StoredTensor, TensorFacts


def build_random(
    config: ModelConfig, *, device: str = "cpu", dtype: str = "f32", progress: Progress | None = None
) -> PyramidModel:
    """Build a model with random weights in evaluation mode.

    Args:
        config: Description of the model.
        device: Device of the model.
        dtype: "f32" or "bf16".
        progress: Called with bytes made and total bytes.
    """
    model = build_empty(config).to(DTYPES[dtype])
    stored = random_weights(model.state_dict(), DTYPES[dtype])
    load_weights(model, stored, source="random weights", device=device, dtype=dtype, progress=progress)
    return model.to(device=device).eval()


def random_weights(shapes: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, StoredTensor]:
    """Return the entries of a state dict, each made when it is read.

    Args:
        shapes: The state dict of a model, of any device.
        dtype: Of floating-point entries.
    """
    facts = {
        name: TensorFacts(tuple(value.shape), dtype if value.is_floating_point() else value.dtype)
        for name, value in shapes.items()
    }
    return {name: StoredTensor(fact, functools.partial(_random, name, fact)) for name, fact in facts.items()}


def _random(name: str, facts: TensorFacts) -> Tensor:
    """Return weights that keep the size of what they multiply: uniform matrices, zero biases, ones otherwise."""
    tensor = torch.empty(facts.shape, dtype=facts.dtype)
    if len(facts.shape) < 2 or not facts.dtype.is_floating_point:
        return tensor.fill_(0 if name.endswith("bias") or not facts.dtype.is_floating_point else 1)
    bound = math.sqrt(3 / math.prod(facts.shape[1:]))
    return tensor.uniform_(-bound, bound)
