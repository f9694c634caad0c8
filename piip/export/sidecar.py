"""The JSON description of an exported file, for programs that use it without this library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from piip import __version__
from piip.export.comparison import Difference
from piip.export.formats import INPUT
from piip.layers.outputs import ExportWrapper
from piip.serialization.base import PyramidModel

# fields of training's image preparation that resize and crop
PREPARATION = {
    "transform": ("input_size", "interpolation", "crop_pct", "crop_mode"),
    "dense": ("short_side", "long_side", "pad_divisor", "resize", "slide_crop", "slide_stride"),
}


def describe(
    model: PyramidModel,
    target: ExportWrapper,
    outputs: Sequence[Tensor],
    *,
    input_shape: Sequence[int | str],
    has_random_weights: bool,
    differences: Sequence[Difference],
) -> dict[str, Any]:
    """Return the contents of the JSON file, except file names and format.

    Args:
        model: The model.
        target: The exported part.
        outputs: Example outputs.
        input_shape: Shape of the images: numbers for fixed sizes, names for dynamic ones.
        has_random_weights: Whether the model has random weights.
        differences: Differences from the model in PyTorch; empty if not compared.
    """
    return {
        "library": "piip",
        "version": __version__,
        "random_weights": has_random_weights,
        "input": {
            "name": INPUT,
            "shape": list(input_shape),
            "dtype": "float32",
            "meaning": "RGB in [0, 1], minus mean, over std",
            "mean": list(model.pretrained_cfg["mean"]),
            "std": list(model.pretrained_cfg["std"]),
        },
        "outputs": [
            {"name": output.name, "dtype": str(values.dtype).removeprefix("torch."), "meaning": output.meaning}
            for output, values in zip(target.outputs, outputs, strict=True)
        ],
        "classes": model.metadata.get("classes"),
        "preparation": _preparation(model.metadata),
        "differences": [difference.to_dict() for difference in differences],
    }


def _preparation(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resizing and cropping of images, if saved by training."""
    return {
        name: metadata[section].get(name)
        for section, names in PREPARATION.items()
        if section in metadata
        for name in names
    }
