"""Tracing a model to an exported program: dynamic dimensions of its images, and example images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from piip.export.comparison import example_images
from piip.export.formats import Format
from piip.layers.outputs import ExportWrapper
from piip.ops.positions import channel_values
from piip.serialization.base import PyramidModel

CHECKED = 2  # images of every size
LARGEST_SIDE = 16_384  # pixels, if the size is dynamic
MAX_IMAGES = 2**31  # PyTorch 2.6 does not terminate without a limit
HEIGHT = 2  # dimension of the height in (B, 3, H, W)


def free_sides(
    target: ExportWrapper, written: Format, size: Sequence[int], *, batch: bool, any_size: bool, is_checked: bool
) -> dict[int, str]:
    """Return index and name of the dynamic dimensions of (B, 3, H, W).

    Args:
        target: The exported part.
        written: The format of the file.
        size: Requested (H, W) in pixels.
        batch: Whether the batch size is dynamic.
        any_size: Whether the image size is dynamic.
        is_checked: Whether the file will be compared with PyTorch.

    Raises:
        ValueError: The target or the format does not support it.
    """
    if target.fixed_batch and (batch or any_size):
        raise ValueError(
            f"{target.fixed_batch}: remove dynamic_batch and dynamic_size "
            "(features_only exports its backbone and neck with both)."
        )
    if target.fixed_size and any_size:
        raise ValueError(
            f"{target.fixed_size}: remove dynamic_size (features_only exports the backbone and neck with it)."
        )
    if written.fixed_size and any_size:
        raise ValueError(f"{written.fixed_size}: remove dynamic_size, or choose the format onnx.")
    if any_size and not is_checked:
        raise ValueError("dynamic_size needs the check, because some runtimes give different results at other sizes.")
    if any_size and (any(side % target.stride for side in size) or min(size) < target.min_side):
        raise ValueError(
            f"image_size is {tuple(size)}, expected multiples of {target.stride} of at least {target.min_side} pixels, "
            "as for all images of dynamic size."
        )
    return {**({0: "batch"} if batch else {}), **({HEIGHT: "height", HEIGHT + 1: "width"} if any_size else {})}


def example_batches(
    model: PyramidModel, target: ExportWrapper, size: Sequence[int], free: Mapping[int, str]
) -> list[Tensor]:
    """Return normalised images for the comparison; the last batch is also used for tracing.

    With dynamic size, a second size is added, because position tables are not resized at the nominal size.

    Args:
        model: The model, for mean and std.
        target: The exported part.
        size: (H, W) in pixels.
        free: From `free_sides`.

    Returns:
        Batches (B, 3, H, W), of one image each unless the batch size is dynamic.
    """
    sizes = [(size[0], size[1])]
    if HEIGHT in free:
        longer = [factor * side / target.stride for factor, side in zip((1.5, 2), size, strict=True)]
        sizes.append((math.ceil(longer[0]) * target.stride, math.ceil(longer[1]) * target.stride))
    mean, std = (channel_values(tuple(model.pretrained_cfg[name]), torch.device("cpu")) for name in ("mean", "std"))
    images = [(example_images(CHECKED, each) - mean) / std for each in sizes]
    return images if 0 in free else [one for several in images for one in several.split(1)]


@torch.no_grad()
def trace(target: ExportWrapper, images: Tensor, free: Mapping[int, str]) -> ExportedProgram:
    """Return the exported program of a target.

    Args:
        target: The exported part.
        images: (B, 3, H, W); two or more if the batch size is dynamic.
        free: From `free_sides`.
    """
    sides = {
        axis: Dim(name, min=target.min_side, max=LARGEST_SIDE) if axis >= HEIGHT else Dim(name, max=MAX_IMAGES)
        for axis, name in free.items()
    }
    # sizes are rounded to whole patches; conditions that cannot be proven for all sizes are checked at run time
    asserts: dict[str, Any] = {"prefer_deferred_runtime_asserts_over_guards": True} if HEIGHT in free else {}
    # PyTorch 2.6 would trace with torch.compile's tracer
    return torch.export.export(target, (images,), dynamic_shapes=(sides,), strict=False, **asserts)
