"""Comparison of an exported file with the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from piip.export.formats import Run
from piip.layers.outputs import ExportWrapper

RELATIVE_LIMIT = 1e-4  # relative L2 difference of numbers, float32
INDEX_LIMIT = 0.001  # fraction of different indices: a pixel between two classes may get either


@dataclass(frozen=True)
class Difference:
    """Difference of a runtime's output from PyTorch's, over all images.

    Args:
        name: The output.
        shape: Its shape for the last image or batch.
        max_abs: Maximum absolute difference.
        relative: Relative L2 difference, norm(found - wanted) / norm(wanted); for indices the fraction that differs.
        limit: Maximum accepted `relative`.
    """

    name: str
    shape: tuple[int, ...]
    max_abs: float
    relative: float
    limit: float

    @property
    def is_small(self) -> bool:
        """Whether the difference is accepted; NaN is not."""
        return self.relative <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as JSON values."""
        return asdict(self)


def example_images(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Return images of coloured discs on a dark background, RGB in [0, 1], with objects to detect.

    Args:
        count: Number of images B.
        size: (H, W) in pixels.
        seed: Random seed.

    Returns:
        Float (B, 3, H, W).
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    y, x = torch.arange(height)[:, None], torch.arange(width)
    images = 0.1 * torch.rand(count, 3, height, width, generator=generator)
    for image in images:
        for _ in range(12):
            row, column, size_share, *colour = torch.rand(6, generator=generator).tolist()
            radius = (0.03 + 0.1 * size_share) * min(size)
            disc = (y - row * height) ** 2 + (x - column * width) ** 2 < radius**2
            image += disc * (0.2 + 0.7 * torch.tensor(colour))[:, None, None]
    return images.clamp(0, 1)


@torch.inference_mode()
def compare(target: ExportWrapper, run: Run, batches: Sequence[Tensor]) -> list[Difference]:
    """Return the difference of each output of a runtime from the model's.

    Args:
        target: The model in PyTorch.
        run: The exported file in its runtime.
        batches: Normalised images, each (B, 3, H, W).
    """
    pairs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in target.outputs]
    for batch in batches:
        wanted = target(batch)
        found = target.in_order_of(wanted, [torch.from_numpy(values) for values in run(batch.numpy())])
        for pair, values in zip(pairs, zip(wanted, found, strict=True), strict=True):
            pair.append(values)
    return [_difference(output.name, pair) for output, pair in zip(target.outputs, pairs, strict=True)]


def _difference(name: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> Difference:
    shape = tuple(pairs[-1][0].shape)
    is_index = not pairs[0][0].is_floating_point()
    limit = INDEX_LIMIT if is_index else RELATIVE_LIMIT
    if any(wanted.shape != found.shape for wanted, found in pairs):
        return Difference(name, shape, float("inf"), float("inf"), limit)
    wanted = torch.cat([wanted.flatten() for wanted, _ in pairs]).double()
    error = torch.cat([found.flatten() for _, found in pairs]).double() - wanted
    largest = float(error.abs().max()) if len(error) else 0.0
    if is_index:
        return Difference(name, shape, largest, float((error != 0).double().sum()) / max(len(error), 1), limit)
    scale = float(wanted.norm())
    relative = float(error.norm()) / scale if scale else largest
    return Difference(name, shape, largest, relative, limit)
