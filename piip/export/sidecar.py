"""What stands beside an exported file: all that a program needs to use it without this library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from piip import __version__
from piip.export.comparison import Difference
from piip.export.formats import INPUT
from piip.export.wrappers import ExportTarget
from piip.serialization.base import DescribedModel

# how pictures are made to fit, of the descriptions that training writes
PREPARATION = {
    "transform": ("input_size", "interpolation", "crop_pct", "crop_mode"),
    "dense": ("short_side", "long_side", "pad_divisor", "resize", "slide_crop", "slide_stride"),
}


def describe(
    model: DescribedModel,
    target: ExportTarget,
    outputs: Sequence[Tensor],
    *,
    input_shape: Sequence[int | str],
    has_random_weights: bool,
    differences: Sequence[Difference],
) -> dict[str, Any]:
    """Return the contents of the JSON file, but for the names of the files and their format.

    Args:
        model: The model.
        target: What is exported of it.
        outputs: What it returns for some images.
        input_shape: Of the images: numbers where fixed, names where free.
        has_random_weights: Whether nobody has trained the model.
        differences: From the model in PyTorch; none where they were not looked at.
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
    """Return how pictures are resized and cut, as far as training wrote it down."""
    return {
        name: metadata[section].get(name)
        for section, names in PREPARATION.items()
        if section in metadata
        for name in names
    }
