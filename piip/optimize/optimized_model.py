"""What `optimize_for_inference` returns, and its form on accelerators."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class OptimizedModel:
    """A model that can only be called; its weights are laid out for one processor and cannot be saved or trained.

    Args:
        model: The model with packed layers.

    Attributes:
        model: The same, to look at.
    """

    def __init__(self, model: Callable[[Tensor], Any]) -> None:
        self.model = model

    def __call__(self, image: Tensor) -> Any:
        """Return what the model returns for normalised RGB images (B, 3, H, W)."""
        # packed weights have one dtype, which autocast must not mix with another
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            return self.model(image)


def compiled(model: nn.Module, example_image: Tensor) -> OptimizedModel:
    """Compile a model and run it once; if the compiler fails, say why and leave the model as it is.

    Args:
        model: A model in evaluation mode.
        example_image: Images that it takes.
    """
    eager, fast = OptimizedModel(model), OptimizedModel(torch.compile(model, mode="reduce-overhead"))
    try:
        fast(example_image)
    except Exception as error:  # no Triton, no C compiler, an unknown processor: each fails with an error of its own
        eager(example_image)  # raises what is wrong with the example
        reason = (str(error).strip().splitlines() or [""])[0]
        logger.warning(
            "torch.compile failed (%s: %s). The model runs uncompiled, with the same results.",
            type(error).__name__,
            reason,
        )
        return eager
    return fast
