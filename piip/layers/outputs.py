"""Wrappers of models as one graph with named outputs, for other runtimes.

Models do not depend on export; these wrappers are applied to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Output:
    """One output of an exported model.

    Args:
        name: Name in the file.
        meaning: Description, with shape and units.
    """

    name: str
    meaning: str


class ExportWrapper(nn.Module, ABC):
    """A model for export: `forward` takes normalised RGB images (B, 3, H, W) and returns a tuple of tensors.

    Args:
        stride: Dynamic sizes are multiples of this, in pixels.
        min_side: Minimum side of dynamic sizes, in pixels.

    Attributes:
        outputs: Outputs of `forward`, in order.
        fixed_batch: Why the batch is always one image of a fixed size, or None.
        fixed_size: Why the size is always fixed, or None.
        min_torch: Minimum version of PyTorch for export.
    """

    outputs: tuple[Output, ...]
    fixed_batch: str | None = None
    fixed_size: str | None = None
    min_torch: tuple[int, int] = (2, 6)

    def __init__(self, *, stride: int, min_side: int) -> None:
        super().__init__()
        self.stride = stride
        self.min_side = min_side

    @abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of images (B, 3, H, W)."""

    def in_order_of(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
        """Return outputs of a runtime in the order of other outputs for the same images.

        Args:
            expected: Outputs in the order to take.
            found: Outputs in any order.
        """
        return list(found)


class NamedOutputs(ExportWrapper):
    """A model that returns one tensor or a list of tensors.

    Args:
        model: Images (B, 3, H, W) -> a tensor or a list of tensors.
        outputs: Its outputs, in order.
        stride: See `ExportWrapper`.
        min_side: See `ExportWrapper`.
    """

    def __init__(self, model: nn.Module, outputs: Sequence[Output], *, stride: int, min_side: int) -> None:
        super().__init__(stride=stride, min_side=min_side)
        self.model = model
        self.outputs = tuple(outputs)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the model's tensors for images (B, 3, H, W)."""
        result = self.model(image)
        return (result,) if isinstance(result, Tensor) else tuple(result)
