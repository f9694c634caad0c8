"""From a model to an exported program: which sides of its images are free, and the images it is traced with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from piip.export.comparison import check_pictures
from piip.export.wrappers import ExportTarget, PixelClasses
from piip.ops.positions import channel_values
from piip.serialization.base import DescribedModel

CHECKED = 2  # pictures of every size
LARGEST_SIDE = 16_384  # pixels, where the size is free
HEIGHT = 2  # place of the height in (B, 3, H, W)


def free_sides(
    target: ExportTarget, file_format: str, size: Sequence[int], *, batch: bool, any_size: bool, is_checked: bool
) -> dict[int, str]:
    """Return place and name of the sides of (B, 3, H, W) that are not fixed.

    Args:
        target: What is exported.
        file_format: "torch", "onnx" or "openvino".
        size: (H, W) in pixels that was asked for.
        batch: Whether any number of images is wanted.
        any_size: Whether any size is wanted.
        is_checked: Whether the file will be compared with PyTorch.

    Raises:
        ValueError: The target or the format does not have that.
    """
    if target.takes_one_image and (batch or any_size):
        raise ValueError(
            "Mask R-CNN is exported for one image of a fixed size: leave dynamic_batch and dynamic_size out "
            "(features_only exports its backbone and neck with both)."
        )
    if any_size and isinstance(target, PixelClasses):
        raise ValueError(
            "Segmentors are exported for a fixed size, the ONNX exporter fixes the windows of their pooling: leave "
            "dynamic_size out (features_only exports the backbone and neck with it)."
        )
    if any_size and file_format == "torch":
        raise ValueError(
            "The format torch has fixed sizes, PyTorch cannot save how free ones are rounded to whole patches: leave "
            "dynamic_size out, or choose the format onnx."
        )
    if any_size and not is_checked:
        raise ValueError("dynamic_size needs the check: some runtimes compute something else at other sizes.")
    if any_size and (any(side % target.stride for side in size) or min(size) < target.least_side):
        raise ValueError(
            f"image_size is {tuple(size)}, expected multiples of {target.stride} from {target.least_side} pixels on, "
            "as for all images where the size is dynamic."
        )
    return {**({0: "batch"} if batch else {}), **({HEIGHT: "height", HEIGHT + 1: "width"} if any_size else {})}


def example_batches(
    model: DescribedModel, target: ExportTarget, size: Sequence[int], free: Mapping[int, str]
) -> list[Tensor]:
    """Return normalised images to compare with; the last ones are those to trace with.

    Where the size is free, there is another one than the given: at the nominal size position tables are not resized.

    Args:
        model: Whose mean and std.
        target: What is exported of it.
        size: (H, W) in pixels.
        free: From `free_sides`.

    Returns:
        Batches (B, 3, H, W), of one image each unless their number is free.
    """
    sizes = [(size[0], size[1])]
    if HEIGHT in free:
        longer = [factor * side / target.stride for factor, side in zip((1.5, 2), size, strict=True)]
        sizes.append((math.ceil(longer[0]) * target.stride, math.ceil(longer[1]) * target.stride))
    mean, std = (channel_values(tuple(model.pretrained_cfg[name]), torch.device("cpu")) for name in ("mean", "std"))
    images = [(check_pictures(CHECKED, each) - mean) / std for each in sizes]
    return images if 0 in free else [one for several in images for one in several.split(1)]


@torch.no_grad()
def trace(target: ExportTarget, images: Tensor, free: Mapping[int, str]) -> ExportedProgram:
    """Return the exported program of a target.

    Args:
        target: What is exported.
        images: (B, 3, H, W); two or more where their number is free.
        free: From `free_sides`.
    """
    limits = {"min": target.least_side, "max": LARGEST_SIDE}
    sides = {place: Dim(name, **limits) if place >= HEIGHT else Dim(name) for place, name in free.items()}
    # sizes are rounded to whole patches: what cannot be proven for every size is checked when the program runs
    return torch.export.export(
        target, (images,), dynamic_shapes=(sides,), prefer_deferred_runtime_asserts_over_guards=HEIGHT in free
    )
